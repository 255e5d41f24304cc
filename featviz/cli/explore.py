"""`featviz explore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.types import Megabytes


def explore(
    *,
    data: options.Data = None,
    rounding: Annotated[
        Literal["float16", "int8"],
        typer.Option("--rounding", help="Of the weights in the page; int8 halves the page."),
    ] = "float16",
    megabytes: Annotated[
        Megabytes | None,
        typer.Option(
            "--megabytes",
            help="The page is at most so large: what matters least is rounded most.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FOLDER",
            help="Results of this model, from which pictures of units are taken.",
        ),
    ] = None,
    snapshots: Annotated[
        Path | None,
        typer.Option(
            "--snapshots", metavar="FILE", help="First-layer kernels during its training."
        ),
    ] = None,
    count: options.Count = 400,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Make a page in which the model itself runs: one HTML file to open, keep or mail.

    Drop a picture on it and follow it through the network: kernels, maps, classes, neighbors,
    units, the map of all pictures, training, and what fools it. Nothing leaves the machine.

    Example: featviz explore --out run/explorer
    """
    from featviz.cli.run import open_data
    from featviz.explorer.build import build_explorer

    folder = output.folder("explorer")
    net = model.load()
    with output.progress() as progress:
        result = build_explorer(
            net,
            open_data(data),
            weights=rounding,
            megabytes=megabytes,
            run=run,
            snapshots=snapshots,
            count=count,
            seed=seed,
            progress=progress,
        )
    output.finish(result, folder)
