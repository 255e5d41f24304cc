"""`featviz eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options


def eval(
    data: options.Data = None,
    model: options.ModelName = "alexnet-mini",
    weights: options.Weights = None,
    classes: options.Classes = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Pictures computed at once.")
    ] = 64,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, bf16, or auto: bf16 where it is fast.")
    ] = "float32",
    device: options.Device = "auto",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Count how often a model is right: top-1, top-5, each with its 95% interval, and each class.

    --data holds one folder a class, named by synset or class name; without it the bundled sample
    pictures are asked about.

    Example: featviz eval --model alexnet-mini
    """
    from featviz.cli.run import check_out, finish, progress_bar
    from featviz.datasets import open_pictures
    from featviz.models.load import load
    from featviz.samples import sample_pictures
    from featviz.training.loop import evaluate

    folder = check_out(out, f"eval-{model.replace('/', '-')}", overwrite)
    pictures = open_pictures(data) if data is not None else sample_pictures()
    net = load(model, weights=weights, classes=classes, device=device)
    with progress_bar(quiet) as progress:
        result = evaluate(
            net, pictures, batch_size=batch_size, precision=precision, progress=progress
        )
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
