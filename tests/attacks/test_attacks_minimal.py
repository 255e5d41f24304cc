"""Smallest changes against what is known exactly: linear models, balls, small ReLU nets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attack_models import Linear
from flat_attacks import minimal
from numpy.typing import NDArray
from oracles.minimal_distances import leave_ball, linear
from oracles.relu_milp import smallest_change
from torch import Tensor, nn

from featviz.attacks.minimal import NORMS


def linear_case(
    generator: torch.Generator, *, classes: int = 5, side: int = 4, near_edge: bool = True
) -> tuple[Linear, Tensor, Tensor]:
    """A linear model and pictures; `near_edge`: with many pixels at 0 and 1, so the box matters."""
    n = 3 * side * side
    weights = torch.randn(classes, n, generator=generator, dtype=torch.float64)
    pictures = torch.rand(8, 3, side, side, generator=generator, dtype=torch.float64)
    pictures = (1.6 * pictures - 0.3).clamp(0, 1) if near_edge else 0.4 + 0.2 * pictures
    bias = -(weights @ torch.full((n,), 0.5, dtype=torch.float64))
    model = Linear(weights, bias)
    return model, pictures, model(pictures).argmax(1)


def optimum(
    model: Linear, pictures: Tensor, labels: Tensor, norm: str, *, box: bool = True
) -> NDArray[np.float64]:
    weights, bias = model.weights.detach().numpy(), model.bias.detach().numpy()
    return np.array(
        [
            linear(weights, bias, x.flatten().numpy(), int(y), norm, box=box)
            for x, y in zip(pictures, labels, strict=True)
        ]
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("near_edge", [True, False])
def test_linear_models_within_a_percent_of_the_optimum(
    generator: torch.Generator, norm: str, near_edge: bool
) -> None:
    model, pictures, labels = linear_case(generator, near_edge=near_edge)
    exact = optimum(model, pictures, labels, norm)
    free = optimum(model, pictures, labels, norm, box=False)
    assert (exact > free * 1.001).any() or not near_edge  # the box does matter
    found = minimal(model, pictures, labels, norm=norm, steps=40)
    ratio = found.distance.numpy() / exact
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= 1.01
    assert bool(found.success.all())


class Ball(nn.Module):
    """Class 0 within a ball, class 1 outside: logits (R^2 - |x - a|^2, 0)."""

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.centre, self.radius = centre, radius

    def forward(self, pictures: Tensor) -> Tensor:
        inside = self.radius**2 - (pictures - self.centre).flatten(1).square().sum(1)
        return torch.stack([inside, torch.zeros_like(inside)], 1)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_way_out_of_a_ball(generator: torch.Generator, norm: str) -> None:
    centre = 0.4 + 0.2 * torch.rand(3, 4, 4, generator=generator, dtype=torch.float64)
    offset = 0.04 * torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64)
    pictures = centre + offset
    model = Ball(centre, 1.3 * float(offset.flatten(1).norm(dim=1).max()))
    labels = torch.zeros(6, dtype=torch.long)
    exact = np.array(
        [
            leave_ball(x.flatten().numpy(), centre.flatten().numpy(), model.radius, norm)
            for x in pictures
        ]
    )
    found = minimal(model, pictures, labels, norm=norm, steps=100)
    ratio = found.distance.numpy() / exact
    assert ratio.min() >= 1 - 1e-9
    assert ratio.max() <= 1.02


def relu_net(
    seed: int, inputs: int = 12, hidden: int = 10, classes: int = 3
) -> tuple[nn.Sequential, list[Any]]:
    """A random net with one hidden layer as torch and as numpy layers."""
    rng = np.random.default_rng(seed)
    layers = [
        (rng.normal(size=(hidden, inputs)), rng.normal(size=hidden) * 0.3),
        (rng.normal(size=(classes, hidden)), rng.normal(size=classes) * 0.3),
    ]
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    ).double()
    for module, (weights, bias) in zip((net[1], net[3]), layers, strict=True):
        module.weight.data, module.bias.data = torch.from_numpy(weights), torch.from_numpy(bias)
    return net, layers


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "mean_excess"), [("l0", 0.05), ("l1", 0.05), ("linf", 0.05)])
def test_small_relu_nets_against_an_exact_program(
    generator: torch.Generator, norm: str, mean_excess: float
) -> None:
    ratios = []
    for seed in range(6):
        net, layers = relu_net(seed)
        pictures = torch.rand(4, 3, 2, 2, generator=generator, dtype=torch.float64)
        labels = net(pictures).argmax(1)
        found = minimal(net, pictures, labels, norm=norm, steps=200, batch_size=4)
        for x, y, d in zip(pictures, labels, found.distance, strict=True):
            exact = smallest_change(layers, x.flatten().numpy(), int(y), norm)
            ratios.append(float(d) / exact)
    assert min(ratios) >= 1 - 1e-6
    assert np.mean(ratios) <= 1 + mean_excess
