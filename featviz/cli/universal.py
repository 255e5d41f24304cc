"""`featviz universal`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import HalvedCount, Steps


def universal(
    *,
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
    steps: Annotated[Steps, typer.Option("--steps", help="Steps of the optimization.")] = 150,
    count: Annotated[
        HalvedCount,
        typer.Option(
            "--count",
            help="At most so many pictures, evenly spread; half of them are kept to judge on.",
        ),
    ] = 400,
    seed: options.Seed = 0,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Make one change, or one patch, that fools the model on most pictures.

    Example: featviz universal --eps 10/255 --steps 30
    """
    from featviz.results import Result

    if as_patch:
        options.refuse_unused("with --patch", eps=(eps, "10/255"), norm=(norm, "linf"))
    radius = options.parse_eps(eps)

    from featviz.attacks.patch import patch as make_patch
    from featviz.attacks.universal import universal as make_universal
    from featviz.checkpoints import partial_folder
    from featviz.cli.run import open_data

    pictures = open_data(data)
    name = "patch" if as_patch else "universal"
    folder = output.folder(f"{name}-{pictures.name}")
    net = model.load()
    attack: Callable[..., Result] = make_patch
    if not as_patch:
        attack = partial(make_universal, eps=radius, norm=norm)
    with output.progress() as progress:
        result = attack(
            net,
            pictures,
            target=target,
            steps=steps,
            count=count,
            seed=seed,
            checkpoint=partial_folder(folder),
            progress=progress,
        )
    output.finish(result, folder)
