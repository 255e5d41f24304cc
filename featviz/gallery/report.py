"""`build_report(folders, out)`: result folders as one file, to send: HTML or PDF.

The HTML needs nothing beside it: figures are inside. It begins with what a reader must know (the
verdict, five numbers of each result, doubts). The PDF is that page as chromium prints it; without
chromium it holds the numbers and pictures, set by matplotlib.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featviz import __version__, results
from featviz.errors import UserError, public
from featviz.folders import cannot_write
from featviz.gallery.build import ROWS_ON_PAGE, environment
from featviz.gallery.kinds import Kind, kind_text
from featviz.gallery.reader import Entry, clean, read_entries
from featviz.gallery.summary import Chapter, Summary, chapters, summarize_entry
from featviz.requirements import Check, check_requirements

if TYPE_CHECKING:
    from matplotlib.backends.backend_pdf import PdfPages

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FIGURES = 24
"""figures of one chapter at most; the others are in the folder"""
_PRINT_SECONDS = 120
_TYPES = {".svg": "svg+xml", ".jpg": "jpeg", ".jpeg": "jpeg"}
_A4 = (8.27, 11.69)  # inches
_LINES, _WIDTH = 66, 98  # of a page of the plain PDF


@dataclass(frozen=True)
class ReportPart:
    """One result in a report."""

    entry: Entry
    kind: Kind
    anchor: str
    summary: Summary
    chapters: tuple[Chapter, ...]


@dataclass(frozen=True)
class Report:
    """What was written, and what it says."""

    path: Path
    checks: tuple[Check, ...]
    """all requirements, of the results and of the call"""
    notes: tuple[str, ...]
    """folders that were left out, and how the PDF was made where chromium is absent"""


@public
def build_report(
    folders: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    title: str | None = None,
    require: Sequence[str] = (),
    overwrite: bool = False,
) -> Report:
    """Write one self-contained file about one or more result folders.

    Args:
        folders: Result folders, or folders that hold some at any depth.
        out: A file that ends in .html or .pdf.
        title: Heading; default: the title of the only result, or "Report" and the models.
        require: Requirements on the numbers, as "top1.low>=0.5": each holds for all results that
            have such a number. They are added to those that the results were made with.
        overwrite: Replace an existing file.

    Raises:
        UserError: There is nothing to show, a requirement fits no result, the file exists, or it
            cannot be written.

    Example:
        featviz.build_report("run", "report.html")
    """
    target = Path(out)
    check_report(target, overwrite=overwrite)
    listed = [folders] if isinstance(folders, str | Path) else list(folders)
    entries: list[Entry] = []
    notes: list[str] = []
    for folder in listed:
        found, left_out = read_entries(Path(folder))
        entries += found
        notes += [f"left out {one.name}: {one.reason}" for one in left_out]
    if not entries:
        raise UserError(
            f"{', '.join(map(str, listed))}: no result that can be shown; give result folders"
        )
    parts = list(_parts(entries, _extra_checks(entries, require)))
    page = _render(parts, clean(title or "") or _title(entries))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix.lower() == ".html":
            target.write_text(page, encoding="utf-8", errors="backslashreplace")
        elif not _print(page, target):
            notes.append("there is no chromium to print the page: a plain PDF was written instead")
            _plain_pdf(parts, clean(title or "") or _title(entries), target)
    except OSError as error:
        raise cannot_write(target, error) from None
    return Report(target, tuple(c for part in parts for c in part.summary.checks), tuple(notes))


def check_report(target: Path, *, overwrite: bool) -> None:
    """Raise UserError unless a report may be written there."""
    if target.suffix.lower() not in {".html", ".pdf"}:
        raise UserError(f"{target}: a report is a file that ends in .html or .pdf")
    if target.is_dir() or (target.exists() and not overwrite):
        raise UserError(f"{target} exists; add --overwrite or choose another --out")


def _extra_checks(entries: Sequence[Entry], require: Sequence[str]) -> list[list[Check]]:
    """The checks of each entry. Raises UserError for a requirement that fits none."""
    found: list[list[Check]] = [[] for _ in entries]
    for text in require:
        mistakes = []
        for entry, checks in zip(entries, found, strict=True):
            try:
                checks += check_requirements([text], entry.numbers)
            except UserError as error:
                mistakes.append(error)
        if len(mistakes) == len(entries):
            raise mistakes[0]
    return found


def _parts(entries: Sequence[Entry], checks: Sequence[Sequence[Check]]) -> Iterator[ReportPart]:
    for i, (entry, extra) in enumerate(zip(entries, checks, strict=True)):
        yield ReportPart(
            entry,
            kind_text(entry.kind),
            f"result-{i + 1}",
            summarize_entry(entry, extra),
            tuple(chapters(entry)),
        )


def _title(entries: Sequence[Entry]) -> str:
    if len(entries) == 1:
        return entries[0].title
    names = dict.fromkeys(entry.model.name for entry in entries if entry.model)
    return f"Report: {', '.join(names)}" if names else "Report"


def _render(parts: Sequence[ReportPart], title: str) -> str:
    styles = (Path(__file__).parent / "static" / "report.css").read_text(encoding="utf-8")
    sources = [("model", part.entry.model) for part in parts]
    sources += [("data", part.entry.data) for part in parts]
    made = environment()
    made.globals["inlined"] = inlined
    return made.get_template("report.html").render(
        parts=parts,
        sources=[pair for pair in dict.fromkeys(sources) if pair[1] is not None],
        title=title,
        styles=styles,
        version=__version__,
        most_figures=FIGURES,
        table_rows=12,
        rows_on_page=ROWS_ON_PAGE,
    )


def inlined(entry: Entry, file: str) -> str:
    """A figure as a data URI."""
    path = entry.folder / file
    kind = _TYPES.get(path.suffix.lower(), path.suffix[1:].lower())
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _print(page: str, target: Path) -> bool:
    """The page as a PDF by chromium; False where there is none, or it fails."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_text(page, encoding="utf-8", errors="backslashreplace")
        # Chromium refuses its sandbox to root; the page is our own and holds no script.
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [
            browser,
            *root,
            *("--headless", "--disable-gpu", "--no-pdf-header-footer", "--no-first-run"),
            *(f"--user-data-dir={folder}/profile", f"--print-to-pdf={made}", source.as_uri()),
        ]
        try:
            subprocess.run(command, capture_output=True, timeout=_PRINT_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            return False
        if not made.is_file():
            return False
        shutil.copyfile(made, target)
    return True


def _plain_pdf(parts: Sequence[ReportPart], title: str, target: Path) -> None:
    """Numbers as text and pictures one a page, without chromium."""
    from matplotlib.backends.backend_pdf import PdfPages

    lines = [title, ""]
    for part in parts:
        lines += [part.entry.title, *filter(None, [part.summary.verdict])]
        for check in part.summary.checks:
            lines.append(f"  {'holds' if check.met else 'FAILS'}  {', '.join(check.shown)}")
        for name, number in part.entry.numbers.items():
            texts = results.show_number(number), results.show_interval(number), number.meaning
            lines += textwrap.wrap(
                f"  {name}: {'  '.join(filter(None, texts))}", _WIDTH, subsequent_indent="    "
            )
        for doubt in part.summary.doubts:
            lines += textwrap.wrap(f"  note: {doubt}", _WIDTH, subsequent_indent="    ")
        lines.append("")
    with PdfPages(target, metadata={"CreationDate": None}) as pages:
        for start in range(0, len(lines), _LINES):
            _text_page(pages, lines[start : start + _LINES])
        for part in parts:
            _picture_pages(pages, part)


def _text_page(pages: PdfPages, lines: Sequence[str]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_A4)
    style: dict[str, Any] = {
        "family": "monospace",
        "fontsize": 7.5,
        "va": "top",
        "linespacing": 1.4,
    }
    figure.text(0.08, 0.95, "\n".join(lines), parse_math=False, **style)
    pages.savefig(figure)


def _picture_pages(pages: PdfPages, part: ReportPart) -> None:
    from matplotlib.figure import Figure
    from PIL import Image

    for chapter in part.chapters:
        for shown in [f for f in chapter.figures if not f.vector][:FIGURES]:
            figure = Figure(figsize=_A4)
            ax = figure.add_axes((0.08, 0.2, 0.84, 0.72))
            with Image.open(part.entry.folder / shown.file) as picture:
                ax.imshow(picture.convert("RGB"))
            ax.set_axis_off()
            words = textwrap.fill(shown.caption, 110)
            figure.text(0.08, 0.17, words, fontsize=7.5, va="top", parse_math=False)
            pages.savefig(figure)
