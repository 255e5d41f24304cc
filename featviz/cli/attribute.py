"""`featviz attribute`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import Steps


def attribute(
    *,
    pictures: options.PictureFiles = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", help="Class to explain, name or index; default: the prediction."
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="Comma-separated.")
    ] = "saliency,integrated_gradients,grad_cam,occlusion",
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="Of Grad-CAM; default: the last whole map."),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", help="mean, black, white or a gray value from 0 to 1.")
    ] = "mean",
    steps: Annotated[Steps, typer.Option("--steps", help="Of integrated gradients.")] = 64,
    engine: options.Engine = "here",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Show which pixels the logit of a class depends on, by four methods.

    A run that was stopped goes on where it was when the same command is given again.

    Example: featviz attribute --target goldfish --methods grad_cam,occlusion
    """
    from featviz.attribution.attribute import attribute as run
    from featviz.attribution.attribute import check_methods
    from featviz.checkpoints import partial_folder
    from featviz.cli.pictures import read_pictures

    wanted = check_methods(methods.split(","))
    if "grad_cam" not in wanted:
        options.refuse_unused("without the method grad_cam", layer=(layer, None))
    if "integrated_gradients" not in wanted:
        options.refuse_unused("without the method integrated_gradients", steps=(steps, 64))
    stem = pictures[0].stem if pictures else "sample"
    folder = output.folder(f"attribute-{stem}")
    net = model.load()
    names, batch = read_pictures(pictures, net)
    with output.progress() as progress:
        result = run(
            net,
            batch,
            target=target,
            methods=wanted,
            layer=layer,
            baseline=baseline,
            steps=steps,
            names=names,
            seed=seed,
            checkpoint=partial_folder(folder),
            engine=engine,
            progress=progress,
        )
    output.finish(result, folder)
