"""The options that commands share, declared once; a command uses those that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL, _OUTPUT = "Model", "Output"

ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        rich_help_panel=_MODEL,
        help="alexnet-mini (bundled), alexnet, alexnet-2012, a torchvision name, or timm/NAME.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        rich_help_panel=_MODEL,
        metavar="FILE",
        help="Safetensors or torch file; DEFAULT for torchvision's own download.",
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        rich_help_panel=_MODEL,
        metavar="FILE",
        help="Class names, one a line (name, or synset TAB name).",
    ),
]
Device = Annotated[
    str, typer.Option("--device", rich_help_panel=_MODEL, help="auto, cpu, cuda or cuda:N.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        "-d",
        metavar="PATH",
        help="Folder of pictures (flat or class folders), a .tar or a .txt list; "
        "default: the bundled sample pictures.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same result.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        rich_help_panel=_OUTPUT,
        metavar="FOLDER",
        help="Result folder to write; default: run/ and the name of the result.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", rich_help_panel=_OUTPUT, help="Replace an existing result.")
]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="Print one JSON document instead.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=_OUTPUT, help="No progress, no hints.")
]


def parse_eps(text: str) -> float:
    """An eps in [0, 1] units from ".03" or "8/255". Raises UserError."""
    from featviz.errors import UserError

    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / (float(bottom) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"eps {text!r} is no number; write .03 or 8/255") from None
    if not 0 <= value < float("inf"):
        raise UserError(f"eps {text!r} is out of range; it is a distance, 0 or more")
    return value
