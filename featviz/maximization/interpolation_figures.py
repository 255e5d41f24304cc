"""The figure of an interpolation: a strip of pictures, and below it the scores of both units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_strip(
    title: str, units: Sequence[str], shares: Tensor, images: Tensor, scores: Tensor
) -> Figure:
    """The strip, and below it the scores of both units."""
    count = len(shares)
    cell, gap, top, left = min(1.6, 12.5 / count), 0.05, 0.72, 0.62
    page = plotting.Page(left + count * (cell + gap) + 0.12, top + cell + 1.55)
    size = plotting.fitting(title, page.width - 0.24)
    page.text(0.12, 0.22, title, fontsize=size, weight="bold")
    for k, picture in enumerate(images):
        x = left + k * (cell + gap)
        ax = page.axes(x, top, cell, cell)
        plotting.show_image(ax, picture, pixelated=picture.shape[-1] < 64)
        share = f"{100 * float(shares[k]):.0f}%"
        page.text(x + cell / 2, top - 0.12, share, ha="center", fontsize=8, color="#555555")
    ax = page.axes(left, top + cell + 0.14, count * (cell + gap) - gap, 0.95)
    colors = (plotting.BLUE, plotting.ORANGE)
    for values, color, unit in zip(scores.T, colors, units, strict=True):
        ax.plot(
            range(count),
            values.numpy(),
            "o-",
            color=color,
            markersize=4,
            linewidth=1.4,
            label=unit,
        )
    ax.set_xlim(-0.5, count - 0.5)
    ax.set_xticks([])
    plotting.lines(ax, xlabel=f"share of {units[1]}", ylabel="score")
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.5))
    return page.figure
