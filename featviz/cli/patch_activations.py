"""`featviz patch-activations`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options


def patch_activations(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The picture whose activations are put.")
    ],
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The picture whose run they are put into.")
    ],
    *,
    layers: Annotated[
        str | None,
        typer.Option("--layers", "-l", help="conv3,conv5; default: the last convolution."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Class to follow; default: predicted for SOURCE."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Class to subtract; default: predicted for BASE."),
    ] = None,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Put activations of one picture into another's run, by position and by unit, as maps.

    Example: featviz patch-activations cat.jpg dog.jpg --layers conv3,conv5
    """
    from featviz.ablation.patch_activations import patch_activations as run
    from featviz.results import file_stem

    folder = output.folder(file_stem(f"patch-{source.stem}-{base.stem}"))
    net = model.load()
    with output.progress() as progress:
        result = run(
            net,
            source,
            base,
            layers=None if layers is None else [name.strip() for name in layers.split(",")],
            target=target,
            against=against,
            progress=progress,
        )
    output.finish(result, folder)
