"""`featviz report`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from featviz.cli import options


def report(
    *,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Result folders, or folders that hold some."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="File to write: .html or .pdf."),
    ] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option("--title", help="Heading; default: from the results.")
    ] = None,
    require: options.Require = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one self-contained file about results, to send: the verdict first, then everything.

    A requirement holds for all results that have such a number; it may be given for results that
    are saved already.

    Example: featviz report run/eval run/audit --out report.pdf
    """
    from featviz.cli.run import leave_if_failed, print_checks
    from featviz.gallery.report import build_report

    made = build_report([*folders], out, title=title, require=require or [], overwrite=overwrite)
    records = [vars(check) for check in made.checks]
    if as_json:
        document = {"file": str(made.path), "requirements": records, "notes": list(made.notes)}
        print(json.dumps(document, ensure_ascii=False, indent=1))
    else:
        print_checks(records)
        print(made.path)
    if not quiet:
        for note in made.notes:
            print(f"featviz: note: {note}", file=sys.stderr)
    leave_if_failed(made.checks)
