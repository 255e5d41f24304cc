"""Step rules against other people's arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featviz.maximization.optimizers import Adam, PlainAscent, gaussian_blur


def slopes(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 6, 5, generator=generator) for _ in range(count)]


def test_adam_is_torchs_adam_under_a_falling_rate() -> None:
    rule, steps = Adam(rate=0.1, short=0.5, long=0.99), 8
    start = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    theirs = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theirs], lr=0.1, betas=(0.5, 0.99), eps=1e-12, maximize=True)
    ours, memory = start.clone(), rule.begin(start)
    for step, slope in enumerate(slopes(steps)):
        fall = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
        optimiser.param_groups[0]["lr"] = 0.1 * fall
        theirs.grad = slope
        optimiser.step()
        ours = ours + rule.change(ours, slope, memory, torch.tensor([step, step]), steps)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_each_picture_is_at_its_own_step() -> None:
    rule = Adam()
    start, slope = torch.zeros(2, 3, 6, 5), slopes(1)[0]
    both = rule.change(start, slope, rule.begin(start), torch.tensor([0, 5]), 8)
    for row, step in enumerate((0, 5)):
        own = start[row : row + 1]
        alone = rule.change(own, slope[row : row + 1], rule.begin(own), torch.tensor([step]), 8)
        assert torch.equal(both[row : row + 1], alone)


MEAN = (0.5, 0.4, 0.3)


@pytest.mark.parametrize(
    ("rule", "step"),
    [
        (PlainAscent(rate=100.0, decay=0.3, norm_percentile=20, mean=MEAN), 1),
        (PlainAscent(rate=1e8, desired=2.0, contribution_percentile=90, mean=MEAN), 1),
        (PlainAscent(rate=1e4, decay=0.3, norm_percentile=50, mean=MEAN), 7),
    ],
)
def test_plain_ascent_is_that_of_the_toolbox(rule: PlainAscent, step: int) -> None:
    """In pixels from 0 to 255 about the mean, as it is written there, one picture at a time."""
    generator = torch.Generator().manual_seed(4)
    pictures = torch.rand(2, 3, 6, 5, generator=generator)
    slope = torch.randn(2, 3, 6, 5, generator=generator)
    change = rule.change(pictures, slope, {}, torch.tensor([step, step]), 8)
    for i in range(2):
        mean = 255 * np.array(MEAN)[:, None, None]
        x = 255 * pictures[i].double().numpy() - mean
        g = slope[i].double().numpy() / 255
        rate = rule.rate if rule.desired is None else min(rule.rate, rule.desired / (g**2).sum())
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
        assert np.allclose((pictures + change)[i].numpy(), expected, atol=2e-5)


def test_it_blurs_every_so_often_and_not_at_the_end() -> None:
    rule = PlainAscent(rate=0.0, blur=0.5, blur_every=4, mean=MEAN)
    picture = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    moved = [
        rule.change(picture, torch.zeros_like(picture), {}, torch.tensor([t]), 9).abs().amax()
        for t in range(9)
    ]
    assert [bool(m > 1e-3) for m in moved] == [t in (0, 4) for t in range(9)]


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
