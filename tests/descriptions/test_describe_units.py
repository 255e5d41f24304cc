"""`describe_units`: labels of a data set, resuming, tuning curves, and names by another model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import featviz
from featviz.descriptions.stimuli import Ground, color, edge, grating, gray_picture, window
from featviz.descriptions.text_names import TextModel
from featviz.descriptions.tuning import ORIENTATIONS, measure_tuning
from featviz.descriptions.tuning_curves import Family
from featviz.descriptions.tuning_result import Tuning
from featviz.errors import UserError
from featviz.models.model import Model


def _tuned(mini: Model, units: list[int]) -> Tuning:
    return measure_tuning(mini, mini.layer("conv1"), units)


def test_tuning_of_conv1_peaks_where_the_kernels_fourier_transform_does(mini: Model) -> None:
    kernels = featviz.kernel_sheet(mini, "conv1").weights.double()  # (N, 3, k, k)
    std = torch.tensor(mini.preprocessing.std).double()
    light = (kernels / std[:, None, None]).sum(1)
    power = light.flatten(1).norm(dim=1)
    units = power.argsort(descending=True)[:12].tolist()
    tuning = _tuned(mini, units)
    orientation, frequency = tuning.families[:2]
    k = light.shape[-1]
    at = torch.arange(k).double() - (k - 1) / 2
    for row, unit in enumerate(units):
        amplitude = {}
        for theta in ORIENTATIONS:
            for f in frequency.at:
                across = math.radians(theta + 90)
                phase = math.cos(across) * at[None] - math.sin(across) * at[:, None]
                wave = torch.polar(torch.ones(k, k).double(), 2 * math.pi * f * phase)
                amplitude[theta, f] = float((light[unit] * wave).sum().abs()) / 2
        theta, f = max(amplitude, key=lambda one: amplitude[one])
        top = max(orientation.curve(row))
        # The best of eight phases reaches cos(22.5 degrees) of the amplitude at least.
        assert 0.92 * amplitude[theta, f] < top < 1.001 * amplitude[theta, f]
        found = ORIENTATIONS[orientation.curve(row).index(top)]
        assert amplitude[found, frequency.at[frequency.curve(row).index(top)]] > (
            0.92 * amplitude[theta, f]
        )


def test_peak_width_and_selectivity_of_known_curves() -> None:
    x = torch.arange(0.0, 180, 15)
    bump = 3 * ((x - 65).deg2rad() * 2).cos().clamp(min=0)
    family = Family("orientation", "degrees", tuple(x.tolist()), bump[None], 180.0)
    peak = family.peak(0)
    assert peak.preferred == pytest.approx(65, abs=1.5)
    assert peak.bandwidth == pytest.approx(60, abs=4)
    flat = Family("size", "pixels", (1.0, 2.0, 3.0), torch.ones(1, 3)).peak(0)
    assert flat.selectivity == 0
    assert flat.bandwidth is None
    silent = Family("size", "pixels", (1.0, 2.0, 3.0), -torch.ones(1, 3)).peak(0)
    assert silent == (None, None, None)


def test_stimuli_are_what_they_are_called() -> None:
    ground = Ground((21, 21), (10.0, 10.0))
    horizontal = grating(ground, 0, 0.1, 0)
    assert torch.allclose(horizontal, horizontal[:, :1].expand(21, 21), atol=1e-5)
    assert float(horizontal[10, 10]) == 1
    assert float(horizontal[5, 0]) == pytest.approx(-1, abs=1e-5)
    rising = grating(ground, 45, 0.1, 0)  # equal along up to the right
    assert float(rising[8, 12]) == pytest.approx(float(rising[12, 8]), abs=1e-5)
    assert float(rising[8, 12]) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(color(0), torch.tensor([1.0, 0.25, 0.25]))
    right = edge(ground, 0, math.inf)
    assert (right[:, 11:] == 1).all()
    assert (right[:, :10] == -1).all()
    disc = edge(ground, 90, 4.0)  # of radius 4, above the center
    assert disc[6, 10] == 1
    assert disc[0, 10] == -1
    assert disc[12, 10] == -1
    area = float(window(ground, 12).sum())
    assert area == pytest.approx(math.pi * 36, rel=0.05)
    assert gray_picture(horizontal).shape == (3, 21, 21)


def test_units_of_the_bundled_model_are_described_and_go_on(mini: Model, tmp_path: Path) -> None:
    pictures = featviz.sample_pictures(8)
    place = tmp_path / "work"
    first = featviz.describe_units(
        mini, pictures, "relu5", units="0-5", permutations=60, checkpoint=place
    )
    assert list(place.glob("rows-*.npz"))
    seen: list[str] = []
    again = featviz.describe_units(
        mini,
        pictures,
        "relu5",
        units="0-5",
        permutations=60,
        checkpoint=place,
        progress=lambda done, total, text: seen.append(f"{done}/{total} {text}"),
    )
    assert seen[0] == "152/152 reading relu5"
    assert first.sentences() == again.sentences()
    assert first.units[0].unit == "relu5:0"
    assert first.tuning is None
    assert first.described
    first.save(tmp_path / "out")
    assert (tmp_path / "out" / "descriptions.svg").is_file()


def test_early_layers_have_tuning_curves_on_their_units_pages(mini: Model, tmp_path: Path) -> None:
    found = featviz.describe_units(
        mini, featviz.sample_pictures(6), "conv1", units="0,3", permutations=60
    )
    assert found.tuning is not None
    found.save(tmp_path / "run" / "describe")
    assert len(found.tuning.to_pandas()) == 2
    assert (tmp_path / "run" / "describe" / "tuning" / "units" / "conv1-3.svg").is_file()


def _towers() -> TextModel:
    """Pictures and words by their mean color."""
    hues = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}
    return TextModel(
        "colors",
        lambda pictures: pictures.mean((2, 3)) + 1e-3,
        lambda texts: torch.tensor([hues[text] for text in texts]),
    )


def test_another_models_words_are_marked_as_its_opinion(generator: torch.Generator) -> None:
    from featviz.descriptions.text_names import name_units

    pictures = torch.rand(90, 3, 1, 1, generator=generator) * 0.3
    tint = torch.arange(90) % 3
    pictures[torch.arange(90), tint] += 0.6
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten(), torch.nn.Linear(256, 2))
    model = featviz.wrap(net, input_size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    data = featviz.as_pictures(pictures.expand(90, 3, 8, 8).contiguous())
    values = torch.stack([(tint == 0).float(), (tint == 2).float(), torch.ones(90)], 1)
    values += torch.tensor([1.0, 1.0, 0.0]) * torch.rand(90, 3, generator=generator) * 0.1
    named = name_units(
        _towers(), ["red", "green", "blue"], data, model, values, ["a:0", "a:1", "a:2"], 99, 0
    )
    assert [(one.unit, one.word) for one in named.names] == [("a:0", "red"), ("a:1", "blue")]
    assert all(one.p == 0.01 for one in named.names)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocabulary": ["red", "blue"]}, "a vocabulary needs a text model"),
        ({"vocabulary": ["red"], "text_model": "x.py:f"}, "the vocabulary has 1 words"),
        ({"vocabulary": ["red", "blue"], "text_model": "clip"}, "give FILE.py:FUNCTION"),
        ({"vocabulary": ["red", "blue"], "text_model": "open_clip/ViT:no"}, "file of weights"),
        ({"vocabulary": "absent.txt", "text_model": "x.py:f"}, "cannot be read as a vocabulary"),
        ({"units": "999"}, "unit 999 is out of range"),
        ({"groups": "absent.tsv"}, "cannot be read as groups"),
    ],
)
def test_mistakes_are_said_in_one_line(mini: Model, options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        featviz.describe_units(mini, featviz.sample_pictures(1), "relu5", **options)  # type: ignore[arg-type]


def test_pictures_without_classes_are_refused(mini: Model) -> None:
    with pytest.raises(UserError, match="has no classes"):
        featviz.describe_units(mini, torch.rand(4, 3, 64, 64), "relu5")


def test_a_text_model_of_a_file_must_return_two_functions(tmp_path: Path, mini: Model) -> None:
    file = tmp_path / "towers.py"
    file.write_text("def one():\n    return 3\n")
    with pytest.raises(UserError, match="must return two functions"):
        featviz.describe_units(
            mini,
            featviz.sample_pictures(1),
            "relu5",
            vocabulary=["a", "b"],
            text_model=f"{file}:one",
        )
