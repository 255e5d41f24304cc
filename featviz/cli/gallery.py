"""`featviz gallery`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options
from featviz.wording import counted


def gallery(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder with result folders, at any depth.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="SITE",
            help="Folder of the site; default: RUN/gallery.",
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", help='Heading; default: "Inside" and the model.')
    ] = None,
    first: Annotated[
        str | None,
        typer.Option("--first", metavar="MODEL", help="The model that is shown first, of several."),
    ] = None,
    with_arrays: Annotated[
        bool, typer.Option("--with-arrays", help="Copy arrays (.npz) too; they may be large.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing gallery.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a static site from result folders; it opens from the disk, without a server.

    Example: featviz gallery run
    """
    from featviz.gallery.build import build_gallery
    from featviz.gallery.reader import MARK

    site = build_gallery(
        run, out, title=title, first=first, with_arrays=with_arrays, overwrite=overwrite
    )
    about = json.loads((site / MARK).read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({"folder": str(site)} | about, ensure_ascii=False, indent=1))
    else:
        results, units = (len(about[name]) for name in ("results", "units"))
        print(f"{about['title']}: {counted(results, 'result')}, {counted(units, 'unit')}")
        print(site / "index.html")
    for folder in about["left_out"]:
        print(f"featviz: left out {folder['folder']}: {folder['reason']}", file=sys.stderr)
    for result in about["results"]:
        for problem in result["problems"]:
            print(f"featviz: note: {result['folder']}: {problem}", file=sys.stderr)
