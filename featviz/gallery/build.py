"""`build_gallery(folder)`: a static site from result folders.

Reads result.json and the files that it lists, imports no analysis and no torch, and makes the same
bytes from the same results. The site needs no server: it opens from the disk.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featviz import __version__, folders, results
from featviz.errors import UserError, public
from featviz.gallery.glossary import TERMS
from featviz.gallery.reader import (
    MARK,
    Download,
    Entry,
    Figure,
    Table,
    one_line,
    read_entries,
    short_cell,
)
from featviz.gallery.result_page import ResultPage
from featviz.gallery.site import Site, UnitPage, is_concept, layer_key, plan_site
from featviz.gallery.story import draw_numbers
from featviz.gallery.summary import card_numbers, summarize_entry

if TYPE_CHECKING:
    from jinja2 import Environment

TABLE_ROWS = 12
"""rows of a table that a page shows at first"""
ROWS_ON_PAGE = 100
"""rows that can be opened on the page; the whole table is one link away"""
NUMBERS = "static/numbers.svg"
"""the drawing of the numbers of a picture, for the first step of the story"""
LARGEST_FRAME = 1_000_000
"""bytes of a page of a result that is shown within ours; a larger one is linked only"""

_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
"""strftime depends on the locale, and the site must not"""

_HERE = Path(__file__).parent


@public
def build_gallery(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    title: str | None = None,
    first: str | None = None,
    with_arrays: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a static site of all results in a folder.

    The site needs no server. A damaged result is left out and named on the overview and in the
    site's `gallery.json`.

    Args:
        folder: holds result folders, at any depth.
        out: folder of the site; default `gallery` inside `folder`.
        title: heading of the overview; default "Inside" and the model's name.
        first: name of the model that is shown first, of several; default: that of most results.
        with_arrays: copy arrays (.npz) into the site, too; they may be large.
        overwrite: replace an existing gallery; nothing else is ever replaced.

    Returns:
        The folder of the site; its overview is `index.html`.

    Raises:
        UserError: there is nothing to show, or the site cannot be written.

    Example:
        featviz.build_gallery("run")   # run/gallery/index.html
    """
    root = Path(folder)
    target = Path(out) if out is not None else root / "gallery"
    folders.check_target(target, overwrite=overwrite, mark=MARK)
    entries, left_out = read_entries(root)
    if not entries and left_out:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in left_out)
        raise UserError(f"{root} has no result that can be shown ({reasons})")
    if not entries:
        raise UserError(
            f"{root} has no results; make some first, as with: featviz kernels --out {root}/kernels"
        )
    site = plan_site(entries, left_out, title, first)
    with folders.whole(target, overwrite=overwrite) as temporary:
        for result in site.results:
            folder = temporary / "results" / result.slug
            _copy_files(result, folder, with_arrays)
            for page in result.entry.pages:
                _link_page(folder / page.file, site, result, 2 + page.file.count("/"))
        shutil.copytree(_HERE / "static", temporary / "static", copy_function=shutil.copyfile)
        _write_pages(site, temporary, with_arrays)
        results.write_json(temporary / MARK, _document(site))
    return target


def _document(site: Site) -> dict[str, Any]:
    """gallery.json: what the gallery holds, for scripts."""
    return {
        "schema": 1,
        "kind": "gallery",
        "title": site.title,
        "featviz": __version__,
        "results": [
            {
                "folder": e.entry.name,
                "kind": e.entry.kind,
                "title": e.entry.title,
                "page": e.page,
                "problems": e.entry.problems,
            }
            for e in site.results
        ],
        "units": [
            {"unit": u.name, "page": u.page} | ({"model": u.model} if u.model else {})
            for u in site.units
        ],
        "left_out": [{"folder": u.name, "reason": u.reason} for u in site.left_out],
    }


def _copy_files(result: ResultPage, target: Path, with_arrays: bool) -> None:
    entry = result.entry
    listed: list[Figure | Table | Download] = [*entry.figures, *entry.tables, *entry.pages]
    listed += entry.arrays if with_arrays else ()
    for file in sorted({"result.json", *entry.companions, *(item.file for item in listed)}):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.folder / file, target / file)


def _link_page(page: Path, site: Site, result: ResultPage, depth: int) -> None:
    """Tell a page of a result that asks for it where the units' pages, overview and atlas are."""
    up, text = "../" * depth, page.read_bytes()
    atlas = [
        up + other.href(file.file)
        for other in site.results
        if other.entry.kind == "atlas" and other.entry.model == result.entry.model
        for file in other.entry.pages
    ]
    asked = {
        "unit-pages": {name: up + unit.page for name, unit in site.units_of(result.model).items()},
        "site": {"gallery": f"{up}index.html"} | ({"atlas": atlas[0]} if atlas else {}),
    }
    for name, addresses in asked.items():
        element = f'<script type="application/json" id="{name}">{{}}</script>'
        filled = element.replace("{}", json.dumps(addresses).replace("<", "\\u003c"))
        text = text.replace(element.encode(), filled.encode(), 1)
    page.write_bytes(text)


def _write_pages(site: Site, target: Path, with_arrays: bool) -> None:
    pages = environment()
    shared = {
        "site": site,
        "version": __version__,
        "with_arrays": with_arrays,
        "table_rows": TABLE_ROWS,
        "rows_on_page": ROWS_ON_PAGE,
        "largest_frame": LARGEST_FRAME,
        "numbers": NUMBERS,
    }

    def write(template: str, page: str, **values: Any) -> None:
        path = target / page
        path.parent.mkdir(parents=True, exist_ok=True)
        root = "../" * page.count("/")
        text = pages.get_template(template).render(shared | values | {"root": root})
        path.write_text(text, encoding="utf-8", errors="backslashreplace")

    write("overview.html", "index.html")
    write("glossary.html", "glossary.html", terms=TERMS)
    for told in site.story:
        if told.picture is not None:
            drawing = draw_numbers(told.result.entry.folder / told.picture.file)
            (target / NUMBERS).write_text(drawing, encoding="utf-8")
    units_of = {model: site.units_of(model) for model in {one.model for one in site.results}}
    for result, before, after in _with_neighbors(site.results):
        write(
            "result.html",
            result.page,
            result=result,
            entry=result.entry,
            pages=units_of[result.model],
            summary=summarize_entry(result.entry, plain=True),
            before=before,
            after=after,
        )
    if site.units:
        write("units.html", "units/index.html")
    for unit, before, after in _with_neighbors(site.units):
        write(
            "unit.html",
            unit.page,
            unit=unit,
            units=site.units_of(unit.model),
            before=before,
            after=after,
            same=_same_channel(site, unit),
            near=_near(site, unit),
        )


def _with_neighbors(items: Sequence[Any]) -> Iterable[tuple[Any, Any | None, Any | None]]:
    return zip(items, (None, *items), (*items[1:], None), strict=False)


def _same_channel(site: Site, unit: UnitPage) -> list[UnitPage]:
    """The unit's channel before or after the ReLU, or pooled: conv5:12, relu5:12, pool5:12."""
    key = layer_key(unit.layer)
    if key[0] != 0 or is_concept(unit.layer):
        return []
    return [
        u
        for u in site.units
        if (u.model, u.label) == (unit.model, unit.label)
        and u.layer != unit.layer
        and not is_concept(u.layer)
        and layer_key(u.layer)[:2] == key[:2]
    ]


def _near(site: Site, unit: UnitPage, reach: int = 3) -> list[UnitPage]:
    """The units beside it in its layer, itself included."""
    layer = [u for u in site.units if u.layer_slug == unit.layer_slug]
    at = layer.index(unit)
    start = max(0, min(at - reach, len(layer) - 2 * reach - 1))
    return layer[start : start + 2 * reach + 1]


def environment() -> Environment:
    """Templates of pages, with the filters that they share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "number": results.show_number,
        "interval": results.show_interval,
        "line": one_line,
        "cell": short_cell,
        "size": show_size,
        "time": show_seconds,
        "moment": show_time,
        "share": show_share,
    }
    made.globals |= {
        "display_width": display_width,
        "ground": ground,
        "readable_width": readable_width,
        "made_by": made_by,
        "card_numbers": card_numbers,
    }
    return made


def show_size(size: int) -> str:
    """Bytes for people: 1.4 MB."""
    if size < 1000:
        return f"{size} bytes"
    if size < 1_000_000:
        return f"{size / 1000:.0f} kB"
    return f"{size / 1_000_000:.1f} MB"


def show_share(cell: str) -> str:
    """A share of 1 from a table in percent: "2.8%"; unchanged if it is no number."""
    try:
        return f"{float(cell):.1%}"
    except ValueError:
        return cell


def show_seconds(seconds: float) -> str:
    """A duration for people: 12.3 s, 4 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def show_time(created: str) -> str:
    """A time for people: 21 November 2026, 16:40 UTC; unchanged if it is no ISO date."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}, {moment:%H:%M}{zone}"


def made_by(entry: Entry) -> str:
    """The versions on one line."""
    names = {"featviz": "featviz", "torch": "torch", "python": "Python"}
    known = [f"{names[k]} {v}" for k, v in entry.versions.items() if k in names and v]
    device = entry.versions.get("device")
    return ", ".join(known) + (f", on {device}" if device else "")


def ground(figure: Figure) -> str:
    """The class of what lies behind a figure: an SVG has a ground of its own."""
    return "" if not figure.plot else " plot-ground" if figure.vector else " card-light"


def readable_width(figure: Figure) -> int:
    """CSS pixels below which the words of a plot are too small to read; 0 for other pictures."""
    if not figure.plot or figure.pixelated or not figure.width:
        return 0
    return figure.width if figure.vector else round(figure.width * 96 / 144)


def display_width(figure: Figure, widest: int = 1080, tallest: int = 1000) -> int | None:
    """How wide a figure is set, in CSS pixels (pages narrow it further where they must).

    Small pictures are enlarged, pixelated ones by whole numbers; nothing grows past `widest`, nor
    past `tallest` in height.
    """
    width, height = figure.width, figure.height
    if not width or not height:
        return None
    if figure.pixelated:
        room = 320 if len(figure.units) == 1 else 640
        shown = width * max(1, math.ceil(room / width) if width < 320 else room // width)
    elif figure.vector:
        shown = round(1.3 * width)
    elif width < 200 and not figure.plot:
        shown = 2 * width
    else:
        shown = width
    return max(1, min(shown, widest, round(tallest * width / height)))
