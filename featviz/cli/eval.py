"""`featviz eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options


def eval(
    *,
    data: options.Data = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Pictures computed at once.")
    ] = 64,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, bf16, or auto: bf16 where it is fast.")
    ] = "float32",
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Count how often a model is right: top-1, top-5, each with its 95% interval, and each class.

    --data holds one folder a class, named by synset or class name; without it the bundled sample
    pictures are asked about.

    Example: featviz eval --model alexnet-mini
    """
    from featviz.datasets import open_pictures
    from featviz.samples import sample_pictures
    from featviz.training.loop import evaluate

    folder = output.folder(f"eval-{model.name.replace('/', '-')}")
    pictures = open_pictures(data) if data is not None else sample_pictures()
    net = model.load()
    with output.progress() as progress:
        result = evaluate(
            net, pictures, batch_size=batch_size, precision=precision, progress=progress
        )
    output.finish(result, folder)
