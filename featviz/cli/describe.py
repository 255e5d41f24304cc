"""`featviz describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.types import Count


def describe(
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Where to read, as relu5.")],
    *,
    data: options.Data = None,
    units: Annotated[str, typer.Option("--units", "-u", help="0-7, 3,12 or all.")] = "all",
    reduce: Annotated[
        Literal["max", "mean"], typer.Option(help="Of a map its maximum or its mean.")
    ] = "max",
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups",
            metavar="FILE",
            help="Lines of class TAB group; a group may be in a group. Default: ours of ImageNet.",
        ),
    ] = None,
    pairs: Annotated[bool, typer.Option(help="Search A AND B, A OR B, A AND NOT B, too.")] = True,
    permutations: Annotated[
        Count, typer.Option("--permutations", help="Searches under shuffled labels, 60 or more.")
    ] = 500,
    least: Annotated[Count, typer.Option("--least", help="Pictures of the smallest set.")] = 5,
    tuning: Annotated[
        bool | None,
        typer.Option(help="Tuning curves by drawn stimuli; default: for the first two layers."),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            "--vocabulary", metavar="FILE", help="A word a line, for --text-model to choose from."
        ),
    ] = None,
    text_model: Annotated[
        str | None,
        typer.Option(
            "--text-model",
            metavar="FILE.py:FUNCTION",
            help="Returns two functions, pictures and texts to vectors of one space; or "
            "open_clip/NAME:WEIGHTS.",
        ),
    ] = None,
    engine: options.Engine = "here",
    batch_size: options.BatchSize = 64,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Describe units in words: classes, groups and pairs of them, with p; and drawn stimuli.

    A unit that no set describes beyond chance is said to have none. A run that was stopped goes on
    from its last piece when the same command is given again.

    Example: featviz describe relu5 --data photographs
    """
    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.descriptions.units import describe_units
    from featviz.results import file_stem

    folder = output.folder(f"describe-{file_stem(layer)}")
    net = model.load()
    with output.progress() as progress:
        result = describe_units(
            net,
            open_data(data),
            layer,
            units=units,
            reduce=reduce,
            groups=groups,
            pairs=pairs,
            permutations=permutations,
            least=least,
            tuning=tuning,
            vocabulary=vocabulary,
            text_model=text_model,
            engine=engine,
            checkpoint=partial_folder(folder),
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    output.finish(result, folder)
