"""The figures of attacks: a change made visible, rows of pictures, bars of probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from featviz import plotting
from featviz.statistics import Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def shown_perturbation(change: Tensor) -> tuple[Tensor, float]:
    """A change (3, H, W) round mid-gray, and the factor it was multiplied with to be seen.

    The factor is a round number that brings the 99.5th percentile near full contrast; 0 means
    that nothing changed. What exceeds the range is clipped.
    """
    strong = float(torch.quantile(_thinned(change.abs()), 0.995)) or float(change.abs().max())
    if strong == 0:
        return torch.full_like(change, 0.5), 0.0
    exact = 0.5 / strong
    power = 10 ** math.floor(math.log10(exact))
    factor = max([f * power for f in (1, 2, 5) if f * power <= exact * 1.001], default=1.0)
    factor = max(1.0, factor)
    return (0.5 + factor * change).clamp(0, 1), factor


def _thinned(values: Tensor) -> Tensor:
    """At most a million of the values, evenly spread (`quantile` takes no more than 16 million)."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // 1_000_000)]


def draw_bars(ax: Axes, before: Tensor, after: Tensor, classes: Sequence[str], k: int = 5) -> None:
    """Probabilities of the classes that are among the top k before, then of those after."""
    k = min(k, len(classes))
    first, then = before.topk(k).indices.tolist(), after.topk(k).indices.tolist()
    shown = list(dict.fromkeys([then[0], first[0], *then, *first]))[: k + 2]
    shown.sort(key=lambda c: -max(float(before[c]), float(after[c])))
    for label, values, color, offset in (
        ("before", before, plotting.BLUE, -0.2),
        ("after", after, plotting.RED, 0.2),
    ):
        places = [y + offset for y in range(len(shown))]
        ax.barh(places, [100 * float(values[c]) for c in shown], 0.38, color=color, label=label)
    name_rows(ax, [short(classes[c]) for c in shown])
    plotting.lines(ax, xlabel="probability (%)", ylabel="")
    ax.xaxis.label.set_fontsize(7)
    ax.tick_params(labelsize=7)
    ax.set_xlim(0, 100)
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def short(name: str, most: int = 20) -> str:
    """A class name that fits beside a bar."""
    return name if len(name) <= most else name[: most - 1] + "…"


class Row(NamedTuple):
    """One picture before and after an attack."""

    original: Tensor
    """(3, H, W)"""
    adversarial: Tensor
    titles: tuple[str, str]
    """of the two pictures"""
    size: str
    """of the change, in words"""
    probabilities: tuple[Tensor, Tensor]
    """(classes,) before and after"""


def attack_rows(rows: Sequence[Row], classes: Sequence[str]) -> Figure:
    """Original, change, adversarial picture and probabilities of some pictures."""
    height = 2.75 if len(rows) == 1 else 2.55 * len(rows)
    figure = plotting.new_figure(9.6, height)
    parts: Any = figure.subfigures(len(rows), 1, squeeze=False)
    for part, row in zip(parts[:, 0], rows, strict=True):
        _draw_row(part, row, classes)
    return figure


def _draw_row(figure: Any, row: Row, classes: Sequence[str]) -> None:
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    change, factor = shown_perturbation(row.adversarial - row.original)
    middle = f"change × {factor:,.0f}" if factor else "no change"
    titles = (row.titles[0], middle, row.titles[1])
    pictures = (row.original, change, row.adversarial)
    for ax, picture, title in zip(axes, pictures, titles, strict=False):
        plotting.show_image(ax, picture, title, pixelated=picture.shape[-1] <= 128)
    style: dict[str, Any] = {"fontsize": 13, "ha": "center", "va": "center"}
    for ax, sign in zip(axes, "+=", strict=False):
        ax.text(1.06, 0.5, sign, transform=ax.transAxes, color=plotting.INK, **style)
    axes[1].set_xlabel(row.size, fontsize=7, color=plotting.INK, labelpad=3)
    draw_bars(axes[3], *row.probabilities, classes)


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Names beside rows 0, 1, ..., the first at the top."""
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()


def draw_rates(
    ax: Axes,
    rates: Mapping[str, Share],
    xlabel: str,
    colors: Sequence[str] = (plotting.GREEN, plotting.SKY, plotting.ORANGE, plotting.RED),
) -> None:
    """Shares as bars with their intervals, one below the other."""
    for y, (s, color) in enumerate(zip(rates.values(), itertools.cycle(colors), strict=False)):
        value = 100 * (s.value or 0)
        ax.barh(y, value, color=color, height=0.62)
        ax.plot([100 * s.low, 100 * s.high], [y, y], color=plotting.INK, linewidth=1.3)
        ax.text(100 * s.high + 2, y, f"{value:.0f}", va="center", fontsize=8, color=plotting.INK)
    name_rows(ax, list(rates))
    plotting.lines(ax, xlabel=xlabel, ylabel="")
    ax.set_xlim(0, 108)


def before_and_after(
    change: Tensor,
    before: Tensor,
    after: Tensor,
    clean: Tensor,
    predicted: Tensor,
    classes: Sequence[str],
    size: str,
) -> Figure:
    """The change, and pictures without it (above) and with it (below), with their classes."""
    count, cell = len(before), 1.28
    page = plotting.Page(2 * cell + 0.35 + cell * count + 0.05, 2 * cell + 0.62)
    shown, factor = shown_perturbation(change)
    ax = page.axes(0.05, 0.3, 2 * cell + 0.1, 2 * cell + 0.1)
    plotting.show_image(ax, shown, pixelated=change.shape[-1] <= 128)
    page.text(cell + 0.1, 0.15, f"{size}, shown × {factor:,.0f}", fontsize=8, ha="center")
    for c in range(count):
        left = 2 * cell + 0.3 + cell * c
        for r, (pictures, row) in enumerate(((before, clean), (after, predicted))):
            changed = r == 1 and int(row[c]) != int(clean[c])
            top = 0.3 + r * (cell + 0.28)
            _place(page, pictures[c], (left, top, cell - 0.06), classes[int(row[c])], changed)
    return page.figure


def _place(
    page: plotting.Page,
    picture: Tensor,
    where: tuple[float, float, float],
    words: str,
    changed: bool,
) -> None:
    """A picture with its class above it; where: left, top and side."""
    left, top, side = where
    ax = page.axes(left, top, side, side)
    plotting.show_image(ax, picture, pixelated=picture.shape[-1] <= 128)
    plotting.frame(ax, plotting.ORANGE if changed else "#bbbbbb", 1.6 if changed else 0.6)
    color = plotting.RED if changed else plotting.INK
    words = short(words, 17)
    page.text(left + side / 2, top - 0.12, words, fontsize=7.5, ha="center", color=color)


def universal_rates(
    rates: Mapping[str, Share],
    word: str,
    commonest: Sequence[tuple[str, float, float]],
    trace: Tensor,
) -> Figure:
    """Rates, the commonest classes (name, share with the change, without it), the training."""
    figure = plotting.new_figure(9.6, 2.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.15, 0.9))
    draw_rates(left, rates, word)
    for y, (_, after, before) in enumerate(commonest):
        middle.barh(y, 100 * after, color=plotting.SKY, height=0.62)
        middle.plot(100 * before, y, "o", color=plotting.INK, markersize=4)
    name_rows(middle, [short(name) for name, _, _ in commonest])
    plotting.lines(middle, xlabel="predictions with it (%)", ylabel="")
    right.plot(range(1, len(trace) + 1), trace, color=plotting.BLUE, linewidth=1)
    plotting.lines(right, xlabel="step of training", ylabel=word)
    right.set_ylim(0, 102)
    return figure


def patch_row(
    patch: Tensor,
    pictures: Tensor,
    before: Sequence[str],
    predicted: Sequence[str],
    won: Sequence[bool],
) -> Figure:
    """The patch and pictures (N, 3, S, S) with it, their classes with it and without."""
    cell = 1.3
    page = plotting.Page(cell * (len(pictures) + 1) + 0.25, cell + 0.5)
    ax = page.axes(0.05, 0.28, cell - 0.05, cell - 0.05)
    plotting.show_image(ax, patch, pixelated=pictures.shape[-1] <= 128)
    page.text(cell / 2, 0.14, "the patch", fontsize=8, ha="center")
    for c, picture in enumerate(pictures):
        left, words = cell * (c + 1) + 0.2, short(before[c], 17)
        _place(page, picture, (left, 0.28, cell - 0.05), predicted[c], won[c])
        middle = left + (cell - 0.05) / 2
        page.text(middle, cell + 0.36, words, fontsize=7.5, ha="center", color="#777777")
    return page.figure


def rates_by_size(
    sizes: Sequence[float],
    curves: Mapping[str, Sequence[Share]],
    trained: tuple[float, float],
    word: str,
) -> Figure:
    """Success against a patch's size, with 95% bands; gray: the sizes in training."""
    figure = plotting.new_figure(4.6, 3.0)
    ax: Axes = figure.subplots()
    x = [100 * size for size in sizes]
    ax.axvspan(100 * trained[0], 100 * trained[1], color="#eeeeee", linewidth=0)
    styles = zip(curves.items(), (plotting.ORANGE, plotting.GREEN), "os", strict=True)
    for (name, shares), color, marker in styles:
        plotting.draw_shares(ax, x, shares, color, marker=marker, label=name)
    plotting.lines(ax, xlabel="size (% of the picture's side)", ylabel=word)
    ax.set_ylim(0, 102)
    ax.legend(fontsize=8, frameon=False)
    return figure
