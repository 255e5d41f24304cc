"""The affinities p of t-SNE, from a graph of neighbors.

van der Maaten and Hinton 2008, "Visualizing data using t-SNE", equations 1 and 3: a Gaussian around
every row, whose width gives the perplexity over its neighbors, then both directions averaged. p is
0 for rows of which neither is a neighbor of the other (van der Maaten 2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from featviz.atlas.graph import Graph

_ROUNDS = 60
"""bisections of the width at most; thirty are the usual number"""
_CLOSE = 1e-6
"""nats by which the entropy may miss its target"""
_ROWS = 8192
"""rows calibrated at a time"""


@dataclass(frozen=True)
class Affinities:
    """A sparse symmetric distribution over pairs of rows, as three columns sorted by row."""

    starts: Tensor
    """(N + 1,) int32: where each row's pairs begin"""
    rows: Tensor
    """(E,) int32"""
    others: Tensor
    """(E,) int32"""
    p: Tensor
    """(E,) float64, all together 1"""

    def __len__(self) -> int:
        return len(self.starts) - 1


def affinities(graph: Graph, perplexity: float) -> Affinities:
    """p of every pair of neighbors; the graph should have 3 * perplexity neighbors a row."""
    from scipy.sparse import csr_matrix

    count, k = graph.rows.shape
    p = conditional(graph.lengths.square(), perplexity)
    bounds = np.arange(0, count * k + 1, k)
    one_way = csr_matrix((p.flatten(), graph.rows.flatten(), bounds), shape=(count, count))
    both = ((one_way + one_way.T) / (2 * count)).tocsr()
    both.sort_indices()
    starts = torch.from_numpy(both.indptr.astype(np.int32))
    return Affinities(
        starts=starts,
        rows=torch.repeat_interleave(torch.arange(count, dtype=torch.int32), starts.diff()),
        others=torch.from_numpy(both.indices.astype(np.int32)),
        p=torch.from_numpy(both.data.astype(np.float64)),
    )


def conditional(squares: Tensor, perplexity: float) -> Tensor:
    """p(j | i) over each row's neighbors, float64 (N, k), rows sum to 1.

    The width is found by bisection on a logarithmic scale. In a row whose neighbors are fewer than
    the perplexity, or all equally far, they are all alike.

    Args:
        squares: (N, k) squared distances, nearest first.
        perplexity: exp of the entropy of each row.
    """
    entropy = math.log(min(perplexity, squares.shape[1]))
    return torch.cat([_calibrated(part, entropy) for part in squares.double().split(_ROWS)])


def _calibrated(squares: Tensor, entropy: float) -> Tensor:
    # Only differences matter, and the nearest at 0 keeps exp() in range.
    far = squares - squares[:, :1]
    typical = far.mean(1, keepdim=True)
    far = far / torch.where(typical > 0, typical, 1)
    low, high = torch.full_like(typical, -30.0), torch.full_like(typical, 30.0)
    p = torch.empty_like(far)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        beta = middle.exp()
        torch.exp(-beta * far, out=p)
        total = p.sum(1, keepdim=True)
        miss = total.log() + beta * (p * far).sum(1, keepdim=True) / total - entropy
        # A calibrated row no longer changes, so it does not depend on the others.
        low = torch.where(miss > _CLOSE, middle, low)
        high = torch.where(miss < -_CLOSE, middle, high)
        if not bool((miss.abs() > _CLOSE).any()):
            break
    return p / p.sum(1, keepdim=True)
