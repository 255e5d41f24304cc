"""Figures of descriptions: a layer's summary, and a unit's values inside and outside of its set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.descriptions.result import Descriptions, UnitDescription

_COLORS = {"class": plotting.BLUE, "group": plotting.ORANGE, "pair": plotting.GREEN}


def draw_summary(found: Descriptions) -> Figure:
    """AUROC of all units with what chance reaches, and rates of the described ones."""
    figure = plotting.new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ranked = [(one, one.best) for one in found.units]
    best = [(one, match) for one, match in ranked if match is not None]
    best.sort(key=lambda pair: -pair[1].auroc)
    for kind, color in _COLORS.items():
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
    for one in found.described:
        match = one.chosen
        assert match is not None
        size = 8 + 40 * match.precision
        right.scatter(
            [match.false_alarm_rate],
            [match.hit_rate],
            s=size,
            color=_COLORS[match.kind],
            alpha=0.6,
            linewidths=0,
        )
    right.plot([0, 1], [0, 1], color=plotting.FAINT, linewidth=0.6, linestyle=":")
    right.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    plotting.lines(right, xlabel="false-alarm rate (larger: more is right)", ylabel="hit rate")
    return figure


def draw_unit(one: UnitDescription, examples: Tensor | None = None) -> Figure:
    """The values on the pictures of the set and on all others, and where it is highest."""
    match = one.best
    assert match is not None
    page = plotting.Page(6.4, 2.3 if examples is None else 3.15)
    ax = page.axes(0.55, 0.12, 5.7, 1.6)
    bins = len(one.inside)
    width = (one.high - one.low) / bins
    at = [one.low + (i + 0.5) * width for i in range(bins)]
    for counts, color, label in (
        (one.outside, plotting.FAINT, f"the {match.others:,} others"),
        (one.inside, _COLORS[match.kind], f"{match.pictures:,} of {match.words}"),
    ):
        ax.bar(
            at,
            (counts / counts.sum().clamp(min=1)).tolist(),
            width,
            color=color,
            alpha=0.55,
            label=label,
        )
    ax.axvline(match.threshold, color=plotting.RED, linewidth=1, label="best threshold")
    ax.legend(fontsize=7, frameon=False)
    plotting.lines(ax, xlabel="value of the unit", ylabel="share of pictures", points=8)
    if examples is not None:
        side = 5.7 / max(6, len(examples))
        for i, picture in enumerate(examples):
            cell = page.axes(0.55 + i * side, 2.22, side - 0.05, side - 0.05)
            plotting.show_image(cell, picture.float() / 255)
    return page.figure
