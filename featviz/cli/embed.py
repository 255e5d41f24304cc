"""`featviz embed`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options

LayerName = Annotated[
    str | None,
    typer.Option(
        "--layer", "-l",
        help="Where to read; default: relu7, the fc7 space of the papers (fc7 after its ReLU).",
    ),
]  # fmt: skip
ClassNames = Annotated[
    Path | None,
    typer.Option(
        "--class-names", metavar="FILE",
        help="Names of the data's class folders, lines of folder TAB name; "
        "default: those that the model knows.",
    ),
]  # fmt: skip
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Pictures a forward pass.")]


def embed(
    data: options.Data = None,
    layer: LayerName = None,
    class_names: ClassNames = None,
    batch_size: BatchSize = 64,
    model: options.ModelName = "alexnet-mini",
    weights: options.Weights = None,
    classes: options.Classes = None,
    device: options.Device = "auto",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Store the activations of a data set at one layer, for `neighbors` and `atlas`.

    A run that was stopped goes on where it was when the same command is given again.

    Example: featviz embed --layer relu7 --out run/embed-relu7
    """
    from featviz.cli.run import check_out, open_data, progress_bar, report
    from featviz.embedding.extract import default_layer
    from featviz.embedding.extract import embed as run
    from featviz.models.load import load

    net = load(model, weights=weights, classes=classes, device=device)
    place = net.layer(layer or default_layer(net)).name
    folder = check_out(out, f"embed-{place}", overwrite)
    with progress_bar(quiet) as progress:
        store = run(
            net, open_data(data), place, out=folder, class_names=read_class_names(class_names),
            batch_size=batch_size, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    report(store, folder, as_json=as_json, quiet=quiet)


def read_class_names(path: Path | None) -> Mapping[str, str]:
    """Folder to name, from a file of `folder<TAB>name` lines. Raises UserError."""
    from featviz.errors import UserError
    from featviz.models.weights import parse_classes

    if path is None:
        return {}
    try:
        pairs = parse_classes(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names {path} cannot be read ({error})") from None
    return {folder: name for folder, name in pairs if folder}
