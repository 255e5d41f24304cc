"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featviz import plotting
from featviz.attacks.projections import NORM_NAMES
from featviz.comparison.measured import ONE_STEP, SEARCH, Measured
from featviz.corruptions.constants import words
from featviz.statistics import Estimate, share
from featviz.training.calibration import BINS, Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.comparison.paired import ClassFlips, CorruptionChange, CurvePoint, Shown
    from featviz.comparison.units import UnitMatch

COLORS = (plotting.BLUE, plotting.ORANGE)
"""of the first model and of the second"""
_ENDS = 14


def plot_classes(classes: Sequence[ClassFlips], names: tuple[str, str]) -> Figure:
    """The change of top-1 of each class, or of those at both ends."""
    drawn = list(classes)
    if len(drawn) > 2 * _ENDS:
        drawn = drawn[:_ENDS] + drawn[-_ENDS:]
    figure = plotting.new_figure(7.2, 0.9 + 0.21 * max(len(drawn), 3))
    ax = figure.subplots()
    for height, one in enumerate(drawn):
        _draw_change(ax, height, one.change, filled=bool(one.verdict))
    _finish_changes(
        ax, [one.name for one in drawn], f"change of top-1, {names[1]} minus {names[0]}"
    )
    if len(classes) > len(drawn):
        ax.axhline(_ENDS - 0.5, color="#999999", linewidth=0.8, linestyle=":")
    return figure


def _draw_change(ax: Axes, height: int, change: Estimate, *, filled: bool) -> None:
    value = 100 * (change.value or 0)
    color = plotting.INK if not value else COLORS[1] if value > 0 else plotting.BLUE
    ax.plot([100 * change.low, 100 * change.high], [height] * 2, color=color, linewidth=1.6)
    ax.plot(value, height, "o", color=color, markersize=5, markerfacecolor=color if filled else "w")


def _finish_changes(ax: Axes, names: Sequence[str], label: str) -> None:
    plotting.lines(ax, xlabel=f"{label} (points)", ylabel="")
    ax.axvline(0, color=plotting.INK, linewidth=0.8)
    ax.set_yticks(range(len(names)), [name[:28] for name in names], fontsize=8)
    ax.set_ylim(len(names) - 0.4, -0.6)


def plot_curves(points: Sequence[CurvePoint], names: tuple[str, str]) -> Figure:
    """Accuracy of both models against eps, and the difference below; a column a norm."""
    norms = list(dict.fromkeys(point.norm for point in points))
    figure = plotting.new_figure(4.6 * len(norms), 4.8)
    panels = figure.subplots(2, len(norms), squeeze=False, height_ratios=(2, 1), sharex="col")
    for column, norm in enumerate(norms):
        own = [point for point in points if point.norm == norm]
        _draw_norm(panels[0][column], panels[1][column], own, names)
    panels[0][0].set_ylabel("accuracy, at most (%)", fontsize=9)
    panels[1][0].set_ylabel("change (points)", fontsize=9)
    return figure


def _draw_norm(
    above: Axes, below: Axes, points: Sequence[CurvePoint], names: tuple[str, str]
) -> None:
    scale = 255.0 if points[0].norm == "linf" else 1.0
    grid = [scale * point.eps for point in points if point.attack == SEARCH]
    for attack, dashes in ((SEARCH, "-"), (ONE_STEP, ":")):
        own = [point for point in points if point.attack == attack]
        for k, name in enumerate(names):
            counts = [(p.first, p.second)[k] for p in own]
            shares = [share(count, p.n) for count, p in zip(counts, own, strict=True)]
            if attack == SEARCH:
                plotting.draw_shares(above, grid, shares, COLORS[k], marker="o", label=name)
            elif own:
                heights = [100 * (s.value or 0) for s in shares]
                label = f"{name}, one step (FGSM)"
                above.plot(grid, heights, dashes, color=COLORS[k], linewidth=1.2, label=label)
    own = [point for point in points if point.attack == SEARCH]
    low, high = (
        [100 * end for end in ends]
        for ends in zip(*((p.change.low, p.change.high) for p in own), strict=True)
    )
    below.fill_between(grid, low, high, color=plotting.INK, alpha=0.15, linewidth=0)
    values = [100 * (p.change.value or 0) for p in own]
    below.plot(grid, values, "o-", color=plotting.INK, markersize=4, linewidth=1.4)
    below.axhline(0, color=plotting.INK, linewidth=0.8)
    unit = " (levels of 255)" if points[0].norm == "linf" else ""
    plotting.lines(above, xlabel="", ylabel="")
    plotting.lines(below, xlabel=f"{NORM_NAMES[points[0].norm]} eps{unit}", ylabel="")
    for ax in (above, below):
        ax.set_xscale("symlog", linthresh=grid[1], linscale=0.6)
        ax.set_xticks(grid, [f"{v:.3g}" for v in grid])
        ax.minorticks_off()
        ax.set_xlim(0, 1.15 * grid[-1])
    above.set_ylim(0, 102)
    above.legend(fontsize=7.5, frameon=False, loc="upper right")


def plot_corruptions(changes: Sequence[CorruptionChange], names: tuple[str, str]) -> Figure:
    """Mean accuracy against severity, and the change under each corruption."""
    levels = [c for c in changes if c.name == "all" and c.severity != "all"]
    each = [c for c in changes if c.name != "all" and c.severity == "all"]
    figure = plotting.new_figure(8.6, max(3.0, 0.9 + 0.21 * len(each)))
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    x = [int(c.severity) for c in levels]
    for k, name in enumerate(names):
        heights = [100 * (c.first, c.second)[k] for c in levels]
        left.plot(x, heights, "o-", color=COLORS[k], markersize=4, linewidth=1.6, label=name)
    left.set_ylim(0, 102)
    left.set_xticks(x)
    left.legend(fontsize=8, frameon=False)
    plotting.lines(left, xlabel="severity", ylabel="accuracy, mean of corruptions (%)")
    ranked = sorted(each, key=lambda c: c.change.value or 0)
    for height, one in enumerate(ranked):
        _draw_change(right, height, one.change, filled=one.change.low > 0 or one.change.high < 0)
    _finish_changes(right, [words(c.name) for c in ranked], "change of accuracy")
    return figure


def plot_calibration(models: Mapping[str, Calibration]) -> Figure:
    """Accuracy against confidence, in bins; a panel of counts below."""
    figure = plotting.new_figure(4.6, 4.8)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    above.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, linestyle=":")
    for k, (name, model) in enumerate(models.items()):
        style: dict[str, Any] = {"color": COLORS[k], "linewidth": 1.4}
        for one in model.bins:
            ends = [100 * one.right.low, 100 * one.right.high]
            above.plot([100 * one.confidence] * 2, ends, alpha=0.5, **style)
        x = [100 * one.confidence for one in model.bins]
        heights = [100 * (one.right.value or 0) for one in model.bins]
        above.plot(x, heights, "o-", markersize=4, label=name, **style)
        counts, edges = model.confidences.histogram(BINS, range=(0, 1))
        below.stairs(counts.tolist(), (100 * edges).tolist(), **style)
    plotting.lines(above, xlabel="", ylabel="accuracy (%)")
    plotting.lines(below, xlabel="confidence (%)", ylabel="pictures")
    above.set_ylim(0, 102)
    above.set_xlim(0, 100)
    above.legend(fontsize=8, frameon=False)
    return figure


def plot_pictures(shown: Sequence[Shown], first: Measured, second: Measured) -> Figure:
    """Pictures with their class and both predictions."""
    columns, cell = min(6, len(shown)), 1.35
    rows = -(-len(shown) // columns)
    page = plotting.Page(columns * cell + 0.1, rows * (cell + 0.52) + 0.05)
    for i, one in enumerate(shown):
        left, top = 0.08 + cell * (i % columns), 0.2 + (cell + 0.52) * (i // columns)
        ax = page.axes(left, top, cell - 0.1, cell - 0.1)
        plotting.show_image(ax, one.picture, pixelated=one.picture.shape[-1] <= 128)
        middle = left + cell / 2 - 0.05
        style: dict[str, Any] = {"fontsize": 7.5, "ha": "center"}
        page.text(middle, top - 0.1, first.classes[one.row][:20], fontweight="bold", **style)
        for k, model in enumerate((first, second)):
            color = plotting.GREEN if model.right[one.row] else plotting.RED
            where = top + cell + 0.02 + 0.14 * k
            page.text(middle, where, model.predicted[one.row][:20], color=color, **style)
    return page.figure


def plot_units(match: UnitMatch, names: tuple[str, str]) -> Figure:
    """Correlations of the pairs, and of all units in the order of the pairs."""
    figure = plotting.new_figure(7.6, 3.4)
    left, right = figure.subplots(1, 2)
    values = match.values.tolist()
    left.plot(range(1, len(values) + 1), values, color=plotting.BLUE, linewidth=1.6)
    if match.by_chance is not None:
        left.axhline(match.by_chance, color="#999999", linewidth=1.2, linestyle="--")
    plotting.lines(left, xlabel="pairs, best first", ylabel="correlation")
    left.set_ylim(-1.02, 1.02)
    if match.pairs:
        rows, columns = zip(*match.pairs, strict=True)
        shown = match.correlation[list(rows)][:, list(columns)].numpy()
        image = right.imshow(shown, vmin=-1, vmax=1, cmap=plotting.DIVERGING, aspect="auto")
        bar = figure.colorbar(image, ax=right, fraction=0.05)
        bar.ax.tick_params(labelsize=7)
    right.set_xlabel(f"units of {names[1]}", fontsize=9)
    right.set_ylabel(f"units of {names[0]}", fontsize=9)
    right.tick_params(labelsize=7)
    return figure
