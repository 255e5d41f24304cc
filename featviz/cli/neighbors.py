"""`featviz neighbors`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.cli.embed import SpaceOptions
from featviz.types import Count


def neighbors(
    *,
    space: SpaceOptions,
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            metavar="ROW|FILE|class:NAME|SUM",
            help="What to look up: rows (12 or 3,40), a picture file, class:NAME (the mean of a "
            "class), or a sum of these, 'zebra.jpg - horse.jpg + class:tiger'; may be repeated. "
            "Default: 8 rows, spread evenly.",
        ),
    ] = None,
    k: Annotated[Count, typer.Option("--k", "-k", help="Neighbors of each query.")] = 10,
    metric: Annotated[
        Literal["cosine", "l2"], typer.Option("--metric", help="How distance is measured.")
    ] = "cosine",
    index: Annotated[
        Literal["exact", "ivf", "hnsw", "pq"],
        typer.Option("--index", help="exact, or approximate for large stores (kept beside them)."),
    ] = "exact",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Find the pictures nearest to a picture, a row or a class in a layer's space.

    Measures over the whole data set how often neighbors are of the same class.

    Example: featviz neighbors --query 3 --query class:goldfish
    """
    from featviz.neighbors.find import find_neighbors

    queries = [part for text in query or [] for part in split_rows(text)]
    net = model.load() if space.store is None or any(map(needs_network, queries)) else None
    layer, load = space.locate(net)
    folder = output.folder(f"neighbors-{layer}")
    with output.progress() as progress:
        result = find_neighbors(
            load(progress),
            queries or None,
            k=k,
            metric=metric,
            index=index,
            model=net,
            seed=seed,
            progress=progress,
        )
    output.finish(result, folder)


def needs_network(text: str) -> bool:
    """Whether a query names a picture file, which the model has to see."""
    terms = re.split(r"\s+[+-]\s+", text.strip())
    return any(not term.isdecimal() and not term.startswith("class:") for term in terms)


def split_rows(text: str) -> list[str]:
    """ "3,40" is two rows; anything else is one query."""
    parts = [part.strip() for part in text.split(",")]
    return parts if all(part.isdecimal() for part in parts) else [text]
