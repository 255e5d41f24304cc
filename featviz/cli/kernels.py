"""`featviz kernels`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options


def kernels(
    *,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            "-l",
            help="A convolution; default: the first. Deeper ones are projected through the layers "
            "below.",
        ),
    ] = None,
    units: Annotated[
        str | None, typer.Option("--units", "-u", help="0-7, 3,12 or all (the default).")
    ] = None,
    shared_scale: Annotated[
        bool,
        typer.Option("--shared-scale", help="One scale for all: faint kernels look faint."),
    ] = False,
    growth: Annotated[
        Path | None,
        typer.Option(
            "--growth",
            metavar="FILE",
            help="Instead: growth of the first kernels, from a training checkpoint or a file of "
            "snapshots; 'bundled' for those of alexnet-mini.",
        ),
    ] = None,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Show a convolution's kernels: edges by orientation, colors by hue, noise named as noise.

    Example: featviz kernels --layer conv1
    """
    from featviz.kernels.growth import kernel_growth
    from featviz.kernels.sheet import find_convolution, kernel_sheet

    if growth is not None:
        options.refuse_unused(
            "with --growth",
            layer=(layer, None),
            units=(units, None),
            shared_scale=(shared_scale, False),
        )
        folder = output.folder("growth")
        grown = kernel_growth(None if str(growth) == "bundled" else growth)
        output.finish(grown, folder)
        return
    net = model.load()
    name = find_convolution(net, layer).name
    folder = output.folder(f"kernels-{name}")
    with output.progress() as progress:
        result = kernel_sheet(net, name, units=units, shared_scale=shared_scale, progress=progress)
    output.finish(result, folder)
