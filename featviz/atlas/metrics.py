"""How far a map may be believed: neighbours kept, neighbours invented, classes kept.

Everything compares ranks of distances in the space with ranks on the map, so no scale matters.
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

from featviz.atlas.graph import Graph, build_graph
from featviz.errors import UserError
from featviz.neighbors.exact import Index
from featviz.statistics import rank_correlation

TRUST_K = 15
"""neighbours that trustworthiness and continuity look at"""
WIDE_K = 50
"""neighbours of the second recall, where the graph has so many"""
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
    """share of a row's k nearest in the space that are among its k nearest on the map"""
    recall_chance: float
    """what a random map gives: k / (N - 1)"""
    recall_wide: float | None
    """the same share for 50 neighbours; None where the graph has not so many"""
    trustworthiness: float
    """1 less a penalty for neighbours on the map that are far in the space, for 15 neighbours"""
    continuity: float
    """1 less a penalty for neighbours in the space that are far on the map, for 15 neighbours"""
    correlation: float | None
    """Spearman's, between distances in the space and on the map, over 5,000 pairs of rows: how far
    the large picture is right (CPD of Kobak and Berens 2019)"""
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
    if graph is None:
        graph = build_graph(index, max(k, min(WIDE_K, count - 1)))
    near = graph.nearest(k).rows
    wide = WIDE_K if graph.k >= WIDE_K else None
    shown = near_on_map(xy, max(k, wide or 0))
    kept = found_again(near, shown[:, :k])
    trust, continuity, ranked = _trust_both_ways(index, xy)
    return MapQuality(
        k=k,
        recall=float(kept.double().mean()),
        recall_chance=k / (count - 1),
        recall_wide=None if wide is None else shared(graph.rows[:, :wide], shown[:, :wide]),
        trustworthiness=trust,
        continuity=continuity,
        correlation=distance_correlation(index, xy),
        ranked=ranked,
        class_space=class_accuracy(near, labels) if labels else None,
        class_map=class_accuracy(shown[:, :k], labels) if labels else None,
        kept=kept,
    )


def near_on_map(xy: Tensor, k: int) -> Tensor:
    """Each point's k nearest others on a map (N, 2): (N, k) int64, nearest first, ties by row."""
    from scipy.spatial import cKDTree

    points = xy.double().numpy()
    count = len(points)
    lengths, rows = cKDTree(points).query(points, min(count, k + 1 + _SPARE))
    lengths[rows == np.arange(count)[:, None]] = np.inf
    order = np.lexsort((rows, lengths), axis=1)[:, :k]
    return torch.from_numpy(np.take_along_axis(rows, order, 1).astype(np.int64))


def shared(wanted: Tensor, found: Tensor) -> float:
    """Share of the neighbours (N, k) wanted that are among those found (N, m)."""
    pairs = zip(wanted.split(4096), found.split(4096), strict=True)
    return sum(int(found_again(*pair).sum()) for pair in pairs) / wanted.numel()


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


def distance_correlation(index: Index, xy: Tensor, pairs: int = PAIRS) -> float | None:
    """Spearman's correlation of distances in the space and on the map, over fixed random pairs.

    None where all distances are equal.
    """
    count = len(index)
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(count, (pairs,), generator=generator)
    other = (one + torch.randint(1, count, (pairs,), generator=generator)) % count
    there = torch.cat(
        [
            (_unit(index, a) - _unit(index, b)).norm(dim=1)
            for a, b in zip(one.split(512), other.split(512), strict=True)
        ]
    )
    return rank_correlation(there, (xy[one] - xy[other]).double().norm(dim=1))


def _unit(index: Index, rows: Tensor) -> Tensor:
    """Some rows in which Euclidean distance orders neighbours as the metric does, float64."""
    found = index.take(rows.numpy()).double()
    if index.metric == "cosine":
        found /= found.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return found


def _trust_both_ways(index: Index, xy: Tensor) -> tuple[float, float, int]:
    """Trustworthiness, continuity, and the number of rows they are the mean of."""
    some = _evenly(len(index), MOST_AGAINST)
    k = min(TRUST_K, (len(some) - 1) // 2)
    rows = _evenly(len(some), MOST_RANKED)
    if k < 1:
        return 1.0, 1.0, len(rows)
    space = torch.cat([_unit(index, part).float() for part in some.split(4096)])
    plane = xy[some].double()
    trust = trustworthiness(space, plane, k, rows=rows)
    return trust, trustworthiness(plane, space, k, rows=rows), len(rows)


def _evenly(count: int, most: int) -> Tensor:
    """At most so many of `count` rows, evenly spread."""
    some = min(count, most)
    return torch.arange(some) * count // some


def trustworthiness(space: Tensor, shown: Tensor, k: int, *, rows: Tensor | None = None) -> float:
    """1 less the penalty for rows that are among the k nearest in `shown` but not in `space`.

    space, shown: (N, any) coordinates; k < N / 2. The penalty of an intruder is its rank in the
    space beyond k, scaled so that the worst map has 0. Equal distances rank by row.
    rows: the mean is taken over these, each ranked against all N; default all. Distances are worked
    out in blocks, so memory grows with N alone
    """
    count = len(space)
    asked = torch.arange(count) if rows is None else rows
    lengths = [points.square().sum(1) for points in (space, shown)]
    penalty = 0
    for part in asked.split(_BLOCK):
        there, here = (
            _squares(points, norms, part)
            for points, norms in zip((space, shown), lengths, strict=True)
        )
        near = _nearest(here, k)
        for column in near.T:
            line = there.gather(1, column[:, None])
            before = (there < line).sum(1)
            before += ((there == line) & (torch.arange(count) < column[:, None])).sum(1)
            penalty += int((before + 1 - k).clamp_min(0).sum())
    return 1 - penalty * 2 / (len(asked) * k * (2 * count - 3 * k - 1))


def _squares(points: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
    """Squared distances of some rows to all, infinite to themselves."""
    squares = torch.addmm(lengths, points[rows], points.T, alpha=-2) + lengths[rows][:, None]
    squares[torch.arange(len(rows)), rows] = torch.inf
    return squares


def _nearest(squares: Tensor, k: int) -> Tensor:
    """The columns of each row's k smallest, equal ones by column."""
    limit = squares.kthvalue(k, dim=1, keepdim=True).values
    # The k nearest are all below the limit, and of those on it the first that there is room for.
    below, on = squares < limit, squares == limit
    room = k - below.sum(1, keepdim=True)
    chosen = below | (on & (on.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(-1, k)


@dataclass(frozen=True)
class Stability:
    """How far maps of the same rows agree that differ in chance alone."""

    procrustes: float
    """mean distance between two of them: 0 the same map, 1 nothing in common"""
    overlap: float
    """mean share of a row's k nearest on one map that are so on another"""
    k: int


def compare_maps(maps: Sequence[Tensor], k: int = 10) -> Stability:
    """The stability of two or more maps (N, 2) of the same rows, say of several seeds."""
    if len(maps) < 2:
        raise UserError(f"{len(maps)} map cannot be compared; lay out at least 2 seeds")
    k = min(k, len(maps[0]) - 1)
    near = [near_on_map(xy, k) for xy in maps]
    pairs = list(itertools.combinations(range(len(maps)), 2))
    return Stability(
        procrustes=sum(procrustes(maps[a], maps[b])[0] for a, b in pairs) / len(pairs),
        overlap=sum(shared(near[a], near[b]) for a, b in pairs) / len(pairs),
        k=k,
    )


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
