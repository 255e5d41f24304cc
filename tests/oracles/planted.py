"""Models in which an adversarial picture is known to exist: planted, one model a picture.

Zimmermann, Brendel, Tramer, Carlini, "Increasing Confidence in Adversarial Robustness Evaluations",
2022 (arXiv:2206.13991). A linear classifier on a net's features is fitted to separate points well
within the ball around a picture (class 0) from one point on its surface (class 1); its threshold is
set just below that point. So the picture is class 0, and the ball holds a picture of class 1, at
distance eps, by construction. An attack that misses it is not reliable where nothing is known; a
random search must not find it, or the test is too easy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Planted(nn.Module):
    """Logits (0, margin) of a linear classifier on features."""

    def __init__(
        self, features: Callable[[Tensor], Tensor], weights: Tensor, threshold: Tensor
    ) -> None:
        super().__init__()
        self.features, self.weights, self.threshold = features, weights, threshold

    def forward(self, pictures: Tensor) -> Tensor:
        score = self.features(pictures).flatten(1) @ self.weights - self.threshold
        return torch.stack([torch.zeros_like(score), score], 1)


def plant(
    features: Callable[[Tensor], Tensor],
    picture: Tensor,
    eps: float,
    norm: str,
    *,
    inner: int = 100,
    seed: int = 0,
) -> tuple[Planted, Tensor]:
    """A model for one picture (3, H, W), and the planted picture, at distance eps in the norm."""
    generator = torch.Generator().manual_seed(seed)
    within = torch.cat([picture[None], _around(picture, 0.95 * eps, norm, inner, generator)])
    # A corner of the ball that the box leaves room for.
    surface = _around(picture, eps, norm, 1, generator, surface=True)
    with torch.no_grad():
        inside = features(within).flatten(1).double()
        outside = features(surface).flatten(1).double()[0]
    # Ridge regression of class on features, in its dual form: few points, many features.
    points = torch.cat([inside, outside[None]])
    mean = points.mean(0)
    centered = points - mean
    goal = torch.cat([-torch.ones(len(inside)), torch.tensor([float(len(inside))])]).double()
    kernel = centered @ centered.T
    ridge = 1e-6 * kernel.diagonal().mean() * torch.eye(len(points), dtype=torch.float64)
    weights = centered.T @ torch.linalg.solve(kernel + ridge, goal)
    inner_score, outer_score = (inside @ weights).max(), outside @ weights
    assert inner_score < outer_score, "the features do not separate the points"
    threshold = outer_score - 0.01 * (outer_score - inner_score)
    dtype = picture.dtype
    return Planted(features, weights.to(dtype), threshold.to(dtype)), surface[0]


def _around(
    picture: Tensor,
    eps: float,
    norm: str,
    count: int,
    generator: torch.Generator,
    *,
    surface: bool = False,
) -> Tensor:
    """(count, 3, H, W) random points of the ball within [0, 1], or of its corners and surface."""
    shape = (count, *picture.shape)
    if norm == "linf":
        noise = torch.rand(shape, generator=generator, dtype=picture.dtype) * 2 - 1
        if surface:
            noise = noise.sign()
            room = torch.where(noise > 0, 1 - picture, picture)
            noise = torch.where(room < eps, -noise, noise)
        return (picture + eps * noise).clamp(0, 1)
    noise = torch.randn(shape, generator=generator, dtype=picture.dtype)
    noise = eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    clipped: Tensor = (picture + noise).clamp(0, 1)
    return clipped
