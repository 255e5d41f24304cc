"""Accentuation: the score grows, the anchor stays, numbers as counted again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import featviz
from featviz.from_picture.accentuation import accentuate, anchor_for, balance
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.units import parse_unit


def test_accentuation_raises_the_score_and_stays_nearer_than_without_an_anchor(
    small: Model, given: torch.Tensor
) -> None:
    options: dict[str, Any] = {"anchor": "conv1", "steps": 30}
    held = accentuate(small, given, ["conv2:3", "logits:1"], **options)
    free = accentuate(small, given, ["conv2:3", "logits:1"], weight=0.0, **options)
    fast = accentuate(small, given, ["conv2:3", "logits:1"], weight=50.0, **options)
    before, after = held.measured["score before"], held.measured["score"]
    assert (after > before).all()
    assert (held.measured["anchor distance"] < free.measured["anchor distance"]).all()
    assert (fast.measured["anchor distance"] < 0.5 * held.measured["anchor distance"]).all()
    assert (free.measured["score"] > after).all()
    values = activations(small, held.images[:, 0, 0], ["conv2"])["conv2"][:, 3].mean((1, 2))
    assert torch.allclose(after[:, 0, 0], values, rtol=1e-4)
    was, now = (
        activations(small, pictures, ["conv1"])["conv1"].double()
        for pictures in (given, held.images[:, 0, 0])
    )
    moved = (now - was).norm(dim=1).mean((1, 2)) / was.norm(dim=1).mean((1, 2))
    assert torch.allclose(held.measured["anchor distance"][:, 0, 0].double(), moved, rtol=1e-3)


def test_the_balance_is_the_ratio_of_both_gradients(small: Model, given: torch.Tensor) -> None:
    """By torch's own autograd in float64."""
    ratio = balance(small, parse_unit(small, "conv2:3"), "conv1", given, seed=0)
    noise = torch.randn(given.shape[1:], generator=torch.Generator().manual_seed(0))
    net = small.net.double()
    assert isinstance(net, nn.Sequential)
    try:
        for i, one in enumerate(given.double()):
            x = (one + 0.02 * noise).requires_grad_(True)
            anchor = net[0]((x[None] - 0.5) / 0.25)
            still = net[0]((one[None] - 0.5) / 0.25)
            score = net[2](anchor.clamp(min=0))[0, 3].mean()
            (up,) = torch.autograd.grad(score, x, retain_graph=True)
            (back,) = torch.autograd.grad((anchor - still).norm(dim=1).mean(), x)
            assert ratio[i].item() == pytest.approx((up.norm() / back.norm()).item(), rel=1e-3)
    finally:
        net.float()


def test_a_picture_does_not_depend_on_its_batch(small: Model, given: torch.Tensor) -> None:
    options: dict[str, Any] = {"anchor": "conv1", "steps": 4, "precision": "float32"}
    alone = accentuate(small, given[2], "logits:1", **options)
    among = accentuate(small, given, "conv2:0; logits:1", **options)
    split = accentuate(small, given, "conv2:0;logits:1", batch_size=1, **options)
    for one, other in ((among.images[2, 1], alone.images[0, 0]), (split.images, among.images)):
        assert (one - other).abs().max() < 2.5 / 255
    assert torch.allclose(among.trace[2, 1], alone.trace[0, 0], rtol=1e-3)


def test_pictures_do_not_mix_in_float64(precise: Model, given: torch.Tensor) -> None:
    options: dict[str, Any] = {"anchor": "conv1", "steps": 4, "precision": "float32"}
    alone = accentuate(precise, given[2], "logits:1", **options)
    for size in (1, 2, 3):
        among = accentuate(precise, given, "conv2:0; logits:1", batch_size=size, **options)
        assert (among.images[2, 1] - alone.images[0, 0]).abs().max() < 1e-9
        assert torch.allclose(among.trace[2, 1], alone.trace[0, 0], rtol=0, atol=1e-9)


def test_the_predictions_are_accentuated_where_no_unit_is_named(
    small: Model, given: torch.Tensor
) -> None:
    made = accentuate(small, given[:1], anchor="conv1", steps=1)
    best = small(given[:1])[0].argsort(descending=True)[:3].tolist()
    assert made.units == tuple(f"logits:{index}" for index in best)


def test_the_anchor_sees_less_than_half_and_comes_before_the_unit(
    mini: Model,
) -> None:
    assert anchor_for(mini, "logits") == "conv2"
    assert anchor_for(mini, "conv2") == "conv1"
    with pytest.raises(featviz.UserError, match="does not come before conv2"):
        anchor_for(mini, "conv2", "conv3")
    with pytest.raises(featviz.UserError, match="no layer before conv1"):
        anchor_for(mini, "conv1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": "conv2:99"}, "out of range"),
        ({"units": ";"}, "no unit was named"),
        ({"units": "conv2:1", "weight": -1.0}, "weight is -1"),
    ],
)
def test_mistakes_are_named(
    small: Model, given: torch.Tensor, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(featviz.UserError, match=words):
        accentuate(small, given, **options)
