"""The plan of the site: its pages, their order, and what each of them shows.

Takes entries (results as they were read), returns a `Site`: a page for each result and each unit,
with their file names. Nothing here reads or writes a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from featviz.gallery.kinds import GROUPS, OTHER, Group, Kind, group_of, kind_text
from featviz.gallery.reader import Entry, Figure, Source, Unreadable, clean, numeric_columns

PORTRAITS = ("maximize", "kernels", "examples", "maps")
"""kinds whose pictures can be a unit's portrait, best first"""

HERO_ORDER = ("maximize", "kernels", "atlas", "maps", "attribute", "neighbors", "attack", "train")

WALL_COLUMNS, WALL_FEWEST = 10, 3


@dataclass(frozen=True)
class ResultPage:
    """A result with its place in the site."""

    entry: Entry
    slug: str
    kind: Kind
    group: Group
    order: int
    """its position in the site"""

    @property
    def page(self) -> str:
        """Its page, from the top of the site."""
        return f"results/{self.slug}.html"

    def href(self, file: str) -> str:
        """A file of the result as a link from the top of the site."""
        return quote(f"results/{self.slug}/{file}")

    @property
    def grid(self) -> list[Figure]:
        """Figures of one unit each, if there are at least four: a grid shows them."""
        single = [
            f
            for f in self.entry.figures
            if len(f.units) == 1 and not f.detail and not f.file.lower().endswith(".svg")
        ]
        return single if len(single) >= 4 else []

    @property
    def wide_grid(self) -> bool:
        """Whether the grid's figures are strips, which need a wide column."""
        shapes = [(f.width or 1) / (f.height or 1) for f in self.grid]
        return bool(shapes) and sorted(shapes)[len(shapes) // 2] > 2

    @property
    def main_figures(self) -> list[Figure]:
        """All the others."""
        in_grid = {id(f) for f in self.grid}
        return [f for f in self.entry.figures if id(f) not in in_grid and not f.detail]

    @property
    def thumbnail(self) -> Figure | None:
        """The picture on the card."""
        return next(iter([*self.main_figures, *self.grid]), None)

    @property
    def whole_thumbnail(self) -> bool:
        """Whether the card must show all of it: plots, but not tall sheets of pictures."""
        figure = self.thumbnail
        if figure is None or not figure.plot or figure.pixelated:
            return False
        wide = (figure.width or 1) > 1.6 * (figure.height or 1)
        return wide or figure.file.lower().endswith(".svg")


@dataclass(frozen=True)
class UnitFigure:
    """A figure on a unit's page, with the result that it comes from."""

    result: ResultPage
    figure: Figure

    @property
    def href(self) -> str:
        return self.result.href(self.figure.file)


@dataclass(frozen=True)
class UnitRows:
    """The rows of a table about a unit."""

    result: ResultPage
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric_columns(self) -> list[bool]:
        """Which columns hold numbers only."""
        return numeric_columns(len(self.columns), self.rows)


@dataclass
class UnitPage:
    """A unit and everything that the results show of it."""

    name: str
    layer: str
    label: str
    slug: str = ""
    layer_slug: str = ""
    """where its layer begins on the page of all units"""
    own: list[UnitFigure] = field(default_factory=list)
    """figures of this unit alone"""
    shared: list[UnitFigure] = field(default_factory=list)
    """figures that name other units too"""
    rows: list[UnitRows] = field(default_factory=list)

    @property
    def page(self) -> str:
        """Its page, from the top of the site."""
        return f"units/{self.slug}.html"

    @property
    def class_name(self) -> str:
        """A class's name, if a table has it: "goldfish" for "logits:1"."""
        if self.layer != "logits":
            return ""
        names = [
            row[at]
            for rows in self.rows
            for row in rows.rows
            for at, column in enumerate(rows.columns)
            if column in ("title", "name", "class") and row[at]
        ]
        return names[0].partition(",")[0] if names else ""

    @property
    def flagged(self) -> bool:
        """Whether a result has a flag for its picture."""
        return any(chapter.flags for chapter in self.chapters)

    @property
    def short(self) -> str:
        """The label of its tile: "12", or for a class "tabby" of "tabby, tabby cat"."""
        return self.class_name or self.label.partition(",")[0]

    @property
    def portrait(self) -> UnitFigure | None:
        """The picture shown where the unit is listed."""
        pictures = [s for s in self.own if _fits_a_tile(s) and not s.figure.detail]
        return min(pictures, key=lambda s: _rank(s.result.entry.kind, PORTRAITS), default=None)

    @property
    def chapters(self) -> list[UnitChapter]:
        """Its figures and tables by result, in the order of the site."""
        found: dict[str, UnitChapter] = {}

        def chapter(result: ResultPage) -> UnitChapter:
            return found.setdefault(result.slug, UnitChapter(result))

        for shown in self.own:
            chapter(shown.result).own.append(shown)
        for shown in self.shared:
            chapter(shown.result).shared.append(shown)
        for rows in self.rows:
            chapter(rows.result).tables.append(rows)
        return sorted(found.values(), key=lambda c: c.result.order)


@dataclass
class UnitChapter:
    """The part of a result that is about one unit."""

    result: ResultPage
    own: list[UnitFigure] = field(default_factory=list)
    shared: list[UnitFigure] = field(default_factory=list)
    tables: list[UnitRows] = field(default_factory=list)

    @property
    def pictures(self) -> list[UnitFigure]:
        """Its own figures that show it by themselves."""
        return [shown for shown in self.own if not shown.figure.detail]

    @property
    def details(self) -> list[UnitFigure]:
        """Those shown on this page only."""
        return [shown for shown in self.own if shown.figure.detail]

    @property
    def flags(self) -> list[tuple[str, str]]:
        """Flags of its picture as (name, reason)."""
        tables = [t for t in self.tables if t.columns == ("flag", "reason")]
        return [(row[0], row[1]) for t in tables for row in t.rows]

    @property
    def measures(self) -> list[tuple[str, str, str]]:
        """Measured values as (what, value, meaning)."""
        tables = [t for t in self.tables if t.columns == ("what", "value", "meaning")]
        return [(row[0], row[1], row[2]) for t in tables for row in t.rows]

    @property
    def short_tables(self) -> list[UnitRows]:
        """Tables of one row; none where the measures have the same content."""
        return [] if self.measures else [t for t in self.tables if len(t.rows) == 1]

    @property
    def long_tables(self) -> list[UnitRows]:
        """All others, for the end of the chapter."""
        shown = (("flag", "reason"), ("what", "value", "meaning"))
        return [t for t in self.tables if len(t.rows) > 1 and t.columns not in shown]


@dataclass(frozen=True)
class Site:
    """Everything that the pages show."""

    title: str
    results: tuple[ResultPage, ...]
    units: tuple[UnitPage, ...]
    left_out: tuple[Unreadable, ...]

    @property
    def chapters(self) -> list[tuple[Group, list[ResultPage]]]:
        """The groups that have results, in their order."""
        pairs = [(g, [e for e in self.results if e.group is g]) for g in (*GROUPS, OTHER)]
        return [(group, results) for group, results in pairs if results]

    @property
    def layers(self) -> list[tuple[str, list[UnitPage]]]:
        """Units by layer, first layer first."""
        found: dict[str, list[UnitPage]] = {}
        for unit in self.units:
            found.setdefault(unit.layer, []).append(unit)
        return list(found.items())

    @property
    def wall(self) -> list[tuple[str, list[UnitPage]]]:
        """The portraits on the overview: a row a layer, first to last, of about equal length."""
        square = {
            layer: [u for u in units if u.portrait and _is_square(u.portrait)]
            for layer, units in self.layers
        }
        rows = {layer: units for layer, units in square.items() if len(units) >= WALL_FEWEST}
        columns = max(4, min((len(units) for units in rows.values()), default=0))
        return [(at, _spread(units, min(columns, WALL_COLUMNS))) for at, units in rows.items()]

    @property
    def hero(self) -> UnitFigure | None:
        """One good figure for an overview without a wall."""
        candidates = [UnitFigure(e, f) for e in self.results for f in e.main_figures]
        return min(
            candidates,
            key=lambda s: (_rank(s.result.entry.kind, HERO_ORDER), s.figure.plot),
            default=None,
        )

    @property
    def models(self) -> list[Source]:
        """The models that the results were made from, most used first."""
        return _most_used(e.entry.model for e in self.results)

    @property
    def data(self) -> list[Source]:
        """The data sets, most used first; of parts of one set the largest."""
        sources = _most_used(e.entry.data for e in self.results)
        largest = {s.name: s for s in sorted(sources, key=lambda s: s.count)}
        return [largest[name] for name in dict.fromkeys(s.name for s in sources)]


def _most_used(sources: Iterable[Source | None]) -> list[Source]:
    return [source for source, _ in Counter(filter(None, sources)).most_common()]


def _fits_a_tile(shown: UnitFigure) -> bool:
    """Whether a figure can be cut to a small square."""
    figure = shown.figure
    if figure.file.lower().endswith(".svg"):
        return False
    shape = (figure.width or 1) / (figure.height or 1)
    return shown.result.entry.kind in PORTRAITS or 0.7 <= shape <= 1.4


def _is_square(shown: UnitFigure) -> bool:
    """Whether a portrait is square and made from the unit alone, not from a picture."""
    figure = shown.figure
    known = figure.width and figure.height
    square = known and 0.8 <= (figure.width or 1) / (figure.height or 1) <= 1.25
    return bool(square) and shown.result.entry.kind in PORTRAITS[:2]


def _spread(units: Sequence[UnitPage], most: int) -> list[UnitPage]:
    if len(units) <= most:
        return list(units)
    return [units[i * len(units) // most] for i in range(most)]


def _rank(kind: str, order: Sequence[str]) -> int:
    return order.index(kind) if kind in order else len(order)


def plan_site(
    entries: Sequence[Entry], left_out: Sequence[Unreadable], title: str | None = None
) -> Site:
    """Order the results, name their pages and collect the figures and rows of each unit."""
    kinds = [kind for group in GROUPS for kind in group.kinds]
    ordered = sorted(entries, key=lambda e: (_rank(e.kind, kinds), e.kind, natural(e.name)))
    slugs = _Slugs()
    results = tuple(
        ResultPage(e, slugs.take(e.name), kind_text(e.kind), group_of(e.kind), place)
        for place, e in enumerate(ordered)
    )
    site = Site("", results, tuple(_units(results)), tuple(left_out))
    return Site(clean(title or "") or _title(site), results, site.units, site.left_out)


def _title(site: Site) -> str:
    names = list(dict.fromkeys(m.name for m in site.models))
    if not names:
        return "A look inside"
    if len(names) <= 3:
        return "Inside " + " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"Inside {names[0]} and {len(names) - 1} other models"


def _units(results: Sequence[ResultPage]) -> list[UnitPage]:
    found: dict[str, UnitPage] = {}
    for result in results:
        for figure in result.entry.figures:
            for name in figure.units:
                layer, _, label = name.partition(":")
                unit = found.setdefault(name, UnitPage(name, layer, label))
                alone = len(figure.units) == 1
                (unit.own if alone else unit.shared).append(UnitFigure(result, figure))
    slugs, layer_slugs = _Slugs(), _Slugs()
    units = sorted(found.values(), key=lambda u: (layer_key(u.layer), natural(u.label), u.name))
    layers = {layer: layer_slugs.take(layer) for layer in dict.fromkeys(u.layer for u in units)}
    for unit in units:
        unit.slug = slugs.take(unit.name)
        unit.layer_slug = layers[unit.layer]
        unit.rows = list(_rows(results, unit.name))
    return units


def _rows(results: Sequence[ResultPage], unit: str) -> Iterable[UnitRows]:
    for result in results:
        layer = result.entry.parameters.get("layer")
        for table in result.entry.tables:
            rows = list(table.rows_of(unit, str(layer)))
            filled = [
                i for i in range(len(rows[0]) if rows else 0) if any(row[i][1] for row in rows)
            ]
            if filled:
                columns = tuple(rows[0][i][0] for i in filled)
                cells = tuple(tuple(row[i][1] for i in filled) for row in rows)
                yield UnitRows(result, table.caption, columns, cells)


class _Slugs:
    """Names for pages: plain letters and digits, each used once."""

    def __init__(self) -> None:
        self.taken: set[str] = {"index"}

    def take(self, text: str) -> str:
        base = re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")[:80] or "unnamed"
        slug, number = base, 1
        while slug in self.taken:
            number += 1
            slug = f"{base}-{number}"
        self.taken.add(slug)
        return slug


_PARTS = {"conv": 0, "fc": 0, "relu": 1, "norm": 2, "pool": 3}


def layer_key(layer: str) -> tuple[object, ...]:
    """Sorts layers as in the forward pass: conv1, relu1, pool1, conv2 ... fc7, relu7, logits."""
    match = re.fullmatch(r"(conv|fc|relu|norm|pool)(\d+)", layer)
    if match:
        return (0, int(match[2]), _PARTS[match[1]], ())
    return (2 if layer == "logits" else 1, 0, 0, natural(layer))


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key in which 9 comes before 10."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)
