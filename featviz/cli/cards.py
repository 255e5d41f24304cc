"""`featviz cards`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import Count, Steps, Top


def cards(
    concepts: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Concepts, as featviz concepts makes them.")
    ],
    *,
    data: options.Data = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="CLASSES",
            help="Whose concepts are ranked, with commas; default: the six predicted most often.",
        ),
    ] = None,
    count: options.Count = 2000,
    patches: Annotated[Top, typer.Option("--patches", help="Of each concept.")] = 8,
    class_pictures: Annotated[
        Count, typer.Option("--class-pictures", help="Of each class, for the importance.")
    ] = 5,
    designs: Annotated[
        Count, typer.Option("--designs", help="Of the Sobol indices: a power of two.")
    ] = 32,
    steps: Annotated[
        Steps | None, typer.Option("--steps", help="Of the maximized pictures; default: 256.")
    ] = None,
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Show what each concept looks like, where it is in pictures, and what it does to the classes.

    A run that was stopped goes on where it was when the same command is given again.

    Example: featviz cards run/concepts-relu5
    """
    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.concepts.cards import concept_cards
    from featviz.concepts.result import open_concepts
    from featviz.results import file_stem

    found = open_concepts(concepts)
    folder = output.folder(f"cards-{file_stem(found.layer)}")
    net = model.load()
    with output.progress() as progress:
        result = concept_cards(
            net,
            found,
            open_data(data),
            classes=None if targets is None else [name.strip() for name in targets.split(",")],
            count=count,
            patches=patches,
            class_pictures=class_pictures,
            designs=designs,
            steps=steps,
            seed=seed,
            engine=engine,
            checkpoint=partial_folder(folder),
            progress=progress,
        )
    output.finish(result, folder)
