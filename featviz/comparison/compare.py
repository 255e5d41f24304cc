"""`compare(first, second, pictures)`: two models on the same pictures.

Both see the same pictures, so each picture is a pair. Clean predictions come from one pass over all
pictures, which also reads the units to be matched; robustness and corruptions are measured on some
of them by `audit` and `corruption_table`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import results
from featviz.attacks.options import check_batch_size
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.comparison.measured import (
    Measured,
    corrupted_of,
    read_measured,
    robustness_of,
    same_pictures,
)
from featviz.comparison.paired import Shown
from featviz.comparison.result import Comparison, comparison_warnings
from featviz.comparison.units import match_units
from featviz.corruptions.constants import CORRUPTIONS, SEVERITIES, settings
from featviz.corruptions.table import corruption_table
from featviz.data.datasets import Pictures, Skipped, batches
from featviz.data.from_python import Data, Labels, as_pictures
from featviz.data.labels import LabelReport, no_labels
from featviz.errors import UserError, nearest, public
from featviz.models.layers import tap
from featviz.pictures.images import visible
from featviz.robustness.audit import audit, check_grids
from featviz.types import BatchSize, Count, Engine, Progress, SearchSteps, Seed

if TYPE_CHECKING:
    from featviz.models.model import Model

PARTS = ("robustness", "corruptions", "units")
_SHOWN = 24  # pictures fixed, and as many broken


@public
def compare(
    first: Model,
    second: Model,
    pictures: Data,
    labels: Labels | None = None,
    *,
    parts: Sequence[str] = PARTS,
    norms: Sequence[str] = ("linf",),
    eps: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    steps: SearchSteps = 40,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    count: Count = 100,
    layers: Sequence[str] | None = None,
    names: tuple[str, str] | None = None,
    seed: Seed = 0,
    batch_size: BatchSize | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Comparison:
    """Two models on the same pictures: flips with an exact test, curves, units that match.

    Args:
        first: The model that is there, "before".
        second: The model that may take its place.
        pictures: A data set labeled by its class folders, of which those count that are classes of
            both models; or a tensor (N, C, H, W) in [0, 1] for both.
        labels: Of a tensor's pictures: indices, or names where the models number classes
            differently.
        parts: Beside the clean predictions: "robustness", "corruptions", "units".
        norms: Of robustness, as in `audit`.
        eps: The grid, as in `audit`.
        steps: Of the search for the smallest change, 10 or more.
        corruptions: Names, see `CORRUPTIONS`.
        severities: Of 1 to 5.
        count: Robustness and corruptions are measured on at most so many pictures, evenly spread.
        layers: Whose units are matched, as "conv5", or "conv5=layer4" where the names differ.
            Default: the last convolution of each.
        names: Of the models in the result; default: their own.
        seed: Of all random numbers.
        batch_size: Pictures that a model computes at once; default: by its device.
        checkpoint: A folder for finished pieces, from which a second call with the same arguments
            goes on; None keeps them in memory.
        engine: "here", or "ray": robustness and corruptions are measured on a Ray cluster.
        progress: Called with (done, total, text).

    Raises:
        UserError: No picture has a class of both models, or an argument is out of range.

    Example:
        featviz.compare(before, after, featviz.open_pictures("val")).save("run/compare")
    """
    started = time.perf_counter()
    for part in parts:
        if part not in PARTS:
            raise UserError(f"unknown part {part!r}{nearest(part, PARTS)} (of {', '.join(PARTS)})")
    grids = check_grids(norms, eps)
    for name in corruptions:
        for severity in severities:
            settings(name, severity, 224)
    pairs = _layer_pairs(first, second, layers) if "units" in parts else []
    called = names or _two_names(first.name, second.name)
    data, classes, reports = _shared_pictures(first, second, pictures, labels)
    size = check_batch_size(batch_size, first.device)
    parameters = {
        "models": list(called),
        "second": second.record(),
        "parts": list(parts),
        "norms": list(grids),
        "eps": {norm: list(grid) for norm, grid in grids.items()},
        "steps": steps,
        "corruptions": list(corruptions),
        "severities": list(severities),
        "count": count,
        "layers": [f"{one}={other}" for one, other in pairs],
        "batch_size": size,
    }
    job = parameters | {"model": first.record(), "seed": seed}
    job |= {"pictures": data.sha256, "state": data.state}
    beyond = _Beyond(
        data.spread(count),
        parts,
        grids,
        steps=steps,
        corruptions=corruptions,
        severities=severities,
        seed=seed,
        batch_size=batch_size,
    )
    measured, pooled = [], []
    skipped: tuple[list[Skipped], list[Skipped]] = ([], [])
    with open_checkpoint(checkpoint, job, engine=engine) as kept:
        for k, model in enumerate((first, second)):
            clean, units = _clean_pass(
                model,
                called[k],
                data,
                classes[k],
                [pair[k] for pair in pairs],
                size,
                skipped[k],
                progress,
            )
            measured.append(beyond.measure(model, clean, kept.part(f"model-{k + 1}"), progress))
            pooled.append(units)
    one, other = same_pictures(*measured)
    result = Comparison(
        origin=results.origin(first, parameters=parameters, started=started, data=data, seed=seed),
        data_name=data.name,
        first=one,
        second=other,
        units=tuple(
            match_units(pooled[0][pair[0]], pooled[1][pair[1]], pair, seed=seed) for pair in pairs
        ),
        shown=_shown(first, data, one, other),
    )
    if skipped[0]:
        paths = [one.path for one in skipped[0]]
        reports = [report.with_unreadable(paths, skipped[0][0].reason) for report in reports]
    notes = dict.fromkeys(note for report in reports for note in report.warnings)
    return replace(
        result,
        warnings=(*notes, *comparison_warnings(result)),
        label_report=reports[0],
    )


@dataclass(frozen=True)
class _Beyond:
    """What is measured of each model beside its clean predictions."""

    pictures: Pictures
    parts: Sequence[str]
    grids: Mapping[str, Sequence[float]]
    steps: int
    corruptions: Sequence[str]
    severities: Sequence[int]
    seed: int
    batch_size: int | None

    def measure(
        self, model: Model, clean: Measured, kept: Checkpoint, progress: Progress | None
    ) -> Measured:
        """The clean measurements with the parts added."""
        if "robustness" in self.parts:
            found = audit(
                model,
                self.pictures,
                norms=list(self.grids),
                eps=self.grids,
                steps=self.steps,
                check_steps=0,
                queries=0,
                parts=(),
                seed=self.seed,
                batch_size=self.batch_size,
                checkpoint=kept.part("audit"),
                progress=progress,
            )
            clean = replace(clean, robustness=robustness_of(found))
        if "corruptions" in self.parts:
            table = corruption_table(
                model,
                self.pictures,
                names=self.corruptions,
                severities=self.severities,
                seed=self.seed,
                batch_size=self.batch_size,
                checkpoint=kept.part("corruptions"),
                progress=progress,
            )
            clean = replace(clean, corrupted=corrupted_of(table))
        return clean


@public
def compare_results(
    first: str | Path, second: str | Path, *, names: tuple[str, str] | None = None
) -> Comparison:
    """Two saved results of `eval`, `audit` or `corrupt` on the same pictures, compared.

    Nothing is computed by a model, so no units are matched and no pictures shown.

    Args:
        first: Result folder of the model that is there, "before".
        second: Of the one that may take its place.
        names: Of the models in the result; default: those in the folders.

    Raises:
        UserError: A folder holds no such result, or they are of different pictures.

    Example:
        featviz.compare_results("run/eval-before", "run/eval-after").save("run/compare")
    """
    started = time.perf_counter()
    one, other = (
        read_measured(Path(folder), name)
        for folder, name in zip((first, second), names or ("", ""), strict=True)
    )
    called = names or _two_names(one.name, other.name)
    one, other = same_pictures(replace(one, name=called[0]), replace(other, name=called[1]))
    document = results.read_result(first)
    parameters = {
        "models": list(called),
        "folders": [Path(first).name, Path(second).name],
        "second": other.model,
    }
    origin = results.origin(None, parameters=parameters, started=started)
    origin = replace(origin, model=document.get("model"), data=document.get("data"))
    result = Comparison(
        origin=origin,
        data_name=str((document.get("data") or {}).get("name", "a tensor")),
        first=one,
        second=other,
    )
    return replace(result, warnings=tuple(comparison_warnings(result)))


def _two_names(first: str, second: str) -> tuple[str, str]:
    """Names that tell the models apart in tables."""
    return (first, second) if first != second else (f"{first} (1)", f"{second} (2)")


def _layer_pairs(
    first: Model, second: Model, layers: Sequence[str] | None
) -> list[tuple[str, str]]:
    """(layer of the first, layer of the second) for each "NAME" or "NAME=NAME"."""
    if layers is None:
        last = [_last_convolution(model) for model in (first, second)]
        return [(last[0], last[1])] if last[0] and last[1] else []
    pairs = []
    for text in layers:
        one, _, other = text.partition("=")
        pairs.append((first.layer(one).name, second.layer(other or one).name))
    return pairs


def _last_convolution(model: Model) -> str:
    """The last convolution that gives a map, "" without any."""
    found = [layer.name for layer in model.layers.values() if layer.kind.startswith("Conv")]
    return found[-1] if found else ""


def _shared_pictures(
    first: Model,
    second: Model,
    pictures: Data,
    labels: Labels | None,
) -> tuple[Pictures, tuple[list[int], list[int]], list[LabelReport]]:
    """The pictures that have a class of both models, those classes, and how labels fit each."""
    pictures = as_pictures(pictures, labels)
    reports = [pictures.label_report(model) for model in (first, second)]
    rows = [
        row
        for row, both in enumerate(zip(*(report.labels for report in reports), strict=True))
        if None not in both
    ]
    if not rows:
        for report, model in zip(reports, (first, second), strict=True):
            if not report.labeled:
                raise no_labels(report, pictures.root, model.name)
        raise UserError(f"no picture of {pictures.root} has a class of both models")
    classes = tuple([int(report.labels[row] or 0) for row in rows] for report in reports)
    return pictures.select(rows), (classes[0], classes[1]), reports


def _clean_pass(
    model: Model,
    name: str,
    data: Pictures,
    labels: Sequence[int],
    layers: Sequence[str],
    batch_size: int,
    skipped: list[Skipped],
    progress: Progress | None,
) -> tuple[Measured, dict[str, Tensor]]:
    """One pass over all pictures: predictions, and the mean of each unit of the layers (N, C)."""
    rows: list[int] = []
    predicted, confidence = [], []
    pooled: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with torch.inference_mode(), tap(model, layers) as taken:
        for batch in batches(data, model.preprocessing, batch_size=batch_size, skipped=skipped):
            probability = model(batch.images.to(model.device)).float().softmax(1)
            highest, best = probability.cpu().max(1)
            rows += batch.rows
            predicted += best.tolist()
            confidence.append(highest.double())
            for layer in layers:
                pooled[layer].append(_pooled(taken[layer]).cpu())
            if progress is not None:
                progress(len(rows), len(data), f"classifying with {name}")
    names = model.class_names
    own = [labels[row] for row in rows]
    measured = Measured(
        name=name,
        model=model.record(),
        names=tuple(data.paths[row] for row in rows),
        classes=tuple(names[label] for label in own),
        predicted=tuple(names[label] for label in predicted),
        right=torch.tensor(own) == torch.tensor(predicted),
        confidence=torch.cat(confidence),
    )
    return measured, {layer: torch.cat(parts) for layer, parts in pooled.items()}


def _pooled(activation: Tensor) -> Tensor:
    """(N, C): the mean over positions of (N, C, H, W), over tokens of (N, tokens, C)."""
    if activation.dim() == 4:
        return activation.float().mean((2, 3))
    return activation.float().mean(1) if activation.dim() == 3 else activation.float()


def _shown(
    model: Model, data: Pictures, first: Measured, second: Measured
) -> dict[str, tuple[Shown, ...]]:
    """Some pictures that the second model fixed and some that it broke, the surest first."""
    at = {path: row for row, path in enumerate(data.paths)}
    found = {}
    for word, mask in (
        ("fixed", ~first.right & second.right),
        ("broken", first.right & ~second.right),
    ):
        sure = torch.zeros(len(mask)) if second.confidence is None else second.confidence
        rows = sorted(mask.nonzero()[:, 0].tolist(), key=lambda row: -float(sure[row]))[:_SHOWN]
        found[word] = tuple(
            Shown(row, visible(data.read(at[first.names[row]], model.preprocessing)[None])[0])
            for row in rows
        )
    return found
