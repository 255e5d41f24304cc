"""The figure of a class atlas: the map of cells at the left, the strongest of them at the right."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featviz import images, plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

SHOWN = 5
"""cells with the largest attribution that are shown one by one, and two with the smallest"""
_WIDTH, _HEIGHT = 11.0, 6.4
_ROW = 0.86 * _HEIGHT / (SHOWN + 2)


@dataclass(frozen=True, kw_only=True)
class ShownCell:
    """What the figure shows of a cell."""

    column: int
    row: int
    attribution: float
    icon: Tensor
    """(3, S, S)"""
    sample: Tensor | None
    """(3, T, T), where the icon is synthetic"""
    text: str
    raised: Sequence[tuple[str, float]]
    """classes whose logits it raises most, and by how much"""


def class_figure(title: str, name: str, side: int, cells: Sequence[ShownCell]) -> Figure:
    """The figure of a class atlas.

    Args:
        title: The heading.
        name: The class.
        side: Squares a side of the map.
        cells: Those with pictures.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    page = plotting.Page(_WIDTH, _HEIGHT)
    page.figure.set_dpi(200)
    page.text(0.11, 0.22, textwrap.shorten(title, 110), fontsize=11, weight="bold")
    limit = max(1e-9, *(abs(cell.attribution) for cell in cells))
    scale = ScalarMappable(Normalize(-limit, limit), "PRGn")
    axes = page.axes(0.11, 0.45, 0.53 * _WIDTH, 0.86 * _HEIGHT)
    for cell in cells:
        x, y = cell.column, cell.row
        color = scale.to_rgba(np.array(cell.attribution))
        axes.add_patch(Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, color=color))
        axes.imshow(
            images.resize(cell.icon[None], 96)[0].permute(1, 2, 0).numpy(),
            extent=(x + 0.1, x + 0.9, y + 0.9, y + 0.1),
            interpolation="antialiased",
            zorder=2,
        )
    axes.set_xlim(0, side)
    axes.set_ylim(side, 0)
    axes.set_aspect("equal")
    plotting.bare(axes)
    bar = page.figure.colorbar(
        scale, cax=page.axes(1.1, 6.06, 3.85, 0.115), orientation="horizontal"
    )
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.outline.set_visible(False)
    label = f"logits, attribution to {textwrap.shorten(name, 20)}"
    page.text(5.06, 6.12, label, fontsize=7, color="#444444")
    order = sorted(cells, key=lambda cell: -cell.attribution)
    for line, cell in enumerate(order[:SHOWN] + order[SHOWN:][-2:]):
        _list_cell(page, cell, name, 0.45 + line * _ROW)
    return page.figure


def _list_cell(page: plotting.Page, cell: ShownCell, name: str, top: float) -> None:
    x = 6.27
    for picture in (cell.icon, cell.sample):
        if picture is not None:
            axes = page.axes(x, top, 0.68, 0.93 * _ROW)
            plotting.show_image(axes, images.resize(picture[None], 112)[0])
            x += 0.73
    words = f"{cell.attribution:+.2f} to {textwrap.shorten(name, 18)}\n{cell.text}"
    style = {"va": "top", "linespacing": 1.3}
    page.text(x + 0.05, top + 0.08, words, fontsize=7.5, **style)
    raised = "\n".join(f"{textwrap.shorten(n, 26)} {value:+.1f}" for n, value in cell.raised)
    page.text(9.46, top + 0.08, raised, fontsize=7, color="#444444", **style)
