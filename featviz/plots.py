"""The look of featviz's plots: figures without pyplot, one palette, one type size.

No global state: figures are built with `matplotlib.figure.Figure` and styled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, INK = "#CC79A7", "#56B4E9", "#F0E442", "#222222"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, INK)

SEQUENTIAL = "magma"
"""for values from zero upwards (activations)"""
DIVERGING = "RdBu_r"
"""only around a true zero (weights, products, signed attributions)"""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, `width` x `height` inches at 144 dots an inch."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor="white")


def show_image(ax: Axes, image: Tensor, title: str = "", *, pixelated: bool = False) -> None:
    """A (3, H, W) picture in [0, 1] without ticks."""
    ax.imshow(
        image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy(),
        interpolation="nearest" if pixelated else "antialiased",
    )
    bare(ax, title)


def bare(ax: Axes, title: str = "") -> None:
    """Take ticks and frame away and set a small title."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, fontsize=8, color=INK, pad=3)


def lines(ax: Axes, *, xlabel: str, ylabel: str) -> None:
    """The style of a plain line plot: light grid, no box, labels with units."""
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(ylabel, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def image_grid(
    images: Tensor | Sequence[Tensor],
    titles: Sequence[str] = (),
    *,
    columns: int = 8,
    cell: float = 1.1,
    pixelated: bool = False,
) -> Figure:
    """Pictures (N, 3, H, W) in a grid, each with its own title; `cell` is a cell's inches."""
    count = len(images)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(columns * cell, rows * (cell + (0.22 if titles else 0)))
    for i in range(count):
        ax = figure.add_subplot(rows, columns, i + 1)
        show_image(ax, images[i], titles[i] if titles else "", pixelated=pixelated)
    return figure
