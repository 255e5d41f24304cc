"""The sheet of pictures drawn again: a row a picture and restart, a column a layer or unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 24
"""most rows of one figure"""
_GAP, _TOP, _BELOW, _LEFT = 0.07, 0.62, 0.3, 0.1  # inches

Cell = tuple[Tensor, str] | None
"""a picture (3, H, W) and what is written below it; None leaves the cell empty"""


def draw_rows(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, pixelated: bool
) -> Figure:
    """The first 24 rows of cells, with headings of the columns."""
    rows = rows[:ROWS]
    height, width = next(cell[0].shape[-2:] for cell in rows[0] if cell is not None)
    wide = min(1.75, max(1.2, 13.0 / len(columns)))
    high = wide * height / width
    page = plotting.Page(
        _LEFT + len(columns) * (wide + _GAP) + 0.05, _TOP + len(rows) * (high + _BELOW) + 0.02
    )
    size = plotting.fitting(title, page.width - 0.2)
    page.text(_LEFT, 0.2, title, fontsize=size, weight="bold")
    for k, column in enumerate(columns):
        x, size = _LEFT + k * (wide + _GAP), plotting.fitting(column, wide, 9.0)
        page.text(x + wide / 2, _TOP - 0.12, column, ha="center", weight="bold", fontsize=size)
        for row, cells in enumerate(rows):
            cell, y = cells[k], _TOP + row * (high + _BELOW)
            if cell is None:
                continue
            picture, label = cell
            plotting.show_image(page.axes(x, y, wide, high), picture, pixelated=pixelated)
            middle, below = x + wide / 2, y + high + 0.1
            page.text(middle, below, label, fontsize=7, ha="center", color="#555555")
    return page.figure
