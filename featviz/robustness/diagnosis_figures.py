"""`look_inside` and `Inside`: what changes in the network, as figures and tables.

The numbers come from `diagnosis`; here units get their synthetic images, pictures their
attributions, and all of it a place on paper. `Inside` is no result folder of its own: an audit and
an attack write it into theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featviz import plotting, results
from featviz.attacks.figures import short, shown_perturbation
from featviz.attacks.projections import l2_distance
from featviz.models.frozen import frozen
from featviz.robustness.diagnosis import (
    CORRUPTION,
    KINDS,
    Account,
    Diagnosis,
    Portrait,
    Reference,
    UnitShare,
    account,
    account_layers,
    check_reference,
    diagnose,
    follow,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.models.model import Model

COLOURS = {
    "adversarial": plotting.RED,
    "noise": plotting.GREEN,
    "blur": plotting.BLUE,
    "clean": plotting.INK,
}
WORDS = {
    "adversarial": "adversarial",
    "noise": "random noise",
    "blur": "Gaussian blur",
    "clean": "clean",
}
_METHOD = "integrated_gradients"
_STRIP = (0.0, 0.25, 0.5, 0.75, 1.0)  # points of the way that are shown
_NEIGHBORS = 4
_ENOUGH = 3  # pictures that must be placed between their classes for a figure
_FINEST = 56  # most cells of a drawn attribution on a side
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What changes between clean and adversarial pictures."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    """of the pictures"""
    labels: Tensor
    predicted: Tensor
    size: str
    """of the changes, in words"""
    diagnosis: Diagnosis
    portraits: tuple[Portrait, ...]
    reference: Reference | None

    def numbers(self) -> dict[str, results.Number]:
        layers = self.diagnosis.layers
        grown = self._median("adversarial")[-1] / max(self._median("noise")[-1], 1e-12)
        gain = self._gain("adversarial")
        strongest = int(gain.argmax())
        found = {
            "moves the logits": results.Number(
                grown,
                "times",
                f"as much as noise of equal size; median of {len(self.names)} pictures",
            ),
            "strongest gain": results.Number(
                float(gain[strongest]),
                "times",
                f"relative change at {layers[strongest]}, over that of the picture",
            ),
        }
        flips = Counter(flip for flip in self.diagnosis.flips if flip is not None)
        if flips:
            place = max(flips, key=lambda name: (flips[name], -layers.index(name)))
            found["false class takes over"] = results.Number(
                place,
                "",
                f"commonest layer from which on pictures are nearer to the false "
                f"class's mean: {flips[place]} of {sum(flips.values())} that flip; "
                f"{int(self._placed().sum())} could be placed",
            )
        if self.portraits and self.portraits[0].accounts:
            last = self.portraits[0].accounts[-1]
            found["margin explained"] = results.Number(
                last.explained / last.change if last.change else None,
                "fraction",
                f"of its change by the units of {last.layer}; what is missing is curvature",
            )
        return found

    def _median(self, kind: str) -> list[float]:
        return [float(v) for v in self.diagnosis.comparisons[kind].relative.median(0).values]

    def _gain(self, kind: str) -> Tensor:
        """(L,) median of the layer's relative change over the picture's."""
        found = self.diagnosis.comparisons[kind]
        return (found.relative / found.input_relative[:, None].clamp(min=1e-300)).median(0).values

    def write(self, folder: results.Folder) -> None:
        count = len(self.names)
        folder.figure(
            "inside-layers.svg",
            self.plot_layers(),
            caption=f"How far each layer moves, {count} pictures, {self.size}: lines are medians, "
            "bands the middle half. Left: length of the change over the length of the activation; "
            "middle: how far the direction turns (1 - cosine); right: share of ReLU units that "
            "went on or off. Noise and blur have the same L2 size as the adversarial change of "
            "each picture: what they do not move and the attack does is the attack's own.",
            alt="Curves over the layers for adversarial change, noise and blur of equal size",
        )
        placed = self._placed()
        if int(placed.sum()) >= _ENOUGH:
            folder.figure(
                "inside-classes.svg",
                self.plot_classes(),
                caption="Where the false class takes over, in the "
                f"{int(placed.sum())} pictures of whose classes there are others to compare. Left: "
                "where pictures lie between the mean activations of their own class (1) and of "
                "the false one (-1): medians, with the middle half for clean and adversarial; the "
                "other changes are measured towards the same two classes. "
                "Right: the first layer from which on a picture stays nearer to the false class.",
                alt="Curves of nearness to the own class over the layers, and a bar chart",
            )
        for i, portrait in enumerate(self.portraits, 1):
            self._write_portrait(folder, i, portrait)
        self._write_tables(folder)

    def _write_portrait(self, folder: results.Folder, i: int, portrait: Portrait) -> None:
        name = self.names[portrait.row]
        own, false = self.classes[portrait.label], self.classes[portrait.predicted]
        factor = shown_perturbation(portrait.adversarial - portrait.original)[1]
        folder.figure(
            f"inside-{i:02d}-picture.png",
            self.plot_picture(portrait),
            caption=f"{name}: {own} becomes {false}. Above: the picture, the change times "
            f"{factor:,.0f} round mid-grey, the sum of both. Below: which pixels speak for (red) "
            "and against (blue) each of the two classes, before and after, all on one scale "
            "(integrated gradients).",
            alt=f"Original, change and adversarial picture of {name} with attributions",
        )
        if portrait.accounts:
            units = [f"{a.named}:{u.unit}" for a in portrait.accounts for u in a.top]
            parts = "; ".join(
                f"{a.layer}: all units together {a.explained:+.2f} of {a.change:+.2f} logits"
                for a in portrait.accounts
            )
            folder.figure(
                f"inside-{i:02d}-units.png",
                self.plot_units(portrait),
                caption=f"The units that carry most of the change from {own} to {false}. Each "
                "with the synthetic image that it likes most, its map before and after (one "
                "scale a unit, from 0), and what it adds to the lead of the false class: its "
                f"change times the margin's slope. {parts}; what is missing is curvature.",
                alt=f"Units with synthetic images and maps before and after, for {name}",
                units=units,
            )
        if portrait.path is not None:
            folder.figure(
                f"inside-{i:02d}-path.png",
                self.plot_path(portrait),
                caption=f"The way of {name} through {portrait.path.layer}. Above: points between "
                "the clean and the adversarial picture, with the model's answer, and under each "
                "its nearest pictures of the data (cosine), framed blue for its own class and "
                "orange for the false one. Below: the same way in the plane through the two "
                "classes' means; dots are pictures of the data.",
                alt="Nearest pictures along the way from clean to adversarial, and a map",
            )

    def _write_tables(self, folder: results.Folder) -> None:
        found, layers = self.diagnosis, self.diagnosis.layers
        rows = []
        for kind in KINDS:
            c = found.comparisons[kind]
            gain = self._gain(kind)
            for j, layer in enumerate(layers):
                quarters = [c.relative[:, j].quantile(q).item() for q in (0.25, 0.5, 0.75)]
                switched = float(c.switched[:, j].median())
                nearer = float(c.nearer[:, j].nanmedian())
                rows.append(
                    (
                        layer,
                        kind,
                        *quarters,
                        float(gain[j]),
                        float(c.cosine[:, j].median()),
                        "" if math.isnan(switched) else switched,
                        "" if math.isnan(nearer) else nearer,
                    )
                )
        folder.table(
            "inside-layers.csv",
            (
                "layer",
                "change",
                "relative_25",
                "relative_50",
                "relative_75",
                "gain",
                "cosine",
                "switched",
                "nearness",
            ),
            rows,
            caption=f"Layer by layer, {len(self.names)} pictures: relative length of the change "
            "(quartiles), its gain over the picture's own, cosine, switched ReLUs, nearness to "
            "the own class (1) or the false one (-1); medians.",
        )
        folder.table(
            "inside-pictures.csv",
            ("picture", "label", "becomes", "first_flip"),
            (
                (name, self.classes[int(y)], self.classes[int(t)], flip or "")
                for name, y, t, flip in zip(
                    self.names, self.labels, self.predicted, found.flips, strict=True
                )
            ),
            caption="The pictures followed, and the layer from which on each stays nearer to the "
            "mean of the false class (empty: at none, or without class means).",
        )
        lines = [
            (
                self.names[p.row],
                a.layer,
                f"{a.named}:{u.unit}",
                u.logits,
                a.change,
                a.explained,
                float(u.before.double().mean()),
                float(u.after.double().mean()),
            )
            for p in self.portraits
            for a in p.accounts
            for u in a.top
        ]
        if lines:
            folder.table(
                "inside-units.csv",
                ("picture", "layer", "unit", "logits", "change", "explained", "before", "after"),
                lines,
                caption="Units that carry most of the change of the margin, in logits; the whole "
                "change, what all units of the layer together explain of it, and the unit's mean "
                "activation before and after.",
            )

    def _placed(self) -> Tensor:
        """(N,) bool: the reference shows both of the picture's classes."""
        return self.diagnosis.clean_nearer.isfinite().all(1)

    def plot_layers(self) -> Figure:
        """Relative change, turn and switched ReLUs over the layers."""
        figure = plotting.new_figure(10.5, 3.4)
        panels = figure.subplots(1, 3)
        layers = self.diagnosis.layers
        known = self.diagnosis.comparisons["noise"].switched.isfinite().all(0)
        relus = known.nonzero()[:, 0].tolist()
        for kind in KINDS:
            c = self.diagnosis.comparisons[kind]
            every = list(range(len(layers)))
            for ax, values, shown in (
                (panels[0], c.relative, every),
                (panels[1], 1 - c.cosine, every),
                (panels[2], 100 * c.switched, relus),
            ):
                if shown:
                    _band(ax, range(len(shown)), values[:, shown], COLOURS[kind], WORDS[kind])
        for ax, words, shown in (
            (panels[0], "relative change", list(range(len(layers)))),
            (panels[1], "1 - cosine", list(range(len(layers)))),
            (panels[2], "switched ReLUs (%)", relus),
        ):
            plotting.lines(ax, xlabel="", ylabel=words)
            ax.set_xticks(range(len(shown)), [short(layers[j], 14) for j in shown], rotation=90)
            ax.tick_params(axis="x", labelsize=7)
        for ax in panels[:2]:
            ax.set_yscale("log")
        panels[0].legend(fontsize=7.5, frameon=False)
        return figure

    def plot_classes(self) -> Figure:
        """Nearness to the own class over the layers, and where pictures flip."""
        figure = plotting.new_figure(8.6, 3.4)
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        layers = self.diagnosis.layers
        x = range(len(layers))
        placed = self._placed()
        clean = self.diagnosis.clean_nearer[placed]
        _band(left, x, clean, COLOURS["clean"], WORDS["clean"])
        for kind in KINDS:
            values = self.diagnosis.comparisons[kind].nearer[placed]
            _band(left, x, values, COLOURS[kind], WORDS[kind], middle_half=kind == "adversarial")
        left.axhline(0, color=plotting.INK, linewidth=0.8)
        plotting.lines(left, xlabel="", ylabel="false class ←  nearness  → own class")
        left.set_xticks(x, [short(layer, 14) for layer in layers], rotation=90)
        left.tick_params(axis="x", labelsize=7)
        left.legend(fontsize=7.5, frameon=False)
        flips = [flip for flip, there in zip(self.diagnosis.flips, placed, strict=True) if there]
        counts = Counter(flip or "never" for flip in flips)
        order = [layer for layer in (*layers, "never") if counts[layer]]
        right.barh(
            range(len(order)), [counts[layer] for layer in order], color=plotting.RED, height=0.66
        )
        right.set_yticks(range(len(order)), [short(layer, 16) for layer in order])
        right.invert_yaxis()
        plotting.lines(right, xlabel="pictures that flip for good", ylabel="")
        from matplotlib.ticker import MaxNLocator

        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        return figure

    def plot_picture(self, portrait: Portrait) -> Figure:
        """Original, change, adversarial; attributions for both classes before and after."""
        own, false = self.classes[portrait.label], self.classes[portrait.predicted]
        change, factor = shown_perturbation(portrait.adversarial - portrait.original)
        pixelated = portrait.original.shape[-1] <= 128
        figure = plotting.new_figure(8.4, 4.9)
        axes = figure.subplots(2, 4)
        size = float(l2_distance(portrait.original[None], portrait.adversarial[None]))
        top = (
            (portrait.original, short(own, 24)),
            (change, f"change × {factor:,.0f}"),
            (portrait.adversarial, short(false, 24)),
        )
        for ax, (picture, title) in zip(axes[0], top, strict=False):
            plotting.show_image(ax, picture, title, pixelated=pixelated)
        axes[0, 3].axis("off")
        largest = float((portrait.adversarial - portrait.original).abs().max())
        axes[0, 3].text(
            0,
            0.5,
            f"largest change {255 * largest:.2g}/255\nL2 {size:.3g}\nflips at {portrait.flip}"
            if portrait.flip
            else f"largest change {255 * largest:.2g}/255\nL2 {size:.3g}",
            fontsize=8,
            va="center",
            color=plotting.INK,
            transform=axes[0, 3].transAxes,
        )
        block = max(1, portrait.original.shape[-1] // _FINEST)
        maps = [(name, _summed(pair, block)) for name, pair in portrait.attributions.items()]
        if not maps:
            for ax in axes[1]:
                ax.axis("off")
            return figure
        end = max(float(m.abs().flatten().quantile(0.995)) for _, m in maps) or 1.0
        shown = None
        for k, (name, pair) in enumerate(maps):
            for when in range(2):
                ax = axes[1, 2 * k + when]
                shown = ax.imshow(
                    pair[when].numpy(),
                    cmap=plotting.DIVERGING,
                    vmin=-end,
                    vmax=end,
                    interpolation="nearest",
                )
                plotting.bare(ax, f"for {short(name, 16)}, {'after' if when else 'before'}")
                plotting.frame(ax)
        assert shown is not None
        bar = figure.colorbar(
            shown,
            ax=axes[1].tolist(),
            orientation="horizontal",
            shrink=0.5,
            aspect=40,
            extend="both",
            pad=0.04,
        )
        bar.ax.tick_params(labelsize=7)
        cell = "pixel" if block == 1 else f"block of {block} × {block} pixels"
        bar.set_label(f"logits a {cell}", fontsize=7)
        return figure

    def plot_units(self, portrait: Portrait) -> Figure:
        """Units with their synthetic images, maps before and after, and what they add."""
        most = max(len(a.top) for a in portrait.accounts)
        heights = [4.6 if _has_maps(a) else 2.5 for a in portrait.accounts]
        figure = plotting.new_figure(1.35 * most + 0.9, sum(heights))
        parts: Any = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
        for part, found in zip(parts[:, 0], portrait.accounts, strict=True):
            part.suptitle(
                f"{found.layer}: these carry {100 * found.share:.0f}% of the push",
                fontsize=8.5,
                color=plotting.INK,
            )
            rows = ("likes", "before", "after") if _has_maps(found) else ("likes", "value")
            ratios = (1.0,) * 3 if _has_maps(found) else (1.0, 0.4)
            axes = part.subplots(len(rows), most, squeeze=False, height_ratios=ratios)
            for ax in axes.flat:
                plotting.bare(ax)
            for column, unit in enumerate(found.top):
                self._draw_unit(axes[:, column], found, unit)
            for ax, word in zip(axes[:, 0], rows, strict=True):
                if word != "value":
                    ax.set_ylabel(word, fontsize=8, color=plotting.INK)
        return figure

    def _draw_unit(self, axes: Sequence[Axes], found: Account, unit: UnitShare) -> None:
        title = f"{found.named}:{unit.unit}\n{plotting.signed_text(unit.logits)}"
        if unit.image is not None:
            plotting.show_image(axes[0], unit.image, title)
        else:
            plotting.bare(axes[0], title)
        if not _has_maps(found):
            values = [float(v.double().mean()) for v in (unit.before, unit.after)]
            ax = axes[1]
            ax.barh([0, 1], values, color=[plotting.INK, plotting.RED], height=0.62)
            for y, value in enumerate(values):
                ax.text(max(value, 0), y, f" {value:.2f}", va="center", fontsize=7)
            if unit is found.top[0]:
                ax.set_yticks([0, 1], ["before", "after"])
                ax.tick_params(axis="y", labelsize=8, length=0)
            ax.invert_yaxis()
            ax.set_xlim(min(0.0, *values), 1.3 * max(*values, 1e-12))
            return
        end = max(float(unit.before.max()), float(unit.after.max()), 1e-12)
        for ax, values_at in zip(axes[1:], (unit.before, unit.after), strict=True):
            ax.imshow(
                values_at.numpy(),
                cmap=plotting.SEQUENTIAL,
                vmin=0,
                vmax=end,
                interpolation="nearest",
            )

    def plot_path(self, portrait: Portrait) -> Figure:
        """Nearest pictures along the way, and the way in the plane of the two classes."""
        assert portrait.path is not None
        assert self.reference is not None
        path, reference = portrait.path, self.reference
        at = [int((path.points - t).abs().argmin()) for t in _STRIP]
        figure = plotting.new_figure(6.2, 8.6)
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.75, 1))
        above, below = halves
        axes = above.subplots(1 + _NEIGHBORS, len(at), squeeze=False)
        pixelated = portrait.original.shape[-1] <= 128
        for c, p in enumerate(at):
            t = float(path.points[p])
            picture = portrait.original + t * (portrait.adversarial - portrait.original)
            answer = short(self.classes[int(path.answers[p])], 16)
            title = {0.0: "clean", 1.0: "adversarial"}.get(t, f"{100 * t:.0f}% of the way")
            plotting.show_image(axes[0, c], picture, f"{title}\n{answer}", pixelated=pixelated)
            for r in range(_NEIGHBORS):
                ax = axes[1 + r, c]
                if r >= path.neighbors.shape[1]:
                    ax.axis("off")
                    continue
                row = int(path.neighbors[p, r])
                plotting.show_image(ax, reference.pictures[row], pixelated=pixelated)
                label = int(reference.labels[row])
                colour = {portrait.label: plotting.BLUE, portrait.predicted: plotting.ORANGE}.get(
                    label, "#aaaaaa"
                )
                plotting.frame(ax, colour, 2.2)
        axes[0, 0].set_ylabel("picture", fontsize=8, color=plotting.INK)
        axes[1, 0].set_ylabel("nearest", fontsize=8, color=plotting.INK)
        self._draw_plane(below.subplots(), portrait)
        return figure

    def _draw_plane(self, ax: Axes, portrait: Portrait) -> None:
        assert portrait.path is not None
        assert self.reference is not None
        path, labels = portrait.path, self.reference.labels
        own, false = labels == portrait.label, labels == portrait.predicted
        groups = (
            (~(own | false), "#cccccc", 5, "other classes"),
            (own, plotting.BLUE, 14, self.classes[portrait.label]),
            (false, plotting.ORANGE, 14, self.classes[portrait.predicted]),
        )
        for rows, colour, size, name in groups:
            xy = path.reference_xy[rows]
            ax.scatter(xy[:, 0], xy[:, 1], s=size, color=colour, linewidths=0, label=short(name))
        way = path.xy
        ax.plot(way[:, 0], way[:, 1], "-", color=plotting.RED, linewidth=1.6, label="the way")
        ax.plot(
            way[:1, 0], way[:1, 1], "o", color=plotting.RED, markersize=6, markerfacecolor="white"
        )
        ax.plot(way[-1:, 0], way[-1:, 1], "o", color=plotting.RED, markersize=6)
        plotting.lines(ax, xlabel="own mean (0) to false mean (1)", ylabel="across")
        ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _summed(maps: Tensor, block: int) -> Tensor:
    """Maps (2, H, W) summed over blocks; what does not fill a block at the end is left out."""
    import torch.nn.functional as F

    return F.avg_pool2d(maps[:, None], block)[:, 0] * block**2


def _has_maps(found: Account) -> bool:
    """Whether the layer's units have maps, or one value each."""
    return all(unit.before.dim() == 2 for unit in found.top)


def _band(
    ax: Axes, x: Sequence[int], values: Tensor, colour: str, label: str, *, middle_half: bool = True
) -> None:
    """Median and, if wanted, middle half of (N, L) values over the layers."""
    low, middle, high = (values.double().quantile(q, 0).numpy() for q in (0.25, 0.5, 0.75))
    if middle_half:
        ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(x, middle, color=colour, marker="o", markersize=3, linewidth=1.5, label=label)


def look_inside(
    model: Model,
    pictures: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    predicted: Tensor,
    *,
    names: Sequence[str],
    size: str = "",
    reference: Reference | None = None,
    portraits: int = 2,
    units: int = 4,
    image_steps: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inside:
    """What changes in the network between pictures and their adversarial copies.

    pictures, adversarial: (N, 3, S, S) in [0, 1]; labels, predicted: (N,) classes left and reached
    names: of the pictures; size: of the changes, in words for the captions
    reference: pictures of the classes involved, none of them among `pictures`; without them there
        are no class means and no neighbours
    portraits: how many pictures are shown in full, the first ones whose classes the reference shows
    units: of each layer that are called to account; image_steps: of their synthetic images, 0 for
        none

    Raises UserError if there is no picture.
    """
    x, moved = pictures.detach().cpu().float(), adversarial.detach().cpu().float()
    labels, predicted = labels.cpu(), predicted.cpu()
    if progress is not None:
        progress(0, 1 + portraits, "layer by layer")
    found = diagnose(model, x, moved, labels, predicted, reference, seed=seed)
    known = [
        i for i in range(len(x)) if check_reference(reference, [int(labels[i]), int(predicted[i])])
    ]
    chosen = (known + [i for i in range(len(x)) if i not in known])[:portraits]
    shown = []
    for k, i in enumerate(chosen):
        if progress is not None:
            progress(1 + k, 1 + portraits, f"inside: {names[i]}")
        label, answer = int(labels[i]), int(predicted[i])
        path = None
        with frozen(model):
            accounts = tuple(
                account(model, x[i], moved[i], label, answer, layer, units)
                for layer in account_layers(model)
            )
            if i in known:
                assert reference is not None
                path = follow(model, x[i], moved[i], label, answer, reference)
        if image_steps:
            accounts = tuple(_with_images(model, a, image_steps, seed) for a in accounts)
        shown.append(
            Portrait(
                row=i,
                original=x[i],
                adversarial=moved[i],
                label=label,
                predicted=answer,
                accounts=accounts,
                path=path,
                flip=found.flips[i],
                attributions=_attributions(model, x[i], moved[i], (label, answer), seed),
            )
        )
    return Inside(
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        names=tuple(names),
        labels=labels,
        predicted=predicted,
        size=size,
        diagnosis=found,
        portraits=tuple(shown),
        reference=reference,
    )


def _with_images(model: Model, found: Account, steps: int, seed: int) -> Account:
    """The account with a synthetic image of each unit listed."""
    from featviz.maximization.maximize import maximize

    made = maximize(
        model, found.named, units=[unit.unit for unit in found.top], steps=steps, seed=seed
    )
    top = tuple(replace(u, image=made.images[k].cpu()) for k, u in enumerate(found.top))
    return replace(found, top=top)


def _attributions(
    model: Model, clean: Tensor, adversarial: Tensor, classes: tuple[int, int], seed: int
) -> Mapping[str, Tensor]:
    """Class name -> (2, H, W): evidence for the class on the clean and the adversarial picture."""
    from featviz.attribution.attribute import attribute

    both = torch.stack([clean, adversarial])
    return {
        model.class_name(c): attribute(
            model, both, target=c, methods=(_METHOD,), steps=32, seed=seed
        )
        .maps[_METHOD]
        .float()
        for c in dict.fromkeys(classes)
    }


__all__ = ["CORRUPTION", "Inside", "look_inside"]
