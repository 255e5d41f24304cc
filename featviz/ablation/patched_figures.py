"""The figure of `patch_activations`: maps over the base picture, and bars of units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BARS = 8


def draw_patched(
    pair: Sequence[tuple[str, Tensor, float]],
    score_name: str,
    layers: Sequence[tuple[str, Tensor | None, Tensor, float]],
) -> Figure:
    """The pair at the left, a column for each layer.

    Args:
        pair: Name, picture (3, H, W) and score of the source and of the base.
        score_name: What the scores are.
        layers: Name, changes by position and by unit, and that of the whole layer.
    """
    columns = 1 + len(layers)
    figure = plotting.new_figure(2.5 * columns, 4.9)
    axes = figure.subplots(2, columns, squeeze=False)
    for ax, what, (name, picture, score) in zip(
        reversed(axes[:, 0]), ("source", "base"), pair, strict=True
    ):
        plotting.show_image(
            ax, picture, f"{what}: {name[-22:]}\nscore {plotting.signed_text(score, '.2f')}"
        )
    _, (_, base, _) = pair
    for (layer, positions, units, whole), above, below in zip(
        layers, axes[0, 1:], axes[1, 1:], strict=True
    ):
        title = f"{layer}: all {plotting.signed_text(whole)}"
        _draw_map(above, base, positions, title)
        draw_bars(below, layer, units)
    figure.suptitle(score_name, fontsize=9)
    return figure


def _draw_map(ax: Axes, base: Tensor, positions: Tensor | None, title: str) -> None:
    values = as_map(positions)
    if values is None:
        ax.set_axis_off()
        ax.set_title(title, fontsize=8)
        return
    overlay(ax, base, values)
    ax.set_title(
        f"{title}\na position at most {plotting.signed_text(float(values.max()))}", fontsize=8
    )


def overlay(ax: Axes, picture: Tensor, values: Tensor) -> None:
    """A signed map (h, w) over a gray picture, opaque where it is strong."""
    gray = 0.35 + 0.5 * picture.mean(0, keepdim=True).expand(3, -1, -1)
    plotting.show_image(ax, gray)
    end = float(values.abs().max()) or 1.0
    height, width = picture.shape[-2:]
    whole = F.interpolate(values[None, None].float(), (height, width), mode="nearest")[0, 0]
    ax.imshow(
        whole.numpy(),
        alpha=(0.85 * (whole.abs() / end) ** 0.6).numpy(),
        cmap=plotting.DIVERGING,
        vmin=-end,
        vmax=end,
        interpolation="nearest",
    )
    plotting.frame(ax)


def as_map(positions: Tensor | None) -> Tensor | None:
    """(h, w) of a map or of tokens: square ones, without a class token before them, or a row."""
    if positions is None or positions.dim() == 2:
        return positions
    side = math.isqrt(len(positions))
    if side * side == len(positions):
        return positions.view(side, side)
    side = math.isqrt(len(positions) - 1)
    return positions[1:].view(side, side) if side * side == len(positions) - 1 else positions[None]


def draw_bars(ax: Axes, layer: str, units: Tensor) -> None:
    """The units of the largest values of either sign."""
    top = units.abs().argsort(descending=True, stable=True)[:_BARS]
    shown = top[units[top].argsort(descending=True, stable=True)].tolist()
    values = [float(units[i]) for i in shown]
    colors = [plotting.RED if value > 0 else plotting.BLUE for value in values]
    ax.barh(range(len(shown)), values, color=colors, height=0.65)
    ax.axvline(0, color=plotting.INK, linewidth=0.8)
    plotting.lines(ax, xlabel="change", ylabel="", points=8)
    ax.set_yticks(range(len(shown)), [f"{layer}:{i}"[-18:] for i in shown])
    ax.invert_yaxis()
