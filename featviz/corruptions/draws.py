"""Random numbers of each picture, independent of the other pictures.

Every picture has its own generator, seeded by its key and the corruption's name. The severity is
not part of the seed: noise, angles and flakes are the same at all severities, so that a curve over
the severities shows strength and not chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from featviz.attacks import projections

Streams = Sequence[torch.Generator]


def streams(keys: Sequence[int], name: str) -> list[torch.Generator]:
    """One generator (on the CPU) a picture."""
    number = int.from_bytes(name.encode(), "big")
    return [projections.generator(key, number) for key in keys]


def normal(generators: Streams, shape: Sequence[int], like: Tensor) -> Tensor:
    """(N, *shape) of the standard normal distribution, where `like` is and of its type."""
    drawn = torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
    return drawn.to(like)


def uniform(
    generators: Streams,
    shape: Sequence[int],
    low: float,
    high: float,
    like: Tensor | None = None,
) -> Tensor:
    """(N, *shape) uniform in [low, high), where `like` is and of its type, else in float64."""
    drawn = torch.stack(
        [torch.rand(tuple(shape), generator=g, dtype=torch.float64) for g in generators]
    )
    drawn = low + (high - low) * drawn
    return drawn if like is None else drawn.to(like)


def integers(generators: Streams, shape: Sequence[int], low: int, high: int) -> Tensor:
    """(N, *shape) whole numbers from low to high - 1, on the CPU."""
    return torch.stack([torch.randint(low, high, tuple(shape), generator=g) for g in generators])
