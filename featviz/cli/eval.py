"""`featviz eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import AutoPrecision


def eval(
    *,
    data: options.Data = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Pictures computed at once.")
    ] = 64,
    precision: Annotated[
        AutoPrecision,
        typer.Option("--precision", help="auto: bfloat16 where the processor computes in it."),
    ] = "float32",
    model: options.ModelOptions,
    output: options.CheckedOutput,
) -> None:
    """Count how often a model is right: top-1, top-5, each with its 95% interval, and each class.

    --data holds one folder a class, named by synset or class name; without it the bundled sample
    pictures are classified.

    Example: featviz eval --model alexnet-mini
    """
    from featviz.cli.run import open_data
    from featviz.results import file_stem
    from featviz.training.evaluation import evaluate

    folder = output.folder(file_stem(f"eval-{model.name}"))
    net = model.load()
    with output.progress() as progress:
        result = evaluate(
            net, open_data(data), batch_size=batch_size, precision=precision, progress=progress
        )
    output.finish(result, folder)
