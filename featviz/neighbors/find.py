"""`find_neighbors`: what is near to what, in a space of activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import results
from featviz.embedding.store import Store
from featviz.errors import UserError, nearest
from featviz.neighbors.approximate import KINDS, ApproximateIndex, build_approximate, open_or_build
from featviz.neighbors.exact import Index, Metric, build_index
from featviz.neighbors.quality import judge as judge_quality
from featviz.neighbors.queries import Space, read_queries
from featviz.neighbors.result import Neighbors

if TYPE_CHECKING:
    from featviz.models.model import Model


def find_neighbors(
    space: Store | Index | ApproximateIndex | Tensor,
    queries: Tensor | Sequence[int | str | Path] | None = None,
    *,
    k: int = 10,
    metric: Metric = "cosine",
    index: str = "exact",
    backend: str = "auto",
    model: Model | None = None,
    labels: Sequence[str] | None = None,
    judge: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Neighbors:
    """The k nearest rows of each query, and how well neighbours share a class.

    space: a store, an index, or a matrix (N, dim)
    queries: vectors (Q, dim); or rows (12), classes ("class:tabby", the mean of the class's rows),
        picture files (these need the `model` that made the store), and sums and differences of
        these ("zebra.jpg - horse.jpg + class:tiger"). None takes 8 rows, spread evenly. A row that
        is in the question is no answer
    metric: "cosine" or "l2"; an index brings its own
    index: "exact", or "ivf", "hnsw" or "pq": approximate, for large stores; its recall is measured
        and it is kept beside the store (see `approximate`)
    labels: a class for each row of a matrix; a store has its own
    judge: over how many rows, spread evenly, the precision is measured (0: not at all)
    seed: of the shuffled labels, the baseline of the precision

    Raises UserError for unknown rows, classes and files, and for a model that is another than the
    store's.
    """
    started = time.perf_counter()
    if index not in ("exact", *KINDS):
        hint = nearest(index, ["exact", *KINDS])
        raise UserError(f"unknown index {index!r}; take exact, {', '.join(KINDS)}{hint}")
    doubts: list[str] = []
    searched: Index | ApproximateIndex
    if isinstance(space, Index | ApproximateIndex):
        searched = space
    elif index == "exact":
        searched = build_index(space, metric=metric, backend=backend)
    elif isinstance(space, Store):
        searched, said = open_or_build(space, index, metric=metric, seed=seed, progress=progress)
        if said:
            doubts.append(f"{said}: done")
    else:
        searched = build_approximate(space, index, metric=metric, seed=seed, progress=progress)
    rows_of = searched.rows if isinstance(searched, ApproximateIndex) else searched
    store = rows_of.store
    known = (
        tuple(labels)
        if labels is not None
        else store.labels
        if store is not None
        else ("",) * len(rows_of)
    )
    if len(known) != len(rows_of):
        raise UserError(f"{len(known)} labels for {len(rows_of)} rows; give one each")
    asked, vectors = read_queries(queries, Space(rows_of, known, model))
    own = [query.own_rows for query in asked]
    distances, rows = searched.search(vectors, k, exclude=own, progress=progress)
    empty = int((rows_of.norms == 0).sum())
    if empty and rows_of.metric == "cosine":
        doubts.append(f"{empty} rows are all zero and have no direction; their distance is 1")
    quality, oddities = judge_quality(rows_of, known, k, judge, seed) if judge else (None, None)
    recall = searched.recall if isinstance(searched, ApproximateIndex) else None
    if recall is not None and recall < 0.9:
        doubts.append(f"the {searched.backend} index finds only {recall:.0%} of the true nearest")
    if judge and quality is None and any(known):
        doubts.append("no class has two pictures, so there is no precision to measure")
    made = results.origin(
        None,
        parameters={
            "queries": [query.name for query in asked],
            "k": k,
            "metric": rows_of.metric,
            "index": index,
            "backend": searched.backend,
            "judge": judge,
            "store": None if store is None or store.folder is None else str(store.folder),
        },
        started=started,
        seed=seed,
    )
    if store is not None:
        made = replace(made, model=store.origin.model, data=store.origin.data)
    return Neighbors(
        origin=made,
        warnings=tuple(doubts),
        queries=asked,
        rows=rows,
        distances=distances,
        metric=rows_of.metric,
        space=store.title if store is not None else f"{len(rows_of)} vectors of {rows_of.dim}",
        labels=known,
        quality=quality,
        oddities=oddities,
        recall=recall,
        store=store,
        backend=searched.backend,
    )
