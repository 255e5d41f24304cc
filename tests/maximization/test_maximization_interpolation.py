"""From one unit to another: the ends are the units' own, the way between them is short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import featviz
from featviz.maximization import interpolation, objectives
from featviz.maximization.interpolation import interpolate
from featviz.maximization.maximize import unit_objective
from featviz.maximization.settings import settings_for
from featviz.maximization.transforms import Transforms
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing


def test_the_ends_of_the_way_are_the_units_own_goals() -> None:
    values = torch.randn(3, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    acts = {"conv": values}
    first, second = (objectives.center("conv", [unit] * 3) for unit in (2, 6))
    shares = torch.tensor([0.0, 0.25, 1.0])
    both = interpolation.mixed(first, second, shares)(acts)
    one, two = first(acts), second(acts)
    assert both[0] == one[0]
    assert both[2] == two[2]
    assert both[1].item() == pytest.approx(0.75 * one[1].item() + 0.25 * two[1].item(), rel=1e-6)
    # A block of the rows keeps its own shares.
    part = interpolation.mixed(first, second, shares)({"conv": values[1:]}, [1, 2])
    assert torch.equal(part, both[1:])


def test_on_a_linear_layer_the_way_is_a_straight_line() -> None:
    """The score is (1 - t) <v, x> + t <w, x> less c/2 |x - 1/2|^2: x - 1/2 ~ (1 - t) v + t w."""
    conv = nn.Conv2d(3, 4, 9)
    net = nn.Sequential(conv, nn.Flatten())
    with torch.no_grad():
        conv.weight.normal_(generator=torch.Generator().manual_seed(0))
        nn.init.constant_(conv.bias, 0) if conv.bias is not None else None
    model = Model(
        net,
        name="linear",
        preprocessing=Preprocessing.of(9, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"conv1": "0"},
    )
    made = interpolate(
        model,
        "conv1",
        [1, 3],
        count=5,
        alignment=0.0,
        settings=replace(
            settings_for(model, "conv1", steps=150, size=9, precision="float32"),
            local_normalization=0.0,
            roughness_weight=0.0,
            saturation_weight=0.0,
            coarse_to_fine=0.0,
            contrast_weight=12.0,
            transforms=Transforms(),
        ),
    )
    v, w = conv.weight[[1, 3]]
    for share, picture in zip(made.shares.tolist(), made.images, strict=True):
        wanted = (1 - share) * v + share * w
        both = torch.stack([(picture - 0.5).ravel(), wanted.ravel()])
        assert torch.corrcoef(both)[0, 1] > 0.98, share


def test_scores_are_those_of_the_saved_pictures(mini: Model, tmp_path: Path) -> None:
    made = interpolate(mini, "conv4", "3,7", count=3, steps=3, film_kind="gif")
    folder = made.save(tmp_path / "out")
    (goal, _), (other, _) = (unit_objective(mini, mini.layer("conv4"), [u]) for u in (3, 7))
    for k in range(3):
        saved = featviz.read_image(folder / "pictures" / f"{k + 1:02d}.png")
        assert torch.equal(saved, made.images[k])
        acts = activations(mini, saved[None], ["conv4"])
        assert made.scores[k, 0].item() == pytest.approx(goal(acts).item(), rel=1e-5)
        assert made.scores[k, 1].item() == pytest.approx(other(acts).item(), rel=1e-5)
    assert (folder / "interpolation-film.gif").is_file()
    apart = (made.images[1] - made.images[0]).square().mean().sqrt()
    assert made.steps_apart[0].item() == pytest.approx(apart.item(), rel=1e-5)


@pytest.mark.slow
def test_alignment_shortens_the_way_and_each_end_is_its_own_units(mini: Model) -> None:
    held = interpolate(mini, "conv5", [3, 12], count=4, steps=40)
    free = interpolate(mini, "conv5", [3, 12], count=4, steps=40, alignment=0.0)
    assert held.steps_apart.mean() < free.steps_apart.mean()
    for made in (held, free):
        assert made.scores[0, 0] > made.scores[-1, 0]
        assert made.scores[-1, 1] > made.scores[0, 1]
    once, again = (interpolate(mini, "conv5", [3, 12], count=3, steps=3) for _ in range(2))
    assert torch.equal(again.images, once.images)


@pytest.mark.parametrize(
    ("units", "options", "words"),
    [
        ("3", {}, "named: 1 unit;"),
        ("3,4,5", {}, "named: 3 units;"),
        (["3@0,0", "4@0,0"], {}, "without positions"),
        ("3,4", {"count": 2}, "count is 2"),
        ("3,4", {"alignment": -1.0}, "alignment is -1"),
        ("3,4", {"film_kind": "avi"}, "one of gif, mp4"),
    ],
)
def test_mistakes_are_told(
    mini: Model, units: str | list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(featviz.UserError, match=words):
        interpolate(mini, "conv4", units, steps=1, **options)


def test_neighbors_are_held_where_shapes_are_seen(mini: Model) -> None:
    assert interpolation._aligned_layer(mini, mini.layer("conv5")) == "conv2"
    assert interpolation._aligned_layer(mini, mini.layer("conv1")) == "conv1"
    assert interpolation._aligned_layer(mini, mini.layer("logits")) == "conv2"
