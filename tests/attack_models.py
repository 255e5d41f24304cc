"""Models whose answers are known in closed form, and a tiny net, for the tests of this folder."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from featviz.attacks.result import AttackResult
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

TENSORS = [f.name for f in fields(AttackResult) if f.type in {"Tensor", "Tensor | None"}]


def assert_alike(one: AttackResult, other: AttackResult) -> None:
    """Two results are equal but for the last bits of float64."""
    assert len(TENSORS) > 15
    for name in TENSORS:
        mine, others = getattr(one, name), getattr(other, name)
        if mine is None:
            assert others is None
            continue
        if name == "trace":  # as wide as the longest of its pictures
            width = min(mine.shape[1], others.shape[1])
            mine, others = mine[:, :width], others[:, :width]
        torch.testing.assert_close(
            mine.double(),
            others.double(),
            rtol=1e-9,
            atol=1e-9,
            equal_nan=True,
            msg=functools.partial("{}: {}".format, name),
        )


class Linear(nn.Module):
    """Logits W x + b of flattened pictures."""

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = nn.Parameter(bias)

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1) @ self.weights.T + self.bias


def two_classes(generator: torch.Generator, side: int = 4) -> tuple[Linear, Tensor]:
    """A linear model of 2 classes in float64, and 8 pictures of class 0, some pixels at 0 or 1."""
    n = 3 * side * side
    weights = torch.randn(2, n, generator=generator, dtype=torch.float64)
    pictures = torch.rand(8, 3, side, side, generator=generator, dtype=torch.float64)
    pictures = (1.4 * pictures - 0.2).clamp(0, 1)
    w = weights[0] - weights[1]
    lift = 0.05 * w.abs().sum() - (pictures.flatten(1) @ w).min()
    return Linear(weights, torch.stack([lift, torch.zeros_like(lift)])), pictures


def minimal_distance(w: Tensor, picture: Tensor, margin: float, norm: str, *, box: bool) -> float:
    """The smallest change that brings w.x down by `margin`, in closed form (float64).

    Along -sign(w) each component has room r (infinite without the box). L-infinity: the eps with
    sum |w| min(eps, r) = margin. L2: change min(lambda |w|, r) with sum |w| change = margin.
    Both sums are piecewise linear in their one unknown, so sorting the break points solves them.
    """
    a, x = w.abs().flatten(), picture.flatten()
    room = torch.where(w.flatten() > 0, x, 1 - x) if box else torch.full_like(x, torch.inf)
    keep = a > 0
    a, room = a[keep], room[keep]
    slope = a if norm == "linf" else a.square()
    breaks = room if norm == "linf" else room / a
    order = breaks.argsort()
    filled, left = 0.0, float(slope.sum())
    unknown = torch.inf
    for j in order.tolist():
        if filled + left * float(breaks[j]) >= margin:
            unknown = (margin - filled) / left
            break
        filled += float(a[j] * room[j])
        left -= float(slope[j])
    if norm == "linf":
        return unknown
    return float(torch.minimum(unknown * a, room).norm())


def tiny_net(seed: int = 0, classes: int = 5) -> nn.Sequential:
    """A convolutional net with everything that state could leak from: batch norm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(12 * 6 * 6, classes),
        )


def tiny_model(seed: int = 0, classes: int = 5) -> Model:
    """The tiny net as featviz loads models: 16 pixels, normalisation inside."""
    return Model(
        tiny_net(seed, classes),
        name="tiny",
        preprocessing=Preprocessing.of(16, mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.25)),
        classes=[("", f"kind {i}") for i in range(classes)],
    )


class Broken(nn.Module):
    """A net with a fault on purpose; `kind` says which."""

    KINDS = (
        "quantised",
        "shattered",
        "stochastic",
        "detached",
        "scaled",
        "softmax",
        "undefined",
        "wants 255",
    )

    def __init__(self, net: nn.Module, kind: str) -> None:
        super().__init__()
        assert kind in {*self.KINDS, "healthy"}
        self.net, self.kind = net, kind

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._broken(x)
        return logits

    def _broken(self, x: Tensor) -> Any:
        kind = self.kind
        if kind == "quantised":
            return self.net((x * 8).round() / 8)
        if kind == "shattered":  # ripples too fine for any step, far steeper than the net
            return self.net(x + 1e-4 * torch.sin(1e6 * x))
        if kind == "stochastic":
            return self.net(x + 0.05 * torch.randn_like(x))
        if kind == "detached":
            return self.net(x.detach())
        if kind == "scaled":
            return 1e6 * self.net(x)
        if kind == "softmax":
            odds = self.net(x).exp()  # as torch's own softmax featviz would undo it
            return odds / odds.sum(1, keepdim=True)
        if kind == "undefined":  # the root's slope at 0 is infinite, times 0
            return self.net(x + (0 * x).sqrt())
        if kind == "wants 255":
            return self.net(x / 255)
        return self.net(x)


OWN_CHECK = {
    "quantised": "quantized input",
    "shattered": "shattered gradients",
    "stochastic": "stochastic model",
    "detached": "detached model",
    "scaled": "enormous logits",
    "softmax": "probabilities instead of logits",
    "undefined": "undefined gradients",
}
"""the check that notices each fault"""


def broken_model(kind: str, seed: int = 0) -> Model:
    """`tiny_model` with a fault."""
    return Model(
        Broken(tiny_net(seed), kind),
        name=kind,
        preprocessing=Preprocessing.of(16, mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.25)),
        classes=[("", f"kind {i}") for i in range(5)],
    )


def photographs(count: int, seed: int = 1, side: int = 16) -> Tensor:
    """Smooth 8-bit pictures, (N, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    fine = nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    return (fine * 255).round() / 255
