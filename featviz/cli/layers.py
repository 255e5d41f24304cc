"""`featviz layers`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from featviz.cli import options


def layers(
    *,
    all_modules: Annotated[
        bool, typer.Option("--all", help="Every module, not only those with a name of their own.")
    ] = False,
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """List a model's layers: shape, parameters, multiply-adds, receptive field and stride.

    Example: featviz layers --model alexnet
    """
    from featviz.models.summary import summarize

    folder = None if output.out is None else output.folder("")
    net = model.load()
    result = summarize(net, all_modules=all_modules)
    if folder is not None:
        output.finish(result, folder)
    elif output.as_json:
        print(result.to_json())
    else:
        print(result.to_text())
        for note in net.notes if not output.quiet else ():
            print(f"featviz: note: {note}", file=sys.stderr)
