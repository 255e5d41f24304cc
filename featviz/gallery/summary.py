"""What a reader must know of a result first: the verdict, five numbers with intervals, doubts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featviz.gallery.reader import Entry, Figure, Table
from featviz.numbers import Number, show_number
from featviz.requirements import Check

FIRST = {
    "eval": ("top-1", "top-", "calibration error", "pictures", "classes"),
    "audit": (
        "clean accuracy",
        "median ",
        "robust accuracy ",
        "corruptions: accuracy under corruption",
        "self-test",
    ),
    "corruptions": ("clean accuracy", "accuracy under corruption", "mCE", "lowest accuracy"),
    "compare": ("change of top-1", "second top-1", "fixed", "broken", "p of the flips"),
}
"""names, or beginnings of names, of the most important numbers by kind of result"""


@dataclass(frozen=True)
class Summary:
    """The first lines of a page about a result."""

    checks: tuple[Check, ...]
    numbers: tuple[tuple[str, Number], ...]
    doubts: tuple[str, ...]

    @property
    def failed(self) -> int:
        """How many requirements do not hold."""
        return sum(not check.met for check in self.checks)

    @property
    def verdict(self) -> str:
        """A sentence about the requirements; "" where nothing was required."""
        if not self.checks:
            return ""
        if not self.failed:
            return f"All {len(self.checks)} requirements hold."
        return f"{self.failed} of {len(self.checks)} requirements fail."


def summarize_entry(entry: Entry, checks: Sequence[Check] = (), *, plain: bool = False) -> Summary:
    """The summary of a result; checks: of further requirements; plain: only numbers that readers
    new to the field understand."""
    numbers = () if plain and entry.kind not in FIRST else key_numbers(entry)
    ordered = sorted((*entry.requirements, *checks), key=lambda check: check.met)
    return Summary(
        tuple(ordered), tuple(numbers), (*entry.warnings, *map(_missing, entry.problems))
    )


def _missing(problem: str) -> str:
    return f"Not shown here: {problem}"


def key_numbers(entry: Entry, most: int = 5) -> list[tuple[str, Number]]:
    """The most important numbers, no two of which read the same."""
    chosen: dict[str, Number] = {}
    for start in FIRST.get(entry.kind, ()):
        fitting = {k: v for k, v in entry.numbers.items() if k.startswith(start)}
        new = [name for name in fitting if name not in chosen]
        if start == "robust accuracy ":
            new = _halfway(fitting, entry.numbers.get("clean accuracy"))
        for name in new[:1]:
            chosen[name] = fitting[name]
    shown: dict[str, tuple[str, Number]] = {}
    for name, number in (*chosen.items(), *entry.numbers.items()):
        shown.setdefault(show_number(number), (name, number))
    return list(shown.values())[:most]


def card_numbers(entry: Entry) -> list[tuple[str, Number]]:
    """Numbers that a reader new to the field understands without their page."""
    return key_numbers(entry, 2) if entry.kind in FIRST else []


def _halfway(numbers: Mapping[str, Number], clean: Number | None) -> list[str]:
    """Of accuracies under attack the name of that nearest to half of the clean one."""
    values = {k: v.value for k, v in numbers.items() if isinstance(v.value, float)}
    if clean is None or not isinstance(clean.value, float) or not values:
        return list(values)
    half = clean.value / 2
    return [min(values, key=lambda name: abs(values[name] - half))]


@dataclass(frozen=True)
class Chapter:
    """The figures and tables of one folder within a result: of the result itself, of a part."""

    name: str
    """of the part, "" for the result itself"""
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]


def chapters(entry: Entry) -> Iterator[Chapter]:
    """A result's own figures and tables, then those of each part, in their order."""
    figures = [figure for figure in entry.figures if not figure.detail]
    # A folder with a table is a part; one with pictures only belongs to the result itself.
    parts = dict.fromkeys(_part(table.file) for table in entry.tables)
    for name in ["", *filter(None, parts)]:
        mine = [f for f in figures if (_part(f.file) if _part(f.file) in parts else "") == name]
        tables = [table for table in entry.tables if _part(table.file) == name]
        if mine or tables:
            yield Chapter(name, tuple(mine), tuple(tables))


def _part(file: str) -> str:
    return file.partition("/")[0] if "/" in file else ""
