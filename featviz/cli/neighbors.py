"""`featviz neighbors`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.cli.embed import BatchSize, ClassNames, LayerName

StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        "-s",
        metavar="FOLDER",
        help="A store made by featviz embed; default: embed --data now, in memory.",
    ),
]


def neighbors(
    *,
    store: StoreFolder = None,
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
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbors of each query.")] = 10,
    metric: Annotated[
        Literal["cosine", "l2"], typer.Option("--metric", help="How distance is measured.")
    ] = "cosine",
    index: Annotated[
        Literal["exact", "ivf", "hnsw", "pq"],
        typer.Option("--index", help="exact, or approximate for large stores (kept beside them)."),
    ] = "exact",
    data: options.Data = None,
    layer: LayerName = None,
    class_names: ClassNames = None,
    batch_size: BatchSize = 64,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Find the pictures nearest to a picture, a row or a class in a layer's space.

    Measures over the whole data set how often neighbors are of the same class.

    Example: featviz neighbors --query 3 --query class:goldfish
    """
    from featviz.cli.embed import read_class_names
    from featviz.cli.run import open_data
    from featviz.embedding.extract import default_layer, embed
    from featviz.embedding.store import open_store
    from featviz.neighbors.find import find_neighbors

    queries = [part for text in query or [] for part in split_rows(text)]
    net = model.load() if store is None or any(map(needs_network, queries)) else None
    if store is not None:
        space = open_store(store, data=data)
        place = space.layer
    else:
        assert net is not None
        place = net.layer(layer or default_layer(net)).name
    folder = output.folder(f"neighbors-{place}")
    with output.progress() as progress:
        if store is None:
            assert net is not None
            space = embed(
                net,
                open_data(data),
                place,
                class_names=read_class_names(class_names),
                batch_size=batch_size,
                progress=progress,
            )
        result = find_neighbors(
            space,
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
    return any(not term.isdigit() and not term.startswith("class:") for term in terms)


def split_rows(text: str) -> list[str]:
    """ "3,40" is two rows; anything else is one query."""
    parts = [part.strip() for part in text.split(",")]
    return parts if all(part.isdigit() for part in parts) else [text]
