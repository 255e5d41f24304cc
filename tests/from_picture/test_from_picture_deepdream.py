"""Deepdream: activations grow, the picture stays near, numbers as counted again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import featviz
from featviz.from_picture.deepdream import deepdream, octave_sizes
from featviz.from_picture.settings import method_settings
from featviz.maximization.parametrizations import Pixels
from featviz.maximization.transforms import Transforms
from featviz.models.layers import activations
from featviz.models.model import Model


def test_activations_grow_and_the_picture_stays_near(small: Model, given: torch.Tensor) -> None:
    made = deepdream(small, given, ["conv1", "conv2"], octaves=2, steps=30)
    assert made.images.shape == (3, 2, 1, 3, 32, 32)
    assert (made.measured["strength"] > 1.1).all()
    assert (made.measured["pixel distance"] < 0.3).all()
    before, after = (
        activations(small, pictures, ["conv2"])["conv2"].square().mean((1, 2, 3)).sqrt()
        for pictures in (given, made.images[:, 1, 0])
    )
    assert torch.allclose(made.measured["strength"][:, 1, 0], after / before, rtol=1e-4)


def test_of_chosen_units_the_squares_alone_count(small: Model, given: torch.Tensor) -> None:
    base = method_settings(
        "deepdream", small, "conv2", height=32, width=32, steps=12, precision="float32"
    )
    settings = replace(base, transforms=Transforms())
    made = deepdream(small, given[:1], "conv2", units=[2, 5], octaves=1, settings=settings)
    whole = deepdream(small, given[:1], "conv2", octaves=1, settings=settings)
    assert made.columns == ("conv2:2, conv2:5",)

    def strength(one: torch.Tensor) -> float:
        values = activations(small, one, ["conv2"])["conv2"][0, [2, 5]]
        return values.square().mean().sqrt().item()

    ratio = strength(made.images[0, 0]) / strength(given[:1])
    assert made.measured["strength"].item() == pytest.approx(ratio, rel=1e-4)
    assert strength(made.images[0, 0]) > strength(whole.images[0, 0])


def test_without_a_step_the_picture_is_the_given_one(small: Model, given: torch.Tensor) -> None:
    made = deepdream(small, given[:1], "conv1", octaves=3, steps=2, lr=1e-6)
    assert (made.images[0, 0, 0] - given[0]).abs().max() < 1.5 / 255


def test_octaves_grow_by_the_zoom_up_to_the_picture() -> None:
    assert octave_sizes(224, 280, 3, 1.4) == [(114, 143), (160, 200), (224, 280)]
    assert octave_sizes(64, 64, 3, 2.0) == [(64, 64)]  # 32 would show too little
    assert octave_sizes(20, 20, 2, 1.4) == [(20, 20)]


@pytest.mark.numeric
def test_a_picture_does_not_depend_on_its_batch(small: Model, given: torch.Tensor) -> None:
    options: dict[str, Any] = {"octaves": 2, "steps": 3, "precision": "float32"}
    alone = deepdream(small, given[1], "conv2", **options)
    among = deepdream(small, given, ["conv1", "conv2"], **options)
    assert torch.allclose(among.trace[1, 1], alone.trace[0, 0], rtol=1e-3)
    assert (among.images[1, 1] - alone.images[0, 0]).abs().max() < 2.5 / 255


def test_pictures_do_not_mix_in_float64(precise: Model, given: torch.Tensor) -> None:
    options: dict[str, Any] = {"octaves": 2, "steps": 3, "precision": "float32"}
    alone = deepdream(precise, given[1], "conv2", **options)
    for size in (1, 2, 3):
        among = deepdream(precise, given, ["conv1", "conv2"], batch_size=size, **options)
        assert (among.images[1, 1] - alone.images[0, 0]).abs().max() < 1e-9
        assert torch.allclose(among.trace[1, 1], alone.trace[0, 0], rtol=0, atol=1e-9)


def test_all_octaves_have_frames(small: Model) -> None:
    large = torch.rand(3, 80, 80, generator=torch.Generator().manual_seed(0))
    made = deepdream(small, large, "conv1", octaves=2, steps=2, frames=2)
    assert made.frames.shape == (1, 1, 1, 4, 3, 80, 80)
    assert made.trace.shape == (1, 1, 1, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "conv1", "zoom": 1.0}, "zoom is 1"),
        ({"layers": ["conv1", "conv2"], "units": "1"}, "units belong to one layer"),
        ({"layers": "conv1", "octaves": 0}, "octaves is 0"),
    ],
)
def test_mistakes_are_named(
    small: Model, given: torch.Tensor, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(featviz.UserError, match=words):
        deepdream(small, given, **options)


def test_another_parametrization_is_refused(small: Model, given: torch.Tensor) -> None:
    base = method_settings("deepdream", small, "conv1", height=32, width=32)
    with pytest.raises(featviz.UserError, match="several sizes"):
        deepdream(small, given, "conv1", settings=replace(base, parametrization=Pixels(32, 32)))
