"""Approximate search by FAISS, for stores too large to be compared row by row.

Rows are brought to 256 dimensions (PCA), an index proposes candidates there, and the candidates are
compared with the query again in the whole space, exactly as `exact` does it. What is lost is lost
by the index alone, and it is measured: recall@10 against exact search over rows of the store. The
least effort is taken that reaches the recall asked for, and the recall that was reached is kept.

    ivf   float16 rows in cells round sqrt-many means; a query looks into the nearest of them
    hnsw  a graph of near rows that a query walks along; fastest to search, slowest to build
    pq    64 bytes a row; smallest

A store on the disk is read in blocks: what is held in memory is the index and one block.

An index can be kept beside its store. It names the store it was made of and is not used for any
other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
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
    faiss_card,
    faiss_has_card,
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
"""rows from which the axes are learned"""
_PER_CELL = 20
"""rows for each cell from which the cells are learned"""
_LARGEST = 6e4
"""float16 holds no more"""
_FEWEST = 512
"""rows below which an approximate index makes no sense"""
_MEASURED = 200
"""rows over which the recall is measured"""
_MEASURED_K = 10
_DEPTH = 64
"""times the neighbors wanted: candidates that are looked at first to find the least effort"""
_LINKS = 32
"""of a row to others in hnsw's graph"""
_READ = 4
"""a number read from a candidate's row costs as much as so many in the index"""

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
        count = min(len(self), self.effort.candidates * k + banned.shape[1])
        flat = self.axes(for_search(xq, self.rows.metric))
        candidates = self.propose(flat, count, self.effort.probes)
        missing = candidates < 0
        exact = self.rows.distances(xq, np.where(missing, 0, candidates))
        exact[missing] = np.inf
        distances, rows = best_of(exact, candidates, banned, k)
        rows[np.isinf(distances)] = -1
        return distances, rows

    def propose(self, flat: NDArray[np.float32], count: int, probes: int) -> NDArray[np.int64]:
        """Candidates (Q, count) for queries along the axes, -1 where there are no more."""
        if self.kind == "ivf":
            self.index.nprobe = probes
        elif self.kind == "hnsw":
            self.index.hnsw.efSearch = max(probes, count)
        found: NDArray[np.int64] = self.index.search(flat, count)[1]
        return found

    @property
    def most_probes(self) -> int:
        """With so many an index searches all it has."""
        return {"ivf": getattr(self.index, "nlist", 1), "hnsw": len(self), "pq": 1}[self.kind]

    def cost(self, effort: Effort, k: int) -> float:
        """Numbers that are read for a query: in the index, and of its candidates' rows."""
        share = effort.probes / self.most_probes
        looked = effort.probes * _LINKS if self.kind == "hnsw" else share * len(self)
        return looked * self.axes.count + _READ * effort.candidates * k * self.rows.dim

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

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.axes.shape[1])

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        moved = torch.from_numpy(self.mean @ -self.axes)
        flat = torch.addmm(moved, torch.from_numpy(rows), torch.from_numpy(self.axes))
        return flat.clamp_(-_LARGEST, _LARGEST).numpy()


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
        recall: Share of the true 10 nearest that is to be found. The least effort is taken that
            reaches it on 200 rows of the store.
        seed: Of the axes and cells.
        progress: Called with (rows done, all rows, text).

    Raises:
        UserError: Unknown kind, too few rows, or FAISS is not installed.
    """
    if kind not in KINDS:
        hint = nearest(kind, KINDS)
        raise UserError(f"unknown index {kind!r}; take {', '.join(KINDS)} or exact{hint}")
    check_faiss(f"--index {kind}")
    import faiss

    rows = vectors if isinstance(vectors, Index) else build_index(vectors, metric=metric)
    if len(rows) < _FEWEST:
        raise UserError(
            f"{len(rows)} rows are too few for {kind}, which learns from {_FEWEST} or more; "
            "exact search takes no time here"
        )
    sample = for_search(rows.take(spread(len(rows), _SAMPLE)).numpy(), rows.metric)
    axes = _find_axes(sample, seed)
    index = _made(kind, axes.count, len(rows), seed)
    learned = _learned_from(rows, axes, index.nlist if kind == "ivf" else 0)
    if kind == "ivf" and faiss_has_card():
        on_card = faiss.index_cpu_to_gpu(faiss_card(), 0, faiss.IndexFlatL2(axes.count))
        index.clustering_index = on_card
        index.train(learned)
        index.clustering_index = None
    else:
        index.train(learned)
    done = 0
    for block in rows.search_blocks():
        index.add(axes(block))
        done += len(block)
        if progress is not None:
            progress(done, len(rows), f"building {kind}")
    made = ApproximateIndex(kind, rows, axes, index, Effort(0, 0))
    made.effort, made.recall = _least_effort(made, recall)
    return made


def _learned_from(rows: Index, axes: _Axes, cells: int) -> NDArray[np.float32]:
    """Rows that an index is trained on, along the axes, gathered a block at a time."""
    chosen = spread(len(rows), max(_SAMPLE, _PER_CELL * cells))
    blocks = np.array_split(chosen, math.ceil(len(chosen) / _SAMPLE))
    return np.concatenate(
        [axes(for_search(rows.take(block).numpy(), rows.metric)) for block in blocks]
    )


def _find_axes(sample: NDArray[np.float32], seed: int) -> _Axes:
    from sklearn.decomposition import PCA

    dims = min(_DIMENSIONS, *sample.shape)
    fitted = PCA(dims, svd_solver="randomized", iterated_power=3, random_state=seed_32(seed)).fit(
        sample
    )
    # Of unit scale, so that float16 holds what is seen along them.
    scale = math.sqrt(np.square(sample, dtype=np.float64).sum(1).mean()) or 1.0
    axes = np.ascontiguousarray(fitted.components_.T / scale, dtype=np.float32)
    return _Axes(fitted.mean_.astype(np.float32), axes)


def _made(kind: str, dims: int, rows: int, seed: int) -> Any:
    import faiss

    index: Any
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dims, _LINKS)
        index.hnsw.efConstruction = 200
        return index
    if kind == "pq":
        pieces = next(m for m in (128, 64, 32, 16, 8, 4, 2, 1) if dims % m == 0)
        index = faiss.IndexPQFastScan(dims, pieces, 4)
        index.pq.cp.seed = seed_32(seed) % 2**31
        index.pq.cp.min_points_per_centroid = 1
        return index
    cells = max(1, min(round(4 * math.sqrt(rows)), rows // 32))
    means = faiss.IndexFlatL2(dims)
    index = faiss.IndexIVFScalarQuantizer(means, dims, cells, faiss.ScalarQuantizer.QT_fp16)
    index.cp.seed = seed_32(seed) % 2**31
    index.cp.min_points_per_centroid = 1
    return index


def _least_effort(index: ApproximateIndex, recall: float) -> tuple[Effort, float]:
    """The effort that reaches the recall with the fewest numbers read, and the recall it has."""
    queried = spread(len(index), _MEASURED)
    queries = index.rows.take(queried)
    k = min(_MEASURED_K, len(index) - 1)
    true = index.rows.search(queries, k, exclude=queried)[1].numpy()
    flat = index.axes(for_search(queries.numpy(), index.rows.metric))
    depth, last = _DEPTH, math.ceil(len(index) / k)
    while True:
        cheapest = (math.inf, Effort(0, 0), 0.0)
        for probes in _doubled(16 if index.kind == "hnsw" else 1, index.most_probes):
            if index.cost(Effort(probes, 1), k) > cheapest[0]:
                break
            found = index.propose(flat, min(depth * k + 1, len(index)), probes)
            ranks = np.array([_ranks(*pair) for pair in zip(true, found, strict=True)])
            for candidates in _doubled(1, depth):
                effort = Effort(probes, candidates)
                reached = float((ranks <= candidates * k).mean())  # a queried row finds itself, too
                if reached >= recall:
                    cheapest = min(
                        cheapest, (index.cost(effort, k), effort, reached), key=itemgetter(0)
                    )
                    break
        if cheapest[0] < math.inf:
            return cheapest[1:]
        if depth >= last:  # the most that the index can do
            return effort, reached
        depth = min(4 * depth, last)


def _doubled(first: int, last: int) -> Iterator[int]:
    """first, 2 first, 4 first, ... and at the end last."""
    while first < last:
        yield first
        first *= 2
    yield last


def _ranks(true: NDArray[np.int64], found: NDArray[np.int64]) -> NDArray[np.int64]:
    """At which place each of the true rows was found, behind all where it was not."""
    same = found == true[:, None]
    return np.where(same.any(1), same.argmax(1), found.size)


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
