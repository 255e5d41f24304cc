"""`featviz attribute-layer`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import Steps


def attribute_layer(
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="conv5, or a module path.")],
    pictures: options.PictureFiles = None,
    *,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", help="Class, or a later unit as conv5:12; default: the prediction."
        ),
    ] = None,
    steps: Annotated[Steps, typer.Option("--steps", help="Of integrated gradients.")] = 64,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.CheckedOutput,
) -> None:
    """Show what each unit and position of a layer adds to a logit, checked by silencing units.

    Example: featviz attribute-layer conv5 --target goldfish
    """
    from featviz.ablation.attribute_layer import attribute_layer as run
    from featviz.cli.pictures import read_pictures
    from featviz.results import file_stem

    stem = pictures[0].stem if pictures else "sample"
    folder = output.folder(file_stem(f"attribute-{layer}-{stem}"))
    net = model.load()
    _, batch = read_pictures(pictures, net)
    with output.progress() as progress:
        result = run(net, batch, layer, target=target, steps=steps, seed=seed, progress=progress)
    output.finish(result, folder)
