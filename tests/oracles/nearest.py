"""The nearest rows by a plain search in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from featviz.neighbors.exact import Metric


def nearest(
    base: Tensor, queries: Tensor, k: int, metric: Metric, exclude: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """All distances in float64, sorted by distance and then by row."""
    x, q = base.double(), queries.double()
    if metric == "l2":
        distances = torch.stack([((x - row) ** 2).sum(1).sqrt() for row in q])
    else:
        lengths = q.norm(dim=1)[:, None] * x.norm(dim=1)[None]
        cosines = (q @ x.T) / lengths.where(lengths > 0, torch.ones_like(lengths))
        distances = (1 - cosines).clamp(0, 2)
    # what differs by less than rounding is equal
    distances = distances.mul(1e10).round().div(1e10)
    for line, row in enumerate(exclude or []):
        if row >= 0:
            distances[line, row] = torch.inf
    order = torch.sort(distances, dim=1, stable=True).indices[:, :k]
    return distances.gather(1, order), order
