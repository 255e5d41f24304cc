"""Where the nodes of a graph lie, and the small maps of its weights: `lay_out(graph)`.

A level is a row, the last layer's on top. Below each unit are the weights on its inputs, in the
order of these, so that they cover neither one another nor the lines. Rows are ordered by where
their neighbors lie, outwards from one unit, which keeps the lines short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featviz.circuits.connections import Graph

NODE, MAP = 64, 24
"""sides of a picture and of a map of weights, as all lengths in 1/96 inch"""
_GAP, _SPACE, _ROW = 4, 40, 216  # between maps, between units, from row to row
_LABEL = 32  # height of a unit's name and number below its picture
_MARGIN = 24


@dataclass(frozen=True)
class Layout:
    """Centers of pictures and of maps of weights."""

    width: float
    height: float
    nodes: dict[str, tuple[float, float]]
    maps: tuple[tuple[float, float], ...]
    """of each edge of the graph, in their order"""


def lay_out(graph: Graph, unit: str) -> Layout:
    """The places of a graph's nodes, ordered outwards from a unit."""
    rows = _ordered(graph, unit)
    room = {
        name: max(NODE, sum(e.unit == name for e in graph.edges) * (MAP + _GAP)) + _SPACE
        for name in graph.units
    }
    width = max(sum(room[name] for name in row) for row in rows) + 2 * _MARGIN
    nodes: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        x = (width - sum(room[name] for name in row)) / 2
        for name in row:
            nodes[name] = (x + room[name] / 2, _MARGIN + NODE / 2 + level * _ROW)
            x += room[name]
    maps = [(0.0, 0.0)] * len(graph.edges)
    for name, (x, y) in nodes.items():
        own = [i for i, e in enumerate(graph.edges) if e.unit == name]
        own.sort(key=lambda i: nodes[graph.edges[i].input][0])
        for place, i in enumerate(own):
            left = x + (place - (len(own) - 1) / 2) * (MAP + _GAP)
            maps[i] = (left, y + NODE / 2 + _LABEL + MAP / 2)
    height = 2 * _MARGIN + NODE + _LABEL + (len(rows) - 1) * _ROW
    return Layout(width, height, nodes, tuple(maps))


def _ordered(graph: Graph, unit: str) -> list[list[str]]:
    rows = [list(level) for level in graph.levels]
    start = next(i for i, row in enumerate(rows) if unit in row)
    for i in range(start + 1, len(rows)):
        _sort(rows[i], rows[i - 1], [(e.input, e.unit) for e in graph.edges])
    for i in range(start - 1, -1, -1):
        _sort(rows[i], rows[i + 1], [(e.unit, e.input) for e in graph.edges])
    return rows


def _sort(row: list[str], before: Sequence[str], pairs: Sequence[tuple[str, str]]) -> None:
    """Order a row by the mean place, from 0 to 1, of what its units are connected to."""
    places = {name: (i + 0.5) / len(before) for i, name in enumerate(before)}

    def mean(name: str) -> float:
        found = [places[other] for own, other in pairs if own == name and other in places]
        return sum(found) / len(found) if found else 0.5

    row.sort(key=mean)
