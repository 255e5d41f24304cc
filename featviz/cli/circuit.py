"""`featviz circuit`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from featviz.cli import options
from featviz.types import Count, Depth, Height


def circuit(
    units: Annotated[
        list[str],
        typer.Argument(metavar="UNIT...", help="conv4:12, logits:tabby; several, or conv4:0-15."),
    ],
    *,
    data: options.Data = None,
    depth: Annotated[
        Depth | None,
        typer.Option(
            "--depth",
            help="Layers below whose units are traced; default: down to the first, at most 8; of "
            "several units 1.",
        ),
    ] = None,
    height: Annotated[
        Height | None,
        typer.Option(
            "--height",
            help="Layers above that are followed; default: up to the logits, at most 8; of several "
            "units 1.",
        ),
    ] = None,
    expand: Annotated[
        str,
        typer.Option(
            "--expand",
            metavar="LAYERS",
            help="Earlier layers (conv2, or conv1,conv2): the unit's weights on their units "
            "through all between.",
        ),
    ] = "",
    icons: Annotated[
        Literal["none", "patches", "maximize"],
        typer.Option("--icons", help="Pictures of the units: top patches, or maximized."),
    ] = "patches",
    count: options.Count = 150,
    positions: Annotated[
        Count, typer.Option("--positions", help="Of each map at most so many, at random.")
    ] = 64,
    seed: options.Seed = 0,
    engine: options.Engine = "here",
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Show which units build a unit and which it feeds, from the first kernels to the classes.

    It also says how much of the unit a few inputs explain. A run that was stopped goes on where it
    was when the same command is given again.

    Example: featviz circuit conv4:12 --expand conv2
    """
    from featviz.checkpoints import partial_folder
    from featviz.circuits.trace import FAR, named_units, trace_circuits
    from featviz.cli.run import open_data
    from featviz.results import Result, file_stem

    folder = output.folder(file_stem(f"circuit-{'-'.join(units)}"))
    net = model.load()
    names = named_units(net, units)
    far = FAR if len(names) == 1 else 1
    shared: dict[str, Any] = {
        "depth": far if depth is None else depth,
        "height": far if height is None else height,
        "expand": [layer.strip() for layer in expand.split(",")] if expand else [],
        "icons": icons,
        "count": count,
        "positions": positions,
        "seed": seed,
        "engine": engine,
        "checkpoint": partial_folder(folder),
    }
    with output.progress() as progress:
        found = trace_circuits(net, names, open_data(data), progress=progress, **shared)
    result: Result = found if len(names) > 1 else found.circuits[0]
    output.finish(result, folder)
