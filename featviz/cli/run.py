"""What commands do around their one call: open pictures, show progress, save, print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featviz.types import Progress

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.requirements import Check
    from featviz.results import Result

REQUIREMENT_FAILS = 3
"""exit code where a --require or --strict does not hold"""
_LOOKED_AT = 32  # pictures, of which one has to be readable, before the work begins

LINE_SECONDS = 30.0
"""time between two lines of progress where standard error is no terminal"""


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress | None]:
    """Progress on standard error: a bar on a terminal, else a line every 30 s; None if quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _terminal_bar() as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _terminal_bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, text: str) -> None:
            if total == 0:
                bar.console.print(f"featviz: {text}")
                return
            bar.update(task, completed=done, total=total, description=text)

        yield show


def _lines() -> Progress:
    started = last = time.monotonic()

    def show(done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if total == 0:
            print(f"featviz: {text}", file=sys.stderr, flush=True)
            return
        if now - last >= LINE_SECONDS:
            last = now
            seconds = f"{now - started:.0f} s"
            print(f"featviz: {text} {done}/{total}, {seconds}", file=sys.stderr, flush=True)

    return show


def open_data(data: Path | Sequence[Path] | None) -> Pictures:
    """The pictures of --data, or the bundled ones. Raises UserError where none can be read."""
    from featviz.data.datasets import evenly, open_pictures
    from featviz.data.samples import sample_pictures
    from featviz.errors import BadPicture, UserError

    if data is None:
        return sample_pictures()
    pictures, reason = open_pictures(data), "it names none"
    for row in evenly(len(pictures), _LOOKED_AT):
        try:
            pictures.open(row)
        except BadPicture as error:
            reason = str(error)
            continue
        return pictures
    given = data if isinstance(data, Path) else ", ".join(map(str, data))
    raise UserError(f"{given}: none of the pictures can be read ({reason})")


def report(result: Result, folder: Path, *, as_json: bool, quiet: bool = False) -> None:
    """Print a result that is saved in `folder`."""
    from featviz.errors import visible
    from featviz.results import read_result, show_interval, show_number

    document = read_result(folder)
    if as_json:
        print(json.dumps({"folder": str(folder)} | document, ensure_ascii=False, indent=1))
        return
    print(visible(result.title))
    numbers = result.numbers()
    width = max((len(name) for name in numbers), default=0)
    for name, number in numbers.items():
        shown = filter(None, (show_number(number), show_interval(number), number.meaning))
        print(f"  {name:<{width}}  {'  '.join(shown)}")
    print_checks(document.get("requirements", []))
    print(folder)
    if not quiet:
        for warning in document["warnings"]:
            print(f"featviz: note: {visible(warning)}", file=sys.stderr)


def print_checks(records: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """Requirements as a table, those that do not hold first."""
    from featviz.requirements import Check

    if as_json:
        print(json.dumps({"requirements": list(records)}, ensure_ascii=False, indent=1))
        return
    checks = sorted((Check(**record) for record in records), key=lambda check: check.met)
    rows = [("holds" if c.met else "FAILS", *c.shown) for c in checks]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    if rows:
        print("requirements")
    for verdict, what, bound, found in rows:
        print(f"  {verdict:<{widths[0]}}  {what:<{widths[1]}}  {bound:<{widths[2]}}  found {found}")


def leave_if_failed(checks: Sequence[Check]) -> None:
    """Leave with exit code 3 if a requirement does not hold, with a line on standard error."""
    import typer

    failed = [check for check in checks if not check.met]
    if failed:
        names = ", ".join(
            check.name if check.requirement == "--strict" else check.requirement for check in failed
        )
        print(
            f"featviz: {len(failed)} of {len(checks)} requirements fail: {names}", file=sys.stderr
        )
        raise typer.Exit(REQUIREMENT_FAILS)
