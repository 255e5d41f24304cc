"""The neighbors of every row of a space: one graph for the layout, the numbers and the page.

Every row is a query here, so the float64 certificate of `neighbors.exact` would cost more than the
layout. Distances are float32's, and agree with it to six decimals. Up to 16,384 rows all are
compared with all in the whole space. Above, candidates are found in three stages, each of fewer
rows along more axes:

1. along 64 principal axes (or as many as hold enough), in the groups nearest to each row
   (`groups`): as many groups as hold 99.5% of the neighbors of 200 rows, known from exact search;
2. the 4 k + 120 best of these, along 256 axes (on a GPU, all rows instead of both);
3. the 1.5 k + 30 best of these, in the whole space.

The recall is measured over those 200 rows. Where it is below .99, up to 65,536 rows are compared
with all in the whole space.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.atlas.groups import Groups, find_groups
from featviz.data.datasets import evenly
from featviz.errors import UserError
from featviz.models.load import resolve_device

if TYPE_CHECKING:
    from featviz.checkpoints import Checkpoint
    from featviz.neighbors.exact import Index, Metric
    from featviz.types import Progress

JUDGED = 50
"""neighbors that the numbers of a map need"""
HELD = 0.995
"""fraction of the true neighbors that the groups which are looked into hold"""
RECALL = 0.99
"""fraction of the true neighbors below which candidates along the axes are not enough"""
_WHOLE = 16_384
"""rows up to which all are compared with all in the whole space"""
_AXES = 256
_FEW_AXES = 64
"""of them, those along which the groups are searched, doubled until candidates hold enough"""
_QUICK_AXES = 50
_LEARNED = 8192
"""rows from which the axes are learned"""
_EXACT = 65_536
"""rows up to which the whole space is searched if they are not"""
_SCORES = 2**26
"""numbers that a search in groups holds at a time"""
_BLOCK = 16
"""scores of which the largest is found first"""
_MEASURED = 200
_PART = 1024
"""rows searched at a time"""
_PIECE = 64
"""parts that are kept at a time"""
_SPARE = 8
"""candidates beyond those wanted, among which equal distances are put in order"""
_TICK = 2.0**-20
"""distances (of unit vectors) that differ by less are equal: the precision of float32"""


_Search = Callable[[Tensor], tuple[Tensor, Tensor]]
"""the best others of some rows, and their scores"""
_Parts = Sequence[Tensor]


@dataclass(frozen=True)
class Graph:
    """For every row its k nearest others."""

    rows: Tensor
    """(N, k) int64, nearest first, equal distances by row, never the row itself"""
    distances: Tensor
    """(N, k) float32: 1 - cosine, or Euclidean lengths"""
    metric: Metric
    recall: float = 1.0
    """fraction of the true neighbors that are here, over 200 rows; 1 where all were compared"""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def k(self) -> int:
        """Neighbors of each row."""
        return self.rows.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Euclidean distances (N, k) float64; for cosine, those between unit vectors."""
        far = self.distances.double()
        return (2 * far).sqrt() if self.metric == "cosine" else far

    def nearest(self, k: int) -> Graph:
        """The first k neighbors alone. Raises UserError if there are fewer."""
        if not 1 <= k <= self.k:
            raise UserError(f"a graph of {self.k} neighbors a row has not {k}; build a larger one")
        return Graph(self.rows[:, :k], self.distances[:, :k], self.metric, self.recall)


def neighbors_wanted(count: int, perplexity: float = 30.0) -> int:
    """How many neighbors the graph of an atlas of `count` rows has: for t-SNE and the numbers."""
    return min(count - 1, max(JUDGED, math.floor(3 * perplexity)))


def build_graph(
    index: Index,
    k: int,
    progress: Progress | None = None,
    *,
    quick: bool = False,
    held: float = HELD,
    device: str = "auto",
    kept: Checkpoint | None = None,
) -> Graph:
    """The k nearest others of every row of an index (fewer where there are not so many).

    Args:
        index: The rows.
        k: Neighbors a row.
        progress: Called with the rows done.
        quick: Only along 50 principal axes, for a preview; `recall` says what that costs.
        held: Of more than 16,384 rows on the CPU, the fraction of true neighbors in the groups that
            are looked into. Fewer take less time (docs/scale.md); `recall` says what is lost.
        device: "auto" takes CUDA where there is one.
        kept: Where finished parts are kept, and found again.

    Raises:
        UserError: The index has fewer than 2 rows, or the device is absent.
    """
    count = len(index)
    if count < 2:
        raise UserError(f"neighbors need at least 2 rows, there are {count}")
    k = min(k, count - 1)
    work = _Work(_Space(index, resolve_device(device)), kept, progress)
    space = work.space
    axes = _QUICK_AXES if quick else _AXES
    recall = 1.0
    if min(count, index.dim) <= axes or (count <= _WHOLE and not quick):
        whole = torch.cat([part.to(space.device) for part in space.blocks()])
        near, scores = work.each(
            "exactly", lambda part: _search([whole], space.bias, whole[part], part, k)
        )
    else:
        near, scores, recall = _along_axes(work, axes, k, quick, held)
        if recall < RECALL and held >= HELD and not quick and count <= _EXACT:
            near, scores = work.each("exactly", lambda part: space.exact(part, k))
            recall = 1.0
    return Graph(near.long(), space.distances(torch.arange(count), scores), index.metric, recall)


@dataclass(frozen=True)
class _Work:
    """A search for all rows."""

    space: _Space
    kept: Checkpoint | None
    progress: Progress | None

    def each(
        self, name: str, search: _Search, parts: _Parts | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `search` finds of all rows, (N, any); a few parts at a time are kept."""
        count = self.space.count
        parts = parts or torch.arange(count).split(_PART)
        pairs: list[tuple[Tensor, Tensor]] = []
        done = 0
        for start in range(0, len(parts), _PIECE):
            some = parts[start : start + _PIECE]
            found = None if self.kept is None else self.kept.read(f"{name}-{start:06}")
            if found is None:
                near, scores = map(torch.cat, zip(*map(search, some), strict=True))
                found = {"near": near.int().numpy(), "scores": scores.numpy()}
                if self.kept is not None:
                    self.kept.write(f"{name}-{start:06}", found, size=len(near))
            pairs.append((torch.from_numpy(found["near"]), torch.from_numpy(found["scores"])))
            done += len(found["near"])
            if self.progress is not None:
                self.progress(done, count, f"finding neighbors {name}")
        back = torch.cat(list(parts)).argsort()
        near, scores = map(torch.cat, zip(*pairs, strict=True))
        return near[back], scores[back]


def _along_axes(
    work: _Work, axes: int, k: int, quick: bool, held: float
) -> tuple[Tensor, Tensor, float]:
    """The best of the candidates along some axes, their scores, and the recall."""
    space, count = work.space, work.space.count
    flat = space.along_axes(axes)
    some = torch.arange(0, count, max(1, count // _MEASURED))
    true = space.exact(some, k)[0]
    wide = k if quick else min(count - 1, k + k // 2 + 30)
    parts: _Parts | None = None
    if space.device.type == "cpu":
        widest = wide if quick else min(count - 1, 4 * k + 120)
        few = _few_axes(flat, space.bias, some, true, widest)
        groups = find_groups(few)
        probes = groups.holding(few[some], true, held, widest + 1)
        search = _Grouped(few, space.bias, groups, probes)
        # Rows of a part are near each other, so that few others are candidates of any of them.
        parts = torch.cat(groups.members).split(_PART)

        def best(part: Tensor) -> tuple[Tensor, Tensor]:
            near, scores = search(part, widest)
            if len(few[0]) == axes:
                return near[:, :wide], scores[:, :wide]
            return _rank(flat.__getitem__, space.bias, part, near, wide)

        near, scores = work.each("in groups", best, parts)
    else:
        near, scores = work.each(
            "along axes", lambda part: _search([flat], space.bias, flat[part], part, wide)
        )
    if not quick:
        near, scores = work.each(
            "in the whole space", lambda part: space.rank(part, near[part].long(), k), parts
        )
    return near, scores, _shared(true, near[some])


def _shared(true: Tensor, found: Tensor) -> float:
    """The fraction of true neighbors (R, k) among those found (R, any)."""
    return float((true[:, :, None] == found[:, None]).any(2).double().mean())


def _few_axes(flat: Tensor, bias: Tensor, rows: Tensor, true: Tensor, wide: int) -> Tensor:
    """The first axes alone: so many that the `wide` best along them hold true neighbors."""
    axes = min(_FEW_AXES, flat.shape[1])
    while axes < flat.shape[1]:
        few = flat[:, :axes].contiguous()
        near, _ = _search([few], bias, few[rows], rows, wide)
        if _shared(true, near) >= HELD:
            return few
        axes *= 2
    return flat


class _Grouped:
    """A search in the groups nearest to each row.

    Every group is compared at once with all rows that name it. What that gives is left where it is;
    the largest of every `_BLOCK` numbers alone are put in the order of the rows, and say which of
    the blocks hold a row's best.
    """

    def __init__(self, flat: Tensor, bias: Tensor, groups: Groups, probes: int):
        self.flat, self.groups, self.probes = flat, groups, min(probes, len(groups.members))
        self.blocks = torch.tensor([-(-len(members) // _BLOCK) for members in groups.members])
        self.starts = _BLOCK * (self.blocks.cumsum(0) - self.blocks)
        sizes = (_BLOCK * self.blocks).tolist()
        # Groups are filled up to whole blocks with row 0, which is never among the best there.
        self.order = torch.zeros(sum(sizes), dtype=torch.int64)
        weight = torch.full((len(self.order),), torch.inf)
        for start, members in zip(self.starts.tolist(), groups.members, strict=True):
            self.order[start : start + len(members)] = members
            weight[start : start + len(members)] = bias[members]
        self.members, self.weights = flat[self.order].split(sizes), weight.neg().split(sizes)
        self.room = int(self.blocks.max())
        self.size = max(1, _SCORES * len(sizes) // (self.probes * sum(sizes)))
        # One buffer for all parts: new memory of this size costs more than what is written to it.
        self.scores = torch.empty(0)

    def __call__(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of some rows the k best others there, and their scores, (R, k)."""
        near, scores = zip(*(self._best(part, k) for part in rows.split(self.size)), strict=True)
        return torch.cat(near), torch.cat(scores)

    def _best(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = self.flat[rows]
        named = self.groups.nearest(queries, self.probes)
        largest, begins = self._compared(queries, named)
        top, block = largest.topk(min(k + 1, largest.shape[1]), dim=1, sorted=False)
        slot = block // self.room
        inside = (block % self.room * _BLOCK)[:, :, None] + torch.arange(_BLOCK)
        at = (begins.gather(1, slot)[:, :, None] + inside).clamp_max(len(self.scores) - 1)
        score = self.scores[at].where(top[:, :, None] > -torch.inf, -torch.inf)
        best, chosen = score.flatten(1).topk(k + 1, dim=1, sorted=False)
        place = (self.starts[named.gather(1, slot)][:, :, None] + inside).flatten(1)
        near = self.order[place.gather(1, chosen).clamp_max(len(self.order) - 1)]
        best[near == rows[:, None]] = -torch.inf
        return _in_order(best, near, k)

    def _compared(self, queries: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows (R, axes) with the groups that they name (R, G).

        The largest score in each block, (R, G * room), and where in `scores` those of a row with a
        group begin, (R, G).
        """
        order = named.flatten().argsort()
        counts = torch.bincount(named.flatten(), minlength=len(self.members)).tolist()
        lengths = _BLOCK * self.blocks[named.flatten()[order]]
        begins = torch.empty_like(order)
        begins[order] = lengths.cumsum(0) - lengths
        if int(lengths.sum()) > len(self.scores):
            self.scores = torch.empty(int(lengths.sum()))
        largest = torch.full((named.numel(), self.room), -torch.inf)
        start = 0
        for places, members, weights in zip(
            order.split(counts), self.members, self.weights, strict=True
        ):
            if len(places):
                stop = start + len(places) * len(members)
                found = self.scores[start:stop].view(len(places), len(members))
                torch.addmm(weights, queries[places // self.probes], members.T, out=found)
                tops = torch.nn.functional.max_pool1d(found[:, None], _BLOCK)[:, 0]
                largest[places, : tops.shape[1]] = tops
                start = stop
        return largest.view(len(queries), -1), begins.view_as(named)


def _products(rows: Tensor, others: Tensor, columns: Tensor, counts: Tensor) -> Tensor:
    """Inner products of rows with some of the others, row after row, on the CPU.

    Args:
        rows: (R, dim).
        others: (M, dim).
        columns: Numbers of others: `counts[0]` of them for the first row, and so on; each row's
            ascending.
        counts: (R,).
    """
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    with warnings.catch_warnings():  # torch warns that this format is in beta
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        pairs = torch.sparse_csr_tensor(
            bounds,
            columns,
            torch.zeros(len(columns)),
            (len(rows), len(others)),
            check_invariants=True,
        )
        found: Tensor = torch.sparse.sampled_addmm(pairs, rows, others.T, beta=0.0)
    return found.values()


def _rank(
    take: Callable[[Tensor], Tensor], bias: Tensor, rows: Tensor, proposed: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Of some rows the k best of what is proposed (R, wide), on the CPU; `take` reads rows."""
    proposed = proposed.sort(1).values
    # Every row is read once, although most are candidates of many rows of a part.
    used, columns = proposed.unique(return_inverse=True)
    counts = torch.full((len(rows),), proposed.shape[1])
    score = _products(take(rows), take(used), columns.flatten(), counts)
    return _in_order(score.view_as(proposed) - bias[proposed], proposed, k)


class _Space:
    """An index's rows so that x.y - bias(y) orders neighbors as the metric does."""

    def __init__(self, index: Index, device: torch.device):
        self.index, self.device = index, device
        self.count = len(index)
        self.cosine = index.metric == "cosine"
        self.held = index.resident() if index.device == device else None
        self.mean = torch.zeros(index.dim, device=self.place)
        self.squares = torch.ones(self.count)
        if not self.cosine:
            # The subtraction of smaller numbers loses less.
            total = sum(rows.sum(0, dtype=torch.float64) for rows in self.blocks())
            self.mean = (torch.as_tensor(total) / self.count).float()
            self.squares = torch.cat([rows.square().sum(1) for rows in self.blocks()]).cpu()
        self.bias = (torch.zeros(self.count) if self.cosine else self.squares / 2).to(device)

    @property
    def place(self) -> torch.device:
        """Where rows are taken from."""
        return torch.device("cpu") if self.held is None else self.device

    def blocks(self) -> Iterator[Tensor]:
        """All rows, block after block."""
        return (self.take(rows) for rows in torch.arange(self.count).split(8192))

    def take(self, rows: Tensor) -> Tensor:
        """Some of the rows, on `place`."""
        if self.held is None:
            found: Tensor = self.index.take(rows.cpu().numpy())
            norms = torch.from_numpy(self.index.norms[rows.cpu().numpy()]).float()
        else:
            rows = rows.to(self.device)
            found, norms = self.held[0][rows].float(), self.held[1][rows].float()
        if not self.cosine:
            return found.sub_(self.mean)
        return found.div_(torch.where(norms > 0, norms, 1)[:, None])

    def exact(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of some rows the k best others of all, and their scores, (R, k)."""
        return _search(self.blocks(), self.bias, self.take(rows).to(self.device), rows, k)

    def along_axes(self, count: int) -> Tensor:
        """All rows along the main axes of an even sample, (N, count).

        The axes are not centered, since products are to be kept.
        """
        from sklearn.utils.extmath import randomized_svd

        sample = self.take(torch.tensor(evenly(self.count, _LEARNED))).cpu().numpy()
        _, _, basis = randomized_svd(sample, count, n_iter=2, random_state=0, flip_sign=False)
        axes = torch.from_numpy(basis.T.copy()).to(self.device)
        return torch.cat([rows.to(self.device) @ axes for rows in self.blocks()])

    def rank(self, rows: Tensor, proposed: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of some rows the k best of what is proposed (R, wide), in the whole space."""
        if self.device.type == "cpu":
            return _rank(self.take, self.bias, rows, proposed, k)
        found, scores = torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k)
        for part in torch.arange(len(rows)).split(256):
            near = self.take(proposed[part].flatten()).to(self.device)
            mine = self.take(rows[part]).to(self.device)
            score = torch.bmm(near.view(len(part), -1, self.index.dim), mine[:, :, None])[:, :, 0]
            some = proposed[part].to(self.device)
            near, score = _in_order(score - self.bias[some], some, k)
            found[part], scores[part] = near.cpu(), score.cpu()
        return found, scores

    def distances(self, rows: Tensor, scores: Tensor) -> Tensor:
        """The metric's distances of rows to their neighbors, from the scores."""
        if self.cosine:
            return (1 - scores).clamp(0, 2)
        return (self.squares[rows][:, None] - 2 * scores).clamp_min(0).sqrt()


def _search(
    blocks: Iterable[Tensor], bias: Tensor, queries: Tensor, rows: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Of some rows (R,), given as queries (R, dim), the k best others, and their scores, (R, k)."""
    device = bias.device
    near = torch.empty(len(rows), 0, dtype=torch.int64, device=device)
    scores = torch.empty(len(rows), 0, device=device)
    rows = rows.to(device)
    start = 0
    for block in blocks:
        stop = start + len(block)
        score = torch.addmm(-bias[start:stop], queries, block.to(device).T)
        own = (rows - start).clamp(0, len(block) - 1)[:, None]
        outside = (rows < start) | (rows >= stop)
        score.scatter_(1, own, score.gather(1, own).where(outside[:, None], -torch.inf))
        wide = min(len(block), k + 1 + _SPARE)
        best, found = score.topk(wide, dim=1)
        # More rows than were spared may be as near as the last one; then all are put in order.
        tied = best[:, min(k, wide) - 1] - best[:, -1] <= _TICK
        if wide < len(block) and bool(tied.any()):
            everything = torch.arange(len(block), device=score.device).expand(int(tied.sum()), -1)
            found[tied], best[tied] = _in_order(score[tied], everything, wide)
        near, scores = torch.cat([near, found + start], 1), torch.cat([scores, best], 1)
        near, scores = _in_order(scores, near, k + 1 + _SPARE)
        start = stop
    return near[:, :k].cpu(), scores[:, :k].cpu()


def _in_order(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of some candidates, best first, those that float32 cannot tell apart by row."""
    rows, order = rows.sort(dim=1)
    scores = scores.gather(1, order)
    order = (-scores / _TICK).round().argsort(dim=1, stable=True)[:, :k]
    return rows.gather(1, order), scores.gather(1, order)
