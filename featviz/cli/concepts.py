"""`featviz concepts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from featviz.cli import options
from featviz.cli.embed import StoreFolder, parse_positions
from featviz.types import ConceptCount, Count, HeldOut, Seeds, Steps

if TYPE_CHECKING:
    from featviz.models.model import Layer

_POSITIONS = 20


def concepts(
    layer: Annotated[
        str | None, typer.Argument(metavar="[LAYER]", help="relu5; with --store it is known.")
    ] = None,
    *,
    store: StoreFolder = None,
    data: options.Data = None,
    positions: Annotated[
        str | None,
        typer.Option(
            metavar="K|all",
            help="Of a map, for --data: so many random positions of each picture, or all; "
            "default: 20, or all inner ones where there are fewer.",
        ),
    ] = None,
    method: Annotated[
        Literal["nmf", "kmeans", "pca", "ica", "topk"],
        typer.Option(
            help="nmf: non-negative parts; kmeans: one concept a position; pca and ica: with "
            "signs; topk: a trained sparse dictionary."
        ),
    ] = "nmf",
    count: Annotated[ConceptCount, typer.Option("--count", help="How many concepts.")] = 32,
    active: Annotated[
        Count | None,
        typer.Option("--active", help="Of topk: concepts that a position uses; default 16."),
    ] = None,
    steps: Annotated[
        Steps | None, typer.Option("--steps", help="Of topk: steps of training; default 2,000.")
    ] = None,
    seeds: Annotated[
        Seeds, typer.Option("--seeds", help="Fits from different starts, for the stability.")
    ] = 2,
    held_out: Annotated[
        HeldOut, typer.Option("--held-out", help="Share of the pictures to measure on.")
    ] = 0.25,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Find directions that a layer uses, and measure what they explain and how stable they are.

    A run that was stopped goes on from its last fit when the same command is given again.

    Example: featviz concepts relu5 --count 16
    """
    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.concepts.find import find_concepts
    from featviz.data.from_python import MEMORY
    from featviz.embedding.extract import embed
    from featviz.embedding.store import open_store
    from featviz.errors import UserError
    from featviz.results import file_stem

    if store is not None:
        options.refuse_unused("with --store", positions=(positions, None))
        opened = open_store(store, data=data)
        if layer not in (None, opened.layer):
            raise UserError(f"{store} is a store of {opened.layer}, not of {layer}; leave it out")
        name = opened.layer
    elif layer is None:
        raise UserError("no layer was named; write featviz concepts relu5, or give --store")
    else:
        net = model.load()
        place = net.layer(layer)
        name, pictures = place.name, open_data(data)
        taken = parse_positions(positions) if positions else _default_positions(place)
        several = place.shape[-1] * place.shape[-2] if taken == "all" else taken or 1
        if 2 * place.units * len(pictures) * several > MEMORY:
            raise UserError(
                f"the activations at {name} take more than {MEMORY / 1e9:.0f} GB; featviz embed "
                "--positions puts them into a folder, then give --store"
            )
    suffix = "" if method == "nmf" else f"-{method}"
    folder = output.folder(f"concepts-{file_stem(name)}{suffix}")
    with output.progress() as progress:
        if store is None:
            opened = embed(net, pictures, name, positions=taken, seed=seed, progress=progress)
        result = find_concepts(
            opened,
            method=method,
            count=count,
            active=active,
            steps=steps,
            seeds=seeds,
            held_out=held_out,
            seed=seed,
            device="auto" if store is not None else str(net.device),
            checkpoint=partial_folder(folder),
            progress=progress,
        )
    output.finish(result, folder)


def _default_positions(place: Layer) -> int | None:
    """20, or all inner positions; None for layers without."""
    from featviz.embedding.positions import inner_positions

    return min(_POSITIONS, inner_positions(*place.shape[1:])) if place.spatial else None
