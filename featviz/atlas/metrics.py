"""How far a map may be believed: neighbours kept, neighbours invented, classes kept.

Everything compares ranks of distances in the space with ranks on the map, so no scale matters.
Trustworthiness and continuity: Venna and Kaski 2001, "Neighborhood preservation in nonlinear
projection methods".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featviz.atlas.graph import Graph, build_graph
from featviz.neighbors.exact import Index, build_index

MOST_RANKED = 3000
"""rows of which all distances are ranked; more are sampled evenly"""


@dataclass(frozen=True)
class MapQuality:
    """Numbers of one map. All are 1 for a map that is the space itself."""

    k: int
    recall: float
    """share of a row's k nearest in the space that are among its k nearest on the map"""
    recall_chance: float
    """what a random map gives: k / (N - 1)"""
    trustworthiness: float
    """1 less a penalty for neighbours on the map that are far in the space"""
    continuity: float
    """1 less a penalty for neighbours in the space that are far on the map"""
    ranked: int
    """rows that the last two were measured on"""
    class_space: float | None
    """share of rows whose class wins the vote of their k nearest in the space"""
    class_map: float | None
    """the same on the map"""
    kept: Tensor
    """(N, k) bool: which of a row's neighbours in the space, nearest first, are so on the map"""

    @property
    def per_row(self) -> Tensor:
        """Recall of each row, (N,) float64."""
        return self.kept.double().mean(1)


def judge_map(
    index: Index,
    xy: Tensor,
    *,
    graph: Graph | None = None,
    k: int = 10,
    labels: Sequence[str] | None = None,
) -> MapQuality:
    """Compare a map (N, 2) with the space of an index, both by their exact neighbours.

    graph: the neighbours in the space, at least k of each row, where they were found before
    """
    count = len(index)
    k = min(k, count - 1)
    everything = np.arange(count)
    flat = build_index(xy.float(), metric="l2")
    near = (build_graph(index, k) if graph is None else graph.nearest(k)).rows
    _, shown = flat.search(xy.float(), k, exclude=everything)
    kept = found_again(near, shown)
    some = np.unique(np.linspace(0, count - 1, min(count, MOST_RANKED)).astype(int))
    trust, continuity = _trust_both_ways(index, xy, some, k)
    return MapQuality(
        k=k,
        recall=float(kept.double().mean()),
        recall_chance=k / (count - 1),
        trustworthiness=trust,
        continuity=continuity,
        ranked=len(some),
        class_space=class_accuracy(near, labels) if labels else None,
        class_map=class_accuracy(shown, labels) if labels else None,
        kept=kept,
    )


def found_again(wanted: Tensor, found: Tensor) -> Tensor:
    """For each row which of `wanted` (N, k) is among `found` (N, m), as (N, k) bool."""
    return (wanted[:, :, None] == found[:, None, :]).any(2)


def procrustes(a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """How differently two maps (N, 2) of the same rows lie, and b laid onto a.

    Shift, scale, rotation and reflection are taken away first. The distance is the share of a's
    variance that b does not explain: 0 for the same map, 1 for one that has nothing in common.

    Returns (distance, b on a's terms (N, 2) float64). Gower 1975.
    """
    left, right = (points.double() - points.double().mean(0) for points in (a, b))
    u, s, v = torch.linalg.svd(right.T @ left)
    size, room = float(right.square().sum()), float(left.square().sum())
    if size == 0 or room == 0:
        return (0.0 if size == room else 1.0), a.double().mean(0).expand(len(a), 2).clone()
    laid = right @ (u @ v) * (s.sum() / size)
    distance = 1 - float(s.sum()) ** 2 / (size * room)
    return max(0.0, distance), laid + a.double().mean(0)


def _trust_both_ways(index: Index, xy: Tensor, rows: np.ndarray, k: int) -> tuple[float, float]:
    """Trustworthiness and continuity among some rows; k stays below half of them."""
    k = min(k, (len(rows) - 1) // 2)
    if k < 1:
        return 1.0, 1.0
    space = index.take(rows).double()
    if index.metric == "cosine":
        space = space / space.norm(dim=1, keepdim=True).clamp_min(1e-30)
    plane = xy.double()[rows]
    return trustworthiness(space, plane, k), trustworthiness(plane, space, k)


def trustworthiness(space: Tensor, shown: Tensor, k: int) -> float:
    """1 less the penalty for rows that are among the k nearest in `shown` but not in `space`.

    space, shown: (N, any) float64 coordinates; k < N / 2. The penalty of an intruder is its rank
    in the space beyond k, scaled so that the worst map has 0. Equal distances rank by row.
    """
    count = len(space)
    near = _ranked(shown)[:, :k]
    order = _ranked(space)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(1, count + 1).expand(count, -1))
    beyond = (rank.gather(1, near) - k).clamp_min(0)
    return 1 - float(beyond.sum()) * 2 / (count * k * (2 * count - 3 * k - 1))


def _ranked(points: Tensor) -> Tensor:
    """For each row all rows, nearest first; itself at the end."""
    lengths = points.square().sum(1)
    distances = lengths[:, None] + lengths[None, :] - 2 * points @ points.T
    distances.fill_diagonal_(torch.inf)
    return torch.sort(distances, dim=1, stable=True).indices


def class_accuracy(neighbors: Tensor, labels: Sequence[str]) -> float | None:
    """Share of rows whose class wins the vote of their neighbours (N, k); nearest breaks ties.

    Only rows whose class has others are counted; None where there are none.
    """
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    sizes = np.bincount(codes)
    able = np.flatnonzero((sizes[codes] > 1) & (np.asarray(labels) != ""))
    if not able.size:
        return None
    votes = codes[neighbors.numpy()[able]]
    # A later neighbour's vote weighs a little less, so the nearer class wins a tie.
    weight = 1 - np.arange(votes.shape[1]) * 1e-3 / max(1, votes.shape[1])
    won = 0
    for row, line in zip(able, votes, strict=True):
        totals = np.bincount(line, weights=weight, minlength=len(names))
        won += int(totals.argmax() == codes[row])
    return won / able.size
