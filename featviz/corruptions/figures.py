"""The figures of a corruption table, from its numbers and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting
from featviz.corruptions.constants import ALEXNET_ERRORS, family, words
from featviz.corruptions.mce import ALEXNET_CLEAN_ERROR
from featviz.statistics import Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {
    "noise": plotting.RED,
    "blur": plotting.BLUE,
    "weather": plotting.GREEN,
    "digital": plotting.PURPLE,
    "extra": plotting.ORANGE,
}


def plot_curves(
    accuracies: Mapping[str, Sequence[Share]], severities: Sequence[int], *, published: bool
) -> Figure:
    """Small panels, one a corruption; with AlexNet's published accuracy if wanted."""
    count = len(accuracies)
    columns = min(5, count)
    rows = -(-count // columns)
    figure = plotting.new_figure(1.75 * columns + 0.4, 1.5 * rows + 0.35)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    for ax, (name, shares) in zip(axes.flat, accuracies.items(), strict=False):
        _draw(ax, name, shares, severities)
        if published and name in ALEXNET_ERRORS:
            known = [100 - 100 * e for e in (ALEXNET_CLEAN_ERROR, *ALEXNET_ERRORS[name])]
            ax.plot(range(6), known, ":", color=plotting.INK, linewidth=1.2)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    return figure


def _draw(ax: Axes, name: str, shares: Sequence[Share], severities: Sequence[int]) -> None:
    plotting.draw_shares(ax, severities, shares, _COLORS[family(name)], marker="o")
    plotting.lines(ax, xlabel="", ylabel="")
    ax.set_title(words(name) + (" *" if name == "frost" else ""), fontsize=8, pad=3)
    ax.set_ylim(0, 100)
    ax.set_xticks(range(6))
    ax.set_yticks((0, 25, 50, 75, 100))


def plot_sheet(
    rows: Mapping[str, Sequence[tuple[Tensor, bool]]], severities: Sequence[int]
) -> Figure:
    """Pictures of each corruption by severity, framed by whether the prediction is right."""
    blocks = 2 if len(rows) > 6 else 1
    height = -(-len(rows) // blocks)
    cell, label_width, head = 0.74, 0.85, 0.28
    block = label_width + cell * len(severities) + 0.1
    page = plotting.Page(blocks * block, head + cell * height)
    for i, (name, pictures) in enumerate(rows.items()):
        left, top = (i // height) * block + label_width, head + cell * (i % height)
        text = words(name).replace(" ", "\n", 1)
        page.text(left - 0.07, top + cell / 2, text, fontsize=7, ha="right")
        for c, (severity, (picture, right)) in enumerate(zip(severities, pictures, strict=True)):
            if i % height == 0:
                text = f"severity {severity}" if severity else "clean"
                page.text(left + cell * (c + 0.5), head / 2, text, fontsize=6.5, ha="center")
            ax = page.axes(left + cell * c, top, cell - 0.05, cell - 0.05)
            plotting.show_image(ax, picture, pixelated=picture.shape[-1] <= 128)
            plotting.frame(ax, plotting.BLUE if right else plotting.ORANGE, 1.6)
    return page.figure
