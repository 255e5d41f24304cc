"""The figures of a diagnosis, from its measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from featviz import plotting
from featviz.attacks.figures import name_rows, short, shown_perturbation
from featviz.attacks.projections import l2_distance
from featviz.robustness.diagnosis import (
    KINDS,
    FeaturePath,
    LayerDiagnosis,
    MarginChange,
    PictureDiagnosis,
    Reference,
    UnitContribution,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "adversarial": plotting.RED,
    "noise": plotting.GREEN,
    "blur": plotting.BLUE,
    "clean": plotting.INK,
}
LABELS = {
    "adversarial": "adversarial",
    "noise": "random noise",
    "blur": "Gaussian blur",
    "clean": "clean",
}
_SHOWN_POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_NEIGHBORS = 4
_FINEST = 56  # most cells of a drawn attribution on a side


def plot_layers(found: LayerDiagnosis) -> Figure:
    """Relative change, turn and switched ReLUs over the layers."""
    figure = plotting.new_figure(10.5, 3.4)
    every = list(range(len(found.layers)))
    relus = found.changes["noise"].switched.isfinite().all(0).nonzero()[:, 0].tolist()
    panels = figure.subplots(1, 3)
    for kind in KINDS:
        change = found.changes[kind]
        values = (change.relative, 1 - change.cosine, 100 * change.switched[:, relus])
        for ax, of in zip(panels, values, strict=True):
            if of.shape[1]:
                _band(ax, of, kind)
    words = ("relative change", "1 - cosine", "switched ReLUs (%)")
    for ax, text, shown in zip(panels, words, (every, every, relus), strict=True):
        plotting.lines(ax, xlabel="", ylabel=text)
        _layer_ticks(ax, [found.layers[j] for j in shown])
    for ax in panels[:2]:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    panels[0].legend(fontsize=7.5, frameon=False)
    return figure


def plot_classes(found: LayerDiagnosis) -> Figure:
    """Nearness to the label's class over the layers, and where it changes sign."""
    from matplotlib.ticker import MaxNLocator

    figure = plotting.new_figure(8.6, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _band(left, found.clean_nearness[found.placed], "clean")
    for kind in KINDS:
        values = found.changes[kind].nearness[found.placed]
        _band(left, values, kind, middle_half=kind == "adversarial")
    left.axhline(0, color=plotting.INK, linewidth=0.8)
    plotting.lines(left, xlabel="", ylabel="predicted class ←  nearness  → label")
    _layer_ticks(left, found.layers)
    left.legend(fontsize=7.5, frameon=False)
    flips = zip(found.flips, found.placed, strict=True)
    counts = Counter(flip or "never" for flip, placed in flips if placed)
    order = [layer for layer in (*found.layers, "never") if counts[layer]]
    right.barh(
        range(len(order)), [counts[layer] for layer in order], color=plotting.RED, height=0.66
    )
    name_rows(right, [short(layer, 16) for layer in order])
    plotting.lines(right, xlabel="pictures", ylabel="")
    right.set_title("nearer to the predicted class from", fontsize=8, color=plotting.INK)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _band(ax: Axes, values: Tensor, kind: str, *, middle_half: bool = True) -> None:
    """Median and, if wanted, middle half of (N, L) values over the layers."""
    x, color = range(values.shape[1]), COLORS[kind]
    low, middle, high = (values.double().quantile(q, 0).numpy() for q in (0.25, 0.5, 0.75))
    if middle_half:
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(x, middle, color=color, marker="o", markersize=3, linewidth=1.5, label=LABELS[kind])


def _layer_ticks(ax: Axes, layers: Sequence[str]) -> None:
    ax.set_xticks(range(len(layers)), [short(layer, 14) for layer in layers], rotation=90)
    ax.tick_params(axis="x", labelsize=7)


def plot_picture(shown: PictureDiagnosis, classes: Sequence[str]) -> Figure:
    """Original, change, adversarial; attributions of both classes before and after."""
    delta = shown.adversarial - shown.original
    change, factor = shown_perturbation(delta)
    pixelated = delta.shape[-1] <= 128
    figure = plotting.new_figure(8.4, 4.9)
    axes = figure.subplots(2, 4)
    for ax in axes.flat:
        ax.axis("off")
    top = (
        (shown.original, short(classes[shown.label], 24)),
        (change, f"change × {factor:,.0f}"),
        (shown.adversarial, short(classes[shown.predicted], 24)),
    )
    for ax, (picture, title) in zip(axes[0], top, strict=False):
        plotting.show_image(ax, picture, title, pixelated=pixelated)
    l2 = float(l2_distance(shown.original[None], shown.adversarial[None]))
    text = f"largest change {255 * float(delta.abs().max()):.2g}/255\nL2 {l2:.3g}"
    if shown.flip:
        text += f"\nnearer to the predicted\nclass from {shown.flip}"
    axes[0, 3].text(0, 0.5, text, fontsize=8, va="center", color=plotting.INK)
    if shown.attributions:
        _draw_attributions(figure, axes[1], shown)
    return figure


def _draw_attributions(figure: Figure, axes: Any, shown: PictureDiagnosis) -> None:
    """Maps summed over blocks; what does not fill a block at the border is left out."""
    block = max(1, shown.original.shape[-1] // _FINEST)
    maps = {
        name: F.avg_pool2d(pair[:, None], block)[:, 0] * block**2
        for name, pair in shown.attributions.items()
    }
    end = max(float(m.abs().flatten().quantile(0.995)) for m in maps.values()) or 1.0
    titled = [
        (m, f"for {short(name, 16)}, {when}")
        for name, pair in maps.items()
        for m, when in zip(pair, ("before", "after"), strict=True)
    ]
    image = None
    for ax, (values, title) in zip(axes, titled, strict=False):
        ax.axis("on")
        image = plotting.show_map(ax, values, -end, end)
        ax.set_title(title, fontsize=8, color=plotting.INK, pad=3)
    assert image is not None
    bar = figure.colorbar(
        image,
        ax=axes.tolist(),
        orientation="horizontal",
        shrink=0.5,
        aspect=40,
        extend="both",
        pad=0.04,
    )
    bar.ax.tick_params(labelsize=7)
    cell = "pixel" if block == 1 else f"block of {block} × {block} pixels"
    bar.set_label(f"logits per {cell}", fontsize=7)


def plot_units(margins: Sequence[MarginChange]) -> Figure:
    """Units with their synthetic images, maps before and after, and contributions."""
    most = max(len(m.top) for m in margins)
    heights = [4.6 if m.has_maps else 2.5 for m in margins]
    figure = plotting.new_figure(1.35 * most + 0.9, sum(heights))
    parts: Any = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
    for part, found in zip(parts[:, 0], margins, strict=True):
        part.suptitle(
            f"{found.layer}: {100 * found.share:.0f}% of the sum of all contributions that raise "
            "the margin",
            fontsize=8.5,
            color=plotting.INK,
        )
        rows = ("synthetic", "before", "after") if found.has_maps else ("synthetic", "")
        ratios = (1.0,) * 3 if found.has_maps else (1.0, 0.4)
        axes = part.subplots(len(rows), most, squeeze=False, height_ratios=ratios)
        for ax in axes.flat:
            plotting.bare(ax)
        for column, unit in enumerate(found.top):
            _draw_unit(axes[:, column], found, unit)
        for ax, word in zip(axes[:, 0], rows, strict=True):
            ax.set_ylabel(word, fontsize=8, color=plotting.INK)
    return figure


def _draw_unit(axes: Sequence[Axes], found: MarginChange, unit: UnitContribution) -> None:
    title = f"{found.named}:{unit.unit}\n{plotting.signed_text(unit.logits)}"
    if unit.image is not None:
        plotting.show_image(axes[0], unit.image, title)
    else:
        plotting.bare(axes[0], title)
    if found.has_maps:
        end = max(float(unit.before.max()), float(unit.after.max()), 1e-12)
        for ax, values in zip(axes[1:], (unit.before, unit.after), strict=True):
            plotting.show_map(ax, values, 0, end)
        return
    ax, means = axes[1], [float(v.double().mean()) for v in (unit.before, unit.after)]
    ax.barh([0, 1], means, color=[plotting.INK, plotting.RED], height=0.62)
    for y, value in enumerate(means):
        ax.text(max(value, 0), y, f" {value:.2f}", va="center", fontsize=7)
    if unit is found.top[0]:
        ax.set_yticks([0, 1], ["before", "after"])
        ax.tick_params(axis="y", labelsize=8, length=0)
    ax.invert_yaxis()
    ax.set_xlim(min(0.0, *means), 1.3 * max(*means, 1e-12))


def plot_path(
    shown: PictureDiagnosis, path: FeaturePath, reference: Reference, classes: Sequence[str]
) -> Figure:
    """Nearest pictures from clean to adversarial, and the plane of the two classes."""
    at = [int((path.points - t).abs().argmin()) for t in _SHOWN_POINTS]
    figure = plotting.new_figure(6.2, 8.6)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.75, 1))
    axes = halves[0].subplots(1 + _NEIGHBORS, len(at), squeeze=False)
    pixelated = shown.original.shape[-1] <= 128
    frames = {shown.label: plotting.BLUE, shown.predicted: plotting.ORANGE}
    for ax in axes.flat:
        ax.axis("off")
    for column, p in zip(axes.T, at, strict=True):
        t = float(path.points[p])
        picture = shown.original + t * (shown.adversarial - shown.original)
        place = {0.0: "clean", 1.0: "adversarial"}.get(t, f"{100 * t:.0f}% of the way")
        title = f"{place}\n{short(classes[int(path.predictions[p])], 16)}"
        plotting.show_image(column[0], picture, title, pixelated=pixelated)
        for ax, row in zip(column[1:], path.neighbors[p].tolist(), strict=False):
            ax.axis("on")
            plotting.show_image(ax, reference.pictures[row], pixelated=pixelated)
            plotting.frame(ax, frames.get(int(reference.labels[row]), "#aaaaaa"), 2.2)
    for ax, word in zip(axes[:2, 0], ("picture", "nearest"), strict=True):
        ax.axis("on")
        ax.set_ylabel(word, fontsize=8, color=plotting.INK)
    _draw_plane(halves[1].subplots(), shown, path, reference.labels, classes)
    return figure


def _draw_plane(
    ax: Axes, shown: PictureDiagnosis, path: FeaturePath, labels: Tensor, classes: Sequence[str]
) -> None:
    own, other = labels == shown.label, labels == shown.predicted
    groups = (
        (~(own | other), "#cccccc", 5, "other classes"),
        (own, plotting.BLUE, 14, classes[shown.label]),
        (other, plotting.ORANGE, 14, classes[shown.predicted]),
    )
    for rows, color, size, name in groups:
        xy = path.reference_xy[rows]
        ax.scatter(xy[:, 0], xy[:, 1], s=size, color=color, linewidths=0, label=short(name))
    x, y = path.xy.T
    red: dict[str, Any] = {"color": plotting.RED, "markersize": 6}
    ax.plot(x, y, "-", linewidth=1.6, label="clean to adversarial", **red)
    ax.plot(x[:1], y[:1], "o", markerfacecolor="white", **red)
    ax.plot(x[-1:], y[-1:], "o", **red)
    plotting.lines(
        ax, xlabel="mean of the label (0) to mean of the prediction (1)", ylabel="across"
    )
    ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
