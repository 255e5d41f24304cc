"""The figure of a store: lengths of its rows, activity of its units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def draw_activity(norms: NDArray[np.float64], active: NDArray[np.int64], *, layer: str) -> Figure:
    """Histogram of the norms (N,) of rows, and on which share of them each unit is active."""
    count = len(norms)
    figure = plotting.new_figure(8, 2.6)
    lengths, activity = figure.subplots(1, 2)
    lengths.hist(norms, bins=min(40, max(5, count // 8)), color=plotting.BLUE)
    plotting.lines(lengths, xlabel=f"norm of {layer}", ylabel="pictures")
    share = np.sort(active)[::-1] / max(1, count)
    shown = np.unique(np.linspace(0, len(share) - 1, 300).round().astype(int))
    activity.fill_between(shown, 100 * share[shown], color=plotting.SKY, linewidth=0)
    activity.set_ylim(0, 102)
    activity.margins(x=0)
    plotting.lines(
        activity, xlabel="units, most often active first", ylabel="active on (% of pictures)"
    )
    return figure
