"""Figures of descriptions: a layer's summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featviz import plotting
from featviz.descriptions.unit_svg import KIND_COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.descriptions.unit_description import Match, UnitDescription


_NAMED = 16
"""units at most that have a row each"""


def draw_summary(units: Sequence[UnitDescription]) -> Figure:
    """AUROC of all units with what chance reaches, and rates of the described ones."""
    ranked = [(one, one.best) for one in units]
    best = [(one, match) for one, match in ranked if match is not None]
    best.sort(key=lambda pair: -pair[1].auroc)
    return _draw_rows(best) if len(best) <= _NAMED else _draw_all(best)


def _draw_rows(best: Sequence[tuple[UnitDescription, Match]]) -> Figure:
    """A row a unit: its name and words, the AUROC with its interval, and both rates."""
    figure = plotting.new_figure(9.6, 0.9 + 0.3 * max(1, len(best)))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    for row, (one, match) in enumerate(best):
        color = KIND_COLORS[match.kind] if one.chosen is not None else "#888888"
        left.plot([match.low, match.high], [row, row], color=color, linewidth=1.4)
        left.plot(match.auroc, row, "o", color=color, markersize=5)
        left.plot(match.chance, row, "|", color=plotting.INK, markersize=9)
        right.plot(match.hit_rate, row, "o", color=color, markersize=5)
        right.plot(match.false_alarm_rate, row, "o", color=color, markersize=5, fillstyle="none")
    left.set_yticks(range(len(best)), [f"{one.unit}: {m.words}"[:44] for one, m in best])
    left.set_ylim(len(best) - 0.5, -0.5)
    right.set_xlim(-0.03, 1.03)
    plotting.lines(left, xlabel="AUROC (bar: 95% of shuffled labels)", ylabel="")
    plotting.lines(right, xlabel="hit rate (filled), false-alarm rate (ring)", ylabel="")
    return figure


def _draw_all(best: Sequence[tuple[UnitDescription, Match]]) -> Figure:
    """Dots in the order of AUROC; at the right the rates of the units beyond chance."""
    figure = plotting.new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
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
    for match in (one.chosen for one, _ in best if one.chosen is not None):
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
