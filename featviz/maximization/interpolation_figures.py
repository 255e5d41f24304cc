"""The figure of an interpolation: a strip of pictures, and below it the scores of both units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawable(Protocol):
    """What the figure needs of a result."""

    @property
    def title(self) -> str: ...
    @property
    def titles(self) -> tuple[str, str]: ...
    @property
    def shares(self) -> Tensor: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def scores(self) -> Tensor: ...


def draw_strip(result: Drawable) -> Figure:
    """The strip, and below it the scores of both units."""
    count = len(result.shares)
    cell, gap, top, left = min(1.6, 12.5 / count), 0.05, 0.72, 0.62
    page = plotting.Page(left + count * (cell + gap) + 0.12, top + cell + 1.55)
    size = plotting.fitting(result.title, page.width - 0.24)
    page.text(0.12, 0.22, result.title, fontsize=size, weight="bold")
    for k, picture in enumerate(result.images):
        x = left + k * (cell + gap)
        ax = page.axes(x, top, cell, cell)
        plotting.show_image(ax, picture, pixelated=picture.shape[-1] < 64)
        share = f"{100 * float(result.shares[k]):.0f}%"
        page.text(x + cell / 2, top - 0.12, share, ha="center", fontsize=8, color="#555555")
    ax = page.axes(left, top + cell + 0.14, count * (cell + gap) - gap, 0.95)
    colors = (plotting.BLUE, plotting.ORANGE)
    for scores, color, title in zip(result.scores.T, colors, result.titles, strict=True):
        ax.plot(
            range(count),
            scores.numpy(),
            "o-",
            color=color,
            markersize=4,
            linewidth=1.4,
            label=title,
        )
    ax.set_xlim(-0.5, count - 0.5)
    ax.set_xticks([])
    plotting.lines(ax, xlabel=f"share of {result.titles[1]}", ylabel="score")
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.5))
    return page.figure
