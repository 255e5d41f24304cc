"""What commands do around their one call: open pictures, show progress, save, print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from featviz.types import Progress

if TYPE_CHECKING:
    from featviz.datasets import Pictures
    from featviz.results import Result

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
            bar.update(task, completed=done, total=total, description=text)

        yield show


def _lines() -> Progress:
    started = last = time.monotonic()

    def show(done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            seconds = f"{now - started:.0f} s"
            print(f"featviz: {text} {done}/{total}, {seconds}", file=sys.stderr, flush=True)

    return show


def open_data(data: Path | None) -> Pictures:
    """The pictures of --data, or the bundled ones."""
    from featviz.datasets import open_pictures
    from featviz.samples import sample_pictures

    return sample_pictures() if data is None else open_pictures(data)


def report(result: Result, folder: Path, *, as_json: bool, quiet: bool = False) -> None:
    """Print a result that is saved in `folder`."""
    from featviz.results import read_result, show_interval, show_number

    document = read_result(folder)
    if as_json:
        print(json.dumps({"folder": str(folder)} | document, ensure_ascii=False, indent=1))
        return
    print(result.title)
    numbers = result.numbers()
    width = max((len(name) for name in numbers), default=0)
    for name, number in numbers.items():
        shown = filter(None, (show_number(number), show_interval(number), number.meaning))
        print(f"  {name:<{width}}  {'  '.join(shown)}")
    print(folder)
    if not quiet:
        for warning in document["warnings"]:
            print(f"featviz: note: {warning}", file=sys.stderr)
