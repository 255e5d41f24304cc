"""A CPPN against the network written plainly, and what it can and cannot fit."""

from __future__ import annotations

import math

import torch
from torch import nn

from featviz.maximization.colors import LUCID
from featviz.maximization.cppn import CPPN


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


class Bend(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.atan() / 0.67, x.atan() ** 2 / 0.6], -1)


def test_the_picture_is_that_of_a_network_asked_at_every_place() -> None:
    form = CPPN(5, 8, hidden=4, layers=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(2, 4),
            Bend(),
            nn.Linear(8, 4),
            Bend(),
            nn.Linear(8, 4),
            Bend(),
            nn.Linear(8, 3),
        ).double()
    weights = torch.cat([p.detach().flatten() for p in net.parameters()])
    # the longer side spans 2 sqrt(3), pixels keep their shape
    step = 2 * math.sqrt(3) / 8
    places = torch.tensor(
        [[[step * (y - 2), step * (x - 3.5)] for x in range(8)] for y in range(5)]
    )
    axes = net(places.double()).permute(2, 0, 1)
    expected = torch.einsum("ca,ahw->chw", torch.tensor(LUCID.matrix).double(), axes).sigmoid()
    assert (form.picture(weights[None])[0] - expected).abs().max() < 1e-6


def test_the_start_is_gray_but_its_weights_differ() -> None:
    form = CPPN(8, 8)
    start = form.start(generators(1, 2))
    assert torch.equal(form.picture(start), torch.full((2, 3, 8, 8), 0.5))
    assert not torch.equal(start[0], start[1])
    assert torch.equal(form.start(generators(2))[0], start[1])


def test_weights_keep_the_strength_from_layer_to_layer() -> None:
    form = CPPN(16, 16)
    parameters = form.start(generators(*range(8)))
    last = form.shapes[-1][0] * form.shapes[-1][1]
    parameters[:, -last - 3 : -3] = torch.randn(8, last, generator=generators(9)[0]) / math.sqrt(48)
    spread = form.colors.from_rgb(form.picture(parameters)).std((2, 3))[:, 0]
    assert 0.05 < spread.median() < 5


def test_a_smooth_picture_is_fitted_within_a_few_hundredths() -> None:
    size = 12
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    red, green = 0.5 + 0.3 * x, 0.5 + 0.3 * (3 * y).sin()
    blue = 0.2 + 0.6 * (-4 * (x**2 + y**2)).exp()
    given = torch.stack([red, green, blue])[None]
    form = CPPN(size, size, hidden=16, layers=3, fit_steps=150)
    shown = form.picture(form.fit(given))
    # by optimization: no formula says how near it comes; gray alone would be 0.2 off
    assert (shown - given).abs().mean() < 0.02
