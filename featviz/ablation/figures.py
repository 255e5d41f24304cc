"""Figures of an ablation: changes of accuracy, the grid of units and classes, one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.ablation.measured import Measured, PictureLogits

_UNITS, _CLASSES = 30, 24  # of the grid
_BARS = 12


def draw_changes(result: Measured) -> Figure:
    """Change of accuracy of each run, and what the classes lose."""
    figure = plotting.new_figure(9.2, 3.4)
    left, right = figure.subplots(1, 2)
    order = result.worst_first
    effects = [result.effects[i].change for i in order]
    values = [100 * (one.value or 0.0) for one in effects]
    low = [100 * one.low for one in effects]
    high = [100 * one.high for one in effects]
    if len(result.control_changes):
        ends = 100 * result.control_changes.quantile(torch.tensor([0.025, 0.975]).double())
        left.axhspan(float(ends[0]), float(ends[1]), color="#bbbbbb", alpha=0.6, linewidth=0)
    left.axhline(0, color=plotting.INK, linewidth=0.8)
    if len(order) <= _UNITS:
        error = [
            [v - lo for v, lo in zip(values, low, strict=True)],
            [hi - v for v, hi in zip(values, high, strict=True)],
        ]
        left.errorbar(
            range(len(order)), values, error, fmt="o", color=plotting.BLUE, markersize=4, capsize=2
        )
        names = [result.names[i].removeprefix(f"{result.layer}:") for i in order]
        plotting.lines(left, xlabel=result.layer, ylabel="change of accuracy, points")
        left.set_xticks(range(len(order)), names, rotation=0 if len(order) < 9 else 90)
    else:
        left.fill_between(range(len(order)), low, high, color=plotting.BLUE, alpha=0.2, linewidth=0)
        left.plot(values, color=plotting.BLUE, linewidth=1.6)
        label = f"silenced {result.what} of {result.layer}, the largest loss first"
        plotting.lines(left, xlabel=label, ylabel="change of accuracy, points")
        first = ", ".join(result.names[i].removeprefix(f"{result.layer}:") for i in order[:3])
        left.annotate(first, (0, values[0]), (6, -3), textcoords="offset points", fontsize=7)
    (_draw_one if len(result.names) == 1 else _draw_losses)(right, result)
    return figure


def _draw_losses(ax: Axes, result: Measured) -> None:
    """How large the losses of the class hurt most are, beside those of all pictures."""
    worst, _ = result.held_out
    losses = [-100 * (one.change.value or 0.0) for one in result.effects]
    if not len(worst):
        ax.set_axis_off()
        ax.text(0.5, 0.5, "one picture a class:\nno class can be measured", ha="center", fontsize=8)
        return
    single = (100 * worst).tolist()
    ends = min(*losses, *single), max(*losses, *single)
    bins = torch.linspace(min(ends[0], -1), max(ends[1], 1), 41).tolist()
    ax.hist(single, bins, color=plotting.ORANGE, alpha=0.85, label="the class hurt most")
    ax.hist(losses, bins, histtype="step", color=plotting.BLUE, linewidth=1.6, label="all pictures")
    plotting.lines(ax, xlabel="loss of accuracy, points", ylabel=f"silenced {result.what}")
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=8, frameon=False)


def _draw_one(ax: Axes, result: Measured) -> None:
    """The classes that lose most, with their intervals."""
    columns = result.hurt_most(0)[:_BARS]
    effects = [result.class_effect(0, k).change for k in columns]
    values = [100 * (one.value or 0.0) for one in effects]
    error = [
        [v - 100 * one.low for v, one in zip(values, effects, strict=True)],
        [100 * one.high - v for v, one in zip(values, effects, strict=True)],
    ]
    rows = range(len(columns))
    ax.errorbar(values, rows, xerr=error, fmt="o", color=plotting.RED, markersize=4, capsize=2)
    ax.axvline(0, color=plotting.INK, linewidth=0.8)
    plotting.lines(ax, xlabel="change of the class's accuracy, points", ylabel="")
    names = [result.classes[int(result.shown_classes[k])] for k in columns]
    ax.set_yticks(rows, [name[:28] for name in names])
    ax.invert_yaxis()


def draw_classes(result: Measured) -> Figure:
    """Units that hurt single classes most (columns) and the classes (rows), in points."""
    changes = result.class_changes
    units = changes.amin(1).argsort(stable=True)[:_UNITS]
    worst = changes[units].amin(0)
    classes = worst.argsort(stable=True)[: max(1, min(_CLASSES, int((worst < 0).sum())))]
    grid = 100 * changes[units][:, classes].T
    # Units beside the classes that they hurt, so that the losses lie near the diagonal.
    order = grid.argmin(0).argsort(stable=True)
    grid, units = grid[:, order], units[order]
    end = float(grid.abs().max()) or 1.0
    figure = plotting.new_figure(1.9 + 0.24 * len(units), 1.1 + 0.19 * len(classes))
    ax = figure.add_subplot()
    image = plotting.show_map(ax, grid, -end, end)
    image.set_cmap("RdBu")
    ax.set_aspect("auto")
    names = [result.names[i].removeprefix(f"{result.layer}:") for i in units.tolist()]
    ax.set_xticks(range(len(units)), names, rotation=90, fontsize=7)
    labels = [result.classes[int(result.shown_classes[k])][:26] for k in classes.tolist()]
    ax.set_yticks(range(len(classes)), labels, fontsize=7)
    ax.set_xlabel(f"silenced {result.what} of {result.layer}", fontsize=8)
    bar = figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label("change of accuracy, points", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_logits(result: Measured, one: PictureLogits) -> Figure:
    """Logits of the most likely classes: whole, and in each run."""
    top = one.before.argsort(descending=True)[:_BARS].tolist()
    figure = plotting.new_figure(6.4, 0.9 + 0.24 * len(top))
    ax = figure.add_subplot()
    for row, k in enumerate(top):
        ax.scatter(
            one.after[:, k], [row] * len(one.after), s=9, alpha=0.4, color=plotting.ORANGE, lw=0
        )
        ax.scatter(one.before[k], row, s=42, facecolors="none", edgecolors=plotting.BLUE, lw=1.4)
    plotting.lines(ax, xlabel="logit", ylabel="")
    ax.set_yticks(range(len(top)), [result.classes[k][:30] for k in top])
    ax.invert_yaxis()
    return figure
