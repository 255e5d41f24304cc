"""The neighbours of every row of a space: one graph for the layout, the numbers and the page.

Nobody searches twice: t-SNE takes its attraction from this graph, `judge_map` asks it which
neighbours a map kept, and the viewer draws its links from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from featviz.errors import UserError

if TYPE_CHECKING:
    from featviz.neighbors.exact import Index, Metric

JUDGED = 50
"""neighbours that the numbers of a map ask for"""


@dataclass(frozen=True)
class Graph:
    """For every row its k nearest others."""

    rows: Tensor
    """(N, k) int64, nearest first, equal distances by row, never the row itself"""
    distances: Tensor
    """(N, k) float32: 1 - cosine, or Euclidean lengths"""
    metric: Metric

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def k(self) -> int:
        """Neighbours of each row."""
        return self.rows.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Euclidean distances (N, k) float64; for cosine, those between unit vectors."""
        far = self.distances.double()
        return (2 * far).sqrt() if self.metric == "cosine" else far

    def nearest(self, k: int) -> Graph:
        """The first k neighbours alone. Raises UserError if there are fewer."""
        if not 1 <= k <= self.k:
            raise UserError(f"a graph of {self.k} neighbours a row cannot give {k}; build a larger")
        return Graph(self.rows[:, :k], self.distances[:, :k], self.metric)


def neighbors_wanted(count: int, perplexity: float = 30.0) -> int:
    """How many neighbours the graph of an atlas of `count` rows has: for t-SNE and the numbers."""
    return min(count - 1, max(JUDGED, math.floor(3 * perplexity)))


def build_graph(
    index: Index, k: int, progress: Callable[[int, int, str], None] | None = None
) -> Graph:
    """The k nearest others of every row of an index (fewer where there are not so many).

    Raises UserError for an index of fewer than 2 rows.
    """
    if len(index) < 2:
        raise UserError(f"neighbours need at least 2 rows, there are {len(index)}")
    everything = np.arange(len(index))
    distances, rows = index.search(
        index.take(everything), min(k, len(index) - 1), exclude=everything, progress=progress
    )
    return Graph(rows, distances.float(), index.metric)
