"""The neighbors of every row of a space: one graph for the layout, the numbers and the page.

Every row is a query here, so the float64 certificate of `neighbors.exact` would cost more than the
layout. Distances are float32's, and agree with it to six decimals. Up to 16,384 rows all are
compared with all in the whole space. Above, each row is compared along 256 principal axes with the
8,192 rows in groups near its own (`groups`; on a GPU with all rows), and the best of these, half as
many again as are wanted, in the whole space. The recall is measured over 200 rows against exact
search before the others are searched; both numbers are doubled until it is 99%.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
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
RECALL = 0.99
"""fraction of the true neighbors below which more rows are compared"""
_WHOLE = 16_384
"""rows up to which all are compared with all in the whole space"""
_AXES = 256
_QUICK_AXES = 50
_LEARNED = 8192
"""rows from which the axes are learned"""
_COMPARED = 8192
"""rows with which each is compared along the axes, at first"""
_MEASURED = 200
_PART = 512
"""rows searched at a time"""
_PIECE = 64
"""parts that are kept at a time"""
_SPARE = 8
"""candidates beyond those wanted, among which equal distances are put in order"""
_TICK = 2.0**-20
"""distances (of unit vectors) that differ by less are equal: the precision of float32"""


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
    device: str = "auto",
    kept: Checkpoint | None = None,
) -> Graph:
    """The k nearest others of every row of an index (fewer where there are not so many).

    Args:
        index: The rows.
        k: Neighbors a row.
        progress: Called with the rows done.
        quick: Only along 50 principal axes, for a preview; `recall` says what that costs.
        device: "auto" takes CUDA where there is one.
        kept: Where finished parts are kept, and found again.

    Raises:
        UserError: The index has fewer than 2 rows, or the device is absent.
    """
    count = len(index)
    if count < 2:
        raise UserError(f"neighbors need at least 2 rows, there are {count}")
    k = min(k, count - 1)
    space = _Space(index, resolve_device(device))
    rows = torch.arange(count)
    axes = _QUICK_AXES if quick else _AXES
    recall = 1.0
    search: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    if min(count, index.dim) <= axes or (count <= _WHOLE and not quick):
        whole = torch.cat([part.to(space.device) for part in space.blocks()])

        def search(part: Tensor, _: int) -> tuple[Tensor, Tensor]:
            return _search([whole], space.bias, whole[part], part, k)

        parts = [(part, 0) for part in rows.split(_PART)]
    else:
        shortcut = _Shortcut(space, space.along_axes(axes), k, quick)
        recall = shortcut.reach_recall()
        search, parts = shortcut, shortcut.parts(rows)
    near, scores = torch.empty(count, k, dtype=torch.int64), torch.empty(count, k)
    done = 0
    for start in range(0, len(parts), _PIECE):
        some = parts[start : start + _PIECE]
        here = torch.cat([part for part, _ in some])
        found = None if kept is None else kept.read(f"parts-{start:06}")
        if found is None:
            pairs = [search(*part) for part in some]
            found = {
                "near": torch.cat([each for each, _ in pairs]).numpy(),
                "scores": torch.cat([each for _, each in pairs]).numpy(),
            }
            if kept is not None:
                kept.write(f"parts-{start:06}", found, size=len(here))
        near[here], scores[here] = map(torch.from_numpy, (found["near"], found["scores"]))
        done += len(here)
        if progress is not None:
            progress(done, count, "finding neighbors")
    return Graph(near, space.distances(rows, scores), index.metric, recall)


class _Shortcut:
    """Search along some axes, and in the whole space among the best of these."""

    def __init__(self, space: _Space, flat: Tensor, k: int, quick: bool):
        self.space, self.flat, self.k, self.quick = space, flat, k, quick
        self.groups: Groups | None = find_groups(flat) if flat.device.type == "cpu" else None
        self.compared = min(space.count, max(_COMPARED, 4 * k)) if self.groups else space.count
        self.wide = k if quick else min(space.count - 1, k + k // 2)

    def parts(self, rows: Tensor) -> list[tuple[Tensor, int]]:
        """All of these rows, so that those of a part are of one group, and its number."""
        if self.groups is None:
            return [(part, 0) for part in rows.split(_PART)]
        own = self.groups.named[rows, 0]
        order = own.argsort(stable=True)
        sizes = torch.bincount(own, minlength=len(self.groups.members)).tolist()
        return [
            (part, number)
            for number, mine in enumerate(rows[order].split(sizes))
            for part in mine.split(_PART)
            if len(part)
        ]

    def __call__(self, rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
        """The k best others of some rows of a group, and their scores, (R, k)."""
        flat, bias = self.flat, self.space.bias
        if self.groups is None:
            near, scores = _search([flat], bias, flat[rows], rows, self.wide)
        else:
            among = self.groups.among(group, self.compared)
            score = torch.addmm(-bias[among], flat[rows], flat[among].T)
            score.scatter_(1, torch.searchsorted(among, rows)[:, None], -torch.inf)
            scores, found = score.topk(self.wide, dim=1)
            near, scores = _in_order(scores, among[found], self.wide)
        return (near, scores) if self.quick else self.space.rank(rows, near, self.k)

    def reach_recall(self) -> float:
        """Compare more rows until RECALL is reached; the recall, over rows spread evenly."""
        rows = torch.arange(0, self.space.count, max(1, self.space.count // _MEASURED))
        mine = self.space.take(rows).to(self.space.device)
        true = _search(self.space.blocks(), self.space.bias, mine, rows, self.k)[0]
        near = torch.empty_like(true)
        while True:
            for part, group in self.parts(rows):
                near[torch.searchsorted(rows, part)] = self(part, group)[0]
            recall = float((true[:, :, None] == near[:, None, :]).any(2).double().mean())
            everything = self.wide == self.space.count - 1 and self.compared == self.space.count
            if self.quick or recall >= RECALL or everything:
                return 1.0 if everything else recall
            self.wide = min(self.space.count - 1, 2 * self.wide)
            self.compared = min(self.space.count, max(2 * self.compared, 2 * self.wide))


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
            proposed = proposed.sort(1).values
            score = self._products(rows, proposed) - self.bias[proposed]
            return _in_order(score, proposed, k)
        found, scores = torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k)
        for part in torch.arange(len(rows)).split(256):
            near = self.take(proposed[part].flatten()).to(self.device)
            mine = self.take(rows[part]).to(self.device)
            score = torch.bmm(near.view(len(part), -1, self.index.dim), mine[:, :, None])[:, :, 0]
            some = proposed[part].to(self.device)
            near, score = _in_order(score - self.bias[some], some, k)
            found[part], scores[part] = near.cpu(), score.cpu()
        return found, scores

    def _products(self, rows: Tensor, others: Tensor) -> Tensor:
        """Inner products of rows with others of each (R, wide), ascending, on the CPU.

        Every other row is read once, although most are candidates of many rows of a group.
        """
        used, columns = others.unique(return_inverse=True)
        with warnings.catch_warnings():  # torch warns that this format is in beta
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            pairs = torch.sparse_csr_tensor(
                torch.arange(0, others.numel() + 1, others.shape[1]),
                columns.flatten(),
                torch.zeros(others.numel()),
                (len(rows), len(used)),
                check_invariants=True,
            )
            found: Tensor = torch.sparse.sampled_addmm(
                pairs, self.take(rows), self.take(used).T, beta=0.0
            )
        return found.values().view(others.shape)

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
