"""`find_neighbors(space, queries)`: nearest rows in a space of activations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor

from featviz import results
from featviz.arguments import Bounds
from featviz.embedding.store import Store
from featviz.errors import UserError, nearest, public
from featviz.neighbors.approximate import KINDS, ApproximateIndex, build_approximate, open_or_build
from featviz.neighbors.exact import Backend, Index, Metric, build_index
from featviz.neighbors.quality import measure_quality
from featviz.neighbors.queries import Space, read_queries
from featviz.neighbors.result import Neighbors
from featviz.types import Count, Progress, Seed
from featviz.wording import counted, not_one_each

if TYPE_CHECKING:
    from featviz.models.model import Model


@public
def find_neighbors(
    space: Store | Index | ApproximateIndex | Tensor,
    queries: Tensor | Sequence[int | str | Path] | None = None,
    *,
    k: Count = 10,
    metric: Metric = "cosine",
    index: Literal["exact", "ivf", "hnsw", "pq"] = "exact",
    backend: Backend = "auto",
    model: Model | None = None,
    labels: Sequence[str] | None = None,
    precision_rows: Annotated[int, Bounds(0, 100_000_000)] = 2000,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Neighbors:
    """The k nearest rows of each query, and how well neighbors share a class.

    Args:
        space: A store, an index, or a matrix (N, dim).
        queries: Vectors (Q, dim); or rows (12), classes ("class:tabby", the mean of the class's
            rows), picture files (these need the `model` that made the store), and sums and
            differences of these ("zebra.jpg - horse.jpg + class:tiger"). None takes 8 rows, spread
            evenly. Rows of a query are not among its neighbors.
        k: Neighbors of each query.
        metric: "cosine" or "l2"; an index has its own.
        index: "exact", or "ivf", "hnsw" or "pq": approximate, for large stores; its recall is
            measured and it is kept beside the store (see `approximate`).
        backend: As in `build_index`.
        model: Embeds picture files.
        labels: A class for each row of a matrix; a store has its own.
        precision_rows: Over how many rows, spread evenly, precision and hubs are measured; 0: none.
        seed: Of the shuffled labels, the baseline of the precision.
        progress: Called with (queries done, all queries, text).

    Raises:
        UserError: Unknown rows, classes and files, or a model other than the store's.
    """
    started = time.perf_counter()
    if index not in ("exact", *KINDS):
        hint = nearest(index, ["exact", *KINDS])
        raise UserError(f"unknown index {index!r}; take exact, {', '.join(KINDS)}{hint}")
    warnings: list[str] = []
    searched: Index | ApproximateIndex
    if isinstance(space, Index | ApproximateIndex):
        searched = space
    elif index == "exact":
        searched = build_index(space, metric=metric, backend=backend)
    elif isinstance(space, Store):
        searched, said = open_or_build(space, index, metric=metric, seed=seed, progress=progress)
        if said:
            warnings.append(f"{said}: done")
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
        raise UserError(not_one_each(len(known), "label", len(rows_of), "row"))
    found, vectors = read_queries(queries, Space(rows_of, known, model))
    own = [query.own_rows for query in found]
    distances, rows = searched.search(vectors, k, exclude=own, progress=progress)
    quality, oddities = None, None
    if precision_rows:
        quality, oddities = measure_quality(rows_of, known, k, precision_rows, seed)
    recall, recall_rows = None, 0
    if isinstance(searched, ApproximateIndex):
        recall, recall_rows = searched.recall, searched.recall_rows
    warnings += _warnings(rows_of, searched.backend, recall)
    if precision_rows and quality is None and any(known):
        warnings.append("no class has two pictures, so there is no precision to measure")
    made = results.origin(
        None,
        parameters={
            "queries": [query.name for query in found],
            "k": k,
            "metric": rows_of.metric,
            "index": index,
            "backend": searched.backend,
            "precision_rows": precision_rows,
            "store": None if store is None else store.folder,
        },
        started=started,
        seed=seed,
        base=None if store is None else store.origin,
    )
    return Neighbors(
        origin=made,
        warnings=tuple(warnings),
        queries=found,
        rows=rows,
        distances=distances,
        metric=rows_of.metric,
        space=store.title if store is not None else f"{len(rows_of)} vectors of {rows_of.dim}",
        labels=known,
        quality=quality,
        oddities=oddities,
        recall=recall,
        recall_rows=recall_rows,
        store=store,
        backend=searched.backend,
    )


def _warnings(rows: Index, backend: str, recall: float | None) -> list[str]:
    """What limits the distances and the search."""
    warnings = []
    empty = int((rows.norms == 0).sum())
    if empty and rows.metric == "cosine":
        warnings.append(f"{counted(empty, 'row')} of zeros, without a direction: the distance is 1")
    if recall is not None and recall < 0.9:
        warnings.append(f"the {backend} index finds only {recall:.0%} of the true nearest")
    return warnings
