"""`featviz circuit`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.types import Count, Depth


def circuit(
    unit: Annotated[str, typer.Argument(metavar="UNIT", help="conv4:12, or logits:tabby.")],
    *,
    data: options.Data = None,
    depth: Annotated[
        Depth,
        typer.Option("--depth", help="Layers: 2 or more trace the strongest inputs in turn."),
    ] = 1,
    icons: Annotated[
        Literal["none", "patches", "maximize"],
        typer.Option("--icons", help="Pictures of the inputs: top patches, or maximized."),
    ] = "patches",
    count: Annotated[
        Count, typer.Option("--count", help="At most so many pictures, evenly spread.")
    ] = 150,
    positions: Annotated[
        Count, typer.Option("--positions", help="Of each map at most so many, at random.")
    ] = 64,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Show which units of the layer before build a unit, and how much of it a few of them explain.

    Example: featviz circuit conv4:12 --depth 3
    """
    from featviz.circuits.trace import trace_circuit
    from featviz.cli.run import open_data
    from featviz.results import file_stem

    folder = output.folder(file_stem(f"circuit-{unit}"))
    net = model.load()
    with output.progress() as progress:
        result = trace_circuit(
            net,
            unit,
            open_data(data),
            depth=depth,
            icons=icons,
            count=count,
            positions=positions,
            seed=seed,
            progress=progress,
        )
    output.finish(result, folder)
