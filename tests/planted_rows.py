"""Stores in memory whose rows are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import featviz
from featviz.embedding.store import Store
from featviz.results import Origin


def store_of(rows: Tensor, per_picture: int = 1) -> Store:
    """A store of rows (N, C) at a layer "relu9"; so many rows in turn are of one picture."""
    origin = Origin({"name": "made"}, {"name": "rows"}, {}, None, "cpu", 0.0)
    sample = featviz.sample_pictures(1)
    several = per_picture > 1
    return Store(
        origin=origin,
        layer="relu9",
        dim=rows.shape[1],
        shape=(rows.shape[1], 9, 9),
        reduced="random",
        of_picture=np.arange(len(rows)) // per_picture if several else None,
        pictures=sample.select([0] * len(rows)),
        sizes=np.ones((len(rows), 2), np.int32),
        source={"name": "rows", "count": len(rows), "sha256": ""},
        preparation={"resize": 64, "crop": 64},
        memory=rows.numpy().astype(np.float16),
    )


def parts(
    rows: int = 600, channels: int = 24, count: int = 5, seed: int = 0, noise: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Rows (N, C) >= 0 that are sparse sums of non-negative directions (count, C), and these."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.rand(count, channels, generator=generator)
    directions *= torch.rand(count, channels, generator=generator) < 0.35
    directions += 0.02
    codes = torch.rand(rows, count, generator=generator)
    codes *= torch.rand(rows, count, generator=generator) < 0.4
    more = noise * torch.rand(rows, channels, generator=generator)
    return codes @ directions + more, directions / directions.norm(dim=1, keepdim=True)
