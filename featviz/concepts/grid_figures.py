"""Figures of one picture in a layer: the grid, maps of concepts, the dictionary, attributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from featviz import plotting
from featviz.concepts.patches import enlarge_maps, masked
from featviz.pictures import images

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from featviz.concepts.grid_measured import MeasuredGrid

_GRID, _PICTURE = 4.4, 1.7  # inches
_LINES = 3  # logits beside a map
_SMALLEST = 0.12  # side of an icon by that of a cell


def draw_grid(grid: MeasuredGrid) -> Figure:
    """The picture, and at each position its icon, whose side is the strength there."""
    rows, columns = grid.cells.shape
    cell = _GRID / max(rows, columns)
    page = plotting.Page(0.3 + 2 * _GRID + 0.2, 0.2 + rows * cell)
    page.picture(0.1, 0.1, rows * cell, grid.picture)
    strength = grid.strength.flatten()[grid.cells] / grid.strength.max()
    for row in range(rows):
        for column in range(columns):
            share = float(strength[row, column])
            side = 0.97 * cell * share
            if share < _SMALLEST:
                continue
            left = 0.3 + rows * cell + column * cell + (cell - side) / 2
            top = 0.1 + row * cell + (cell - side) / 2
            page.picture(left, top, side, grid.cell_icons[row, column])
    return page.figure


def _faded(grid: MeasuredGrid, concept: int) -> Tensor:
    """The picture, faded where a concept is not."""
    height, width = grid.picture.shape[1:]
    positive = grid.maps[concept, None].clamp(min=0)
    mask = enlarge_maps(positive, grid.field, (height, width))[0]
    return masked(images.visible(grid.picture), mask / positive.max().clamp(min=1e-12))


def draw_concept_maps(grid: MeasuredGrid) -> Figure:
    """Each concept: the picture where it is, its icon, and the logits that it raises or lowers."""
    shown, by = grid.shown, grid.attribution
    columns = min(4, len(shown))
    lines = 0 if by is None else min(_LINES, len(by.targets))
    width, height = _PICTURE + 0.75, _PICTURE + 0.3 + 0.2 * lines + 0.1
    page = plotting.Page(0.1 + columns * width, 0.05 + -(-len(shown) // columns) * height)
    for i, concept in enumerate(shown):
        row, column = divmod(i, columns)
        x, y = 0.1 + column * width, 0.05 + row * height
        page.text(x, y + 0.12, grid.concepts[concept], weight="bold", fontsize=8)
        page.picture(x, y + 0.25, _PICTURE, _faded(grid, concept))
        page.picture(x + _PICTURE + 0.04, y + 0.25, 0.6, grid.icons[concept])
        for line in range(lines):
            assert by is not None
            value = float(by.concepts[line, concept])
            color = plotting.RED if value > 0 else plotting.BLUE
            words = f"{plotting.signed_text(value, '+.2f')} {grid.classes[by.targets[line]][:24]}"
            page.text(x, y + _PICTURE + 0.37 + 0.2 * line, words, fontsize=8, color=color)
    return page.figure


def draw_dictionary(grid: MeasuredGrid) -> Figure:
    """Each spot: where it is in the picture, and its units with their pictures and values."""
    side, left = 1.0, 1.3
    most = max((len(spot.units) for spot in grid.spots), default=1)
    page = plotting.Page(left + most * (side + 0.08) + 0.1, 0.1 + len(grid.spots) * (side + 0.4))
    ends = [value for spot in grid.spots for _, value in spot.units]
    for row, spot in enumerate(grid.spots):
        y = 0.25 + row * (side + 0.4)
        mask = torch.zeros(1, *grid.strength.shape)
        mask[0, spot.y, spot.x] = 1.0
        height, width = grid.picture.shape[1:]
        where = enlarge_maps(mask, grid.field, (height, width))[0]
        page.picture(0.1, y, side, masked(images.visible(grid.picture), where))
        words = f"row {spot.y}, column {spot.x}"
        page.text(0.1 + side / 2, y - 0.1, words, fontsize=7.5, ha="center")
        for i, (unit, value) in enumerate(spot.units):
            x = left + i * (side + 0.08)
            small = side * max(0.35, value / max(ends))
            page.picture(
                x + (side - small) / 2, y + (side - small) / 2, small, grid.unit_icons[unit]
            )
            page.text(x + side / 2, y - 0.1, f"{grid.layer}:{unit}", fontsize=7.5, ha="center")
            below = y + side + 0.1
            page.text(x + side / 2, below, f"{value:.3g}", fontsize=7.5, ha="center")
    return page.figure


def draw_attribution(grid: MeasuredGrid) -> Figure:
    """Maps of the logits over the picture, and the matrix of logits by concepts."""
    by = grid.attribution
    assert by is not None
    count, shown = len(by.targets), grid.shown
    side, left = 1.3, 1.5
    wide = left + max(count * (side + 0.1), (len(shown) + 2) * 0.78) + 0.1
    top = side + 0.55
    page = plotting.Page(wide, top + 0.55 + 0.3 * count)
    end = float(by.positions.abs().max()) or 1.0
    page.text(0.1, 0.3 + side / 2, "by position", fontsize=8.5)
    gray = images.visible(grid.picture).mean(0)
    height, width = gray.shape
    for i, target in enumerate(by.targets):
        x = left + i * (side + 0.1)
        page.text(x + side / 2, 0.12, grid.classes[target][:18], fontsize=8, ha="center")
        field = enlarge_maps(by.positions[i, None], grid.field, (height, width))[0]
        colors = plotting.map_colors(field, -end, end)
        page.picture(x, 0.25, side, colors * (0.45 + 0.55 * gray))
    page.text(0.1, top, f"by {grid.noun}", fontsize=8.5)
    columns = [grid.concepts[i].rpartition("/")[2] for i in shown]
    table = torch.cat([by.concepts[:, shown], by.rest[:, None], by.total[:, None]], 1)
    if len(shown) < len(grid.concepts):
        others = by.concepts.sum(1) - by.concepts[:, shown].sum(1)
        table[:, -2] += others
    end = float(table[:, :-1].abs().max()) or 1.0
    ax = page.axes(left, top + 0.25, table.shape[1] * 0.78, 0.3 * count)
    shades = torch.cat([table[:, :-1], torch.full((count, 1), torch.nan)], 1)
    ax.imshow(
        shades.numpy(), cmap=plotting.DIVERGING, vmin=-1.4 * end, vmax=1.4 * end, aspect="auto"
    )
    plotting.bare(ax)
    for j, words in enumerate((*columns, "rest", "total")):
        page.text(left + (j + 0.5) * 0.78, top + 0.14, words, fontsize=7.5, ha="center")
    for i, target in enumerate(by.targets):
        y = top + 0.25 + (i + 0.5) * 0.3
        page.text(left - 0.08, y, grid.classes[target][:18], fontsize=8, ha="right")
        for j, value in enumerate(table[i].tolist()):
            number = plotting.signed_text(value, "+.2f")
            page.text(left + (j + 0.5) * 0.78, y, number, fontsize=8, ha="center")
    return page.figure
