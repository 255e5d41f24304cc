"""The plan of the site: its pages, their order, and what each of them shows.

Takes entries (results as they were read), returns a `Site`: a page for each result and each unit,
with their file names. Nothing here reads or writes a file.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from featviz.errors import UserError
from featviz.gallery.kinds import GROUPS, OTHER, Group, group_of, kind_text
from featviz.gallery.reader import Entry, Figure, Source, Table, Unreadable, clean
from featviz.gallery.result_page import ResultPage
from featviz.gallery.story import Told, explorer_of, gloss, tell

PORTRAITS = ("maximize", "kernels", "examples", "maps")
"""kinds whose pictures can be a unit's portrait, best first"""

OF_PICTURES = ("accentuation", "attack", "attribute", "caricature", "deepdream", "inversion")
"""kinds whose figures show a given picture, so that they are no portrait of a class"""

HERO_ORDER = ("maximize", "kernels", "atlas", "maps", "attribute", "neighbors", "attack", "train")

WALL_COLUMNS, WALL_FEWEST = 10, 3

FLAGS, MEASURES = ("flag", "reason"), ("what", "value", "meaning")
"""columns of the tables that a unit's page shows as lists"""


@dataclass(frozen=True)
class Card:
    """The results of one kind and one model, on the overview."""

    results: list[ResultPage]
    title: str

    @property
    def first(self) -> ResultPage:
        """The one whose picture it shows."""
        return next((one for one in self.results if one.thumbnail), self.results[0])

    def label(self, result: ResultPage) -> str:
        """What tells a result from the others of the card: its layer, or else its title."""
        layer = str(result.entry.parameters.get("layer") or "")
        layers = [str(other.entry.parameters.get("layer") or "") for other in self.results]
        return layer if layer and layers.count(layer) == 1 else result.entry.title


@dataclass(frozen=True)
class UnitFigure:
    """A figure on a unit's page, with the result that it comes from."""

    result: ResultPage
    figure: Figure

    @property
    def href(self) -> str:
        return self.result.href(self.figure.file)


@dataclass(frozen=True)
class UnitPage:
    """A unit of a model and everything that the results show of it."""

    model: str
    """the name of its model; "" in a site with units of one model only"""
    name: str
    layer: str
    label: str
    slug: str
    layer_slug: str
    """where its layer begins on the page of all units"""
    chapters: list[UnitChapter]
    """its figures and tables by result, in the order of the site"""
    parents: list[Connection]
    """units that build it, of all circuits in which it is"""
    children: list[Connection]
    """units that it feeds"""

    @property
    def page(self) -> str:
        """Its page, from the top of the site."""
        return f"units/{self.slug}.html"

    @property
    def class_name(self) -> str:
        """A class's name, if a result has it: "goldfish" for "logits:1"."""
        if self.layer != "logits":
            return ""
        stated = [chapter.result.entry.class_names.get(self.label) for chapter in self.chapters]
        names = [name for name in stated if isinstance(name, str)] or [
            cell
            for chapter in self.chapters
            for table in chapter.tables
            for row in table.rows
            for column, cell in zip(table.columns, row, strict=True)
            if column in ("title", "name", "class") and cell
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
        pictures = [s for c in self.chapters for s in c.own if _fits_a_tile(s)]
        return min(
            pictures,
            key=lambda s: (s.figure.detail, _rank(s.result.entry.kind, PORTRAITS)),
            default=None,
        )


@dataclass(frozen=True)
class Connection:
    """A unit that a circuit connects with another."""

    name: str
    """as "conv3:7", or "a:7 + b:7" where layers are added"""
    contribution: str
    share: str
    """of the variance of the unit that is fed"""
    href: str
    """the circuit's own page with the unit in whose list this is; "" if it has none"""

    @property
    def first(self) -> str:
        """The unit whose page it has."""
        return self.name.partition(" + ")[0]


@dataclass(frozen=True)
class UnitChapter:
    """The part of a result that is about one unit."""

    result: ResultPage
    own: list[UnitFigure]
    """figures of this unit alone"""
    shared: list[UnitFigure]
    """figures that name other units too"""
    tables: list[Table]
    """their rows about the unit"""

    @property
    def pictures(self) -> list[UnitFigure]:
        """Its own figures that show it by themselves."""
        return [shown for shown in self.own if not shown.figure.detail]

    @property
    def details(self) -> list[UnitFigure]:
        """Those shown on this page only."""
        return [shown for shown in self.own if shown.figure.detail]

    @property
    def flags(self) -> list[tuple[str, ...]]:
        """Flags of its picture as (name, reason)."""
        return [row for t in self.tables if t.columns == FLAGS for row in t.rows]

    @property
    def measures(self) -> list[tuple[str, ...]]:
        """Measured values as (what, value, meaning)."""
        return [row for t in self.tables if t.columns == MEASURES for row in t.rows]

    @property
    def short_tables(self) -> list[Table]:
        """Tables of one row; none where the measures have the same content."""
        return [] if self.measures else [t for t in self.tables if len(t.rows) == 1]

    @property
    def long_tables(self) -> list[Table]:
        """All others, for the end of the chapter."""
        long = [t for t in self.tables if len(t.rows) > 1]
        return [t for t in long if t.columns not in (FLAGS, MEASURES)]


@dataclass(frozen=True)
class Site:
    """Everything that the pages show."""

    title: str
    results: tuple[ResultPage, ...]
    units: tuple[UnitPage, ...]
    left_out: tuple[Unreadable, ...]
    models: tuple[Source, ...]
    """that the results were made from, most used first"""

    @property
    def chapters(self) -> list[tuple[Group, list[Card]]]:
        """The groups that have results, in their order, a card for each kind and model."""
        found: dict[Group, dict[tuple[str, ...], list[ResultPage]]] = {}
        for group in (*GROUPS, OTHER):
            for result in self.results:
                if result.group is group:
                    alone = "" if result.kind.heading else result.slug
                    cards = found.setdefault(group, {})
                    cards.setdefault((result.entry.kind, result.of_model, alone), []).append(result)
        return [
            (group, [Card(some, some[0].heading) for some in cards.values()])
            for group, cards in found.items()
        ]

    @property
    def layers(self) -> list[tuple[str, list[tuple[str, list[UnitPage]]]]]:
        """Units by model and by layer, first layer first."""
        found: dict[str, dict[str, list[UnitPage]]] = {}
        for unit in self.units:
            found.setdefault(unit.model, {}).setdefault(unit.layer, []).append(unit)
        return [(model, list(layers.items())) for model, layers in found.items()]

    def units_of(self, model: str) -> dict[str, UnitPage]:
        """The units of a model by their names: "conv5:12"."""
        return {unit.name: unit for unit in self.units if unit.model == model}

    @property
    def wall(self) -> list[tuple[str, list[UnitPage]]]:
        """The portraits on the overview: a row a layer, first to last, of about equal length.

        Of the first model that has them.
        """
        for _, layers in self.layers:
            square = [
                (layer, [u for u in units if u.portrait and _is_square(u.portrait)])
                for layer, units in layers
                if not is_concept(layer)
            ]
            rows = [(layer, units) for layer, units in square if len(units) >= WALL_FEWEST]
            columns = max(4, min((len(units) for _, units in rows), default=0))
            if rows:
                return [(at, _spread(units, min(columns, WALL_COLUMNS))) for at, units in rows]
        return []

    @property
    def story(self) -> list[Told]:
        """One picture followed through the network, if there are results for three steps."""
        told = list(tell(self.results))
        return told if len(told) > 2 else []

    @property
    def explorer(self) -> str:
        """The page in which the network runs; "" where there is none."""
        return explorer_of(self.results)

    def gloss(self, result: ResultPage) -> str:
        """What the layer in the title of a result is."""
        return gloss(result, self.results)

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
    def data(self) -> list[Source]:
        """The data sets, most used first; of parts of one set the largest."""
        sources = _most_used(e.entry.data for e in self.results)
        largest = {s.name: s for s in sorted(sources, key=lambda s: s.count)}
        return [largest[name] for name in dict.fromkeys(s.name for s in sources)]


def _most_used(sources: Iterable[Source | None]) -> list[Source]:
    return [source for source, _ in Counter(filter(None, sources)).most_common()]


def _fits_a_tile(shown: UnitFigure) -> bool:
    """Whether a figure can be cut to a small square."""
    figure, kind = shown.figure, shown.result.entry.kind
    cut = kind in PORTRAITS and not figure.detail
    if figure.vector or kind in OF_PICTURES:
        return False
    return cut or 0.7 <= figure.shape <= 1.4


def _is_square(shown: UnitFigure) -> bool:
    """Whether a portrait is square and made from the unit alone, not from a picture."""
    return 0.8 <= shown.figure.shape <= 1.25 and shown.result.entry.kind in (
        *PORTRAITS[:2],
        "cards",
    )


def _spread(units: Sequence[UnitPage], most: int) -> list[UnitPage]:
    if len(units) <= most:
        return list(units)
    return [units[i * len(units) // most] for i in range(most)]


def _rank(kind: str, order: Sequence[str]) -> int:
    return order.index(kind) if kind in order else len(order)


def plan_site(
    entries: Sequence[Entry],
    left_out: Sequence[Unreadable],
    title: str | None = None,
    first: str | None = None,
) -> Site:
    """Order the results, name their pages and collect the figures and rows of each unit.

    Raises:
        UserError: No result is of the model `first`.
    """
    models = _most_used(e.model for e in entries)
    if first is not None and first not in {m.name for m in models}:
        known = ", ".join(m.name for m in models) or "none"
        raise UserError(f"no result is of the model {first!r}; there are results of: {known}")
    models.sort(key=lambda m: m.name != first)
    kinds = [kind for group in GROUPS for kind in group.kinds]
    ordered = sorted(
        entries,
        key=lambda e: (
            _rank(e.kind, kinds),
            e.kind,
            first is not None and _owner(e, models) != models[0],
            natural(e.name),
        ),
    )
    slugs = _Slugs()
    owners = _model_names(entries, models)
    results = tuple(
        ResultPage(
            e,
            slugs.take(e.name),
            kind_text(e.kind),
            group_of(e.kind),
            owners.get(_owner(e, models), ""),
        )
        for e in ordered
    )
    title = clean(title or "") or _title(models)
    return Site(title, results, tuple(_units(results, owners)), tuple(left_out), tuple(models))


def _owner(entry: Entry, models: Sequence[Source]) -> Source | None:
    """The model of a result: its own, else the one that its parameters name."""
    named = entry.parameters.get("model")
    return entry.model or next((one for one in models if one.name == named), None)


def _model_names(entries: Sequence[Entry], models: Sequence[Source]) -> dict[Source | None, str]:
    """The different names of the models that have units; none where it is one model only."""
    owners = {_owner(e, models) for e in entries if any(figure.units for figure in e.figures)}
    shown = [one for one in models if one in owners]
    if len(shown) < 2:
        return {}
    often = Counter(one.name for one in shown)
    return {
        one: one.name if often[one.name] == 1 else f"{one.name} {one.sha256[:10]}" for one in shown
    }


def _title(models: Sequence[Source]) -> str:
    names = list(dict.fromkeys(m.name for m in models))
    if not names:
        return "A look inside"
    if len(names) <= 3:
        return "Inside " + " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"Inside {names[0]} and {len(names) - 1} other models"


def _units(results: Sequence[ResultPage], names: Mapping[Source | None, str]) -> Iterator[UnitPage]:
    """The units of each model, of the first model first."""
    slugs, layer_slugs = _Slugs(), _Slugs()
    for model in dict.fromkeys((*names.values(), "")):
        mine = [result for result in results if result.model == model]
        yield from _units_of(model, mine, slugs, layer_slugs)


def _units_of(
    model: str, results: Sequence[ResultPage], slugs: _Slugs, layer_slugs: _Slugs
) -> Iterator[UnitPage]:
    figures: defaultdict[tuple[str, str], list[UnitFigure]] = defaultdict(list)
    for result in results:
        for figure in result.entry.figures:
            for name in figure.units:
                layer, _, label = name.partition(":")
                figures[layer, label].append(UnitFigure(result, figure))
    layers: dict[str, str] = {}
    for layer, label in sorted(figures, key=lambda u: (layer_key(u[0]), natural(u[1]), u)):
        name = f"{layer}:{label}"
        if layer not in layers:
            layers[layer] = layer_slugs.take(f"{model} {layer}")
        slug = slugs.take(f"{model} {name}")
        chapters = list(_chapters(results, name, figures[layer, label]))
        connected = [
            _connections(results, name, *ends) for ends in (_UNIT_INPUT, _UNIT_INPUT[::-1])
        ]
        yield UnitPage(model, name, layer, label, slug, layers[layer], chapters, *connected)


_UNIT_INPUT = ("unit", "input")
"""columns of a table of edges: of these a unit's page shows the units at the other ends"""


def _connections(
    results: Sequence[ResultPage], unit: str, own: str, other: str
) -> list[Connection]:
    """The units that tables of edges connect with one, each once."""
    found: dict[str, Connection] = {}
    for result in results:
        pages = {page.file for page in result.entry.pages}
        for table in result.entry.tables:
            if not {*_UNIT_INPUT, "contribution", "share"} <= {*table.columns}:
                continue
            graph = f"{table.file.rpartition('edges.csv')[0]}circuit.html"
            for row in table.rows:
                cells = dict(zip(table.columns, row, strict=False))
                names = cells[own].split(" + ") if len(cells) == len(table.columns) else []
                if unit in names:
                    href = f"{result.href(graph)}#{quote(cells[own])}" if graph in pages else ""
                    found.setdefault(
                        cells[other],
                        Connection(cells[other], cells["contribution"], cells["share"], href),
                    )
    return list(found.values())


def _chapters(
    results: Sequence[ResultPage], unit: str, figures: Sequence[UnitFigure]
) -> Iterator[UnitChapter]:
    for result in results:
        here = [shown for shown in figures if shown.result is result]
        own = [shown for shown in here if len(shown.figure.units) == 1]
        shared = [shown for shown in here if len(shown.figure.units) > 1]
        layer = str(result.entry.parameters.get("layer"))
        listed = [t for t in result.entry.tables if not {*_UNIT_INPUT} <= {*t.columns}]
        parts = [t.part_about(unit, layer) for t in listed]
        tables = [part for part in parts if part.columns]
        if here or tables:
            yield UnitChapter(result, own, shared, tables)


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
    """Sorts layers as in the forward pass: conv1, relu1, pool1, conv2 ... fc7, relu7, logits.

    Concepts ("relu5/nmf32") are behind the units of their layer.
    """
    match = re.fullmatch(r"(conv|fc|relu|norm|pool)(\d+)(/.*)?", layer)
    if match:
        return (0, int(match[2]), _PARTS[match[1]], natural(match[3] or ""))
    return (2 if layer == "logits" else 1, 0, 0, natural(layer))


def is_concept(layer: str) -> bool:
    """Whether these are concepts of a layer ("relu5/nmf32") and not its units."""
    return "/" in layer


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key in which 9 comes before 10."""
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)
