"""`featviz attribute`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options


def attribute(
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PICTURE]...", help="Picture files; default: a bundled one."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", help="Class to explain, name or index; default: the answer."
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="Comma-separated.")
    ] = "saliency,integrated_gradients,grad_cam,occlusion",
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="Where Grad-CAM looks; default: behind the last convolution."),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", help="mean, black, white or a grey value from 0 to 1.")
    ] = "mean",
    steps: Annotated[int, typer.Option("--steps", help="Of integrated gradients.")] = 64,
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
    """Show which pixels a class's logit rests on, by four methods.

    Example: featviz attribute --target goldfish --methods grad_cam,occlusion
    """
    from featviz.attribution import attribute as run
    from featviz.attribution import check_methods
    from featviz.cli.pictures import open_given
    from featviz.cli.run import check_out, finish, progress_bar
    from featviz.models.load import load

    wanted = check_methods(methods.split(","))
    stem = pictures[0].stem if pictures else "sample"
    folder = check_out(out, f"attribute-{stem}", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    names, batch = open_given(pictures, net)
    with progress_bar(quiet) as progress:
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
            progress=progress,
        )
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
