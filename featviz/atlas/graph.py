"""The neighbours of every row of a space: one graph for the layout, the numbers and the page.

Nobody searches twice: t-SNE takes its attraction from this graph, `judge_map` asks it which
neighbours a map kept, and the viewer draws its links from it.

Every row is a query here, so the float64 certificate of `neighbors.exact` would cost more than the
layout. Distances are float32's, and agree with it to six decimals. Up to 16,384 rows all are
compared with all in the whole space. Above, 256 principal axes propose half as many again as are
wanted, and those are compared in the whole space; what that misses is measured over 200 rows, and
the whole space is searched after all where it is more than 1%.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.models.load import resolve_device

if TYPE_CHECKING:
    from featviz.neighbors.exact import Index, Metric

JUDGED = 50
"""neighbours that the numbers of a map ask for"""
RECALL = 0.99
"""share of the true neighbours below which the short cut is not taken"""
_WHOLE = 16_384
"""rows up to which all are compared with all in the whole space"""
_AXES = 256
_QUICK_AXES = 50
_LEARNED = 8192
"""rows from which the axes are learned"""
_MEASURED = 200
_SPARE = 8
"""candidates beyond those wanted, among which equal distances are put in order"""
_TICK = 2.0**-20
"""distances (of unit vectors) that agree so far are equal: float32 knows no better"""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Graph:
    """For every row its k nearest others."""

    rows: Tensor
    """(N, k) int64, nearest first, equal distances by row (above 16,384 rows only among the first
    eight beyond k), never the row itself"""
    distances: Tensor
    """(N, k) float32: 1 - cosine, or Euclidean lengths"""
    metric: Metric
    recall: float = 1.0
    """share of the true neighbours that are here, over 200 rows; 1 where all were compared"""

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
        return Graph(self.rows[:, :k], self.distances[:, :k], self.metric, self.recall)


def neighbors_wanted(count: int, perplexity: float = 30.0) -> int:
    """How many neighbours the graph of an atlas of `count` rows has: for t-SNE and the numbers."""
    return min(count - 1, max(JUDGED, math.floor(3 * perplexity)))


def build_graph(
    index: Index,
    k: int,
    progress: Progress | None = None,
    *,
    quick: bool = False,
    device: str = "auto",
) -> Graph:
    """The k nearest others of every row of an index (fewer where there are not so many).

    quick: only along 50 principal axes, for a preview; `recall` says what that costs
    device: "auto" takes CUDA where there is one

    Raises UserError for an index of fewer than 2 rows and for a device that is absent.
    """
    count = len(index)
    if count < 2:
        raise UserError(f"neighbours need at least 2 rows, there are {count}")
    k = min(k, count - 1)
    space = _Space(index, resolve_device(device))
    everything = torch.arange(count)
    axes = _QUICK_AXES if quick else _AXES
    if min(count, index.dim) <= axes or (count <= _WHOLE and not quick):
        near, far = _compare(space.whole(), space.bias, everything, k, progress)
        return Graph(near, space.distances(everything, far), index.metric)
    flat = space.along(space.axes(axes))
    some = everything[:: max(1, count // _MEASURED)]
    true, far = _compare_whole(space, some, k)
    if quick:
        near, far = _compare(flat, space.bias, everything, k, progress)
        recall = _shared(near[some], true)
        return Graph(near, space.distances(everything, far), index.metric, recall)
    wide = min(count - 1, k + k // 2)
    near = torch.empty(count, k, dtype=torch.int64)
    scores = torch.empty(count, k)
    for rows in everything.split(1024):
        proposed, _ = _compare(flat, space.bias, rows, wide)
        near[rows], scores[rows] = space.rank(rows, proposed, k)
        if progress is not None:
            progress(int(rows[-1]) + 1, count, "finding neighbours")
    recall = _shared(near[some], true)
    if recall < RECALL:
        for rows in everything.split(1024):
            near[rows], scores[rows] = _compare_whole(space, rows, k)
            if progress is not None:
                progress(int(rows[-1]) + 1, count, "finding neighbours in the whole space")
        recall = 1.0
    return Graph(near, space.distances(everything, scores), index.metric, recall)


class _Space:
    """An index's rows so that x.y - bias(y) orders neighbours as the metric does."""

    def __init__(self, index: Index, device: torch.device):
        self.index, self.device = index, device
        self.count = len(index)
        self.cosine = index.metric == "cosine"
        self.mean = torch.zeros(index.dim)
        self.squares = torch.ones(self.count)
        if not self.cosine:
            # Small numbers lose less when they are subtracted.
            total = torch.zeros(index.dim, dtype=torch.float64)
            for rows in self.blocks():
                total += rows.sum(0, dtype=torch.float64)
            self.mean = (total / self.count).float()
            self.squares = torch.cat([rows.square().sum(1) for rows in self.blocks()])
        self.bias = (torch.zeros(self.count) if self.cosine else self.squares / 2).to(device)

    def blocks(self) -> list[Tensor]:
        """All rows, block after block."""
        everything = np.arange(self.count)
        return [
            self.take(torch.from_numpy(part))
            for part in np.array_split(everything, max(1, self.count // 8192))
        ]

    def take(self, rows: Tensor) -> Tensor:
        """Some of the rows, on the processor."""
        found: Tensor = self.index.take(rows.numpy())
        if not self.cosine:
            return found.sub_(self.mean)
        norms = torch.from_numpy(self.index.norms[rows.numpy()]).float()
        return found.div_(torch.where(norms > 0, norms, 1)[:, None])

    def whole(self) -> Tensor:
        """All rows, on the device."""
        return torch.cat([rows.to(self.device) for rows in self.blocks()])

    def axes(self, count: int) -> Tensor:
        """The main axes (dim, count) of an even sample, not centred: products are what is kept."""
        learned = torch.linspace(0, self.count - 1, min(self.count, _LEARNED)).long()
        sample = self.take(learned).to(self.device)
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(self.index.dim, count + 16, generator=generator).to(self.device)
        for _ in range(2):
            basis = torch.linalg.qr(sample.T @ (sample @ basis)).Q
        seen = (sample @ basis).double()
        _, turn = torch.linalg.eigh(seen.T @ seen)
        main: Tensor = basis @ turn.flip(1)[:, :count].float()
        return main

    def along(self, axes: Tensor) -> Tensor:
        """All rows (N, number of axes)."""
        return torch.cat([rows.to(self.device) @ axes for rows in self.blocks()])

    def rank(self, rows: Tensor, proposed: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of some rows the k best of what is proposed (R, wide), in the whole space."""
        found, scores = torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k)
        # On the processor what is gathered should stay in the cache.
        for part in torch.arange(len(rows)).split(2 if self.device.type == "cpu" else 256):
            near = self.take(proposed[part].flatten()).to(self.device)
            mine = self.take(rows[part]).to(self.device)
            score = torch.bmm(near.view(len(part), -1, self.index.dim), mine[:, :, None])[:, :, 0]
            score -= self.bias[proposed[part].to(self.device)]
            found[part], scores[part] = _in_order(score.cpu(), proposed[part], k)
        return found, scores

    def distances(self, rows: Tensor, scores: Tensor) -> Tensor:
        """What the metric calls the scores of rows with their neighbours."""
        if self.cosine:
            return (1 - scores).clamp(0, 2)
        return (self.squares[rows][:, None] - 2 * scores).clamp_min(0).sqrt()


def _compare(
    rows: Tensor, bias: Tensor, asked: Tensor, k: int, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """The k best others of some rows among all, and their scores, (len(asked), k)."""
    near, scores = torch.empty(len(asked), k, dtype=torch.int64), torch.empty(len(asked), k)
    turned = rows.T.contiguous()
    wide = min(len(rows), k + 1 + _SPARE)
    for part in torch.arange(len(asked)).split(512):
        score = torch.addmm(-bias, rows[asked[part]], turned)
        score[torch.arange(len(part)), asked[part]] = -torch.inf
        best, found = score.topk(wide, dim=1, sorted=False)
        near[part], scores[part] = _in_order(best.cpu(), found.cpu(), k)
        # More rows than were spared may be as near as the last one; then all are put in order.
        crowd = scores[part, -1] - best.min(1).values.cpu() <= _TICK
        if wide < len(rows) and bool(crowd.any()):
            some = score[crowd.to(score.device)].cpu()
            near[part[crowd]], scores[part[crowd]] = _in_order(
                some, torch.arange(len(rows)).expand_as(some), k
            )
        if progress is not None:
            progress(int(part[-1]) + 1, len(asked), "finding neighbours")
    return near, scores


def _compare_whole(space: _Space, asked: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same in the whole space, a block of rows at a time."""
    mine = space.take(asked).to(space.device)
    near, scores = torch.empty(len(asked), 0, dtype=torch.int64), torch.empty(len(asked), 0)
    seen = 0
    for rows in torch.arange(space.count).split(8192):
        score = mine @ space.take(rows).to(space.device).T - space.bias[rows]
        inside = (asked >= seen) & (asked < seen + len(rows))
        score[inside.nonzero()[:, 0], asked[inside] - seen] = -torch.inf
        best, found = score.topk(min(len(rows), k + 1 + _SPARE), dim=1, sorted=False)
        near, scores = torch.cat([near, found.cpu() + seen], 1), torch.cat([scores, best.cpu()], 1)
        near, scores = _in_order(scores, near, min(near.shape[1], k + 1 + _SPARE))
        seen += len(rows)
    return near[:, :k], scores[:, :k]


def _in_order(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of some candidates, best first, those that float32 cannot tell apart by row."""
    rows, order = rows.sort(dim=1)
    scores = scores.gather(1, order)
    order = (-scores / _TICK).round().argsort(dim=1, stable=True)[:, :k]
    return rows.gather(1, order), scores.gather(1, order)


def _shared(found: Tensor, true: Tensor) -> float:
    """Share of the true neighbours (N, k) that are among those found (N, k)."""
    return float((true[:, :, None] == found[:, None, :]).any(2).double().mean())
