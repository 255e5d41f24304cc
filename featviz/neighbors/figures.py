"""Figures of neighbors: sheets of pictures, distance by rank, precision by k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE = 1.38
"""height of a row of a sheet, in pictures"""


@dataclass(frozen=True)
class Cell:
    """A picture of a sheet with two lines of text below it."""

    picture: Tensor | None
    """(3, S, S) in [0, 1]; None draws a placeholder"""
    text: str
    name: str
    same: bool | None = None
    """whether it is of the query's class; None where that is not known"""
    signs: tuple[str, ...] = ()
    """of the parts of a sum, which are drawn in rows of two"""


def draw_sheet(lines: Sequence[Sequence[Cell | None]], *, inches: float = 1.1) -> Figure:
    """Rows of pictures: at the left the query, then its neighbors, nearest first.

    Args:
        lines: A query and its neighbors; None leaves a place empty.
        inches: Width of a picture.
    """
    columns = max(len(line) for line in lines) - 1
    figure = plotting.new_figure((columns + 1.3) * inches * 1.04, len(lines) * inches * 1.36)
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(-0.06, columns * 1.05 + 1.24)
    ax.set_ylim(len(lines) * _LINE - 0.02, -0.06)
    ax.axis("off")
    for number, line in enumerate(lines):
        for column, cell in enumerate(line):
            if cell is not None:
                _draw_cell(ax, 0.15 + 1.05 * column if column else 0.0, number * _LINE, cell)
    return figure


def _draw_cell(ax: Axes, x: float, y: float, cell: Cell) -> None:
    from matplotlib.patches import Rectangle

    if cell.picture is None:
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor="#f2f2f2", edgecolor="#bbbbbb"))
        ax.text(x + 0.5, y + 0.5, "vector", ha="center", va="center", color="#666666")
    else:
        ax.imshow(
            cell.picture.permute(1, 2, 0).numpy(),
            extent=(x, x + 1, y + 1, y),
            interpolation="antialiased",
            aspect="auto",
        )
        edge, width = (plotting.GREEN, 2.2) if cell.same else ("#bbbbbb", 0.5)
        ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=edge, linewidth=width))
    for i, sign in enumerate(cell.signs):
        ax.text(
            x + 0.03 + 0.5 * (i % 2),
            y + 0.03 + 0.5 * (i // 2),
            "+" if sign == "+" else "−",
            fontsize=7,
            ha="left",
            va="top",
            weight="bold",
            color="white",
            bbox={
                "boxstyle": "square,pad=0.12",
                "linewidth": 0,
                "facecolor": plotting.GREEN if sign == "+" else plotting.RED,
            },
        )
    if cell.same is not None:
        ax.plot(
            x + 0.045,
            y + 1.10,
            "o",
            markersize=4.5,
            markeredgewidth=0.9,
            color=plotting.GREEN if cell.same else "#888888",
            markerfacecolor=plotting.GREEN if cell.same else "white",
        )
    ax.text(
        x if cell.same is None else x + 0.11,
        y + 1.10,
        cell.text,
        fontsize=7,
        va="center",
        color=plotting.INK,
        weight="normal" if x else "bold",
    )
    ax.text(x, y + 1.24, _shorten(cell.name), fontsize=6.2, va="center", color="#555555")


def _shorten(text: str) -> str:
    text = text.replace("_", " ")
    return text if len(text) < 20 else f"{text[:18].rstrip()}…"


def draw_distances(distances: Tensor, *, unit: str) -> Figure:
    """Distance (Q, k) against rank, a line for each query."""
    figure = plotting.new_figure(5, 3)
    ax = figure.subplots()
    ranks = range(1, distances.shape[1] + 1)
    for line in distances.tolist():
        ax.plot(ranks, line, color=plotting.BLUE, alpha=0.4, linewidth=1)
    plotting.lines(ax, xlabel="rank", ylabel=unit)
    return figure


def draw_precision(precision: Mapping[int, float], shuffled: Mapping[int, float]) -> Figure:
    """Precision against k, of the space and with the classes shuffled."""
    figure = plotting.new_figure(4.2, 2.8)
    ax = figure.subplots()
    for values, color, name in (
        (precision, plotting.BLUE, "this space"),
        (shuffled, "#888888", "classes shuffled"),
    ):
        ks = sorted(values)
        ax.plot(ks, [100 * values[k] for k in ks], "o-", color=color, label=name, markersize=4)
    ax.set_ylim(0, 100)
    ax.set_xticks(sorted(precision))
    ax.legend(fontsize=8, frameon=False)
    plotting.lines(ax, xlabel="k nearest", ylabel="of the same class (%)")
    return figure
