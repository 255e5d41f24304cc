"""The figure of `attribute_layer`: spatial and channel attribution of some pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featviz import plotting
from featviz.ablation.patched_figures import as_map, draw_bars, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_POINTS = 1000
"""units above which the points of a plot are pixels, which take fewer bytes"""


def draw_layer_attribution(
    layer: str,
    pictures: Sequence[tuple[Tensor, str, float]],
    positions: Tensor | None,
    units: Tensor,
    lost: Tensor,
) -> Figure:
    """A row for each picture: itself, its map, its units, and the check against silencing.

    Args:
        layer: Its name.
        pictures: Each (3, H, W) with its target and the target's value.
        positions: (N, H, W) or (N, tokens) attributions; None of a vector.
        units: (N, C) attributions.
        lost: (N, C) loss of the target when a unit is silenced.
    """
    rows = len(pictures)
    figure = plotting.new_figure(10.4, 2.6 * rows)
    axes = figure.subplots(rows, 4, squeeze=False)
    for row, (picture, target, score) in enumerate(pictures):
        image, over, bars, check = axes[row]
        plotting.show_image(image, picture, f"{target[:28]}: {plotting.signed_text(score, '.2f')}")
        values = None if positions is None else as_map(positions[row])
        if values is None:
            over.set_axis_off()
        else:
            overlay(over, picture, values)
            over.set_title(f"{layer}, by position", fontsize=8)
        draw_bars(bars, layer, units[row])
        bars.set_xlabel("integrated gradients", fontsize=8)
        check.scatter(
            units[row],
            lost[row],
            s=7,
            color=plotting.BLUE,
            alpha=0.6,
            linewidths=0,
            rasterized=units.shape[1] > _POINTS,
        )
        ends = float(units[row].min()), float(units[row].max())
        check.plot(ends, ends, color=plotting.FAINT, linewidth=0.9, linestyle=":")
        plotting.lines(check, xlabel="integrated gradients", ylabel="loss when silenced", points=8)
    return figure
