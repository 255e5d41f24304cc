"""`featviz corrupt`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options


def corrupt(
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
        bool, typer.Option("--extra", help="Add the 4 that the benchmark does not count.")
    ] = False,
    severities: Annotated[
        str, typer.Option("--severities", metavar="LIST", help="Of 1,2,3,4,5.")
    ] = "1,2,3,4,5",
    count: Annotated[
        int, typer.Option("--count", min=1, help="At most so many pictures, evenly spread.")
    ] = 200,
    jpeg: Annotated[
        bool,
        typer.Option(
            "--jpeg/--no-jpeg",
            help="Save corrupted pictures as JPEG of quality 85, as the benchmark does.",
        ),
    ] = True,
    model: options.ModelName = "alexnet-mini",
    weights: options.Weights = None,
    classes: options.Classes = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure accuracy under noise, blur, weather and compression (ImageNet-C's corruptions).

    Stopped and started again with the same arguments it goes on where it was.

    Example: featviz corrupt --names fog,pixelate --severities 1,3,5
    """
    from featviz.errors import UserError

    wanted = [word.strip().lower().replace("-", "_") for word in (names or "").split(",")]
    wanted = [word for word in wanted if word]
    try:
        levels = [int(word) for word in severities.split(",") if word.strip()]
    except ValueError:
        raise UserError(f"--severities {severities!r}: write numbers of 1 to 5, as 1,3,5") from None

    import shutil

    from featviz.cli.run import check_out, finish, open_data, progress_bar
    from featviz.corruptions import CORRUPTIONS, EXTRA, corruption_table, settings
    from featviz.models.load import load

    wanted = [*(wanted or CORRUPTIONS), *(EXTRA if extra else ())]
    for name in wanted:
        for severity in levels:
            settings(name, severity, 224)
    pictures = open_data(data)
    folder = check_out(out, f"corruptions-{pictures.name}", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    partial = folder.with_name(f"{folder.name}.partial")
    with progress_bar(quiet) as progress:
        result = corruption_table(
            net,
            pictures,
            names=wanted,
            severities=levels,
            count=count,
            jpeg=jpeg,
            seed=seed,
            partial=partial,
            progress=progress,
        )
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
    shutil.rmtree(partial, ignore_errors=True)
