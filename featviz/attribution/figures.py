"""The figure of `attribute`: overlays and maps of each picture, with the model's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from featviz import plotting
from featviz.attribution.methods import METHODS, Attributions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HEIGHT = 4.35  # inches a picture


def draw(found: Attributions, rows: Sequence[int]) -> Figure:
    """For each picture overlays above, maps with their scales below, predictions beside."""
    width = 2.1 * (1 + len(found.maps)) + 0.5
    figure = plotting.new_figure(width, _HEIGHT * len(rows))
    parts: Any = figure.subfigures(len(rows), 1, squeeze=False)
    for part, row in zip(parts[:, 0], rows, strict=True):
        _draw_picture(part, found, row)
    return figure


def _draw_picture(figure: Any, found: Attributions, row: int) -> None:
    axes = figure.subplots(2, 1 + len(found.maps), squeeze=False)
    picture, target = found.pictures[row], found.targets[row]
    pixelated = picture.shape[-1] <= 128
    plotting.show_image(axes[0, 0], picture, pixelated=pixelated)
    probability = 100 * float(found.probabilities[row, target])
    title = f"explained: {found.classes[target]} ({probability:.0f}%)"
    axes[0, 0].set_title(title, fontsize=8.5, color=plotting.INK, pad=3)
    _draw_predictions(axes[1, 0], found, row)
    gray = 0.35 + 0.5 * picture.mean(0, keepdim=True).expand(3, -1, -1)
    for column, (name, maps) in enumerate(found.maps.items(), 1):
        method, above, below = METHODS[name], axes[0, column], axes[1, column]
        strength = maps[row].abs()
        # A few extreme pixels must not leave the rest pale.
        end = float(torch.quantile(strength, 0.995)) or float(strength.max()) or 1.0
        colors: dict[str, Any] = {
            "cmap": plotting.DIVERGING if method.signed else plotting.SEQUENTIAL,
            "vmin": -end if method.signed else 0.0,
            "vmax": end,
            "interpolation": "nearest",
        }
        values = maps[row].numpy()
        opacity = 0.9 * (strength / end).clamp(0, 1).numpy() ** 0.7
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
        left, moved = (100 * float(x[name][row]) for x in (found.deletion, found.deletion_random))
        check = f"its fifth deleted: {left:.0f}%, elsewhere {moved:.0f}%"
        bar.set_label(f"{method.unit}\n{check}", fontsize=7)


def _draw_predictions(ax: Axes, found: Attributions, row: int) -> None:
    highest = found.probabilities[row].topk(min(5, len(found.classes)))
    classes = highest.indices.tolist()
    colors = [plotting.RED if c == found.targets[row] else plotting.BLUE for c in classes]
    names = [found.classes[c] for c in classes]
    short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
    percent = [100 * value for value in highest.values.tolist()]
    bars = ax.barh(range(len(names)), percent, color=colors, height=0.6)
    ax.bar_label(bars, fmt="%.0f%%", fontsize=7, padding=2)
    ax.set_yticks(range(len(names)), short)
    ax.invert_yaxis()
    plotting.lines(ax, xlabel="probability (%)", ylabel="", points=8)
    ax.set_xlim(0, 115)
    ax.set_xticks([0, 50, 100])
