"""Figures of descriptions: a layer's summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featviz import plotting
from featviz.descriptions.unit_svg import KIND_COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.descriptions.unit_description import UnitDescription


def draw_summary(units: Sequence[UnitDescription]) -> Figure:
    """AUROC of all units with what chance reaches, and rates of the described ones."""
    figure = plotting.new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ranked = [(one, one.best) for one in units]
    best = [(one, match) for one, match in ranked if match is not None]
    best.sort(key=lambda pair: -pair[1].auroc)
    for kind, color in KIND_COLORS.items():
        for described, label in ((True, f"{kind}, beyond chance"), (False, "")):
            at = [
                (i, match.auroc)
                for i, (one, match) in enumerate(best)
                if match.kind == kind and (one.chosen is not None) == described
            ]
            if at:
                style = {"color": color} if described else {"color": "#bbbbbb"}
                left.scatter(*zip(*at, strict=True), s=9, label=label, linewidths=0, **style)
    chance = [match.chance for _, match in best]
    left.plot(chance, color=plotting.INK, linewidth=0.8, alpha=0.6, label="95% of shuffled labels")
    left.axhline(0.5, color=plotting.FAINT, linewidth=0.6, linestyle=":")
    plotting.lines(left, xlabel="units, highest AUROC first", ylabel="AUROC of the best set")
    left.legend(fontsize=7.5, frameon=False)
    for match in (one.chosen for one in units if one.chosen is not None):
        size = 8 + 40 * match.precision
        right.scatter(
            [match.false_alarm_rate],
            [match.hit_rate],
            s=size,
            color=KIND_COLORS[match.kind],
            alpha=0.6,
            linewidths=0,
        )
    right.plot([0, 1], [0, 1], color=plotting.FAINT, linewidth=0.6, linestyle=":")
    right.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    plotting.lines(right, xlabel="false-alarm rate (larger: more is right)", ylabel="hit rate")
    return figure
