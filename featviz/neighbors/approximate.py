"""Approximate search by FAISS, for stores too large to be compared row by row.

Rows are brought to 256 dimensions (PCA), an index proposes candidates there, and the candidates are
compared with the query again in the whole space, exactly as `exact` does it. What is lost is lost
by the index alone, and it is measured: recall@10 against exact search over rows of the store. The
effort of a search is raised until recall is .99, and the recall that was reached is kept.

    ivf   cells round sqrt-many means; a query looks into the nearest of them
    hnsw  a graph of near rows that a query walks along; fastest to search, slowest to build
    pq    64 bytes a row; smallest

An index can be kept beside its store. It names the store it was made of and is not used for any
other.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz import folders, results, schema
from featviz.embedding.files import hash_file
from featviz.embedding.store import Store
from featviz.errors import UserError, nearest
from featviz.neighbors.exact import (
    Excluded,
    Index,
    Metric,
    Nearest,
    best_of,
    build_index,
    check_faiss,
    for_search,
    spread,
)
from featviz.types import Progress, seed_32

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("ivf", "hnsw", "pq")
RECALL = 0.99
"""what an index is made to reach by default"""
_DIMENSIONS = 256
_SAMPLE = 20_000
"""rows from which the axes and the cells are learned"""
_FEWEST = 512
"""rows below which an approximate index makes no sense"""
_MEASURED = 200
"""rows over which the recall is measured"""
_MEASURED_K = 10
_BLOCK = 8192


_ANEW = "build the index anew"
_FILES = ("index.faiss", "axes.npz")
_ABOUT = {
    "schema": schema.COUNT,
    "kind": schema.one_of(*KINDS),
    "metric": str,
    "rows": schema.COUNT,
    "dim": schema.COUNT,
    "store": schema.HASH,
    "recall": float,
    "probes": schema.COUNT,
    "candidates": schema.COUNT,
    "sha256": dict.fromkeys(_FILES, schema.HASH),
}


@dataclass(frozen=True)
class Effort:
    """How much of an index a query searches."""

    probes: int
    """cells looked into (ivf), or candidates kept on the walk (hnsw); pq has none"""
    candidates: int
    """for each neighbor wanted, how many rows are compared in the whole space"""


@dataclass(repr=False, eq=False)
class ApproximateIndex:
    """An index over a store or a matrix whose results may miss neighbors; `recall` says how many.

    Made by `build_approximate`; searched like `exact.Index`, whose rows it uses.
    """

    kind: str
    rows: Index
    axes: _Axes
    index: Any
    """FAISS's"""
    effort: Effort
    recall: float = math.nan
    """share of the true 10 nearest that are found, over rows of the store"""

    @property
    def backend(self) -> str:
        """What searches."""
        return f"faiss {self.kind}"

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<ApproximateIndex: {self.kind}, {len(self):,} rows, recall {self.recall:.3f}>"

    @property
    def recall_rows(self) -> int:
        """Rows over which the recall was measured."""
        return len(spread(len(self), _MEASURED))

    def search(
        self, queries: Tensor, k: int, *, exclude: Excluded = None, progress: Progress | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `exact.Index.search`; a neighbor may be missing, distances are exact.

        Where fewer than k candidates are found the row is -1 and its distance infinite.
        """
        return self.rows.in_parts(self._search, queries, k, exclude, progress, size=256)

    def _search(self, xq: NDArray[np.float32], k: int, banned: NDArray[np.int64]) -> Nearest:
        effort = self.effort
        count = min(len(self), effort.candidates * k + banned.shape[1])
        if self.kind == "ivf":
            self.index.nprobe = effort.probes
        elif self.kind == "hnsw":
            self.index.hnsw.efSearch = max(effort.probes, count)
        _, candidates = self.index.search(self.axes(for_search(xq, self.rows.metric)), count)
        missing = candidates < 0
        exact = self.rows.distances(xq, np.where(missing, 0, candidates))
        exact[missing] = np.inf
        distances, rows = best_of(exact, candidates, banned, k)
        rows[np.isinf(distances)] = -1
        return distances, rows

    def save(self, folder: str | Path) -> Path:
        """Keep the index in a folder, which holds nothing else: `open_approximate` reads it."""
        import faiss

        with folders.whole(Path(folder)) as place:
            faiss.write_index(self.index, str(place / "index.faiss"))
            np.savez(place / "axes.npz", mean=self.axes.mean, axes=self.axes.axes)
            about = {
                "schema": 1,
                "kind": self.kind,
                "metric": self.rows.metric,
                "rows": len(self),
                "dim": self.rows.dim,
                "store": identity(self.rows.store),
                "recall": self.recall,
                "probes": self.effort.probes,
                "candidates": self.effort.candidates,
                "sha256": {f: hash_file(place / f) for f in _FILES},
                "faiss": faiss.__version__,
            }
            results.write_json(place / "index.json", schema.sealed(results.plain(about)))
        return Path(folder)


@dataclass(frozen=True)
class _Axes:
    """The directions in which rows differ most, and their mean."""

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    """(dim, at most 256)"""

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        moved = torch.from_numpy(rows) - torch.from_numpy(self.mean)
        return (moved @ torch.from_numpy(self.axes)).contiguous().numpy()


def build_approximate(
    vectors: Store | Tensor | Index,
    kind: str,
    *,
    metric: Metric = "cosine",
    recall: float = RECALL,
    seed: int = 0,
    progress: Progress | None = None,
) -> ApproximateIndex:
    """An approximate index over the rows of a store, a matrix (N, dim) or an exact index.

    Args:
        vectors: The rows.
        kind: "ivf", "hnsw" or "pq".
        metric: "cosine" or "l2"; an exact index has its own.
        recall: Share of the true 10 nearest that is to be found. The effort of a search is doubled
            until that is reached on 200 rows of the store, or until every row is compared.
        seed: Of the axes and cells.
        progress: Called with (rows done, all rows, text).

    Raises:
        UserError: Unknown kind, too few rows, or FAISS is not installed.
    """
    if kind not in KINDS:
        hint = nearest(kind, KINDS)
        raise UserError(f"unknown index {kind!r}; take {', '.join(KINDS)} or exact{hint}")
    check_faiss(f"--index {kind}")
    rows = vectors if isinstance(vectors, Index) else build_index(vectors, metric=metric)
    if len(rows) < _FEWEST:
        raise UserError(
            f"{len(rows)} rows are too few for {kind}, which learns from {_FEWEST} or more; "
            "exact search takes no time here"
        )
    sample = for_search(rows.take(spread(len(rows), _SAMPLE)).numpy(), rows.metric)
    axes = _find_axes(sample, seed)
    flat = axes(sample)
    index = _made(kind, flat.shape[1], len(rows), seed)
    index.train(flat)
    done = 0
    for block in rows.search_blocks():
        index.add(axes(block))
        done += len(block)
        if progress is not None:
            progress(done, len(rows), f"building {kind}")
    effort = Effort(probes=64 if kind == "hnsw" else 8, candidates=16 if kind == "pq" else 4)
    made = ApproximateIndex(kind, rows, axes, index, effort)
    _reach_recall(made, recall)
    return made


def _find_axes(sample: NDArray[np.float32], seed: int) -> _Axes:
    from sklearn.decomposition import PCA

    dims = min(_DIMENSIONS, *sample.shape)
    fitted = PCA(dims, svd_solver="randomized", iterated_power=3, random_state=seed_32(seed)).fit(
        sample
    )
    axes = np.ascontiguousarray(fitted.components_.T, dtype=np.float32)
    return _Axes(fitted.mean_.astype(np.float32), axes)


def _made(kind: str, dims: int, rows: int, seed: int) -> Any:
    import faiss

    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dims, 32)
        index.hnsw.efConstruction = 200
        return index
    if kind == "pq":
        pieces = next(m for m in (64, 32, 16, 8, 4, 2, 1) if dims % m == 0)
        index = faiss.IndexPQ(dims, pieces, 8)
        index.pq.cp.seed = seed_32(seed) % 2**31
        index.pq.cp.min_points_per_centroid = 1
        return index
    cells = max(1, min(round(4 * math.sqrt(rows)), rows // 32))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dims), dims, cells)
    index.cp.seed = seed_32(seed) % 2**31
    index.cp.min_points_per_centroid = 1
    return index


def _reach_recall(index: ApproximateIndex, recall: float) -> None:
    """Double the effort until the recall is reached, and leave both in the index."""
    queried = spread(len(index), _MEASURED)
    queries = index.rows.take(queried)
    k = min(_MEASURED_K, len(index) - 1)
    true = index.rows.search(queries, k, exclude=queried)[1].numpy()
    while True:
        found = index.search(queries, k, exclude=queried)[1].numpy()
        hits = (found[:, :, None] == true[:, None, :]).any(2)
        index.recall = float(hits.mean())
        effort = index.effort
        everything = effort.candidates * k >= len(index) and effort.probes >= len(index)
        if index.recall >= recall or everything:
            return
        index.effort = Effort(
            min(2 * effort.probes, len(index)), min(2 * effort.candidates, len(index))
        )


def identity(store: Store | None) -> str:
    """What tells a store from every other: a hash of its shards' hashes, "" without a store."""
    if store is None:
        return ""
    return hashlib.sha256("".join(shard.sha256 for shard in store.shards).encode()).hexdigest()


def open_approximate(
    folder: str | Path, store: Store, *, metric: Metric = "cosine"
) -> ApproximateIndex:
    """Read an index that `save` kept, and check that it belongs to the store.

    Raises UserError, saying which, when it is absent, damaged, of other rows or of another metric.
    """
    place = Path(folder)
    note = place / "index.json"
    if not note.exists():
        raise UserError(f"{place} holds no index; it has to be built")
    about = schema.check_sealed(schema.read_json(note, _ANEW), _ABOUT, note, _ANEW)
    if about["store"] != identity(store) or about["rows"] != len(store):
        raise UserError(f"{place} was made of other rows than {store.folder}; build it anew")
    if about["metric"] != metric:
        raise UserError(f"{place} is for {about['metric']}, not {metric}; build it anew")
    check_faiss(f"--index {about['kind']}")
    for name, expected in about["sha256"].items():
        if not (place / name).is_file() or hash_file(place / name) != expected:
            raise UserError(f"{place / name} is damaged or missing; {_ANEW}")
    import faiss

    index = faiss.read_index(str(place / "index.faiss"))
    with np.load(place / "axes.npz") as saved:
        axes = _Axes(saved["mean"], saved["axes"])
    rows, effort = build_index(store, metric=metric), Effort(about["probes"], about["candidates"])
    return ApproximateIndex(about["kind"], rows, axes, index, effort, about["recall"])


def open_or_build(
    store: Store,
    kind: str,
    *,
    metric: Metric = "cosine",
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ApproximateIndex, str]:
    """The index kept beside the store, or a new one, which is then kept; and why, in words.

    A stale or damaged index is named and built anew. A store in memory has no place to keep one.
    """
    if store.folder is None:
        return build_approximate(store, kind, metric=metric, seed=seed, progress=progress), ""
    place = store.folder / f"index-{kind}-{metric}"
    said = ""
    if place.exists():
        try:
            return open_approximate(place, store, metric=metric), ""
        except UserError as error:
            said = str(error)
    made = build_approximate(store, kind, metric=metric, seed=seed, progress=progress)
    made.save(place)
    return made, said
