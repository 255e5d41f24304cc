"""`featviz interpolate`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from featviz.cli import options
from featviz.types import AutoPrecision, Side, Steps, WayCount, Weight


def interpolate(
    *,
    layer: Annotated[str, typer.Option("--layer", "-l", help="Of both units.")] = "conv5",
    units: Annotated[
        str, typer.Option("--units", "-u", help="The two units: 3,12; classes by name.")
    ] = "0,1",
    count: Annotated[WayCount, typer.Option(help="Pictures, the two ends among them.")] = 7,
    alignment: Annotated[
        Weight,
        typer.Option(help="How strongly neighbors are kept alike; a share of the score."),
    ] = 1.0,
    objective: Annotated[
        str, typer.Option(help="center (one thing), channel (a texture) or auto.")
    ] = "auto",
    steps: Annotated[Steps | None, typer.Option(help="Of the optimization; 256.")] = None,
    size: Annotated[
        Side | None,
        typer.Option(help="Side of the pictures; default: by the receptive field."),
    ] = None,
    film: Annotated[
        Literal["gif", "mp4"] | None,
        typer.Option("--film", help="Also a film there and back; mp4 for both kinds."),
    ] = None,
    precision: Annotated[
        AutoPrecision, typer.Option(help="Of the network in the steps; scores are of float32.")
    ] = "auto",
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Draw the pictures on the way from one unit to another.

    Example: featviz interpolate --layer conv5 --units 3,12 --film gif
    """
    from featviz.checkpoints import partial_folder
    from featviz.maximization.interpolation import interpolate

    folder = output.folder(f"interpolation-{layer}")
    with output.progress() as progress:
        result = interpolate(
            model.load(),
            layer,
            units,
            count=count,
            alignment=alignment,
            objective=objective,
            steps=steps,
            size=size,
            precision=precision,
            seed=seed,
            film_kind=film,
            checkpoint=partial_folder(folder),
            progress=progress,
        )
    output.finish(result, folder)
