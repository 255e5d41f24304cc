"""Pictures with their most likely classes as bars: figure 4 of Krizhevsky et al. 2012."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_SIDE, _GAP, _LINE, _TITLE = 2.1, 0.3, 0.3, 0.34  # inches
_LETTERS = 26  # of a class's name


class Bar(NamedTuple):
    """A class with its probability."""

    name: str
    probability: float
    right: bool


class Panel(NamedTuple):
    """A picture and what is said of it."""

    picture: Tensor
    """(C, H, W) in [0, 1]"""
    title: str
    bars: Sequence[Bar]


def draw_panels(panels: Sequence[Panel], *, columns: int = 4) -> Figure:
    """Pictures side by side, each above its classes; the right class in another color."""
    columns = min(columns, len(panels))
    most = max(len(panel.bars) for panel in panels)
    height = _TITLE + _SIDE + 0.1 + most * _LINE + 0.1
    rows = -(-len(panels) // columns)
    page = plotting.Page(columns * (_SIDE + _GAP), rows * height)
    for i, panel in enumerate(panels):
        _draw(page, panel, i % columns * (_SIDE + _GAP) + _GAP / 2, i // columns * height)
    return page.figure


def _draw(page: plotting.Page, panel: Panel, left: float, top: float) -> None:
    page.text(left, top + _TITLE / 2, _short(panel.title, 32), fontweight="bold", fontsize=8.5)
    plotting.show_image(page.axes(left, top + _TITLE, _SIDE, _SIDE), panel.picture)
    ax = page.axes(left, top + _TITLE + _SIDE + 0.1, _SIDE, len(panel.bars) * _LINE)
    plotting.bare(ax)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(panel.bars), 0)
    for i, bar in enumerate(panel.bars):
        color = plotting.RED if bar.right else plotting.SKY
        weight = "bold" if bar.right else "normal"
        style: dict[str, Any] = {
            "fontsize": 9,
            "color": plotting.INK,
            "va": "center",
            "fontweight": weight,
        }
        ax.barh(i + 0.82, 1, height=0.16, color=plotting.GRID)
        ax.barh(i + 0.82, bar.probability, height=0.16, color=color)
        ax.text(0, i + 0.42, _short(bar.name, _LETTERS), **style)
        ax.text(1, i + 0.42, percent(bar.probability), ha="right", **style)


def _short(text: str, letters: int) -> str:
    cut = text[: letters - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text if len(text) <= letters else cut


def percent(probability: float) -> str:
    """A probability as people read it: 97.3%, 0.04%, below 0.01%."""
    if 0 < probability < 5e-5:
        return "< 0.01%"
    return f"{100 * probability:.{1 if probability >= 0.001 else 2}f}%"
