"""Figures of tuning curves: a row a unit, a panel a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featviz import plotting
from featviz.descriptions.unit_svg import FAMILY_COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.descriptions.tuning_curves import Family

_SHOWN = 16


def draw_tuning(units: Sequence[str], families: Sequence[Family]) -> Figure:
    """The curves of the first units on one pair of axes, panels side by side."""
    rows = range(min(_SHOWN, len(units)))
    height = 0.75 * len(rows) + 0.65
    page = plotting.Page(8.6, height)
    ax = page.axes(0.9, 0.05, 7.6, height - 0.1)
    below = 0.62 / (height - 0.1)
    ax.set(xlim=(0, len(families)), ylim=(-below * len(rows) / (1 - below), len(rows)))
    ax.set_axis_off()
    for line, row in enumerate(rows):
        base = len(rows) - 1 - line + 0.08
        top = max(max(family.curve(row)) for family in families) or 1.0
        small: dict[str, Any] = {"fontsize": 8, "color": plotting.INK}
        ax.text(-0.02, base + 0.35, units[row], ha="right", va="center", **small)
        for panel, family in enumerate(families):
            curve = family.curve(row)
            x = [panel + 0.05 + 0.85 * i / (len(curve) - 1) for i in range(len(curve))]
            y = [base + 0.8 * v / top for v in curve]
            ax.plot([x[0], x[-1]], [base, base], color="#cccccc", linewidth=0.6)
            ax.plot(x, y, color=FAMILY_COLORS[panel], linewidth=1.3)
            ax.fill_between(x, base, y, color=FAMILY_COLORS[panel], alpha=0.15, linewidth=0)
    for panel, family in enumerate(families):
        tick: dict[str, Any] = {"fontsize": 7, "color": plotting.FAINT, "va": "top"}
        ax.text(panel + 0.05, 0.03, f"{family.at[0]:.2g}", ha="left", **tick)
        ax.text(panel + 0.9, 0.03, f"{family.at[-1]:.3g}", ha="right", **tick)
        words = f"{family.name}\n({family.unit})"
        ax.text(panel + 0.475, -0.12, words, ha="center", **{**tick, "color": plotting.INK})
    return page.figure
