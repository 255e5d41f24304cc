"""`featviz maximize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options


def maximize(
    layer: Annotated[
        str, typer.Option("--layer", "-l", help="Where to look: conv1 ... conv5, fc6, fc7, logits.")
    ] = "conv5",
    units: Annotated[
        str,
        typer.Option(
            "--units",
            "-u",
            help="3,12 or 0-15 or all; classes by name; neurons as 12@6,6 (row, column).",
        ),
    ] = "0-15",
    steps: Annotated[
        int, typer.Option(min=1, help="Of the ascent: 64 for a sketch, 512 for print.")
    ] = 256,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the pictures; default: as the layer's field asks for."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="centre (one thing), channel (a texture) or auto.")
    ] = "auto",
    film: Annotated[bool, typer.Option("--film", help="Also a GIF of each ascent.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most pictures at a time; less needs less memory.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the ascent: fp32, bf16 or auto (scores are fp32 always).")
    ] = "auto",
    model: options.ModelName = "alexnet-mini",
    weights: options.Weights = None,
    classes: options.Classes = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="Pictures whose highest scores stand beside those of the synthetic ones.",
        ),
    ] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw pictures that units, neurons or classes answer to most.

    Example: featviz maximize --layer logits --units goldfish,tabby,teapot
    """
    from featviz.cli.run import check_out, finish, progress_bar
    from featviz.datasets import open_pictures
    from featviz.maximization import optimize
    from featviz.models.load import load

    folder = check_out(out, f"maximize-{layer}", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    pictures = None if data is None else open_pictures(data)
    try:
        with progress_bar(quiet) as progress:
            result = optimize.maximize(
                net, layer, units=units, objective=objective, steps=steps, seed=seed, size=size,
                natural=pictures, film=24 if film else 0, batch_size=batch_size,
                precision=precision, progress=progress,
            )  # fmt: skip
    except optimize.Stopped as stopped:
        if stopped.result is not None:
            finish(stopped.result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
        raise
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
