"""The figures of an audit, from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from featviz import plotting
from featviz.attacks.figures import draw_rates, name_rows, short, shown_perturbation
from featviz.robustness.norm_audit import (
    AdversarialExample,
    ClassAccuracy,
    Confusion,
    NormAudit,
)
from featviz.statistics import Share, rank_correlation, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DRAWN = {  # attack -> color, marker, label
    "noise": (plotting.GREEN, "s", "random noise"),
    "fgsm": (plotting.ORANGE, "^", "one step (FGSM)"),
}


def plot_curves(norms: Sequence[NormAudit]) -> Figure:
    """Robust accuracy against eps, one panel a norm."""
    figure = plotting.new_figure(4.3 * len(norms), 3.5)
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    for ax, found in zip(panels, norms, strict=True):
        _draw_curves(ax, found)
    panels[0].set_ylabel("robust accuracy, at most (%)", fontsize=9)
    return figure


def _draw_curves(ax: Axes, found: NormAudit) -> None:
    n, scale, grid = len(found.distance), found.scale, (0.0, *found.eps)
    top = 1.15 * found.eps[-1]
    values = found.distance[found.distance > 0].sort().values
    corners = [0.0, *values[values <= top].tolist(), top]
    shares = [share(found.correct(eps), n) for eps in corners]
    x = [scale * eps for eps in corners]
    plotting.draw_shares(ax, x, shares, plotting.BLUE, label="all attacks", steps=True)
    at, counts = [scale * eps for eps in grid], found.counts()
    for attack, (color, marker, label) in _DRAWN.items():
        if attack in counts:
            y = [100 * (k or 0) / n for k in counts[attack]]
            ax.plot(at, y, linewidth=1.2, color=color, marker=marker, markersize=4, label=label)
    if found.second_attacks:
        ax.plot(
            [scale * second.eps for second in found.second_attacks],
            [100 * found.correct(second.eps) / n for second in found.second_attacks],
            "x",
            color=plotting.INK,
            markersize=6,
            markeredgewidth=1.4,
            label="second attack",
        )
    units = {"linf": "levels of 255", "l0": "changed components"}
    unit = units.get(found.norm, "pictures in [0, 1]")
    plotting.lines(ax, xlabel=f"{found.name} eps ({unit})", ylabel="")
    ax.set_xscale("symlog", linthresh=at[1], linscale=0.6)
    ax.set_xlim(0, scale * top)
    ax.set_xticks(at, [f"{v:.3g}" for v in at])
    ax.minorticks_off()
    ax.set_ylim(0, 102)
    ax.legend(fontsize=7.5, frameon=False, loc="upper right")
    middle = found.median.value
    if middle is not None and middle < found.eps[-1]:
        place = scale * middle
        text = f"median {place:.3g}{'/255' if found.norm == 'linf' else ''} "
        ax.annotate(text, (place, 6), ha="right", fontsize=7.5, color=plotting.BLUE)
        ax.axvline(place, linewidth=0.8, linestyle=":", color=plotting.BLUE)


def plot_distances(norms: Sequence[NormAudit], margins: Tensor) -> Figure:
    """Distance found against the linear estimate, one panel a norm; margins: (N,) when clean."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = plotting.new_figure(3.6 * len(norms), 3.5)
    panels = figure.subplots(1, len(norms), squeeze=False)[0]
    for ax, found in zip(panels, norms, strict=True):
        rows = found.estimated
        x = found.scale * found.estimate[rows].numpy()
        y = found.scale * found.distance[rows].numpy()
        ends = [0.7 * min(x.min(), y.min()), 1.4 * max(x.max(), y.max())]
        ax.plot(ends, ends, color=plotting.INK, linewidth=0.8)
        ax.plot(x, y, "o", color=plotting.BLUE, markersize=3, alpha=0.6, markeredgewidth=0)
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        ax.set_aspect("equal")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_formatter(NullFormatter())
        unit = " (/255)" if found.norm == "linf" else ""
        plotting.lines(ax, xlabel=f"linear estimate{unit}", ylabel=f"found{unit}")
        note = f"median ratio {float((found.distance / found.estimate)[rows].median()):.2f}"
        correlation = rank_correlation(margins[rows], found.distance[rows])
        if correlation is not None:
            note += f"\ncorrelation with the margin: ρ = {correlation:.2f}"
        ax.set_title(found.name, fontsize=9, color=plotting.INK)
        style = {"va": "top", "fontsize": 7.5, "color": plotting.INK}
        ax.text(0.04, 0.96, note, transform=ax.transAxes, **style)
    return figure


def plot_examples(
    found: NormAudit,
    examples: Sequence[AdversarialExample],
    labels: Tensor,
    classes: Sequence[str],
) -> Figure:
    """Pictures beside their adversarial copies: original, change, adversarial."""
    count = len(examples)
    figure = plotting.new_figure(1.55 * count + 0.35, 5.2)
    axes = figure.subplots(3, count, squeeze=False)
    for ax, word in zip(axes[:, 0], ("original", "change", "adversarial"), strict=True):
        ax.set_ylabel(word, fontsize=8, color=plotting.INK)
    for column, example in zip(axes.T, examples, strict=True):
        change, factor = shown_perturbation(example.adversarial - example.original)
        size = f"{found.scale * example.distance:.2g}"
        size += "/255" if found.norm == "linf" else f" in {found.name}"
        titles = (
            short(classes[int(labels[example.row])]),
            f"{size}, × {factor:,.0f}",
            short(classes[example.predicted]),
        )
        pictures = (example.original, change, example.adversarial)
        for ax, picture, title in zip(column, pictures, titles, strict=True):
            plotting.show_image(ax, picture, title, pixelated=picture.shape[-1] <= 128)
    return figure


def plot_classes(
    rows: Sequence[ClassAccuracy], overall: Share, where: str, classes: Sequence[str]
) -> Figure:
    """Robust accuracy of classes, shrunk, with intervals; where: the eps, in words."""
    figure = plotting.new_figure(5.6, 1.0 + 0.2 * len(rows))
    ax = figure.subplots()
    mean = 100 * (overall.value or 0)
    ax.axvline(mean, color=plotting.INK, linewidth=0.9, linestyle=":", label="all pictures")
    y = list(range(len(rows)))
    low, high = [100 * row.low for row in rows], [100 * row.high for row in rows]
    ax.hlines(y, low, high, color=plotting.BLUE, linewidth=1.4)
    dot: dict[str, Any] = {"color": plotting.BLUE, "markersize": 5}
    ax.plot([100 * r.shrunk for r in rows], y, "o", label="robust accuracy, at most", **dot)
    ax.plot(
        [100 * row.robust / row.n for row in rows],
        y,
        "o",
        markerfacecolor="none",
        markeredgewidth=0.9,
        label="the same, not shrunk",
        **dot,
    )
    ax.plot(
        [100 * row.clean / row.n for row in rows],
        y,
        "|",
        color=plotting.RED,
        markersize=9,
        markeredgewidth=1.6,
        label="clean",
    )
    name_rows(ax, [f"{short(classes[row.label])} (n = {row.n})" for row in rows])
    plotting.lines(ax, xlabel=f"accuracy at {where} (%)", ylabel="")
    ax.tick_params(axis="y", labelsize=7)
    ax.set_xlim(-2, 102)
    figure.legend(fontsize=7, frameon=False, loc="outside upper center", ncols=4)
    return figure


def plot_confusions(pairs: Sequence[Confusion], classes: Sequence[str]) -> Figure:
    """The commonest pairs of label and adversarial prediction."""
    from matplotlib.ticker import MaxNLocator

    figure = plotting.new_figure(6.0, 0.8 + 0.24 * len(pairs))
    ax = figure.subplots()
    bars = {
        "any other class": ([p.pictures for p in pairs], plotting.SKY),
        "the model's second choice": ([p.second_choice for p in pairs], plotting.BLUE),
    }
    for label, (counts, color) in bars.items():
        ax.barh(range(len(pairs)), counts, color=color, height=0.66, label=label)
    names = [f"{short(classes[p.label])} → {short(classes[p.predicted])}" for p in pairs]
    name_rows(ax, names)
    plotting.lines(ax, xlabel="pictures", ylabel="")
    ax.tick_params(axis="y", labelsize=7)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(fontsize=7, frameon=False, loc="outside upper center", ncols=2)
    return figure


def plot_transfer(bars: Mapping[str, tuple[Share, Share | None]]) -> Figure:
    """Share of adversarial pictures that still fool, with that of noise, by condition."""
    figure = plotting.new_figure(5.6, 0.9 + 0.3 * len(bars))
    ax = figure.subplots()
    rates = {f"{name} (n = {s.n})": s for name, (s, _) in bars.items()}
    draw_rates(ax, rates, "still fool (%)", [plotting.BLUE])
    for y, (_, noise) in enumerate(bars.values()):
        if noise is not None and noise.value is not None:
            tick: dict[str, Any] = {"color": plotting.GREEN, "markersize": 13, "markeredgewidth": 2}
            ax.plot([100 * noise.value], [y], "|", **tick)
    return figure
