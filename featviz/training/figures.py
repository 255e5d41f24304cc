"""Figures of training and evaluation: curves over epochs, accuracy by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featviz import plotting
from featviz.statistics import Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENDS = 8
"""classes shown by name at the top, and as many at the bottom"""


def draw_history(
    epochs: Sequence[int], loss: Sequence[float], accuracies: Mapping[str, Sequence[float | None]]
) -> Figure:
    """Training loss and validation accuracies (fractions, by name) over epochs."""
    figure = plotting.new_figure(7.5, 2.8)
    left, right = figure.subplots(1, 2)
    style: dict[str, Any] = {"linewidth": 1.6, "marker": "o", "markersize": 3}
    left.plot(epochs, loss, color=plotting.BLUE, **style)
    plotting.lines(left, xlabel="epoch", ylabel="training loss")
    for (name, values), color in zip(
        accuracies.items(), (plotting.SKY, plotting.BLUE), strict=True
    ):
        percent = [math.nan if v is None else 100 * v for v in values]
        right.plot(epochs, percent, color=color, label=name, **style)
    right.set_ylim(0, 100)
    right.legend(fontsize=8, frameon=False)
    plotting.lines(right, xlabel="epoch", ylabel="validation accuracy (%)")
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def draw_classes(classes: Sequence[tuple[str, Share]], overall: Share) -> Figure:
    """Accuracy of every class as a curve, best first, and the best and worst by name."""
    ranked = sorted(classes, key=lambda one: -(one[1].value or 0))
    many = len(ranked) > 2 * _ENDS
    named = ranked[:_ENDS] + ranked[-_ENDS:] if many else ranked
    figure = plotting.new_figure(8.5, 1.0 + 0.2 * max(8, len(named)))
    left, right = figure.subplots(1, 2)
    _draw_curve(left, [one for _, one in ranked], overall)
    # A gap where classes between the best and the worst are left out.
    heights = [row + (1 if many and row >= _ENDS else 0) for row in range(len(named))]
    for height, (_, one) in zip(heights, named, strict=True):
        ends = [100 * one.low, 100 * one.high]
        right.plot(ends, [height, height], color=plotting.SKY, linewidth=2)
        right.plot(_percent(one), height, "o", color=plotting.BLUE, markersize=4)
    plotting.lines(right, xlabel="top-1 (%)", ylabel="")
    right.set_yticks(heights, [name.partition(",")[0] for name, _ in named], fontsize=8)
    right.set_xlim(-2, 102)
    right.invert_yaxis()
    return figure


def _draw_curve(ax: Axes, ranked: Sequence[Share], overall: Share) -> None:
    places = range(1, len(ranked) + 1)
    ax.fill_between(
        places,
        [100 * one.low for one in ranked],
        [100 * one.high for one in ranked],
        color=plotting.SKY,
        alpha=0.35,
        linewidth=0,
        step="mid",
        label="95% interval",
    )
    shares = [_percent(one) for one in ranked]
    ax.step(places, shares, where="mid", color=plotting.BLUE, linewidth=1.6, label="a class")
    ax.axhline(_percent(overall), color=plotting.ORANGE, linewidth=1.6, label="all pictures")
    ax.set_ylim(0, 100)
    ax.legend(fontsize=8, frameon=False)
    plotting.lines(ax, xlabel="classes, best first", ylabel="top-1 (%)")


def _percent(one: Share) -> float:
    return 100 * (one.value or 0.0)
