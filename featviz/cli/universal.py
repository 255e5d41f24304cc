"""`featviz universal`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options


def universal(
    data: options.Data = None,
    eps: Annotated[
        str, typer.Option("--eps", help="Size of the perturbation, in [0, 1] units or as 10/255.")
    ] = "10/255",
    norm: Annotated[str, typer.Option("--norm", help="linf or l2.")] = "linf",
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="CLASS", help="The class that all are to become."),
    ] = None,
    as_patch: Annotated[
        bool,
        typer.Option(
            "--patch", help="A patch that lies anywhere instead (--eps and --norm do not apply)."
        ),
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the ascent.")] = 150,
    count: Annotated[
        int,
        typer.Option(
            "--count",
            min=2,
            help="At most so many pictures, evenly spread; half of them are kept to judge on.",
        ),
    ] = 400,
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
    """Make one change, or one patch, that fools the model on most pictures.

    Example: featviz universal --eps 10/255 --steps 30
    """
    from featviz.results import Result

    radius = options.parse_eps(eps)

    from featviz.attacks.patch import patch as make_patch
    from featviz.attacks.universal import universal as make_universal
    from featviz.cli.run import check_out, finish, open_data, progress_bar
    from featviz.models.load import load

    pictures = open_data(data)
    name = "patch" if as_patch else "universal"
    folder = check_out(out, f"{name}-{pictures.name}", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    with progress_bar(quiet) as progress:
        result: Result
        if as_patch:
            result = make_patch(
                net,
                pictures,
                target=target,
                steps=steps,
                count=count,
                seed=seed,
                progress=progress,
            )
        else:
            result = make_universal(
                net,
                pictures,
                eps=radius,
                norm=norm,
                target=target,
                steps=steps,
                count=count,
                seed=seed,
                progress=progress,
            )
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
