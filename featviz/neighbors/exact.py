"""Exact search in a space of activations: build an index, add rows, search.

torch (or FAISS, as an option) proposes candidates in float32. Their distances are computed again in
float64, and a row is accepted only when no row outside the candidates could be nearer within
float32's error. So the result does not depend on the library, on threads or on the batch: nearest
first, equal distances in the order of their rows.

torch is the default. Candidates by cosine are proposed in fewer bits where that is faster: on CUDA
in TF32, on a CPU in bfloat16, for one query in float16 (`products`). Queries that this cannot
decide are searched again in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from featviz.embedding.store import Store
from featviz.errors import UserError, nearest, public
from featviz.models.frozen import plain_float32
from featviz.models.load import resolve_device
from featviz.neighbors.products import (
    BFLOAT16_ERROR,
    Halves,
    in_bfloat16,
    products,
    rough_kind,
    rough_products,
)
from featviz.types import Progress
from featviz.wording import not_one_each

if TYPE_CHECKING:
    from numpy.typing import NDArray

Metric = Literal["cosine", "l2"]
Backend = Literal["auto", "torch", "faiss"]
Nearest = tuple["NDArray[np.float64]", "NDArray[np.int64]"]
"""distances and rows, (Q, k)"""
_Top = tuple[Tensor, Tensor, int]
"""the best scores of a block of rows, (Q, n), their places in it, and its number of rows"""
Excluded = Sequence[int] | Sequence[Sequence[int]] | Tensor | np.ndarray[Any, Any] | None

_BLOCK = 8192
"""rows that are compared with the queries at a time"""
_KEPT = 4 << 30
"""bytes of float32 rows that are kept ready; beyond that they are made anew for each search"""
_RESIDENT = 48 << 30
"""bytes of rows that are kept on a GPU, at most half of its memory; more are sent to it anew for
each search"""
_MOST_ON_CARD = 2048
"""neighbors that FAISS can find on a GPU; torch has no such limit"""
_HELD = 1 << 30
"""bytes of a store's float16 rows that are held in memory; a larger store stays on the disk"""
_COSINE_ERROR = 2e-5
"""more than float32 loses in an inner product of unit vectors of 4096 dimensions (measured 1e-6)"""
_L2_ERROR = 4e-6
"""the same for |x|^2 + |q|^2 - 2 x.q, relative to |x|^2 + |q|^2"""
_TF32_ERROR = 2.5e-3
"""the same in TF32, which rounds both vectors to 10 bits behind the point"""
_ROUGH_SPARE = {torch.float32: 20, torch.bfloat16: 12, torch.float16: 12}
"""candidates beyond k in a round of TF32, bfloat16, float16"""
_BATCH = 16
"""queries from which a round in bfloat16 is judged"""
_TOO_MANY = 0.5
"""fraction of queries left undecided beyond which bfloat16 is not tried again"""
_COMPARED = 1 << 18
"""numbers of candidates that are compared in float64 at a time: they stay in the cache"""
_UNDIVIDED = 1 << 15
"""so few numbers torch does not divide between threads, which would wait for each other"""
_GATHERED = 4096
"""rows that are read from the disk at a time, to be compared in float64"""
_ON_CUDA = 16
"""on CUDA, where nothing has to stay in a cache, blocks are so many times as large"""
_DECIMALS = 12
"""cosine distances that agree to so many places are equal (x and 2x are in the same direction)"""


class Index:
    """Vectors that can be searched. Made by `build_index`.

    metric: "cosine" (1 - cosine, 0 to 2) or "l2" (Euclidean length)
    backend: "torch" or "faiss", who proposes the candidates
    device: where it is searched; without a card for FAISS, torch searches on CUDA in its place
    """

    def __init__(
        self,
        dim: int,
        metric: Metric = "cosine",
        backend: Backend = "auto",
        device: torch.device | str = "cpu",
    ):
        if metric not in ("cosine", "l2"):
            hint = nearest(metric, ["cosine", "l2"])
            raise UserError(f"unknown metric {metric!r}; take cosine or l2{hint}")
        if backend not in ("auto", "faiss", "torch"):
            raise UserError(f"unknown backend {backend!r}; take auto, faiss or torch")
        if backend == "faiss":
            check_faiss("backend faiss")
        self.dim = dim
        self.store: Store | None = None
        """the store that was indexed, if it was one: it has pictures and classes"""
        self.metric: Metric = metric
        self.device = torch.device(device)
        able = backend == "faiss" and (self.device.type == "cpu" or faiss_has_card())
        self.backend = "faiss" if able else "torch"
        self.norms: NDArray[np.float64] = np.empty(0)
        """Euclidean length of every row"""
        self._rows: NDArray[Any] | _OnDisk = np.empty((0, dim), np.float16)
        self._ready: NDArray[np.float32] | None = None
        self._resident: tuple[Tensor, Tensor] | None = None
        self._rounded: tuple[Tensor, float] | None = None
        self._halves: Halves | None = None
        self._vague = False

    def __len__(self) -> int:
        return len(self.norms)

    def __repr__(self) -> str:
        return f"<Index: {len(self):,} rows of {self.dim}, {self.metric}>"

    def add(self, vectors: Tensor) -> None:
        """Append rows (N, dim). Raises UserError for another width and for values not finite."""
        rows = self.check(vectors)
        if isinstance(self._rows, _OnDisk):
            raise UserError("this index is over a store on the disk; rows cannot be added to it")
        # Rows of a store are float16 numbers; kept so they take half the room.
        half = torch.from_numpy(rows).half().numpy()  # numpy would warn of what is too large
        exact = np.array_equal(half, rows)
        self._rows = np.concatenate([self._rows, half if exact else rows])
        self.norms = np.concatenate([self.norms, _norms(rows)])
        self._ready = self._resident = self._rounded = self._halves = None
        self._vague = False

    def add_store(self, store: Store) -> None:
        """Index a store: a large one is read from the disk whenever its rows are needed."""
        assert not len(self)
        self.store = store
        self.norms = np.concatenate([_norms(self.check(b)) for b in store.blocks(_BLOCK)])
        large = store.folder is not None and 2 * len(store) * store.dim > _HELD
        self._rows = _OnDisk(store) if large else store.span(0, len(store))

    def resident(self) -> tuple[Tensor, Tensor] | None:
        """On CUDA all rows as they were added, and their lengths, float64; None where too many."""
        if self.device.type == "cpu":
            return None
        if self._resident is None:
            limit = min(_RESIDENT, torch.cuda.mem_get_info(self.device)[1] // 2)
            if len(self) * self.dim * self._rows_bytes() > limit:
                return None
            # Filled block by block: blocks to be joined would take the memory twice.
            kind = torch.float32 if self._rows_bytes() == 4 else torch.float16
            rows = torch.empty(len(self), self.dim, dtype=kind, device=self.device)
            for start in range(0, len(self), _BLOCK):
                block = torch.from_numpy(self._rows[start : start + _BLOCK])
                rows[start : start + len(block)] = block.to(self.device)
            self._resident = rows, torch.from_numpy(self.norms).to(self.device)
        return self._resident

    def _rows_bytes(self) -> int:
        return 2 if isinstance(self._rows, _OnDisk) else self._rows.itemsize

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Some of the rows as they were added, (len(rows), dim) float32."""
        return torch.from_numpy(self._rows[np.asarray(rows, dtype=np.int64)]).float()

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Excluded = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k nearest rows of each query.

        Args:
            queries: (Q, dim).
            k: With fewer rows to choose from, k shrinks.
            exclude: For each query a row that is left out (the query itself) or -1, (Q,); or
                several such rows, (Q, B).
            progress: Called with (queries done, all queries, text).

        Returns:
            (distances, rows), (Q, k) float64 and int64, nearest first, equal distances by row.
        """
        if k < 1:
            raise UserError(f"k = {k} neighbors are too few; 1 or more")
        return self.in_parts(self._search, queries, k, exclude, progress)

    def in_parts(
        self,
        search: Callable[[NDArray[np.float32], int, NDArray[np.int64]], Nearest],
        queries: Tensor,
        k: int,
        exclude: Excluded,
        progress: Progress | None,
        size: int = 1024,
    ) -> tuple[Tensor, Tensor]:
        """The nearest rows that `search` finds of checked queries, `size` queries at a time."""
        xq = self.check(queries)
        banned = banned_rows(exclude, len(xq))
        k = min(k, len(self) - int((banned >= 0).sum(1).max(initial=0)))
        if k < 1:
            raise UserError(f"nothing to find: the index has {len(self)} rows")
        distances = np.empty((len(xq), k))
        rows = np.empty((len(xq), k), dtype=np.int64)
        for start in range(0, len(xq), size):
            part = slice(start, start + size)
            distances[part], rows[part] = search(xq[part], k, banned[part])
            if progress is not None:
                progress(min(start + size, len(xq)), len(xq), "searching")
        return torch.from_numpy(distances), torch.from_numpy(rows)

    def _search(self, xq: NDArray[np.float32], k: int, banned: NDArray[np.int64]) -> Nearest:
        distances = np.empty((len(xq), k))
        rows = np.empty((len(xq), k), dtype=np.int64)
        todo = np.arange(len(xq))
        rough = self._rough_kind(len(xq))
        wanted = k + banned.shape[1]
        wide = wanted + (_ROUGH_SPARE[rough] if rough else 0)
        while todo.size:
            wide = min(wide, len(self))
            far, candidates, needed = self._candidates(xq[todo], wanted, wide, rough)
            exact = self._distances_of(xq[todo], candidates, needed)
            nearest_distances, nearest_rows = best_of(exact, candidates, banned[todo], k)
            distances[todo], rows[todo] = nearest_distances, nearest_rows
            if wide == len(self):
                break
            # A row outside the candidates is no nearer than `far`.
            undecided = nearest_distances[:, -1] >= far
            if rough == torch.bfloat16 and len(todo) >= _BATCH and undecided.mean() > _TOO_MANY:
                self._vague = True
            todo = todo[undecided]
            wide *= 1 if rough else 4
            rough = None
        return distances, rows

    def _rough_kind(self, queries: int) -> torch.dtype | None:
        """The type of fewer bits in which candidates are proposed first; float32 means TF32."""
        if self.backend != "torch" or self.metric != "cosine":
            return None
        if self.device.type == "cuda":
            return torch.float32
        if self.device.type != "cpu":
            return None
        kind = rough_kind(queries, self._rows_bytes() == 2)
        kept = not isinstance(self._rows, _OnDisk) and 2 * len(self) * self.dim <= _KEPT
        return kind if kind == torch.float16 or (kept and not self._vague) else None

    def _candidates(
        self, xq: NDArray[np.float32], wanted: int, count: int, rough: torch.dtype | None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], list[int]]:
        """Rows likely to be near, (Q, count), in the order of their scores.

        Before them a lower bound of the distance of all others, (Q,), by the score of the next best
        row; after them how many can be among the `wanted` nearest: the others are too far.
        """
        unit = for_search(xq, self.metric)
        lost: NDArray[np.float64] | float = _COSINE_ERROR
        tops: Iterable[_Top]
        if rough is None or rough == torch.float32:
            with plain_float32():  # the errors are those of float32
                if rough is not None:
                    torch.set_float32_matmul_precision("high")  # TF32
                    lost = _TF32_ERROR
                tops = self._tops(torch.from_numpy(unit).to(self.device), count + 1)
                best, where = _merged(tops, count + 1)
        else:
            rounded = self._by_float16 if rough == torch.float16 else self._by_bfloat16
            scores, more = rounded(torch.from_numpy(unit))
            best, where = _merged((_top(some, count + 1) for some in scores), count + 1)
            lost = lost + more
        rows = where[:, :count].cpu().numpy()
        worst = best[:, -1].double().cpu().numpy()
        needed = [rows.shape[1]] * len(rows)
        if self.metric == "l2":
            error = _L2_ERROR * (_norms(xq) ** 2 + self.norms.max() ** 2)
            return np.sqrt(np.maximum(-worst - error, 0)), rows, needed
        if self.device.type == "cpu":
            least = best[:, min(wanted, best.shape[1]) - 1].numpy() - 2 * lost
            needed = (best[:, :count].numpy() >= least[:, None]).sum(1).tolist()
        return 1 - worst - lost, rows, needed

    def _tops(self, queries: Tensor, count: int) -> Iterator[_Top]:
        """The best scores of every block."""
        for rows in self._device_blocks():
            if self.backend == "faiss" and (rows.is_cpu or count <= _MOST_ON_CARD):
                yield _top_by_faiss(queries, rows, min(count, len(rows)), self.metric)
            else:
                yield _top(block_scores(queries, rows, self.metric), count)

    def _by_float16(self, unit: Tensor) -> tuple[Iterable[Tensor], float]:
        """Cosines (1, n) of a query with every block, and how much they can be wrong."""
        self._halves = how = self._halves or Halves.of(self.norms, self.dim)
        query = (unit * how.scale).half()
        blocks = (slice(i, i + _BLOCK) for i in range(0, len(self), _BLOCK))
        pairs = ((rough_products(query, torch.from_numpy(self._rows[b])), b) for b in blocks)
        return (some.float().div_(how.lengths[block]) for some, block in pairs), how.lost

    def _by_bfloat16(self, unit: Tensor) -> tuple[Iterable[Tensor], NDArray[np.float64]]:
        """Cosines (Q, n) of queries with every block, and how much they can be wrong, (Q,)."""
        queries, moved = in_bfloat16(unit)
        rows, most = self._in_bfloat16()
        # a query in bfloat16 is at most 1 + 2^-8 long
        lost = moved.double().numpy() + (1 + 2.0**-8) * most + BFLOAT16_ERROR
        return (rough_products(queries, block) for block in rows.split(_BLOCK)), lost

    def _in_bfloat16(self) -> tuple[Tensor, float]:
        """All rows, scaled to length 1, and how far one of them has moved at most."""
        if self._rounded is None:
            rows, most = torch.empty(len(self), self.dim, dtype=torch.bfloat16), 0.0
            for some, made in zip(rows.split(_BLOCK), self._scaled_blocks(), strict=True):
                rough, moved = in_bfloat16(torch.from_numpy(made))
                some.copy_(rough)
                most = max(most, float(moved.max()))
            self._rounded = rows, most
        return self._rounded

    def _device_blocks(self) -> Iterator[Tensor]:
        """All rows scaled for the metric, float32, where they are searched."""
        held = self.resident()
        if held is None:
            yield from (torch.from_numpy(rows).to(self.device) for rows in self.search_blocks())
            return
        size = _BLOCK * _ON_CUDA
        for rows, norms in zip(held[0].split(size), held[1].split(size), strict=True):
            wide = rows.float()
            if self.metric == "cosine":
                wide = wide / torch.where(norms > 0, norms, 1).float()[:, None]
            yield wide

    def search_blocks(self) -> Iterator[NDArray[np.float32]]:
        """All rows scaled for the metric, float32 (at most _BLOCK, dim) at a time."""
        data = self._rows
        starts = range(0, len(data), _BLOCK)
        if self._ready is not None:
            yield from (self._ready[i : i + _BLOCK] for i in starts)
            return
        made = self._scaled_blocks()
        if isinstance(data, _OnDisk) or data.size * 4 > _KEPT:
            yield from made
            return
        ready = np.empty(data.shape, np.float32)
        for i, block in zip(starts, made, strict=True):
            ready[i : i + _BLOCK] = block
            yield ready[i : i + _BLOCK]
        self._ready = ready

    def _scaled_blocks(self) -> Iterator[NDArray[np.float32]]:
        """The same, made anew."""
        for start in range(0, len(self), _BLOCK):
            # torch widens float16 faster than numpy.
            wide = torch.from_numpy(self._rows[start : start + _BLOCK]).float().numpy()
            yield for_search(wide, self.metric)

    def _distances_of(
        self, xq: NDArray[np.float32], candidates: NDArray[np.int64], needed: list[int]
    ) -> NDArray[np.float64]:
        """As `distances`, of the first candidates that are needed; infinity for the others."""
        exact = np.full(candidates.shape, np.inf)
        for count in set(needed):
            some = np.array(needed) == count if len(set(needed)) > 1 else slice(None)
            exact[some, :count] = self.distances(xq[some], candidates[some, :count])
        return exact

    def distances(
        self, xq: NDArray[np.float32], candidates: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """From each query (Q, dim) to its own candidates (Q, count), in float64."""
        held = self.resident()
        queries = xq.astype(np.float64)
        if held is None:
            found = _compared(self._rows, queries, candidates, self.metric)
        else:
            whole = torch.from_numpy(queries)
            found = _compared_on_card(held[0], whole, candidates, self.metric)
        if self.metric == "l2":
            return found
        length = self.norms[candidates] * np.sqrt(np.vecdot(queries, queries))[:, None]
        return np.round(1 - found / np.where(length > 0, length, 1), _DECIMALS).clip(0, 2)

    def check(self, vectors: Tensor) -> NDArray[np.float32]:
        """Vectors as numpy's float32 (N, dim). Raises UserError if they do not fit."""
        if vectors.dim() != 2 or vectors.shape[1] != self.dim:
            raise UserError(f"vectors are (N, {self.dim}) here, got {tuple(vectors.shape)}")
        whole = vectors.detach().to("cpu", torch.float32).contiguous()
        rows: NDArray[np.float32] = whole.numpy()
        if not np.isfinite(rows).all():
            raise UserError("vectors hold values that are not finite; they have no neighbors")
        return rows


class _OnDisk:
    """The rows of a store, indexed as an array: by a slice, or by an array of row numbers."""

    def __init__(self, store: Store):
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        if isinstance(rows, slice):
            return self.store.span(*rows.indices(len(self))[:2])
        return self.store.gather(rows)


def banned_rows(exclude: Excluded, queries: int) -> NDArray[np.int64]:
    """Rows that are left out of each query's neighbors, (queries, B), -1 where there is none."""
    if exclude is None:
        return np.empty((queries, 0), np.int64)
    if len(exclude) != queries:
        raise UserError(not_one_each(len(exclude), "list of rows to exclude", queries, "query"))
    rows = [np.atleast_1d(np.asarray(row, dtype=np.int64)) for row in exclude]
    banned = np.full((queries, max([1, *map(len, rows)])), -1)
    for line, row in zip(banned, rows, strict=True):
        line[: len(row)] = row
    return banned


def best_of(
    distances: NDArray[np.float64],
    rows: NDArray[np.int64],
    banned: NDArray[np.int64],
    k: int,
) -> Nearest:
    """The k nearest of some candidates (Q, count) that are not banned (Q, B); equal ones by row."""
    if banned.size:
        distances = np.where((rows[:, :, None] == banned[:, None, :]).any(2), np.inf, distances)
    order = np.lexsort((rows, distances), axis=1)[:, :k]
    line = np.arange(len(rows))[:, None]
    return distances[line, order], rows[line, order]


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of `count` rows, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(np.int64))


def has_faiss() -> bool:
    """Whether FAISS is installed, without importing it."""
    return importlib.util.find_spec("faiss") is not None


def faiss_has_card() -> bool:
    """Whether FAISS can compute on a GPU: its own build for them, and one that it sees."""
    if not has_faiss():
        return False
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@cache
def faiss_card() -> Any:
    """What FAISS keeps on the GPU between calls."""
    import faiss

    return faiss.StandardGpuResources()


def check_faiss(wanted: str) -> None:
    """Raise UserError, which names what is wanted, where FAISS is not installed."""
    if not has_faiss():
        raise UserError(f"{wanted}: faiss is not installed; pip install 'featviz[cpu]' (or [gpu])")


def _compared(
    rows: NDArray[Any] | _OnDisk,
    queries: NDArray[np.float64],
    candidates: NDArray[np.int64],
    metric: Metric,
) -> NDArray[np.float64]:
    """Inner products of queries with their own candidates, or Euclidean distances, (Q, count)."""
    found = np.empty(candidates.shape)
    if isinstance(rows, _OnDisk):
        step = max(1, _GATHERED // candidates.shape[1])
        for start in range(0, len(queries), step):
            part = candidates[start : start + step]
            gathered, own = rows[part.reshape(-1)], np.arange(part.size).reshape(part.shape)
            found[start : start + step] = _compared(
                gathered, queries[start : start + step], own, metric
            )
        return found
    data, dim = torch.from_numpy(rows), queries.shape[1]
    if metric == "cosine" and candidates.size * dim <= _UNDIVIDED:
        few = data.index_select(0, torch.from_numpy(candidates.reshape(-1))).double()
        found[:] = np.vecdot(few.view(*candidates.shape, dim).numpy(), queries[:, None])
        return found
    wide = max(1, min(candidates.shape[1], _COMPARED // dim))
    step = max(1, min(len(queries), _COMPARED // (wide * dim)))
    raw, double = (torch.empty(step * wide, dim, dtype=d) for d in (data.dtype, torch.float64))
    single = torch.empty(step * wide * dim if torch.get_num_threads() == 1 else _UNDIVIDED)
    for start in range(0, len(queries), step):
        query = queries[start : start + step, None]
        for first in range(0, candidates.shape[1], wide):
            part = candidates[start : start + step, first : first + wide]
            size = part.size
            # numpy gathers in one thread; mode="clip" writes without a copy in between
            np.take(rows, part.reshape(-1), 0, raw[:size].numpy(), mode="clip")
            # float16 becomes float64 faster in two steps than in one.
            pieces = (x[:size].view(-1).split(len(single)) for x in (raw, double))
            for narrow, broad in zip(*pieces, strict=True):
                broad.copy_(single[: len(narrow)].copy_(narrow))
            near = double[:size].view(*part.shape, dim).numpy()
            if metric == "l2":
                near -= query
                dots = np.sqrt(np.vecdot(near, near))
            else:
                dots = np.vecdot(near, query)
            found[start : start + step, first : first + wide] = dots
    return found


def _compared_on_card(
    rows: Tensor, queries: Tensor, candidates: NDArray[np.int64], metric: Metric
) -> NDArray[np.float64]:
    """The same on CUDA, where nothing has to stay in a cache."""
    query, chosen = queries.to(rows.device)[:, None], torch.from_numpy(candidates).to(rows.device)
    found = torch.empty(chosen.shape, dtype=torch.float64, device=rows.device)
    step = max(1, min(8, _GATHERED // chosen.shape[1]) * _ON_CUDA)
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        near = rows[chosen[part].reshape(-1)].float().double().view(*chosen[part].shape, -1)
        if metric == "l2":
            found[part] = near.sub_(query[part]).square_().sum(2).sqrt_()
        else:
            found[part] = near.mul_(query[part]).sum(2)
    return found.cpu().numpy()


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return lengths


def for_search(rows: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Rows whose inner products or Euclidean distances give the metric's order."""
    if metric == "l2":
        return rows
    lengths = _norms(rows)
    return rows / np.where(lengths > 0, lengths, 1).astype(np.float32)[:, None]


def block_scores(queries: Tensor, rows: Tensor, metric: Metric) -> Tensor:
    """(Q, N), larger for nearer rows: inner products, or squared distances below zero."""
    scores = products(queries, rows)
    if metric == "cosine":
        return scores
    squares = rows.square().sum(1) + queries.square().sum(1, keepdim=True)
    return scores.mul_(2).sub_(squares)


def _merged(tops: Iterable[_Top], count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of scores and their rows, which were found in blocks of so many rows."""
    found: list[tuple[Tensor, Tensor]] = []
    seen = 0
    for score, at, rows in tops:
        found.append((score, at + seen if seen else at))
        seen += rows
        if len(found) > 1:
            scores, places = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
            best, order = scores.topk(min(count, scores.shape[1]), dim=1)
            found = [(best, places.gather(1, order))]
    return found[0]


def _top(scores: Tensor, count: int) -> _Top:
    best, at = scores.topk(min(count, scores.shape[1]), dim=1)
    return best.float(), at, scores.shape[1]


def _top_by_faiss(queries: Tensor, rows: Tensor, count: int, metric: Metric) -> _Top:
    import faiss

    kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    if rows.device.type == "cpu":
        pair = faiss.knn(queries.numpy(), rows.numpy(), count, kind)
        found, where = (torch.from_numpy(array) for array in pair)
    else:
        import faiss.contrib.torch_utils  # lets knn_gpu take torch's tensors

        found, where = faiss.knn_gpu(
            faiss_card(), queries, rows, count, metric=kind, device=rows.get_device()
        )
    return found if metric == "cosine" else -found, where, len(rows)


@public
def build_index(
    vectors: Store | Tensor,
    *,
    metric: Metric = "cosine",
    backend: Backend = "auto",
    device: str | None = None,
) -> Index:
    """An index over the rows of a store, or of a matrix.

    Args:
        vectors: A store, or (N, dim).
        metric: "cosine" (1 - cosine) or "l2" (Euclidean).
        backend: What proposes the candidates: "torch", "faiss", or "auto", which is torch. On CUDA
            "faiss" needs faiss-gpu; without it torch searches there.
        device: Where it is searched: "auto" takes CUDA where there is one. Default: where the
            matrix is, and for a store "auto".

    Raises:
        UserError: An unknown metric or backend, an absent device, or values that are not finite.
    """
    place = vectors.device if isinstance(vectors, Tensor) and device is None else None
    place = place or resolve_device(device or "auto")
    if isinstance(vectors, Store):
        index = Index(vectors.dim, metric, backend, place)
        index.add_store(vectors)
        return index
    if vectors.dim() != 2:
        raise UserError(f"an index takes a matrix (N, dim), got {tuple(vectors.shape)}")
    index = Index(vectors.shape[1], metric, backend, place)
    index.add(vectors)
    return index
