"""The figure of `attribute`: overlays and maps of each picture, with the model's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from featviz import plotting
from featviz.attribution.methods import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 4.35  # inches a picture


class DrawnMap(NamedTuple):
    """One map (H, W) of a picture."""

    values: Tensor
    end: float
    """absolute value at the end of the colors"""
    check: str
    """what the deletion check found, in words"""


class DrawnPicture(NamedTuple):
    """One picture with its maps."""

    picture: Tensor
    """(3, H, W)"""
    target: str
    """name of the explained class"""
    probability: float
    predictions: Sequence[tuple[str, float]]
    """names and probabilities of the highest classes"""
    maps: Mapping[str, DrawnMap]
    """by method"""


def draw(pictures: Sequence[DrawnPicture]) -> Figure:
    """For each picture overlays above, maps with their scales below, predictions beside."""
    width = 2.1 * (1 + len(pictures[0].maps)) + 0.5
    figure = plotting.new_figure(width, _HEIGHT * len(pictures))
    parts: Any = figure.subfigures(len(pictures), 1, squeeze=False)
    for part, picture in zip(parts[:, 0], pictures, strict=True):
        _draw_picture(part, picture)
    return figure


def _draw_picture(figure: Any, one: DrawnPicture) -> None:
    axes = figure.subplots(2, 1 + len(one.maps), squeeze=False)
    pixelated = one.picture.shape[-1] <= 128
    plotting.show_image(axes[0, 0], one.picture, pixelated=pixelated)
    title = f"explained: {one.target} ({100 * one.probability:.0f}%)"
    axes[0, 0].set_title(title, fontsize=8.5, color=plotting.INK, pad=3)
    _draw_predictions(axes[1, 0], one)
    gray = 0.35 + 0.5 * one.picture.mean(0, keepdim=True).expand(3, -1, -1)
    for column, (name, drawn) in enumerate(one.maps.items(), 1):
        method, above, below = METHODS[name], axes[0, column], axes[1, column]
        colors: dict[str, Any] = {
            "cmap": plotting.DIVERGING if method.signed else plotting.SEQUENTIAL,
            "vmin": -drawn.end if method.signed else 0.0,
            "vmax": drawn.end,
            "interpolation": "nearest",
        }
        values = drawn.values.numpy()
        opacity = 0.9 * (drawn.values.abs() / drawn.end).clamp(0, 1).numpy() ** 0.7
        plotting.show_image(above, gray, method.title, pixelated=pixelated)
        above.imshow(values, alpha=opacity, **colors)
        shown = below.imshow(values, **colors)
        plotting.bare(below)
        bar = figure.colorbar(
            shown,
            cax=below.inset_axes((0.02, -0.1, 0.96, 0.045)),
            orientation="horizontal",
            extend="both" if method.signed else "max",
        )
        bar.ax.tick_params(labelsize=6.5)
        bar.ax.locator_params(nbins=5)
        bar.set_label(f"{method.unit}\n{drawn.check}", fontsize=7)


def _draw_predictions(ax: Axes, one: DrawnPicture) -> None:
    names = [name for name, _ in one.predictions]
    colors = [plotting.RED if name == one.target else plotting.BLUE for name in names]
    short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
    percent = [100 * probability for _, probability in one.predictions]
    bars = ax.barh(range(len(names)), percent, color=colors, height=0.6)
    ax.bar_label(bars, fmt="%.0f%%", fontsize=7, padding=2)
    ax.set_yticks(range(len(names)), short)
    ax.invert_yaxis()
    plotting.lines(ax, xlabel="probability (%)", ylabel="")
    ax.tick_params(labelsize=7)
    ax.xaxis.label.set_fontsize(7)
    ax.set_xlim(0, 115)
    ax.set_xticks([0, 50, 100])
