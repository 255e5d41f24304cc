"""The style of featviz's plots: figures without pyplot, one palette.

No global state: figures are built with `matplotlib.figure.Figure` and styled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featviz.pictures import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from torch import Tensor

    from featviz.statistics import Share

# Okabe and Ito's colors, which color-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, INK = "#CC79A7", "#56B4E9", "#F0E442", "#222222"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, INK)

SEQUENTIAL = "magma"
"""for values from zero upwards (activations)"""
DIVERGING = "RdBu_r"
"""only around a true zero (weights, products, signed attributions)"""
FAINT = "#555555"
"""of notes beside the title and the numbers"""
GRID = "#dddddd"
"""of lines and bars that lie behind the data"""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, `width` x `height` inches at 144 dots an inch."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor="white")


def show_image(ax: Axes, image: Tensor, title: str = "", *, pixelated: bool = False) -> None:
    """A (C, H, W) picture in [0, 1] without ticks."""
    ax.imshow(
        images.visible(image).detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy(),
        interpolation="nearest" if pixelated else "antialiased",
    )
    bare(ax, title)


def show_map(ax: Axes, values: Tensor, low: float, high: float) -> AxesImage:
    """A map (h, w) in the colors of its kind (diverging where `low` is below 0), framed."""
    shades = DIVERGING if low < 0 else SEQUENTIAL
    image = ax.imshow(values.numpy(), vmin=low, vmax=high, interpolation="nearest", cmap=shades)
    bare(ax)
    frame(ax)
    return image


def map_colors(values: Tensor, low: float, high: float) -> Tensor:
    """(3, h, w) in [0, 1]: the colors in which `show_map` draws a map (h, w)."""
    import matplotlib
    import torch

    shades = matplotlib.colormaps[DIVERGING if low < 0 else SEQUENTIAL]
    scaled = ((values - low) / (high - low)).clamp(0, 1).numpy()
    return torch.from_numpy(shades(scaled)[..., :3]).permute(2, 0, 1).float()


def bare(ax: Axes, title: str = "") -> None:
    """Take ticks and frame away and set a small title."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title, fontsize=8, color=INK, pad=3)


def lines(ax: Axes, *, xlabel: str, ylabel: str, points: float = 9) -> None:
    """The style of a plain line plot: light grid, no box, labels with units."""
    ax.set_xlabel(xlabel, fontsize=points)
    ax.set_ylabel(ylabel, fontsize=points)
    ax.tick_params(labelsize=points - 1)
    ax.grid(True, color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def draw_shares(
    ax: Axes,
    x: Sequence[float],
    shares: Sequence[Share],
    color: str,
    *,
    marker: str = "",
    label: str = "",
    steps: bool = False,
) -> None:
    """Shares in percent with the band of their intervals; steps: level up to the next x."""
    low, high = [100 * s.low for s in shares], [100 * s.high for s in shares]
    style: dict[str, Any] = {"step": "post"} if steps else {}
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, **style)
    style = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.6, "label": label}
    heights = [100 * (s.value or 0) for s in shares]
    ax.plot(x, heights, drawstyle="steps-post" if steps else "default", **style)


def image_grid(
    pictures: Tensor | Sequence[Tensor],
    titles: Sequence[str] = (),
    *,
    columns: int = 8,
    cell: float = 1.1,
    pixelated: bool = False,
) -> Figure:
    """Pictures (N, 3, H, W) in a grid, each with its own title; `cell` is a cell's inches."""
    count = len(pictures)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(columns * cell, rows * (cell + (0.22 if titles else 0)))
    for i in range(count):
        ax = figure.add_subplot(rows, columns, i + 1)
        show_image(ax, pictures[i], titles[i] if titles else "", pixelated=pixelated)
    return figure


class Page:
    """A figure on which axes and words are placed in inches from the left and the top."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = new_figure(width, height)
        self.figure.set_layout_engine("none")

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Empty axes whose upper left corner is at (x, y)."""
        left, bottom = x / self.width, 1 - (y + height) / self.height
        return self.figure.add_axes((left, bottom, width / self.width, height / self.height))

    @cached_property
    def ground(self) -> Axes:
        """Axes over the whole page, in inches: many small pictures cost little there."""
        ax = self.axes(0, 0, self.width, self.height)
        ax.set(xlim=(0, self.width), ylim=(self.height, 0))
        ax.set_axis_off()
        return ax

    def picture(self, x: float, y: float, side: float, picture: Tensor) -> None:
        """A picture (C, H, W) on the ground, in the middle of a square with a corner at (x, y)."""
        shown = images.visible(picture).detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
        height, width = (side * n / max(shown.shape[:2]) for n in shown.shape[:2])
        left, top = x + (side - width) / 2, y + (side - height) / 2
        extent = (left, left + width, top + height, top)
        smooth = "nearest" if max(shown.shape[:2]) < 24 else "antialiased"
        self.ground.imshow(shown, extent=extent, aspect="auto", interpolation=smooth, zorder=3)
        self.ground.set(xlim=(0, self.width), ylim=(self.height, 0))

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Words at (x, y), vertically centered on it unless `style` says otherwise."""
        style = {"fontsize": 9.0, "color": INK, "va": "center", **style}
        self.figure.text(x / self.width, 1 - y / self.height, words, **style)

    def color_bar(self, mappable: Any, x: float, y: float, height: float) -> Axes:
        """A narrow color bar with its upper left corner at (x, y)."""
        ax = self.axes(x, y, 0.09, height)
        self.figure.colorbar(mappable, cax=ax)
        ax.tick_params(labelsize=6.5, length=2, pad=2)
        return ax


def fitting(words: str, inches: float, points: float = 12.0) -> float:
    """The font size, at most `points`, at which bold words fit a line of so many inches."""
    return min(points, inches / (0.0103 * max(1, len(words))))


def frame(ax: Axes, color: str = "#bbbbbb", width: float = 0.6) -> None:
    """A thin frame around axes."""
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color(color)
        spine.set_linewidth(width)


def mark_box(ax: Axes, box: images.Box, picture: Tensor, color: str = ORANGE) -> None:
    """A frame around the pixels of a box in a shown picture, cut at the picture's border."""
    from matplotlib.patches import Rectangle

    top, left, bottom, right = images.clip_box(box, picture)
    corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
    ax.add_patch(Rectangle(corner, width, height, fill=False, linewidth=1.6, edgecolor=color))


def signed_text(value: float, form: str = "+.2f") -> str:
    """A number with its sign, with a true minus sign and no negative zero."""
    sign = "+" if form.startswith("+") else ""
    return f"{value:{sign}z{form.removeprefix('+')}}".replace("-", "\N{MINUS SIGN}")
