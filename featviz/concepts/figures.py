"""The figure of concepts: what they explain, how stable they are, which occur together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from featviz.concepts.measure import Explained

_LINES = {
    "singular": ("singular vectors", plotting.BLUE),
    "units": ("single units", plotting.ORANGE),
    "random": ("random directions", "#888888"),
    "chosen": ("strongest units of each row", plotting.GREEN),
}
_PAIRS = 64
"""concepts of the map of pairs: the largest"""


def draw_concepts(
    label: str,
    explained: Explained,
    counts: Sequence[int],
    beside: Mapping[str, Sequence[Explained]],
    stability: Mapping[str, Tensor],
    lift: Tensor,
) -> Figure:
    """Three panels: energy explained, stability, co-occurrence; arguments as in `Concepts`."""
    figure = plotting.new_figure(11, 3.4)
    left, middle, right = figure.subplots(1, 3)
    _draw_explained(left, label, explained, counts, beside)
    _draw_stability(middle, stability)
    _draw_pairs(right, lift)
    return figure


def _draw_explained(
    ax: Axes,
    label: str,
    explained: Explained,
    counts: Sequence[int],
    beside: Mapping[str, Sequence[Explained]],
) -> None:
    for name, row in beside.items():
        words, color = _LINES[name]
        ax.plot(counts, [100 * one.value for one in row], color=color, label=words, marker=".")
        low, high = ([100 * one[i] for one in row] for i in (1, 2))
        ax.fill_between(counts, low, high, color=color, alpha=0.18, linewidth=0)
    value, low_end, high_end, _ = explained
    ends = [[100 * (value - low_end)], [100 * (high_end - value)]]
    ax.errorbar(
        counts[-1], 100 * value, ends, color=plotting.INK, marker="D", capsize=3, label=label
    )
    if counts[-1] > 1:
        ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.set_ylim(bottom=0)
    plotting.lines(ax, xlabel="directions that a row uses", ylabel="energy explained, %")
    ax.legend(fontsize=7, frameon=False)


def _draw_stability(ax: Axes, stability: Mapping[str, Tensor]) -> None:
    colors = {"seeds": plotting.BLUE, "halves": plotting.ORANGE}
    words = {"seeds": "other seeds", "halves": "halves of the pictures"}
    for name, values in stability.items():
        ordered = values.sort(descending=True).values
        places = [100 * (i + 0.5) / len(ordered) for i in range(len(ordered))]
        marker = "." if len(ordered) <= _PAIRS else ""
        ax.plot(places, ordered.tolist(), label=words[name], color=colors[name], marker=marker)
    ax.set_ylim(0, 1.03)
    plotting.lines(ax, xlabel="concepts, % (sorted)", ylabel="|cosine| when found again")
    ax.legend(fontsize=7, frameon=False, loc="lower left")


def _draw_pairs(ax: Axes, lift: Tensor) -> None:
    """log2 of the lift; pairs that never occur are the darkest blue."""
    lift = lift[:_PAIRS, :_PAIRS].log2().nan_to_num(0, posinf=0, neginf=-3).clamp(-3, 3)
    lift = torch.where(torch.eye(len(lift), dtype=torch.bool), torch.nan, lift)
    image = ax.imshow(lift.numpy(), cmap=plotting.DIVERGING, vmin=-3, vmax=3)
    bar = ax.figure.colorbar(image, ax=ax, ticks=[-3, 0, 3], shrink=0.8)
    bar.ax.set_yticklabels(["1/8", "1", "8"], fontsize=8)
    bar.set_label("times as often as by chance", fontsize=8)
    plotting.lines(ax, xlabel="concept", ylabel="concept")
    ax.grid(False)
