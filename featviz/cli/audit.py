"""`featviz audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options


def audit(
    data: options.Data = None,
    eps: Annotated[
        str | None,
        typer.Option(
            "--eps",
            metavar="LIST",
            help="Grid for L-infinity (or for the only norm): 1/255,2/255,4/255; "
            "default: 1/8 to 8 levels of 255.",
        ),
    ] = None,
    eps_l2: Annotated[
        str | None,
        typer.Option("--eps-l2", metavar="LIST", help="Grid for L2; default: 1/32 to 2."),
    ] = None,
    norm: Annotated[str, typer.Option("--norm", help="linf, l2 or both.")] = "linf,l2",
    count: Annotated[
        int, typer.Option("--count", min=1, help="At most so many pictures, evenly spread.")
    ] = 200,
    steps: Annotated[int, typer.Option("--steps", help="Gradient steps of PGD.")] = 20,
    restarts: Annotated[int, typer.Option("--restarts", help="Walks of PGD.")] = 1,
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
    """Measure accuracy against the size of the attack, with doubts about the measurement itself.

    Labels are the names of the class folders; without any, the model's own answers stand in.

    Example: featviz audit --eps 1/255,2/255,4/255 --norm linf --count 24
    """  # fmt: skip
    norms = [word.strip().lower() for word in norm.split(",") if word.strip()]
    grids = _grids(norms, eps, eps_l2)

    from featviz.adversarial.audit import audit as run
    from featviz.adversarial.audit import check_grids
    from featviz.cli.run import check_out, finish, open_data, progress_bar
    from featviz.models.load import load

    check_grids(norms, grids)
    pictures = open_data(data)
    folder = check_out(out, f"audit-{pictures.name}", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    with progress_bar(quiet) as progress:
        result = run(
            net, pictures, norms=norms, eps=grids, count=count, steps=steps,
            restarts=restarts, seed=seed, progress=progress,
        )  # fmt: skip
    finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)


def _grids(norms: list[str], eps: str | None, eps_l2: str | None) -> dict[str, list[float]]:
    """The grids that were given; --eps belongs to L-infinity, or to the only norm."""
    from featviz.errors import UserError

    given = {}
    if eps is not None:
        given[norms[0] if len(norms) == 1 else "linf"] = eps
    if eps_l2 is not None:
        if "l2" not in norms:
            raise UserError("--eps-l2 is given, but --norm leaves l2 out")
        given["l2"] = eps_l2
    return {
        name: [options.parse_eps(word.strip()) for word in text.split(",") if word.strip()]
        for name, text in given.items()
    }
