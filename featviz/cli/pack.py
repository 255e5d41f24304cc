"""`featviz pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import Side


def pack(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder of class folders or of pictures, .tar or .zip, or a list."
        ),
    ],
    *,
    size: Annotated[
        Side, typer.Option("--size", help="Side of the squares, in pixels; AlexNet's is 256.")
    ] = 256,
    engine: options.Engine = "here",
    output: options.OutputOptions,
) -> None:
    """Decode a data set once, into squares that training and analyses read without decoding.

    Every command takes FOLDER as --data. A run that was stopped goes on from its last shard when
    the same command is given again.

    Example: featviz pack imagenet/train --out packs/train
    """
    from featviz.cli.run import open_data
    from featviz.data.packing import pack as pack_data

    folder = output.claim(output.out or Path("run") / "pack")
    with output.progress() as progress:
        result = pack_data(
            open_data(data),
            folder,
            size=size,
            engine=engine,
            overwrite=output.overwrite,
            progress=progress,
        )
    output.report(result, folder)
