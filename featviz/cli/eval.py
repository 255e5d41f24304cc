"""`featviz eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import AutoPrecision, Top


def eval(
    *,
    data: options.Data = None,
    top: Annotated[Top, typer.Option("--top", help="k of top-k accuracy.")] = 5,
    ten_crop: Annotated[
        bool,
        typer.Option(
            "--ten-crop", help="Average ten crops of each picture, as the AlexNet paper does."
        ),
    ] = False,
    batch_size: options.BatchSize = 64,
    precision: Annotated[
        AutoPrecision,
        typer.Option("--precision", help="auto: bfloat16 where the processor computes in it."),
    ] = "float32",
    model: options.ModelOptions,
    output: options.StrictOutput,
) -> None:
    """Count how often a model is right, over all and by class, and how sure it is.

    Top-1, top-5 and calibration error come with their 95% intervals.

    --data holds one folder a class, named by synset or class name; without it the bundled sample
    pictures are classified.

    Example: featviz eval --model alexnet-mini
    """
    from featviz.cli.run import open_data
    from featviz.results import file_stem
    from featviz.training.evaluation import evaluate

    folder = output.folder(file_stem(f"eval-{model.label or model.name}"))
    net = model.load()
    pictures = open_data(data)
    output.check_labels(pictures.label_report(net))
    with output.progress() as progress:
        result = evaluate(
            net,
            pictures,
            top=top,
            ten_crop=ten_crop,
            batch_size=batch_size,
            precision=precision,
            progress=progress,
        )
    output.finish(result, folder)
