"""Nearest neighbours in a space of activations: build an index, add rows, search.

Search is exact. FAISS (or torch, where FAISS is not installed) proposes candidates in float32;
their distances are then computed again in float64, and a row is accepted only when no row outside
the candidates could be nearer within float32's error. So the answer does not depend on the library,
on threads or on the batch: nearest first, equal distances in the order of their rows.

This is the one module that imports faiss. FAISS and torch bring an OpenMP runtime each; do not
search in one thread while torch computes in another.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from featviz import images, plots, results
from featviz.embedding.store import Store
from featviz.errors import BadPicture, UserError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from featviz.models.load import Model

Metric = Literal["cosine", "l2"]

_SPARE = 8
"""candidates beyond k in the first round"""
_COSINE_ERROR = 2e-5
"""more than float32 loses in an inner product of unit vectors of 4096 dimensions (measured 1e-6)"""
_L2_ERROR = 4e-6
"""the same for |x|^2 + |q|^2 - 2 x.q, relative to |x|^2 + |q|^2"""
_DECIMALS = 12
"""cosine distances that agree to so many places are equal (x and 2x are in the same direction)"""


class Index:
    """Vectors that can be searched. Made by `build_index`.

    metric: "cosine" (1 - cosine, 0 to 2) or "l2" (Euclidean length)
    backend: "faiss" or "torch", who proposes the candidates
    """

    def __init__(self, dim: int, metric: Metric = "cosine", backend: str = "auto"):
        if metric not in ("cosine", "l2"):
            hint = nearest(metric, ["cosine", "l2"])
            raise UserError(f"unknown metric {metric!r}; take cosine or l2{hint}")
        if backend not in ("auto", "faiss", "torch"):
            raise UserError(f"unknown backend {backend!r}; take auto, faiss or torch")
        if backend == "faiss" and not has_faiss():
            raise UserError("faiss is not installed; pip install 'featviz[cpu]' (or [gpu])")
        self.dim = dim
        self.store: Store | None = None
        """the store that was indexed, if it was one: it knows pictures and classes"""
        self.metric: Metric = metric
        self.backend = "faiss" if backend != "torch" and has_faiss() else "torch"
        self._blocks: list[NDArray[Any]] = []
        self._scales: list[NDArray[np.float64]] = []
        self._flat = _flat(dim, metric) if self.backend == "faiss" else None
        self._joined: tuple[NDArray[Any], NDArray[np.float64]] | None = None

    def __len__(self) -> int:
        return sum(len(block) for block in self._blocks)

    def add(self, vectors: Tensor) -> None:
        """Append rows (N, dim). Raises UserError for another width and for values not finite."""
        rows = self._check(vectors)
        if self._flat is not None:
            self._flat.add(_for_search(rows, self.metric))
        # Rows of a store are float16 numbers; kept so they take half the room.
        half = rows.astype(np.float16)
        self._blocks.append(half if np.array_equal(half, rows) else rows)
        self._scales.append(_norms(rows))
        self._joined = None

    @property
    def norms(self) -> NDArray[np.float64]:
        """Euclidean length of every row."""
        return self._data[1]

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Some of the rows as they were added, (len(rows), dim) float32."""
        return torch.from_numpy(self._data[0][np.asarray(rows)]).float()

    def search(
        self,
        queries: Tensor,
        k: int,
        *,
        exclude: Sequence[int] | Tensor | NDArray[Any] | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The k nearest rows of each query (Q, dim).

        exclude: for each query a row that must not be an answer (the query itself), or -1

        Returns (distances, rows), (Q, k) float64 and int64, nearest first, equal distances by row.
        With fewer than k rows to choose from, k shrinks.
        """
        if k < 1:
            raise UserError(f"k = {k} neighbours are too few; 1 or more")
        xq = self._check(queries)
        banned = np.full(len(xq), -1) if exclude is None else np.asarray(exclude, dtype=np.int64)
        if banned.shape != (len(xq),):
            raise UserError(f"{banned.size} rows to exclude for {len(xq)} queries; give one each")
        k = min(k, len(self) - int((banned >= 0).any()))
        if k < 1:
            raise UserError(f"nothing to find: the index has {len(self)} rows")
        distances = np.empty((len(xq), k))
        rows = np.empty((len(xq), k), dtype=np.int64)
        for start in range(0, len(xq), 1024):
            stop = min(start + 1024, len(xq))
            distances[start:stop], rows[start:stop] = self._search(
                xq[start:stop], k, banned[start:stop]
            )
            if progress is not None:
                progress(stop, len(xq), "searching")
        return torch.from_numpy(distances), torch.from_numpy(rows)

    def _search(
        self, xq: NDArray[np.float32], k: int, banned: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        distances = np.empty((len(xq), k))
        rows = np.empty((len(xq), k), dtype=np.int64)
        todo = np.arange(len(xq))
        wide = k + 1 + _SPARE
        while todo.size:
            wide = min(wide, len(self))
            far, candidates = self._candidates(xq[todo], wide)
            exact = self._exact(xq[todo], candidates)
            exact[candidates == banned[todo, None]] = np.inf
            order = np.lexsort((candidates, exact), axis=1)[:, :k]
            nearest_rows = np.take_along_axis(candidates, order, 1)
            nearest_distances = np.take_along_axis(exact, order, 1)
            distances[todo], rows[todo] = nearest_distances, nearest_rows
            if wide == len(self):
                break
            # A row outside the candidates is no nearer than `far`, up to the error of float32.
            todo = todo[nearest_distances[:, -1] >= far]
            wide *= 4
        return distances, rows

    def _candidates(
        self, xq: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Rows likely to be near, (Q, count), and a lower bound of the others' distance, (Q,)."""
        scaled = _for_search(xq, self.metric)
        if self._flat is not None:
            scores, candidates = self._flat.search(scaled, count)
        else:
            scores, candidates = _torch_search(self._data, scaled, count, self.metric)
        worst = scores[:, -1].astype(np.float64)
        if self.metric == "cosine":
            return 1 - worst - _COSINE_ERROR, candidates
        error = _L2_ERROR * (_norms(xq) ** 2 + self._largest**2)
        return np.sqrt(np.maximum(worst - error, 0)), candidates

    def _exact(self, xq: NDArray[np.float32], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """Distances (Q, count) in float64."""
        data, norms = self._data
        found = np.empty(candidates.shape)
        for i, (query, rows) in enumerate(zip(xq.astype(np.float64), candidates, strict=True)):
            near = torch.from_numpy(data[rows]).double().numpy()  # numpy widens float16 slowly
            if self.metric == "l2":
                found[i] = np.sqrt(((near - query) ** 2).sum(1))
            else:
                length = norms[rows] * math.sqrt(query @ query)
                cosine = (near * query).sum(1) / np.where(length > 0, length, 1)
                found[i] = np.round(1 - cosine, _DECIMALS).clip(0, 2)
        return found

    @property
    def _data(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """All rows and their norms."""
        if self._joined is None:
            self._joined = np.concatenate(self._blocks), np.concatenate(self._scales)
            self._blocks = [self._joined[0]]
            self._scales = [self._joined[1]]
        return self._joined

    @property
    def _largest(self) -> float:
        return float(self._data[1].max())

    def _check(self, vectors: Tensor) -> NDArray[np.float32]:
        if vectors.dim() != 2 or vectors.shape[1] != self.dim:
            raise UserError(f"vectors are (N, {self.dim}) here, got {tuple(vectors.shape)}")
        rows: NDArray[np.float32] = vectors.detach().cpu().float().contiguous().numpy()
        if not np.isfinite(rows).all():
            raise UserError("vectors hold values that are not finite; they have no neighbours")
        return rows


def has_faiss() -> bool:
    """Whether FAISS is installed, without importing it."""
    return importlib.util.find_spec("faiss") is not None


def _flat(dim: int, metric: Metric) -> Any:
    import faiss

    return faiss.IndexFlatIP(dim) if metric == "cosine" else faiss.IndexFlatL2(dim)


def _norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return lengths


def _for_search(rows: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    if metric == "l2":
        return rows
    lengths = _norms(rows)
    return rows / np.where(lengths > 0, lengths, 1).astype(np.float32)[:, None]


def _torch_search(
    data: tuple[NDArray[Any], NDArray[np.float64]],
    xq: NDArray[np.float32],
    count: int,
    metric: Metric,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What FAISS's flat indexes answer, by matrix products over blocks of rows."""
    rows, norms = data
    queries = torch.from_numpy(xq)
    best = torch.empty(len(xq), 0)
    where = torch.empty(len(xq), 0, dtype=torch.int64)
    for start in range(0, len(rows), 16384):
        block = torch.from_numpy(rows[start : start + 16384]).float().numpy()
        if metric == "cosine":
            score = queries @ torch.from_numpy(_for_search(block, metric)).T
        else:
            squares = torch.from_numpy(norms[start : start + 16384] ** 2).float()
            score = 2 * queries @ torch.from_numpy(block).T - squares
            score -= queries.square().sum(1, keepdim=True)
        numbers = torch.arange(start, start + len(block)).expand(len(xq), -1)
        best, where = torch.cat([best, score], 1), torch.cat([where, numbers], 1)
        best, at = best.topk(min(count, best.shape[1]), dim=1)
        where = where.gather(1, at)
    scores = best if metric == "cosine" else -best
    return scores.numpy(), where.numpy()


def build_index(
    vectors: Store | Tensor, *, metric: Metric = "cosine", backend: str = "auto"
) -> Index:
    """An index over the rows of a store, or of a matrix (N, dim).

    metric: "cosine" (1 - cosine) or "l2" (Euclidean)
    backend: "faiss", "torch", or "auto": FAISS where it is installed
    """
    if isinstance(vectors, Store):
        index = Index(vectors.dim, metric, backend)
        index.store = vectors
        for block in vectors.blocks():
            index.add(block)
        return index
    if vectors.dim() != 2:
        raise UserError(f"an index takes a matrix (N, dim), got {tuple(vectors.shape)}")
    index = Index(vectors.shape[1], metric, backend)
    index.add(vectors)
    return index


@dataclass(frozen=True)
class Query:
    """Something whose neighbours were sought."""

    name: str
    label: str = ""
    """its class folder, where it has one"""
    row: int | None = None
    """its row, where it is one of the store"""
    file: Path | None = None
    """its file, where it came from one"""
    members: tuple[int, ...] = ()
    """the rows whose mean it is, where it is one"""


@dataclass(frozen=True)
class Quality:
    """How well neighbours share the class of a row, over the rows whose class has others."""

    precision: Mapping[int, float]
    """k -> share of the k nearest that are of the same class"""
    shuffled: Mapping[int, float]
    """the same with the classes shuffled over the rows: what chance gives"""
    rows: int
    classes: int
    hub: tuple[int, int]
    """the row that is among the neighbours of most others, and of how many"""
    k: int


@dataclass(frozen=True, kw_only=True)
class Neighbors(results.Result):
    """The nearest rows of some queries."""

    kind: ClassVar[str] = "neighbors"

    queries: tuple[Query, ...]
    rows: Tensor
    """(Q, k) int64, nearest first"""
    distances: Tensor
    """(Q, k) float64"""
    metric: Metric
    space: str
    """what was searched, in words"""
    labels: tuple[str, ...]
    """the class folder of every row that was searched, "" where there is none"""
    quality: Quality | None = None
    store: Store | None = None
    backend: str = "faiss"

    @property
    def title(self) -> str:
        return f"Nearest neighbours in {self.space}"

    @property
    def k(self) -> int:
        """How many neighbours each query has."""
        return self.rows.shape[1]

    def numbers(self) -> dict[str, results.Number]:
        shown = {}
        if self.quality is not None:
            found = self.quality
            for k, value in found.precision.items():
                meaning = f"of the {k} nearest are of the row's own class"
                if k == 1:
                    meaning = "of the rows have a nearest neighbour of their own class"
                shown[f"precision@{k}"] = results.Number(value, "fraction", meaning)
            k = max(found.shuffled)
            shown["chance"] = results.Number(
                found.shuffled[k], "fraction", f"precision@{k} with the classes shuffled"
            )
            shown["judged rows"] = results.Number(
                found.rows, "", f"rows whose class has others; {found.classes} classes"
            )
            shown["largest hub"] = results.Number(
                found.hub[1], "", f"rows have row {found.hub[0]} among their {found.k} nearest"
            )
        shown["mean distance"] = results.Number(
            float(self.distances[:, 0].mean()), "", f"{_UNIT[self.metric]}, query to nearest"
        )
        shown["rows"] = results.Number(len(self.labels), "", "searched")
        return shown

    def write(self, folder: results.Folder) -> None:
        folder.table(
            "neighbors.csv",
            ("query", "query_class", "rank", "row", "path", "class", "distance", "same_class"),
            self._lines(),
            caption=f"Every neighbour; distance is {_UNIT[self.metric]}.",
        )
        folder.arrays(
            "neighbors.npz",
            {"rows": self.rows.numpy(), "distances": self.distances.numpy()},
            caption="Rows and distances of the neighbours, (queries, k).",
        )
        if self.store is None:
            folder.warn("no pictures belong to this matrix, so there is no sheet")
        else:
            for start in range(0, len(self.queries), _SHEET_ROWS):
                part = range(start, min(start + _SHEET_ROWS, len(self.queries)))
                try:
                    sheet = self.sheet(part)
                except BadPicture as error:
                    folder.warn(f"the sheet is left out, a picture is not there any more: {error}")
                    break
                names = ", ".join(self.queries[i].name for i in part)
                folder.figure(
                    f"sheet-{start // _SHEET_ROWS}.jpg", sheet,
                    caption="At the left the query, then its neighbours, nearest first, with "
                    f"{_UNIT[self.metric]}. Filled green dot and frame: of the query's class; "
                    "open dot: of another class.",
                    alt=f"Rows of photographs: {names} and their {self.k} nearest neighbours",
                )  # fmt: skip
        if self.quality is not None:
            folder.figure(
                "precision.svg", self._precision_plot(),
                caption="Share of the k nearest that are of the row's own class, and the same "
                "with the classes shuffled.",
                alt="Line plot of precision against k",
            )  # fmt: skip

    def _lines(self) -> list[tuple[Any, ...]]:
        lines = []
        for query, rows, distances in zip(self.queries, self.rows, self.distances, strict=True):
            for rank, (row, distance) in enumerate(
                zip(rows.tolist(), distances.tolist(), strict=True), start=1
            ):
                label = self.labels[row]
                path = self.store.pictures.paths[row] if self.store is not None else ""
                same = int(label == query.label) if label and query.label else ""
                lines.append(
                    (query.name, query.label, rank, row, path, label, f"{distance:.6g}", same)
                )
        return lines

    def plot(self) -> Figure:
        if self.store is None:
            return self._distance_plot()
        return self.sheet(range(min(_SHEET_ROWS, len(self.queries))))

    def sheet(self, which: Sequence[int], *, inches: float = 1.1, most: int = 10) -> Figure:
        """Pictures of some queries and their first `most` neighbours. Raises BadPicture."""
        assert self.store is not None
        columns = min(self.k, most)
        figure = plots.new_figure((columns + 1.3) * inches * 1.04, len(which) * inches * 1.36)
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(-0.06, columns * 1.05 + 1.24)
        ax.set_ylim(len(which) * 1.38 - 0.02, -0.06)
        ax.axis("off")
        for line, number in enumerate(which):
            query = self.queries[number]
            top = line * 1.38
            name = self._name(query.label) or query.name
            head = query.name if query.members else "query"
            self._draw(figure, (0.0, top), self._query_picture(query), name, head, None)
            for rank in range(columns):
                row = int(self.rows[number, rank])
                label = self.labels[row]
                same = label == query.label if label and query.label else None
                self._draw(
                    figure, (1.2 + 1.05 * rank, top), _thumbnail(self.store, row),
                    self._name(label), f"{float(self.distances[number, rank]):.2f}", same,
                )  # fmt: skip
        return figure

    def _draw(
        self,
        figure: Figure,
        corner: tuple[float, float],
        picture: Tensor | None,
        name: str,
        text: str,
        same: bool | None,
    ) -> None:
        """One picture of a sheet with two lines of text below; `same` draws its mark."""
        from matplotlib.patches import Rectangle

        ax = figure.axes[0]
        x, y = corner
        if picture is not None:
            ax.imshow(
                picture.permute(1, 2, 0).numpy(),
                extent=(x, x + 1, y + 1, y),
                interpolation="antialiased",
                aspect="auto",
            )
            edge = plots.GREEN if same else "#bbbbbb"
            width = 2.2 if same else 0.5
            ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=edge, linewidth=width))
        else:
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor="#f2f2f2", edgecolor="#bbbbbb"))
            ax.text(x + 0.5, y + 0.5, "vector", ha="center", va="center", color="#666666")
        if same is not None:
            ax.plot(
                x + 0.045, y + 1.10, "o", markersize=4.5, markeredgewidth=0.9,
                color=plots.GREEN if same else "#888888",
                markerfacecolor=plots.GREEN if same else "white",
            )  # fmt: skip
        bold = "bold" if x == 0 else "normal"
        shift = 0.11 if same is not None else 0.0
        ax.text(x + shift, y + 1.10, text, fontsize=7, va="center", color=plots.INK, weight=bold)
        ax.text(x, y + 1.24, _shorten(name), fontsize=6.2, va="center", color="#555555")

    def _query_picture(self, query: Query) -> Tensor | None:
        assert self.store is not None
        if query.row is not None:
            return _thumbnail(self.store, query.row)
        if query.members:  # four of them stand for their mean
            step = max(1, len(query.members) // 4)
            some = query.members[::step][:4]
            return images.contact_sheet(
                torch.stack([self.store.pictures.read(row, _THUMBNAIL // 2) for row in some]),
                columns=2,
            )
        return images.read_square(query.file, _THUMBNAIL) if query.file is not None else None

    def _name(self, label: str) -> str:
        return label if self.store is None else self.store.class_names.get(label, label)

    def _distance_plot(self) -> Figure:
        figure = plots.new_figure(5, 3)
        ax = figure.subplots()
        ranks = np.arange(1, self.k + 1)
        for line in self.distances[:50].numpy():
            ax.plot(ranks, line, color=plots.BLUE, alpha=0.4, linewidth=1)
        plots.lines(ax, xlabel="rank", ylabel=_UNIT[self.metric])
        return figure

    def _precision_plot(self) -> Figure:
        assert self.quality is not None
        figure = plots.new_figure(4.2, 2.8)
        ax = figure.subplots()
        for values, colour, name in (
            (self.quality.precision, plots.BLUE, "this space"),
            (self.quality.shuffled, "#888888", "classes shuffled"),
        ):
            ks = sorted(values)
            ax.plot(ks, [100 * values[k] for k in ks], "o-", color=colour, label=name, markersize=4)
        ax.set_ylim(0, 100)
        ax.set_xticks(sorted(self.quality.precision))
        ax.legend(fontsize=8, frameon=False)
        plots.lines(ax, xlabel="k nearest", ylabel="of the same class (%)")
        return figure


_UNIT = {"cosine": "cosine distance (0 same direction, 1 orthogonal)", "l2": "Euclidean distance"}
_SHEET_ROWS = 8
_THUMBNAIL = 160


def _thumbnail(store: Store, row: int) -> Tensor:
    return store.pictures.read(row, _THUMBNAIL)


def _shorten(text: str, most: int = 19) -> str:
    text = text.replace("_", " ")
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def find_neighbors(
    space: Store | Index | Tensor,
    queries: Tensor | Sequence[int | str | Path] | None = None,
    *,
    k: int = 10,
    metric: Metric = "cosine",
    backend: str = "auto",
    model: Model | None = None,
    labels: Sequence[str] | None = None,
    judge: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Neighbors:
    """The k nearest rows of each query, exactly, and how well neighbours share a class.

    space: a store, an index, or a matrix (N, dim)
    queries: vectors (Q, dim); or rows (12), classes ("class:tabby", the mean of the class's rows)
        and picture files (these need the `model` that made the store). None takes 8 rows, spread
        evenly. A row is never its own neighbour
    metric: "cosine" or "l2"; an index brings its own
    labels: a class for each row of a matrix; a store has its own
    judge: over how many rows, spread evenly, the precision is measured (0: not at all)
    seed: of the shuffled labels, the baseline of the precision

    Raises UserError for unknown rows, classes and files, and for a model that is another than the
    store's.
    """
    started = time.perf_counter()
    index = (
        space if isinstance(space, Index) else build_index(space, metric=metric, backend=backend)
    )
    store = index.store
    known = (
        tuple(labels)
        if labels is not None
        else store.labels
        if store is not None
        else ("",) * len(index)
    )
    if len(known) != len(index):
        raise UserError(f"{len(known)} labels for {len(index)} rows; give one each")
    asked, vectors = _read_queries(queries, index, store, known, model)
    banned = [-1 if query.row is None else query.row for query in asked]
    distances, rows = index.search(vectors, k, exclude=banned, progress=progress)
    doubts = []
    if not has_faiss():
        doubts.append("FAISS is not installed, torch searched (pip install 'featviz[cpu]')")
    empty = int((index.norms == 0).sum())
    if empty and index.metric == "cosine":
        doubts.append(f"{empty} rows are all zero and have no direction; their distance is 1")
    quality = _judge(index, known, min(k, len(index) - 1), judge, seed) if judge else None
    if judge and quality is None and any(known):
        doubts.append("no class has two pictures, so there is no precision to measure")
    made = results.origin(
        None,
        parameters={
            "queries": [query.name for query in asked], "k": k, "metric": index.metric,
            "backend": index.backend, "judge": judge,
            "store": None if store is None or store.folder is None else str(store.folder),
        },
        started=started,
        seed=seed,
    )  # fmt: skip
    if store is not None:
        made = replace(made, model=store.origin.model, data=store.origin.data)
    return Neighbors(
        origin=made,
        warnings=tuple(doubts),
        queries=asked,
        rows=rows,
        distances=distances,
        metric=index.metric,
        space=store.title if store is not None else f"{len(index)} vectors of {index.dim}",
        labels=known,
        quality=quality,
        store=store,
        backend=index.backend,
    )


def _read_queries(
    queries: Tensor | Sequence[int | str | Path] | None,
    index: Index,
    store: Store | None,
    labels: Sequence[str],
    model: Model | None,
) -> tuple[tuple[Query, ...], Tensor]:
    """The queries by name, and their vectors (Q, dim)."""
    if isinstance(queries, Tensor) and queries.is_floating_point():
        return tuple(Query(f"vector {i}") for i in range(len(queries))), queries
    if queries is None:
        count = min(_SHEET_ROWS, len(index))
        queries = [i * len(index) // count for i in range(count)]
    if len(queries) == 0:
        raise UserError("no queries were given; name rows, classes (class:NAME) or picture files")
    asked: list[Query] = []
    vectors: list[Tensor] = []
    for item in queries:
        text = str(int(item)) if isinstance(item, Tensor) else str(item)
        if text.isdigit():
            row = int(text)
            if row >= len(index):
                raise UserError(f"row {row} is out of range: there are rows 0 to {len(index) - 1}")
            name = store.pictures.paths[row] if store is not None else f"row {row}"
            asked.append(Query(name, labels[row], row=row))
            vectors.append(index.take([row]))
        elif text.startswith("class:"):
            label = _find_class(text.removeprefix("class:"), labels, store)
            members = [row for row, other in enumerate(labels) if other == label]
            asked.append(Query(f"mean of {len(members)}", label, members=tuple(members)))
            vectors.append(index.take(members).mean(0, keepdim=True))
        else:
            asked.append(Query(Path(text).name, file=Path(text)))
            vectors.append(_embed_file(Path(text), store, model))
    return tuple(asked), torch.cat(vectors)


def _find_class(name: str, labels: Sequence[str], store: Store | None) -> str:
    """The class folder that a user calls `name`. Raises UserError with the nearest names."""
    called: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        full = "" if store is None else store.class_names.get(label, "")
        for spelling in (label, full, *(part.strip() for part in full.split(","))):
            if spelling:
                called.setdefault(spelling.replace("_", " ").casefold(), label)
    wanted = name.replace("_", " ").casefold()
    if wanted not in called:
        raise UserError(f"no class {name!r} in the store{nearest(wanted, called)}")
    return called[wanted]


def _embed_file(path: Path, store: Store | None, model: Model | None) -> Tensor:
    from featviz.embedding.extract import embed_batch

    if store is None:
        raise UserError(f"{path}: only a store knows how to embed a picture; give vectors instead")
    if model is None:
        raise UserError(
            f"{path}: a picture needs the model that made the store ({store.model_name}); "
            "name it with --model and --weights"
        )
    if model.sha256 != (store.origin.model or {}).get("sha256"):
        raise UserError(
            f"{model.name} here has other weights than the {store.model_name} that made the store; "
            "distances between their activations mean nothing; give the same --model and --weights"
        )
    picture = images.read_square(path, store.preparation["resize"], store.preparation["crop"])
    return embed_batch(model, picture[None], store.layer)


def _judge(index: Index, labels: Sequence[str], k: int, most: int, seed: int) -> Quality | None:
    """Precision over rows whose class has others, or None where there are none."""
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    sizes = np.bincount(codes)
    named = np.array([bool(label) for label in labels])
    able = np.flatnonzero(named & (sizes[codes] > 1))
    if not able.size or k < 1:
        return None
    judged = able[np.unique(np.linspace(0, able.size - 1, min(most, able.size)).astype(int))]
    _, found = index.search(index.take(judged), k, exclude=judged)
    rows = found.numpy()
    ks = sorted({1, min(5, k), k})
    generator = np.random.default_rng(seed)
    chance = dict.fromkeys(ks, 0.0)
    for _ in range(_SHUFFLES):
        mixed = codes.copy()
        mixed[able] = generator.permutation(codes[able])
        for at in ks:
            chance[at] += precision(mixed, judged, rows, at) / _SHUFFLES
    occurrences = np.bincount(rows.ravel(), minlength=len(index))
    hub = int(occurrences.argmax())
    return Quality(
        precision={at: precision(codes, judged, rows, at) for at in ks},
        shuffled=chance,
        rows=judged.size,
        classes=int(np.unique(codes[judged]).size),
        hub=(hub, int(occurrences[hub])),
        k=k,
    )


_SHUFFLES = 10


def precision(
    codes: NDArray[np.int64], judged: NDArray[np.int64], rows: NDArray[np.int64], k: int
) -> float:
    """Share of the k nearest of `rows` (Q, >= k) that are of the class of the row judged (Q,)."""
    return float((codes[rows[:, :k]] == codes[judged][:, None]).mean())
