"""`featviz corrupt`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options


def corrupt(
    *,
    data: options.Data = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--names",
            metavar="LIST",
            help="Corruptions, as fog,snow,jpeg_compression; default: the benchmark's 15.",
        ),
    ] = None,
    extra: Annotated[
        bool, typer.Option("--extra", help="Add the 4 that are not in the benchmark's mean.")
    ] = False,
    severities: Annotated[
        str, typer.Option("--severities", metavar="LIST", help="Of 1,2,3,4,5.")
    ] = "1,2,3,4,5",
    count: options.Count = 200,
    jpeg: Annotated[
        bool,
        typer.Option(
            "--jpeg/--no-jpeg",
            help="Save corrupted pictures as JPEG of quality 85, as the benchmark does.",
        ),
    ] = True,
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.StrictOutput,
) -> None:
    """Measure accuracy under noise, blur, weather and compression (ImageNet-C's corruptions).

    A run that was stopped goes on when the same command is given again.

    Example: featviz corrupt --names fog,pixelate --severities 1,3,5
    """
    words = None if names is None else options.parse_words("--names", names.replace("-", "_"))
    levels = options.parse_severities(severities)

    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data
    from featviz.corruptions import CORRUPTIONS, EXTRA, corruption_table, settings

    wanted = [*(CORRUPTIONS if words is None else words), *(EXTRA if extra else ())]
    for name in wanted:
        for severity in levels:
            settings(name, severity, 224)
    pictures = open_data(data)
    folder = output.folder(f"corruptions-{pictures.name}")
    net = model.load()
    output.check_labels(pictures.label_report(net))
    with output.progress() as progress:
        result = corruption_table(
            net,
            pictures,
            names=wanted,
            severities=levels,
            count=count,
            jpeg=jpeg,
            seed=seed,
            checkpoint=partial_folder(folder),
            engine=engine,
            progress=progress,
        )
    output.finish(result, folder)
