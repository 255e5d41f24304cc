"""Cutting a map into cells: regular bins, and a mosaic with one picture in each cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featviz.errors import UserError

MOST_ASSIGNED = 5000
"""above this the exact assignment takes minutes and gigabytes"""


@dataclass(frozen=True)
class Cell:
    """One square of a grid and the rows in it."""

    row: int
    column: int
    members: tuple[int, ...]
    """rows of the store, ascending; at least one"""


@dataclass(frozen=True)
class Grid:
    """A map cut into side x side squares; only those with somebody in them are listed."""

    side: int
    cells: tuple[Cell, ...]
    """in reading order"""


def cut(xy: Tensor, side: int) -> Grid:
    """The squares of a map (N, 2) in [0, 1]. A point on a border belongs to the later square."""
    if side < 1:
        raise UserError(f"a grid of {side} squares a side is too small; 1 or more")
    place = (xy.double() * side).floor().long().clamp(0, side - 1)
    numbers = place[:, 1] * side + place[:, 0]
    order = torch.sort(numbers, stable=True).indices
    found, counts = torch.unique_consecutive(numbers[order], return_counts=True)
    members = torch.split(order, counts.tolist())
    return Grid(
        side,
        tuple(
            Cell(int(number) // side, int(number) % side, tuple(rows.tolist()))
            for number, rows in zip(found, members, strict=True)
        ),
    )


def top_classes(
    classes: Sequence[str], grid: Grid, most: int = 5
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """For each cell its largest classes and their shares, largest first, ties by name.

    classes: of each row, "" where there is none; such rows count in a share's denominator only
    """
    found = []
    for cell in grid.cells:
        counts = Counter(classes[row] for row in cell.members)
        counts.pop("", None)
        order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
        found.append(tuple((name, count / len(cell.members)) for name, count in order))
    return tuple(found)


def assign(xy: Tensor, *, room: float = 1.0) -> tuple[Tensor, int, int]:
    """A place of its own for each point, as near to where it was as can be.

    xy: (N, 2) in [0, 1]
    room: places for each point. 1 gives a mosaic without gaps (the map is stretched to fill it,
        each axis on its own); 2 and more a lattice in which the map keeps its shape

    Minimises the sum of squared distances over all ways to fill the places (Jonker-Volgenant).

    Returns (places (N, 2) int64 as column and row, columns, rows).
    Raises UserError above MOST_ASSIGNED points.
    """
    from scipy.optimize import linear_sum_assignment

    count = len(xy)
    if count > MOST_ASSIGNED:
        raise UserError(
            f"a mosaic of {count} pictures takes too long; at most {MOST_ASSIGNED} (spread them)"
        )
    points = xy.double()
    low, high = points.min(0).values, points.max(0).values
    extent = torch.where(high > low, high - low, torch.ones(2).double())
    if room > 1:
        extent = extent.max().expand(2)
    middle = (low + high) / 2
    columns = math.ceil(math.sqrt(count * room))
    rows = columns if room > 1 else math.ceil(count / columns)
    sides = torch.tensor([columns, rows]).double()
    # Half a place from the edges, so that the outermost points are not drawn outwards.
    scaled = ((points - middle) / extent) * (sides - 1) + sides / 2
    cells = torch.from_numpy(linear_sum_assignment(_costs(scaled, columns, rows))[1])
    places = torch.stack([cells % columns, cells // columns], 1)
    return places, columns, rows


def _costs(points: Tensor, columns: int, rows: int) -> np.ndarray:
    """Squared distances (N, columns * rows) from points to the centres of the places."""
    x = (torch.arange(columns).double() + 0.5).repeat(rows)
    y = (torch.arange(rows).double() + 0.5).repeat_interleave(columns)
    return ((points[:, :1] - x).square() + (points[:, 1:] - y).square()).numpy()
