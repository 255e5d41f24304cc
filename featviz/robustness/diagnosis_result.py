"""`diagnose` and `Diagnosis`: what an adversarial change does inside the network, as a result.

`diagnosis` measures, `diagnosis_figures` draws; here the measurements of all pictures are put
together with synthetic images of units (`maximize`) and attributions of pixels (`attribute`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.attribution.attribute import attribute
from featviz.maximization.maximize import maximize
from featviz.models.frozen import frozen
from featviz.robustness import diagnosis_figures as figures
from featviz.robustness.diagnosis import (
    KINDS,
    LayerDiagnosis,
    MarginChange,
    PictureDiagnosis,
    Reference,
    contribution_layers,
    diagnose_layers,
    feature_path,
    margin_change,
)
from featviz.statistics import percentiles, resampled_medians
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model
    from featviz.types import Progress

_ATTRIBUTION = "integrated_gradients"
_ATTRIBUTION_STEPS = 32
_ENOUGH = 3  # pictures whose classes the reference shows, for a figure


@dataclass(frozen=True, kw_only=True, repr=False)
class Diagnosis(results.Result):
    """What changes in the network between clean and adversarial pictures."""

    kind: ClassVar[str] = "diagnosis"

    model_name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """of the pictures"""
    labels: Tensor
    predicted: Tensor
    size: str
    """of the changes, in words"""
    layers: LayerDiagnosis
    pictures: tuple[PictureDiagnosis, ...]
    """some of them in detail"""
    reference: Reference | None

    @property
    def title(self) -> str:
        return f"Inside {self.model_name}: {counted(len(self.names), 'adversarial picture')}"

    @property
    def _pictures(self) -> str:
        return counted(len(self.names), "picture")

    def numbers(self) -> dict[str, results.Number]:
        layers, changes = self.layers.layers, self.layers.changes
        last = {kind: float(changes[kind].relative.median(0).values[-1]) for kind in KINDS}
        gain = changes["adversarial"].gain
        strongest = int(gain.argmax())
        at_logits = torch.stack([changes[kind].relative[:, -1] for kind in KINDS], dim=1)
        drawn = resampled_medians(at_logits)
        times = drawn[:, KINDS.index("adversarial")] / drawn[:, KINDS.index("noise")].clamp(1e-12)
        gains = resampled_medians(changes["adversarial"].gains[:, [strongest]])
        n = len(self.names)
        found = {
            "moves the logits": results.Number(
                last["adversarial"] / max(last["noise"], 1e-12),
                "times",
                "as much as noise of equal norm; median over pictures",
                *percentiles(times),
                n,
            ),
            "strongest gain": results.Number(
                float(gain[strongest]),
                "times",
                f"relative change at {layers[strongest]}, over that of the picture",
                *percentiles(gains[:, 0]),
                n,
            ),
        }
        flips = Counter(flip for flip in self.layers.flips if flip is not None)
        if flips:
            place = max(flips, key=lambda name: (flips[name], -layers.index(name)))
            found["predicted class nearer from"] = results.Number(
                place,
                "",
                "commonest layer from which on pictures are nearer to the mean of the wrongly "
                f"predicted class: {flips[place]} of {flips.total()} that change sides; "
                f"{int(self.layers.placed.sum())} have reference pictures of both classes",
            )
        if self.pictures and self.pictures[0].margins:
            margin = self.pictures[0].margins[-1]
            found["margin explained"] = results.Number(
                margin.explained / margin.change if margin.change else None,
                "fraction",
                f"of its change by the units of {margin.layer}; the remainder is curvature",
            )
        return found

    def plot(self) -> Figure:
        return figures.plot_layers(self.layers)

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "layers.svg",
            self.plot(),
            caption=f"How far each layer moves, {self._pictures}, {self.size}: lines are "
            "medians, bands the middle half. Left: norm of the change over the norm of the "
            "activation; middle: how far the direction turns (1 - cosine); right: share of ReLU "
            "units switched on or off. Noise and blur have the same L2 norm as the adversarial "
            "change of each picture, so the difference is due to its direction.",
            alt="Curves over the layers for adversarial change, noise and blur of equal norm",
        )
        placed = int(self.layers.placed.sum())
        if placed >= _ENOUGH:
            folder.figure(
                "classes.svg",
                figures.plot_classes(self.layers),
                caption=f"From which layer on the predicted class is nearer, in the {placed} "
                "pictures with reference pictures of both classes. Left: where pictures lie "
                "between the mean activations of their label's class (1) and of the wrongly "
                "predicted class (-1): medians, with the middle half for clean and adversarial; "
                "the other changes are measured towards the same two classes. Right: the first "
                "layer from which on a picture stays nearer to the predicted class.",
                alt="Curves of nearness to the label's class over the layers, and a bar chart",
            )
        for i, picture in enumerate(self.pictures, 1):
            self._write_picture(folder, i, picture)

    def _write_picture(self, folder: results.Folder, i: int, shown: PictureDiagnosis) -> None:
        name = self.names[shown.row]
        label, predicted = self.classes[shown.label], self.classes[shown.predicted]
        folder.figure(
            f"{i:02d}-picture.svg",
            figures.plot_picture(shown, self.classes),
            caption=f"{name}: {label} becomes {predicted}. Above: the picture, the change "
            "(multiplied, around mid-gray) and the sum of both. Below: attribution of each of the "
            "two classes to the pixels (red: for, blue: against), before and after, all on one "
            "scale (integrated gradients).",
            alt=f"Original, change and adversarial picture of {name} with attributions",
        )
        if shown.margins:
            parts = "; ".join(
                f"{m.layer}: all units together {m.explained:+.2f} of {m.change:+.2f} logits"
                for m in shown.margins
            )
            folder.figure(
                f"{i:02d}-units.svg",
                figures.plot_units(shown.margins),
                caption="The units that contribute most to the change of the margin from "
                f"{label} to {predicted}. Each with a synthetic image that activates it, its map "
                "before and after (one scale a unit, from 0), and its contribution: its change "
                f"times the gradient of the margin. {parts}; the remainder is curvature.",
                alt=f"Units with synthetic images and maps before and after, for {name}",
                units=[f"{m.named}:{u.unit}" for m in shown.margins for u in m.top],
            )
        if shown.path is not None:
            assert self.reference is not None
            folder.figure(
                f"{i:02d}-path.svg",
                figures.plot_path(shown, shown.path, self.reference, self.classes),
                caption=f"From {name} to its adversarial copy in {shown.path.layer}. Above: points "
                "on the line between the two, with the model's prediction, and under each its "
                "nearest reference pictures (cosine), framed blue for the label's class and orange "
                "for the predicted one. Below: the same points in the plane through the two "
                "classes' means; dots are reference pictures.",
                alt="Nearest pictures between clean and adversarial, and a scatter plot",
            )

    def tables(self) -> Iterator[results.Table]:
        def known(value: Tensor) -> float | str:
            return "" if math.isnan(value) else float(value)

        rows: list[tuple[object, ...]] = []
        for kind in KINDS:
            change = self.layers.changes[kind]
            quartiles = change.relative.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), 0)
            columns = (
                *quartiles,
                change.gain,
                change.cosine.median(0).values,
                change.switched.median(0).values,
                change.nearness.nanmedian(0).values,
            )
            rows += [
                (layer, kind, *(known(column[j]) for column in columns))
                for j, layer in enumerate(self.layers.layers)
            ]
        header = "layer change relative_25 relative_50 relative_75 gain cosine switched nearness"
        yield results.Table(
            "layers.csv",
            header.split(),
            rows,
            caption=f"Layer by layer, {self._pictures}: relative norm of the change "
            "(quartiles), its gain over the picture's own, cosine, switched ReLUs, nearness to "
            "the label's class (1) or the predicted one (-1); medians.",
        )
        yield results.Table(
            "pictures.csv",
            ("picture", "label", "predicted", "first_flip"),
            (
                (name, self.classes[int(y)], self.classes[int(t)], flip or "")
                for name, y, t, flip in zip(
                    self.names, self.labels, self.predicted, self.layers.flips, strict=True
                )
            ),
            caption="The pictures, and the layer from which on each stays nearer to the mean of "
            "the predicted class (empty: none, or no reference pictures of its classes).",
        )
        units = [
            (
                self.names[shown.row],
                m.layer,
                f"{m.named}:{u.unit}",
                u.logits,
                m.change,
                m.explained,
                float(u.before.double().mean()),
                float(u.after.double().mean()),
            )
            for shown in self.pictures
            for m in shown.margins
            for u in m.top
        ]
        if units:
            yield results.Table(
                "units.csv",
                ("picture", "layer", "unit", "logits", "change", "explained", "before", "after"),
                units,
                caption="Units that contribute most to the change of the margin, in logits; the "
                "whole change, the sum over all units of the layer, and the unit's mean activation "
                "before and after.",
            )


def diagnose(
    model: Model,
    pictures: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    predicted: Tensor,
    *,
    names: Sequence[str] | None = None,
    size: str = "",
    reference: Reference | None = None,
    detailed: int = 2,
    units: int = 4,
    image_steps: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """What changes in the network between pictures and their adversarial copies.

    Args:
        model: The classifier.
        pictures: (N, 3, S, S) in [0, 1].
        adversarial: Their adversarial copies, of the same shape.
        labels: (N,) classes of the pictures.
        predicted: (N,) classes of the adversarial copies.
        names: Of the pictures, for tables and captions.
        size: Of the changes, in words for the captions.
        reference: Pictures of the classes involved, none of them among `pictures`. Without them
            there are no class means and no neighbors.
        detailed: How many pictures are shown in detail, the first ones whose classes are in
            `reference`.
        units: How many units are listed in each layer.
        image_steps: Of their synthetic images; 0 for none.
        seed: Of noise and images.
        progress: Called with (done, total, text).

    Raises:
        UserError: There is no picture.
    """
    started = time.perf_counter()
    x, moved = pictures.detach().cpu().float(), adversarial.detach().cpu().float()
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    names = tuple(names or (f"picture {i + 1}" for i in range(len(x))))

    def report(done: int, text: str) -> None:
        if progress is not None:
            progress(done, 1 + detailed, text)

    report(0, "layer by layer")
    labels, predicted = labels.cpu(), predicted.cpu()
    layers = diagnose_layers(model, x, moved, labels, predicted, reference, seed=seed)
    known = [i for i in range(len(x)) if reference is not None and reference.shows(*pairs[i])]
    chosen = sorted(range(len(x)), key=lambda i: i not in known)[:detailed]
    shown = []
    for k, i in enumerate(chosen):
        report(1 + k, f"inside: {names[i]}")
        case = (model, x[i], moved[i], *pairs[i])
        with frozen(model):
            margins = [margin_change(*case, la, units) for la in contribution_layers(model)]
            path = feature_path(*case, reference) if reference and i in known else None
        if image_steps:
            margins = [_with_images(model, m, image_steps, seed) for m in margins]
        shown.append(
            PictureDiagnosis(
                row=i,
                original=x[i],
                adversarial=moved[i],
                label=pairs[i][0],
                predicted=pairs[i][1],
                margins=tuple(margins),
                path=path,
                flip=layers.flips[i],
                attributions={
                    model.class_name(c): _attribution(model, torch.stack([x[i], moved[i]]), c, seed)
                    for c in dict.fromkeys(pairs[i])
                },
            )
        )
    return Diagnosis(
        origin=results.origin(
            model,
            parameters={
                "pictures": list(names),
                "detailed": detailed,
                "units": units,
                "image_steps": image_steps,
            },
            started=started,
            seed=seed,
        ),
        model_name=model.name,
        classes=model.class_names,
        names=names,
        labels=labels,
        predicted=predicted,
        size=size,
        layers=layers,
        pictures=tuple(shown),
        reference=reference,
    )


def _with_images(model: Model, found: MarginChange, steps: int, seed: int) -> MarginChange:
    """The same with a synthetic image of each unit listed."""
    made = maximize(model, found.named, units=[u.unit for u in found.top], steps=steps, seed=seed)
    top = (replace(u, image=made.images[k].cpu()) for k, u in enumerate(found.top))
    return replace(found, top=tuple(top))


def _attribution(model: Model, pictures: Tensor, target: int, seed: int) -> Tensor:
    """(2, H, W): attribution of a class on the clean and on the adversarial picture."""
    methods = (_ATTRIBUTION,)
    found = attribute(
        model, pictures, target=target, methods=methods, steps=_ATTRIBUTION_STEPS, seed=seed
    )
    return found.maps[_ATTRIBUTION].float()
