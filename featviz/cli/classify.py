"""`featviz classify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.types import AutoPrecision, Count, Probability, Top


def classify(
    *,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PICTURE]...",
            help="Pictures, folders, archives, lists; - reads a list from standard input; "
            "default: a bundled picture.",
        ),
    ] = None,
    top: Annotated[Top, typer.Option("--top", help="Classes of each picture.")] = 5,
    right_class: Annotated[
        str | None,
        typer.Option(
            "--right-class",
            metavar="CLASS",
            help="Of all the pictures, name or index; default: the class folder, where it is one.",
        ),
    ] = None,
    probability: Annotated[
        Probability,
        typer.Option(
            "--probability",
            help="softmax: classes exclude each other; sigmoid: each by itself, for several "
            "labels; auto: a sigmoid where the network ends in one.",
        ),
    ] = "auto",
    shown: Annotated[
        Count, typer.Option("--shown", help="Pictures that are drawn, with --out.")
    ] = 24,
    batch_size: options.BatchSize = 64,
    precision: Annotated[
        AutoPrecision,
        typer.Option("--precision", help="auto: bfloat16 where the processor computes in it."),
    ] = "float32",
    model: options.ModelOptions,
    output: options.OutputOptions,
) -> None:
    """Print the most likely classes of pictures with their probabilities; --out draws them.

    Pictures are read one after another, as many as there are. Those that cannot be read are named
    and left out.

    Example: featviz classify cat.jpg holiday/ --top 3 --out run/classes
    """
    from featviz.classification.classify import classify as run
    from featviz.cli.pictures import bundled_picture
    from featviz.cli.run import open_data
    from featviz.errors import visible

    folder = None if output.out is None else output.folder("")
    net = model.load()
    found = open_data(pictures) if pictures else bundled_picture(net)
    labels = None if right_class is None else [net.class_index(right_class)] * len(found)
    with output.progress() as progress:
        result = run(
            net,
            found,
            labels,
            top=top,
            probability=probability,
            shown=shown,
            batch_size=batch_size,
            precision=precision,
            progress=progress,
        )
    if folder is not None:
        result.save(folder, overwrite=output.overwrite)
    if output.as_json:
        print(result.to_json(**({} if folder is None else {"folder": str(folder)})))
        return
    print(result.to_text())
    if folder is not None:
        print(folder)
    for note in (*net.notes, *result.warnings) if not output.quiet else ():
        print(f"featviz: note: {visible(note)}", file=sys.stderr)
