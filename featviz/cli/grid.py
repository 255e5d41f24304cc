"""`featviz grid`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import Count, Steps


def grid(
    picture: Annotated[
        Path | None,
        typer.Argument(metavar="[PICTURE]", help="A picture file; default: a bundled one."),
    ] = None,
    *,
    layer: Annotated[
        str, typer.Option("--layer", "-l", help="A layer of maps: conv1 ... relu5.")
    ] = "relu5",
    concepts: Annotated[
        Path | None,
        typer.Option(
            "--concepts",
            metavar="FOLDER",
            help="Concepts to show, as featviz concepts makes them; default: this picture's own "
            "neuron groups.",
        ),
    ] = None,
    groups: Annotated[Count, typer.Option("--groups", help="Neuron groups of the picture.")] = 6,
    cells: Annotated[Count, typer.Option("--cells", help="Most rows and columns.")] = 7,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="CLASSES",
            help="Classes whose logits are attributed, with commas; default: the five largest.",
        ),
    ] = None,
    steps: Annotated[
        Steps, typer.Option("--steps", help="Of the maximized pictures; 256 are finer.")
    ] = 64,
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Show what a layer has of a picture at each position, and which logits it leads to.

    Example: featviz grid --layer relu5
    """
    from featviz.checkpoints import partial_folder
    from featviz.cli.pictures import read_pictures
    from featviz.concepts.grid import activation_grid

    if concepts is not None:
        options.refuse_unused("with --concepts", groups=(groups, 6))
    folder = output.folder(f"grid-{picture.stem if picture else 'sample'}")
    net = model.load()
    (name,), (read,) = read_pictures(None if picture is None else [picture], net)
    with output.progress() as progress:
        result = activation_grid(
            net,
            read,
            layer,
            concepts=concepts,
            groups=groups,
            cells=cells,
            classes=None if targets is None else [one.strip() for one in targets.split(",")],
            steps=steps,
            name=name,
            seed=seed,
            checkpoint=partial_folder(folder),
            engine=engine,
            progress=progress,
        )
    output.finish(result, folder)
