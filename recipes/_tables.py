"""Recipes that measure a network on pictures: their command line, and tables in Markdown."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import featviz
from featviz.data.datasets import Pictures
from featviz.data.samples import sample_pictures
from featviz.models.model import Model


def read_arguments(
    text: str, *, model: str = "alexnet", **own: Any
) -> tuple[argparse.Namespace, Model, Pictures]:
    """--data, --model, --weights, --classes, --out and the recipe's own options; what they name.

    Args:
        text: The recipe's docstring, whose first line its help begins with.
        model: The default network.
        own: Further options with their defaults, which have their types; "out" may have one.
    """
    shared = os.environ.get("FEATVIZ_SHARED_DATA")
    data = Path(shared) / "imagenet_val" if shared else None
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data, help="pictures; default: the samples")
    parser.add_argument("--model", default=model)
    parser.add_argument("--weights")
    parser.add_argument("--classes")
    parser.add_argument("--out", type=Path, default=own.pop("out", None))
    for name, default in own.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(default), default=default)
    asked = parser.parse_args()
    net = featviz.load(asked.model, weights=asked.weights, classes=asked.classes)
    return asked, net, featviz.open_pictures(asked.data) if asked.data else sample_pictures()


def line(cells: Iterable[object]) -> str:
    """A row of a table; numbers that are not whole have four digits."""
    shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    return "\n".join([line(head), line("---" for _ in head), *map(line, rows)])


def show(text: str, file: Path | None) -> None:
    """Print a text, and write it to a file if there is one."""
    print(text)
    if file is not None:
        file.write_text(text + "\n", encoding="utf-8")
