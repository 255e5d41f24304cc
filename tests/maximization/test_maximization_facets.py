"""Facets: a unit with two planted reasons shows both, and the numbers say what was gained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import featviz
from featviz.data.datasets import Pictures
from featviz.maximization import diversity, objectives
from featviz.maximization.facet_examples import crop_example
from featviz.maximization.facets import draw_facets
from featviz.maximization.facets_result import Facets
from featviz.maximization.parametrizations import Pixels
from featviz.maximization.settings import Settings
from featviz.maximization.transforms import Transforms
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

SIDE = 16


def bare(steps: int) -> Settings:
    return Settings(
        steps=steps,
        parametrization=Pixels(SIDE, SIDE),
        transforms=Transforms(),
        roughness_weight=0.0,
        saturation_weight=0.0,
        local_normalization=0.0,
        coarse_to_fine=0.0,
        contrast_weight=1.0,
    )


def stripes(across: bool) -> Tensor:
    """One of the two planted templates, (3, S, S), mean 0."""
    wave = torch.sin(torch.arange(SIDE) * 2 * torch.pi / 8)
    plane = wave[:, None].expand(SIDE, SIDE) if across else wave[None].expand(SIDE, SIDE)
    template: Tensor = plane.expand(3, SIDE, SIDE) / plane.norm()
    return template


class Stronger(nn.Module):
    """The larger of its two halves of channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(*x.chunk(2, 1))


def two_faced(bias: float = 0.3) -> Model:
    """Unit 0 answers to stripes across or down, whichever is stronger; unit 1 to neither.

    Across has a bias: left alone, every ascent goes that way.
    """
    look, head = nn.Conv2d(3, 4, SIDE, padding=0), nn.Linear(2, 2)
    net = nn.Sequential(look, Stronger(), nn.Flatten(), head)
    assert look.bias is not None
    with torch.no_grad():
        noise = 0.01 * torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        look.weight.copy_(torch.stack([stripes(True), noise[0], stripes(False), noise[1]]))
        look.bias.copy_(torch.tensor([bias, 0, 0, 0]))
        head.weight.copy_(torch.eye(2))
        head.bias.zero_()
    return Model(
        net,
        name="two-faced",
        preprocessing=Preprocessing.of(SIDE, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"templates": "0", "stronger": "1", "logits": "3"},
    )


def shown(picture: Tensor) -> tuple[float, float]:
    """How much of each template a picture has: cosines."""
    flat = picture - picture.mean()
    return tuple(  # type: ignore[return-value]
        float((flat * stripes(a)).sum() / flat.norm()) for a in (True, False)
    )


def diverse(model: Model, **options: Any) -> Facets:
    """Facets of unit 0, driven apart at the layer of templates."""
    return draw_facets(model, "logits", units=[0], count=2, settings=bare(150), **options)


@pytest.fixture
def at_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram matrices of templates, 1 x 1 as their maps are."""
    for module in ("facets", "facet_examples"):
        monkeypatch.setattr(
            f"featviz.maximization.{module}.texture_layer",
            lambda model, layer: model.layer("templates"),
        )


@pytest.mark.usefixtures("at_templates")
def test_both_planted_reasons_are_found_and_one_alone_without_diversity() -> None:
    found = diverse(two_faced())
    ways = [shown(picture) for picture in found.images[0]]
    left = [shown(picture) for picture in found.baseline[0]]
    assert all(across > 0.9 and down < 0.3 for across, down in left), left
    assert max(across for across, _ in ways) > 0.9, ways
    assert max(down for _, down in ways) > 0.9, ways
    assert found.likeness[0] < found.baseline_likeness[0] - 0.3


@pytest.mark.usefixtures("at_templates")
def test_the_numbers_are_those_of_the_pictures(tmp_path: Path) -> None:
    model = two_faced()
    found = diverse(model)
    folder = found.save(tmp_path / "out")
    for g in range(2):
        saved = featviz.read_image(folder / "units" / f"logits-0-{g + 1}.png")
        assert torch.equal(saved, found.images[0, g])
        assert found.scores[0, g].item() == pytest.approx(model(saved[None])[0, 0].item(), rel=1e-5)
    values = activations(model, found.images[0], ["templates"])["templates"].double()
    grams = [torch.outer(v, v) for v in values.flatten(1)]
    cosine = torch.cosine_similarity(grams[0].flatten(), grams[1].flatten(), dim=0)
    assert found.likeness[0].item() == pytest.approx(cosine.item(), abs=1e-5)
    assert found.numbers()["likeness"].value == pytest.approx(cosine.item(), abs=1e-4)


@pytest.mark.numeric
def test_facets_do_not_depend_on_the_other_units(mini: Model) -> None:
    options: dict[str, Any] = {"count": 2, "steps": 3, "precision": "float32"}
    alone = draw_facets(mini, "conv4", units=[7], **options)
    among = draw_facets(mini, "conv4", units=[3, 7, 9], batch_size=2, **options)
    assert (among.images[1] - alone.images[0]).abs().max() < 2 / 255
    assert (among.baseline[1] - alone.baseline[0]).abs().max() < 2 / 255
    assert torch.allclose(among.scores[1], alone.scores[0], rtol=1e-3)
    assert not torch.equal(alone.images, alone.baseline)


@pytest.mark.slow
def test_diversity_lowers_the_likeness_of_real_units(mini: Model) -> None:
    found = draw_facets(mini, "conv5", units=[3, 12], count=2, steps=40)
    assert (found.likeness < found.baseline_likeness).all()
    assert found.compared_at == "relu5"


@dataclass(frozen=True)
class Striped(Pictures):
    """Pictures of stripes across (even rows) and down (odd rows), shifted and noisy."""

    def open(self, row: int) -> Image.Image:
        noise = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(row))
        one = 0.5 + 1.2 * stripes(row % 2 == 0) + 0.04 * noise
        pixels = (255 * one.clamp(0, 1)).permute(1, 2, 0).numpy()
        return Image.fromarray(pixels.round().astype(np.uint8))


@pytest.fixture
def striped() -> Striped:
    names = tuple(f"{i:02d}.png" for i in range(24))
    return Striped(root=Path("striped"), paths=names, folders=("",) * 24)


@pytest.mark.usefixtures("at_templates")
def test_groups_of_examples_are_the_planted_ones(striped: Striped) -> None:
    """Two kinds of picture move the unit: each facet starts from one kind, and shows it."""
    model = two_faced(bias=0.0)
    found = draw_facets(
        model, "stronger", units=[0], count=2, pictures=striped, examples=16, settings=bare(60)
    )
    assert [cluster.size for cluster in found.clusters[0]] == [8, 8]
    for cluster in found.clusters[0]:
        kinds = {int(path[:2]) % 2 for path in cluster.paths}
        assert len(kinds) == 1, cluster.paths
        assert max(shown(cluster.start)) > 0.9
    ways = [int(shown(picture)[1] > shown(picture)[0]) for picture in found.images[0]]
    assert sorted(ways) == [0, 1]
    assert found.own_cluster.all()
    assert found.numbers()["own group"].value == 1.0


@pytest.mark.usefixtures("at_templates")
def test_starts_are_the_means_of_the_examples_shown(striped: Striped) -> None:
    model = two_faced(bias=0.0)
    found = draw_facets(
        model, "stronger", units=[0], count=2, pictures=striped, examples=16, settings=bare(1)
    )
    for cluster in found.clusters[0]:
        mean = (cluster.examples.float() / 255).mean(0)
        assert (cluster.start - mean).abs().max() < 1 / 255


def test_a_pressure_grows_with_the_score_and_rests_below_zero() -> None:
    values = torch.tensor([[2.0, 0.0], [0.0, -3.0]])
    goal = objectives.channel("fc", [0, 1])
    other = objectives.Objective(("fc",), None, "sum", lambda acts, targets: acts["fc"].sum(1))
    both = diversity.scaled_by_score(goal, other, 0.5)
    assert both({"fc": values}).tolist() == [0.5 * 2 * 2, 0.0]
    x = values.clone().requires_grad_(True)
    both({"fc": x}).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 1.0], [0.0, 0.0]]  # the score itself is not climbed here


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 1}, "count is 1"),
        ({"units": ["3@0,0"]}, "positions"),
        ({"diversity": -1.0}, "diversity is -1"),
        ({"objective": "best"}, "unknown objective"),
        ({"film_kind": "avi"}, "one of gif, mp4"),
    ],
)
def test_mistakes_are_told(mini: Model, options: dict[str, Any], words: str) -> None:
    with pytest.raises(featviz.UserError, match=words):
        draw_facets(mini, "conv4", **{"units": [3], "steps": 1, **options})


def test_too_few_examples_are_refused(mini: Model, striped: Striped) -> None:
    with pytest.raises(featviz.UserError, match="7 pictures cannot be put into 4 groups"):
        draw_facets(mini, "conv4", units=[3], pictures=striped, examples=7)


def test_resemblance_is_the_cosine_seen_from_the_mean_code() -> None:
    values = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    centers = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    mean_code = centers.mean(0).expand(3, -1)
    found = diversity.resemblance("conv", centers, mean_code)({"conv": values})
    for i in range(3):
        code = values[i].double().clamp(min=0).mean((1, 2))
        code = code / code.norm() - mean_code[i]
        aim = centers[i].double() - mean_code[i]
        wanted = code @ aim / code.norm() / aim.norm()
        assert found[i].item() == pytest.approx(wanted.item(), rel=1e-4)
    part = diversity.resemblance("conv", centers, mean_code)({"conv": values[1:]}, [1, 2])
    assert torch.equal(part, found[1:])


def test_codes_are_of_unit_length_whatever_the_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(2, 6, 3, 3), (2, 6), (2, 7, 6)]:
        found = diversity.codes(torch.randn(shape, generator=generator))
        assert found.shape == (2, 6)
        assert torch.allclose(found.norm(dim=1), torch.ones(2))


def test_windows_stay_in_the_picture(mini: Model) -> None:
    picture = torch.arange(64 * 64.0).view(1, 64, 64).expand(3, 64, 64)
    place = mini.layer("conv2")
    field = place.receptive_field
    assert field is not None
    for spot in [(0, 0), (7, 7), (14, 3)]:
        window = crop_example(picture, place, spot, 40)
        assert window.shape == (3, 40, 40)
        top, left = divmod(int(window[0, 0, 0]), 64)
        assert torch.equal(window, picture[:, top : top + 40, left : left + 40])
    top, left, bottom, right = field.box(7, 7)
    window = crop_example(picture, place, (7, 7), 40)
    assert divmod(int(window[0, 0, 0]), 64) == ((top + bottom - 40) // 2, (left + right - 40) // 2)
