"""Random numbers of one picture at a time: what a picture gets does not depend on its neighbours.

Every picture has its own stream, made from its key and the corruption's name. The severity is not
part of it: a picture meets the same grains, angles and flakes at all severities, so that a curve
over the severities is one of strength and not of luck.
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
    return drawn.to(like.device, like.dtype)


def uniform(
    generators: Streams, shape: Sequence[int], low: float, high: float, like: Tensor
) -> Tensor:
    """(N, *shape) uniform in [low, high), where `like` is and of its type."""
    drawn = torch.stack(
        [torch.rand(tuple(shape), generator=g, dtype=torch.float64) for g in generators]
    )
    return (low + (high - low) * drawn).to(like.device, like.dtype)


def integers(generators: Streams, shape: Sequence[int], low: int, high: int) -> Tensor:
    """(N, *shape) whole numbers from low to high - 1, on the CPU."""
    return torch.stack([torch.randint(low, high, tuple(shape), generator=g) for g in generators])
