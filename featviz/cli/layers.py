"""`featviz layers`."""

from __future__ import annotations

from typing import Annotated

import typer

from featviz.cli import options


def layers(
    model: options.ModelName = "alexnet-mini",
    weights: options.Weights = None,
    classes: options.Classes = None,
    all_modules: Annotated[
        bool, typer.Option("--all", help="Every module, not only those with a name of their own.")
    ] = False,
    device: options.Device = "auto",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List a model's layers: shape, parameters, multiply-adds, receptive field and stride.

    Example: featviz layers --model alexnet
    """
    from featviz.cli.run import check_out, finish
    from featviz.models.load import load
    from featviz.models.summary import summarize

    folder = None if out is None else check_out(out, "", overwrite)
    net = load(model, weights=weights, classes=classes, device=device)
    result = summarize(net, all_modules=all_modules)
    if folder is not None:
        finish(result, folder, overwrite=overwrite, as_json=as_json, quiet=quiet)
    elif as_json:
        print(result.to_json())
    else:
        print(result.to_text())
