"""`featviz facets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.cli.maximize import PictureOptions
from featviz.types import Examples, FacetCount, Weight


def facets(
    *,
    layer: Annotated[str, typer.Option("--layer", "-l", help="Where to look.")] = "conv5",
    units: Annotated[
        str, typer.Option("--units", "-u", help="3,12 or 0-15 or all; classes by name.")
    ] = "0-3",
    count: Annotated[FacetCount, typer.Option(help="Pictures of each unit.")] = 4,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="Photographs: each picture starts from a cluster of the unit's top ones.",
        ),
    ] = None,
    examples: Annotated[
        Examples, typer.Option(help="Top photographs of each unit that are clustered.")
    ] = 96,
    diversity: Annotated[
        Weight,
        typer.Option(help="How hard a unit's pictures are pushed apart; a share of scores."),
    ] = 1.0,
    objective: Annotated[
        str, typer.Option(help="center (one thing), channel (a texture) or auto.")
    ] = "auto",
    pictures: PictureOptions,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Draw several different pictures of each unit: optimized to differ, or from photographs.

    A run that was stopped goes on where it was when the same command is given again.

    Example: featviz facets --layer conv5 --units 3,12 --count 4
    """
    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.maximization.facets import draw_facets

    if data is None:
        options.refuse_unused("without --data", examples=(examples, 96))
    folder = output.folder(f"facets-{layer}")
    photographs = None if data is None else open_data(data)
    with output.progress() as progress:
        result = draw_facets(
            model.load(),
            layer,
            units=units,
            count=count,
            pictures=photographs,
            diversity=diversity,
            examples=examples,
            objective=objective,
            steps=pictures.steps,
            size=pictures.size,
            precision=pictures.precision,
            seed=pictures.seed,
            frames=pictures.frames,
            film_kind=pictures.film or "gif",
            batch_size=pictures.batch_size,
            checkpoint=partial_folder(folder),
            engine=pictures.engine,
            progress=progress,
        )
    output.finish(result, folder)
