"""Kernels side by side in groups, each with a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting
from featviz.pictures import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP, _BELOW = 1 / 12, 0.28  # between cells and under them, as shares of a cell


def grouped(
    title: str,
    pictures: Tensor,
    groups: Sequence[tuple[str, Sequence[int]]],
    labels: Sequence[str],
    columns: int,
) -> Figure:
    """Labeled sheets below each other, one for each group.

    Args:
        title: of the figure.
        pictures: (N, 3, h, w) in [0, 1].
        groups: heading (or "") and rows of each group.
        labels: of all N pictures.
        columns: at most so many pictures side by side.
    """
    columns = min(columns, max(4, len(labels)))
    width, height = 9.6, 0.45  # inches
    cell = (width - 0.1) / (columns * (1 + _GAP) - _GAP)
    places = []
    for name, rows in groups:
        height += 0.32 if name else 0.0
        places.append((height, -(-len(rows) // columns) * cell * (1 + _BELOW)))
        height += places[-1][1]
    page = plotting.Page(width, height)
    page.text(width / 2, 0.22, title, fontsize=11, ha="center")
    for (name, rows), (top, high) in zip(groups, places, strict=True):
        ax = page.axes(0.05, top, width - 0.1, high)
        _sheet(ax, pictures[list(rows)], [labels[i] for i in rows], columns)
        if name:
            ax.set_title(name, loc="left", fontsize=9, color=plotting.INK, pad=4)
    return page.figure


def _sheet(ax: Axes, pictures: Tensor, labels: Sequence[str], columns: int) -> None:
    """Pictures side by side with a label under each, all in one image."""
    # Enlarged pixel by pixel first, so that gaps may be finer than a kernel's pixel.
    big = images.enlarge(images.visible(pictures), max(1, round(96 / max(pictures.shape[-2:]))))
    height, width = big.shape[-2:]
    gap, below = round(width * _GAP), round(height * _BELOW)
    rows = -(-len(big) // columns)
    sheet = big.new_zeros(4, rows * (height + below), columns * (width + gap) - gap)
    for i, (picture, label) in enumerate(zip(big, labels, strict=True)):
        top, left = i // columns * (height + below), i % columns * (width + gap)
        sheet[:3, top : top + height, left : left + width] = picture
        sheet[3, top : top + height, left : left + width] = 1  # elsewhere the ground shows
        x, y = left + width / 2, top + height + below * 0.42
        ax.text(x, y, label, fontsize=6, ha="center", va="center", color=plotting.INK)
    ax.imshow(sheet.detach().cpu().permute(1, 2, 0).numpy(), interpolation="antialiased")
    plotting.bare(ax)
    ax.set_aspect("auto")
