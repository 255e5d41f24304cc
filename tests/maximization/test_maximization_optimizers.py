"""Optimizers against other people's arithmetic."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from featviz.maximization.optimizers import Adam, Optimizer, PlainAscent, gaussian_blur


def slopes(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 6, 5, generator=generator) for _ in range(count)]


def stepped(optimizer: Optimizer, lr: float, slopes: list[Tensor], start: Tensor) -> list[Tensor]:
    """The parameters after each step."""
    parameters = start.clone().requires_grad_(True)
    made, schedule = optimizer.build(parameters, lr, len(slopes))
    out = []
    for slope in slopes:
        parameters.grad = slope.clone()
        made.step()
        schedule.step()
        out.append(parameters.detach().clone())
    return out


def test_adam_maximizes_under_a_falling_rate() -> None:
    """Kingma and Ba's step, written plainly in float64."""
    start = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    found = stepped(Adam(), 0.1, slopes(8), start)
    x, mean, square = start.double(), torch.zeros(()), torch.zeros(())
    for step, (slope, shown) in enumerate(zip(slopes(8), found, strict=True)):
        g = slope.double()
        mean, square = 0.5 * mean + 0.5 * g, 0.99 * square + 0.01 * g**2
        lr = 0.1 * (0.1 + 0.45 * (1 + math.cos(math.pi * step / 8)))
        root = (square / (1 - 0.99 ** (step + 1))).sqrt()
        x = x + lr * mean / (1 - 0.5 ** (step + 1)) / root
        assert torch.allclose(shown.double(), x, atol=1e-5)


@pytest.mark.parametrize("optimizer", [Adam(), Adam(nesterov=True), PlainAscent(norm_percentile=9)])
def test_each_picture_is_changed_on_its_own(optimizer: Optimizer) -> None:
    start = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(1)).double()
    given = [slope.double() for slope in slopes(3)]
    both = stepped(optimizer, 0.1, given, start)[-1]
    alone = stepped(optimizer, 0.1, [slope[1:] for slope in given], start[1:])[-1]
    assert torch.allclose(both[1:], alone, rtol=0, atol=1e-12)


MEAN = (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("rule", "lr", "step"),
    [
        (PlainAscent(decay=0.3, norm_percentile=20, mean=MEAN), 100.0, 1),
        (PlainAscent(desired=2.0, contribution_percentile=90, mean=MEAN), 1e8, 1),
        (PlainAscent(decay=0.3, norm_percentile=50, mean=MEAN), 1e4, 7),
    ],
)
def test_plain_ascent_is_that_of_the_toolbox(rule: PlainAscent, lr: float, step: int) -> None:
    """In pixels from 0 to 255 about the mean, as it is written there, one picture at a time."""
    generator = torch.Generator().manual_seed(4)
    pictures = torch.rand(2, 3, 6, 5, generator=generator)
    slope = torch.randn(2, 3, 6, 5, generator=generator)
    # Steps without a gradient before it, then back to the pictures.
    parameters = pictures.clone().requires_grad_(True)
    optimizer, _ = rule.build(parameters, lr, 8)
    for _ in range(step):
        parameters.grad = torch.zeros_like(pictures)
        optimizer.step()
    with torch.no_grad():
        parameters.copy_(pictures)
    parameters.grad = slope.clone()
    optimizer.step()
    for i in range(2):
        mean = 255 * np.array(MEAN)[:, None, None]
        x = 255 * pictures[i].double().numpy() - mean
        g = slope[i].double().numpy() / 255
        rate = lr if rule.desired is None else min(lr, rule.desired / (g**2).sum())
        x = x + rate * g
        if step < 7:  # the last step is followed by nothing
            x = x * (1 - rule.decay)
            if rule.norm_percentile:
                norm = np.linalg.norm(x, axis=0)
                x = x * (norm >= np.percentile(norm, rule.norm_percentile))
            if rule.contribution_percentile:
                part = np.abs((x * g).sum(0))
                x = x * (part >= np.percentile(part, rule.contribution_percentile))
        expected = np.clip(x + mean, 0, 255) / 255
        assert np.allclose(parameters.detach()[i].numpy(), expected, atol=2e-5)


def test_it_blurs_every_so_often_and_not_at_the_end() -> None:
    picture = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    rule = PlainAscent(blur=0.5, blur_every=4, mean=MEAN)
    shown = [picture, *stepped(rule, 0.0, [torch.zeros_like(picture)] * 9, picture)]
    moved = [bool((b - a).abs().amax() > 1e-3) for a, b in itertools.pairwise(shown)]
    assert moved == [t in (0, 4) for t in range(9)]


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_blur_is_a_gaussian_with_repeated_edges(sigma: float) -> None:
    from scipy import ndimage

    picture = torch.rand(1, 3, 12, 9, generator=torch.Generator().manual_seed(6))
    expected = np.stack(
        [
            ndimage.gaussian_filter(p, sigma, mode="nearest", radius=math.ceil(3 * sigma))
            for p in picture[0].double().numpy()
        ]
    )
    assert np.allclose(gaussian_blur(picture, sigma)[0].numpy(), expected, atol=1e-6)
