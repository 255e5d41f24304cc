"""The figure of `attribute_layer`: spatial and channel attribution of some pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featviz import plotting
from featviz.ablation.patched_figures import as_map, draw_bars, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.ablation.layer_attribution import LayerAttribution


def draw_layer_attribution(result: LayerAttribution, rows: int) -> Figure:
    """A row for each picture: itself, its map, its units, and the check against silencing."""
    positions, units = result.by_position("integrated"), result.by_unit("integrated")
    figure = plotting.new_figure(10.4, 2.6 * rows)
    axes = figure.subplots(rows, 4, squeeze=False)
    for row in range(rows):
        picture, over, bars, check = axes[row]
        score = plotting.signed_text(float(result.scores[row]), ".2f")
        plotting.show_image(picture, result.pictures[row], f"{result.targets[row][:28]}: {score}")
        values = None if positions is None else as_map(positions[row])
        if values is None:
            over.set_axis_off()
        else:
            overlay(over, result.pictures[row], values)
            over.set_title(f"{result.layer}, by position", fontsize=8)
        draw_bars(bars, result.layer, units[row])
        bars.set_xlabel("integrated gradients", fontsize=8)
        lost = -result.removed[row]
        check.scatter(units[row], lost, s=7, color=plotting.BLUE, alpha=0.6, linewidths=0)
        ends = float(units[row].min()), float(units[row].max())
        check.plot(ends, ends, color=plotting.FAINT, linewidth=0.9, linestyle=":")
        plotting.lines(check, xlabel="integrated gradients", ylabel="loss when silenced", points=8)
    return figure
