"""A map cut into cells (regular bins), and its rows assigned to the places of a lattice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT = 2500
"""points up to which the assignment is exact; its time grows with the cube of their number"""
SWEEPS = 12
"""rounds in which windows across the borders of blocks are solved again"""
_WINDOW = 16
"""places a side of such a window"""
_ENTRIES = 60_000
"""points times places of a block that is solved exactly"""

Block = Sequence[int]
"""first column, column after the last, first row, row after the last"""


@dataclass(frozen=True)
class Cell:
    """One square of a grid and the rows in it."""

    row: int
    column: int
    members: tuple[int, ...]
    """rows of the store, ascending; at least one"""


@dataclass(frozen=True)
class Grid:
    """A map cut into side x side squares; empty ones are not listed."""

    side: int
    cells: tuple[Cell, ...]
    """in reading order"""


def cut(xy: Tensor, side: int) -> Grid:
    """The squares of a map.

    Args:
        xy: (N, 2) in [0, 1]; a point on a border belongs to the later square.
        side: Squares a side.

    Raises:
        UserError: `side` is below 1.
    """
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
    """For each cell its largest classes and their fractions, largest first, ties by name.

    Args:
        classes: Of each row, "" where there is none; such rows count in the denominator only.
        grid: The cells.
        most: Classes a cell at most.
    """
    found = []
    for cell in grid.cells:
        counts = Counter(classes[row] for row in cell.members)
        counts.pop("", None)
        order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
        found.append(tuple((name, count / len(cell.members)) for name, count in order))
    return tuple(found)


def assign(
    xy: Tensor, *, room: float = 1.0, exact: int = EXACT, sweeps: int = SWEEPS
) -> tuple[Tensor, int, int]:
    """Assign each point a lattice place of its own, at the least sum of squared distances.

    Up to `exact` points the sum is the minimum (Jonker and Volgenant's algorithm, by scipy). Above,
    the rectangle of places is halved until a block is small, each half takes the points on its side
    as far as it has places, and each block is solved exactly. Then windows across the borders of
    the blocks are solved again, which can only lower the sum. Time and memory grow linearly with N.

    Args:
        xy: (N, 2) in [0, 1].
        room: Places for each point. 1 gives a mosaic without gaps (the map is stretched to fill it,
            each axis on its own); 2 and more a lattice in which the map keeps its shape.
        exact: Points up to which the minimum is found.
        sweeps: Rounds of windows.

    Returns:
        Places (N, 2) int64 as column and row; columns; rows.
    """
    points, columns, rows = _spread(xy.double(), room)
    if len(points) <= exact:
        cells = _solve(points, (0, columns, 0, rows))
    else:
        cells = _in_blocks(points, columns, rows)
        for sweep in range(sweeps):
            shift = _WINDOW // 2 * np.array([(sweep + 1) % 2, (sweep // 2 + 1) % 2])
            cells = _improved(points, cells, columns, rows, shift)
    return torch.from_numpy(cells), columns, rows


def _spread(xy: Tensor, room: float) -> tuple[NDArray[np.float64], int, int]:
    """Points in units of places, x in 0 to columns and y in 0 to rows, and these two numbers."""
    count = len(xy)
    low, high = xy.min(0).values, xy.max(0).values
    extent = torch.where(high > low, high - low, torch.ones(2).double())
    if room > 1:
        extent = extent.max().expand(2)
    middle = (low + high) / 2
    columns = math.ceil(math.sqrt(count * room))
    rows = columns if room > 1 else math.ceil(count / columns)
    sides = torch.tensor([columns, rows]).double()
    # Half a place from the edges: the outermost points lie in the middle of their places.
    return (((xy - middle) / extent) * (sides - 1) + sides / 2).numpy(), columns, rows


def _solve(points: NDArray[np.float64], block: Block) -> NDArray[np.int64]:
    """The best places (N, 2) within a block of at least N, as column and row."""
    from scipy.optimize import linear_sum_assignment

    left, right, top, bottom = block
    wide = right - left
    x = np.tile(np.arange(left, right) + 0.5, bottom - top)
    y = np.repeat(np.arange(top, bottom) + 0.5, wide)
    costs = np.square(points[:, :1] - x) + np.square(points[:, 1:] - y)
    chosen = linear_sum_assignment(costs)[1]
    return np.stack([left + chosen % wide, top + chosen // wide], 1).astype(np.int64)


def _in_blocks(points: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.int64]:
    places = np.empty(points.shape, dtype=np.int64)
    waiting: list[tuple[NDArray[np.int64], Block]] = [
        (np.arange(len(points)), (0, columns, 0, rows))
    ]
    while waiting:
        members, block = waiting.pop()
        left, right, top, bottom = block
        wide, high = right - left, bottom - top
        if len(members) * wide * high <= _ENTRIES:
            if len(members):
                places[members] = _solve(points[members], block)
            continue
        axis = int(wide < high)
        first, second = [*block], [*block]
        border = (block[2 * axis] + block[2 * axis + 1]) // 2
        first[2 * axis + 1] = second[2 * axis] = border
        along = points[members, axis]
        order = np.argsort(along, kind="stable")
        # Each half takes the points on its side, as long as there are places for all.
        least, most = len(members) - _places(second), _places(first)
        here = min(max(int((along < border).sum()), least), most)
        waiting += [(members[order[:here]], first), (members[order[here:]], second)]
    return places


def _places(block: Block) -> int:
    left, right, top, bottom = block
    return (right - left) * (bottom - top)


def _improved(
    points: NDArray[np.float64],
    places: NDArray[np.int64],
    columns: int,
    rows: int,
    shift: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Places after each window of a shifted tiling has been solved for the points in it."""
    places = places.copy()
    window = (places + shift) // _WINDOW
    across = columns // _WINDOW + 2
    numbers = window[:, 1] * across + window[:, 0]
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    for number, members in zip(found, np.split(order, starts[1:]), strict=True):
        left = int(number % across) * _WINDOW - int(shift[0])
        top = int(number // across) * _WINDOW - int(shift[1])
        block = (
            max(left, 0),
            min(left + _WINDOW, columns),
            max(top, 0),
            min(top + _WINDOW, rows),
        )
        places[members] = _solve(points[members], block)
    return places
