"""Quality of a map: neighbors kept, false neighbors, classes kept, agreement of several maps.

Ranks of distances in the space are compared with ranks on the map, so scales do not matter.
Trustworthiness and continuity: Venna and Kaski 2001, "Neighborhood preservation in nonlinear
projection methods".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featviz.atlas.cells import unit_rows
from featviz.atlas.graph import Graph, build_graph
from featviz.data.datasets import evenly
from featviz.errors import UserError
from featviz.neighbors.exact import Index
from featviz.statistics import rank_correlation

NEIGHBORS = 10
"""of recall, of the class vote and of the overlap of maps"""
TRUST_K = 15
"""neighbors of trustworthiness and continuity"""
WIDE_K = 50
"""neighbors of the second recall, where the graph has so many"""
PAIRS = 5000
"""pairs of rows whose distances are correlated"""
MOST_RANKED = 1000
"""rows that trustworthiness and continuity are averaged over; more are sampled evenly"""
MOST_AGAINST = 50_000
"""rows among which they are ranked; more are sampled evenly"""
_BLOCK = 128
_SPARE = 8
"""points beyond those wanted, among which equal distances are put in order"""


@dataclass(frozen=True)
class MapQuality:
    """Numbers of one map. All are 1 for a map that is the space itself."""

    k: int
    recall: float
    """fraction of a row's k nearest in the space that are among its k nearest on the map"""
    recall_chance: float
    """of a random map: k / (N - 1)"""
    recall_wide: float | None
    """the same fraction for 50 neighbors; None where the graph has not so many"""
    trustworthiness: float
    """1 less a penalty for neighbors on the map that are far in the space, for 15 neighbors"""
    continuity: float
    """1 less a penalty for neighbors in the space that are far on the map, for 15 neighbors"""
    correlation: float | None
    """Spearman's, between distances in the space and on the map, over 5,000 pairs of rows: the
    global structure (CPD of Kobak and Berens 2019); None where all distances are the same"""
    class_space: float | None
    """accuracy of the vote of the k nearest in the space for a row's class"""
    class_map: float | None
    """the same on the map"""
    kept: Tensor
    """(N, k) bool: which of a row's neighbors in the space, nearest first, are among those on the
    map"""

    @property
    def per_row(self) -> Tensor:
        """Recall of each row, (N,) float64."""
        return self.kept.double().mean(1)


def map_quality(
    index: Index,
    xy: Tensor,
    *,
    graph: Graph | None = None,
    k: int = NEIGHBORS,
    labels: Sequence[str] | None = None,
) -> MapQuality:
    """Compare a map with the space of an index, both by their exact neighbors.

    Args:
        index: The space.
        xy: The map (N, 2).
        graph: The neighbors in the space, at least k of each row, where they are known.
        k: Neighbors of recall and of the class vote.
        labels: Class of each row; "" where there is none.
    """
    count = len(index)
    k = min(k, count - 1)
    if graph is None:
        graph = build_graph(index, max(k, min(WIDE_K, count - 1)))
    near = graph.nearest(k).rows
    wide = WIDE_K if graph.k >= WIDE_K else None
    shown = map_neighbors(xy, max(k, wide or 0))
    kept = is_among(near, shown[:, :k])
    trust, continuity = _trust_both_ways(index, xy)
    return MapQuality(
        k=k,
        recall=float(kept.double().mean()),
        recall_chance=k / (count - 1),
        recall_wide=None if wide is None else overlap(graph.rows[:, :wide], shown[:, :wide]),
        trustworthiness=trust,
        continuity=continuity,
        correlation=distance_correlation(index, xy),
        class_space=class_accuracy(near, labels) if labels else None,
        class_map=class_accuracy(shown[:, :k], labels) if labels else None,
        kept=kept,
    )


def map_neighbors(xy: Tensor, k: int) -> Tensor:
    """Each point's k nearest others on a map (N, 2): (N, k) int64, nearest first, ties by row."""
    from scipy.spatial import cKDTree

    points = xy.double().numpy()
    count = len(points)
    lengths, rows = cKDTree(points).query(points, min(count, k + 1 + _SPARE))
    lengths[rows == np.arange(count)[:, None]] = np.inf
    order = np.lexsort((rows, lengths), axis=1)[:, :k]
    return torch.from_numpy(np.take_along_axis(rows, order, 1).astype(np.int64))


def overlap(one: Tensor, other: Tensor) -> float:
    """The fraction of the neighbors `one` (N, k) that are among `other` (N, m)."""
    pairs = zip(one.split(4096), other.split(4096), strict=True)
    return sum(int(is_among(*pair).sum()) for pair in pairs) / one.numel()


def is_among(one: Tensor, other: Tensor) -> Tensor:
    """For each row which of the neighbors `one` (N, k) are among `other` (N, m), (N, k) bool."""
    return (one[:, :, None] == other[:, None, :]).any(2)


def procrustes(a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    """The Procrustes distance of two maps of the same rows, and b aligned to a (Gower 1975).

    Shift, scale, rotation and reflection are fitted. The distance is the fraction of a's variance
    that b then leaves unexplained: 0 for the same map, 1 for one that has nothing in common.

    Args:
        a: (N, 2).
        b: (N, 2).

    Returns:
        The distance, and b aligned to a, (N, 2) float64.
    """
    left, right = (points.double() - points.double().mean(0) for points in (a, b))
    u, s, v = torch.linalg.svd(right.T @ left)
    size, room = float(right.square().sum()), float(left.square().sum())
    if size == 0 or room == 0:
        return (0.0 if size == room else 1.0), a.double().mean(0).expand(len(a), 2).clone()
    laid = right @ (u @ v) * (s.sum() / size)
    distance = 1 - float(s.sum()) ** 2 / (size * room)
    return max(0.0, distance), laid + a.double().mean(0)


def distance_correlation(index: Index, xy: Tensor, pairs: int = PAIRS) -> float | None:
    """Spearman's correlation of distances in the space and on the map, over fixed random pairs.

    None where all distances are the same.
    """
    count = len(index)
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(count, (pairs,), generator=generator)
    other = (one + torch.randint(1, count, (pairs,), generator=generator)) % count
    space = torch.cat(
        [
            (_unit(index, a) - _unit(index, b)).norm(dim=1)
            for a, b in zip(one.split(512), other.split(512), strict=True)
        ]
    )
    return rank_correlation(space, (xy[one] - xy[other]).double().norm(dim=1))


def _unit(index: Index, rows: Tensor) -> Tensor:
    """Some rows in which Euclidean distance orders neighbors as the metric does, float64."""
    found = index.take(rows.numpy()).double()
    return unit_rows(found) if index.metric == "cosine" else found


def _trust_both_ways(index: Index, xy: Tensor) -> tuple[float, float]:
    """Trustworthiness and continuity, over an even sample of the rows."""
    some = torch.tensor(evenly(len(index), MOST_AGAINST))
    k = min(TRUST_K, (len(some) - 1) // 2)
    rows = torch.tensor(evenly(len(some), MOST_RANKED))
    if k < 1:
        return 1.0, 1.0
    space = torch.cat([_unit(index, part).float() for part in some.split(4096)])
    plane = xy[some].double()
    trust = trustworthiness(space, plane, k, rows=rows)
    return trust, trustworthiness(plane, space, k, rows=rows)


def trustworthiness(space: Tensor, shown: Tensor, k: int, *, rows: Tensor | None = None) -> float:
    """1 less the penalty for rows that are among the k nearest in `shown` but not in `space`.

    The penalty of such a row is its rank in the space beyond k, scaled so that the worst map has 0.
    Equal distances in the space rank by row. Memory grows with N, not with its square.

    Args:
        space: (N, any) coordinates.
        shown: (N, any) coordinates.
        k: Neighbors, below N / 2.
        rows: The mean is taken over these, each ranked against all N; default: all.
    """
    count = len(space)
    chosen = torch.arange(count) if rows is None else rows
    penalty = 0
    for part in chosen.split(_BLOCK):
        there, here = (torch.cdist(points[part], points) for points in (space, shown))
        for distances in (there, here):
            distances[torch.arange(len(part)), part] = torch.inf
        for column in here.topk(k, largest=False).indices.T:
            line = there.gather(1, column[:, None])
            before = (there < line).sum(1)
            before += ((there == line) & (torch.arange(count) < column[:, None])).sum(1)
            penalty += int((before + 1 - k).clamp_min(0).sum())
    return 1 - penalty * 2 / (len(chosen) * k * (2 * count - 3 * k - 1))


@dataclass(frozen=True)
class Stability:
    """Agreement of maps of the same rows that differ in the seed alone."""

    procrustes: float
    """mean distance between two of them: 0 the same map, 1 nothing in common"""
    overlap: float
    """mean fraction of a row's k nearest on one map that are among those on another"""
    k: int


def compare_maps(maps: Sequence[Tensor]) -> Stability:
    """The stability of two or more maps (N, 2) of the same rows, of several seeds for example."""
    if len(maps) < 2:
        raise UserError(f"{len(maps)} map cannot be compared; lay out at least 2 seeds")
    k = min(NEIGHBORS, len(maps[0]) - 1)
    near = [map_neighbors(xy, k) for xy in maps]
    pairs = list(itertools.combinations(range(len(maps)), 2))
    return Stability(
        procrustes=sum(procrustes(maps[a], maps[b])[0] for a, b in pairs) / len(pairs),
        overlap=sum(overlap(near[a], near[b]) for a, b in pairs) / len(pairs),
        k=k,
    )


def class_accuracy(neighbors: Tensor, labels: Sequence[str]) -> float | None:
    """Accuracy of the vote of each row's neighbors (N, k) for its class; the nearest breaks ties.

    Over rows whose class has other members; None where there are none.
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    codes = torch.from_numpy(inverse)
    votes = codes[neighbors]  # (N, k)
    # The vote of a farther neighbor weighs a little less, so the nearer class wins a tie.
    weight = 1 - torch.arange(votes.shape[1]) * (1e-3 / votes.shape[1])
    totals = ((votes[:, :, None] == votes[:, None]) * weight).sum(2)
    right = votes.gather(1, totals.argmax(1, keepdim=True))[:, 0] == codes
    able = torch.from_numpy((sizes[inverse] > 1) & (np.asarray(labels) != ""))
    return float(right[able].double().mean()) if bool(able.any()) else None
