"""`describe_units`: words for the units of a layer, from their values on a data set.

Comes in: a model, labeled pictures, a layer. Goes out: `Descriptions`: classes, groups and pairs
(`activations`), with `tuning` also the drawn stimuli that each unit prefers, and with a vocabulary
the words that another model has for the pictures on which the unit is high.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from featviz import results
from featviz.checkpoints import Arrays, Checkpoint, open_checkpoint
from featviz.data.datasets import Pictures, batches
from featviz.data.from_python import Data, Labels, as_pictures
from featviz.descriptions.activations import Beam, Permutations, describe_activations
from featviz.descriptions.groups import read_groups
from featviz.descriptions.text_names import TextModel, name_units, open_text_model, read_vocabulary
from featviz.descriptions.tuning import is_early, measure_tuning
from featviz.embedding.reduction import Reduction
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError, public
from featviz.models.layers import activations
from featviz.models.units import parse_units
from featviz.pictures import images
from featviz.types import BatchSize, Count, Engine, Progress, Seed
from featviz.wording import unread

if TYPE_CHECKING:
    from featviz.descriptions.result import Descriptions
    from featviz.models.model import Layer, Model

_PIECE, _EXAMPLES, _SIDE = 256, 6, 64
"""pictures of a piece; shown of a unit, and pixels of their side"""


@public
def describe_units(
    model: Model,
    pictures: Data,
    layer: str,
    *,
    units: str | Sequence[int | str] = "all",
    labels: Labels | None = None,
    reduce: Literal["max", "mean"] = "max",
    groups: Mapping[str, Sequence[str]] | str | Path | None = None,
    pairs: bool = True,
    beam: Beam = 4,
    least: Count = 5,
    permutations: Permutations = 500,
    tuning: bool | None = None,
    vocabulary: Sequence[str] | str | Path | None = None,
    text_model: TextModel | str | None = None,
    engine: Engine = "here",
    checkpoint: str | Path | None = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Descriptions:
    """Which class, group or pair of these each unit responds to, and which drawn stimuli.

    Args:
        model: The model.
        pictures: A labeled data set, as `as_pictures` takes it.
        layer: Where to read.
        units: "0-7", "3,12", "all", class names of logits, or a sequence.
        labels: A class for each picture; default: those of the data.
        reduce: Of a map its maximum or its mean over positions.
        groups: {group: its classes or groups}, or a file of lines class TAB group (`read_groups`);
            default: ours of ImageNet's classes, where those of the data are among them.
        pairs: As in `describe_activations`, like beam, least, permutations.
        tuning: Measure tuning curves by drawn stimuli; default: for the first two layers with
            weights.
        vocabulary: Words, or a file with one on each line, for `text_model` to choose from.
        text_model: Two functions that embed pictures and texts in one space (`TextModel`),
            "FILE.py:FUNCTION" that returns them, or "open_clip/NAME:WEIGHTS".
        engine: "here", or "ray": pieces of the data set are read by a Ray cluster.
        checkpoint: A folder for finished pieces, from which the same call goes on.
        batch_size: Pictures a forward pass.
        seed: Of the shuffles.
        progress: Called with (done, all, text).

    Raises:
        UserError: No labels, no group that fits, an unknown layer or unit, or a vocabulary without
            a text model.

    Example:
        >>> found = featviz.describe_units(model, "photographs", "relu5")
        >>> print(found.sentences()[134])
        relu5:134: goldfish (AUROC 0.97 [0.93 to 0.99]; found on 100% of goldfish, ...)
    """
    started = time.perf_counter()
    place = model.layer(layer)
    which = [unit.index for unit in parse_units(model, place.name, units)]
    if (vocabulary is None) != (text_model is None):
        raise UserError("a vocabulary needs a text model that knows its words, and it a vocabulary")
    words = None if vocabulary is None else read_vocabulary(vocabulary)
    tower = None if text_model is None else open_text_model(text_model)
    grouped = read_groups(groups) if isinstance(groups, str | Path) else groups
    data = as_pictures(pictures, labels, model=model)
    if not data.classes:
        raise UserError(
            f"{data.name} has no classes, by which units could be described; put the pictures of a "
            "class in one folder, or give labels"
        )
    values, rows = _read(model, data, place, reduce, batch_size, engine, checkpoint, progress)
    skipped, data = len(data) - len(rows), data.select(rows)
    classes, class_names = _labels(model, data)
    names = [f"{place.name}:{i}" for i in which]
    found = describe_activations(
        values[:, which],
        classes,
        units=names,
        subject=f"{place.name} in {model.name}",
        class_names=class_names,
        groups=grouped,
        pairs=pairs,
        beam=beam,
        least=least,
        permutations=permutations,
        seed=seed,
        progress=progress,
    )
    notes = (unread(skipped),) if skipped else ()
    tuned = is_early(model, place) if tuning is None else tuning
    return replace(
        found,
        origin=results.origin(
            model,
            parameters={**found.origin.parameters, "layer": place.name, "reduce": reduce},
            started=started,
            data=data,
            seed=seed,
        ),
        warnings=(*found.warnings, *notes),
        examples=_examples(data, values[:, which], names, [one.unit for one in found.described]),
        tuning=measure_tuning(model, place, which, progress=progress) if tuned else None,
        text_names=(
            name_units(tower, words, data, model, values[:, which], names, permutations, seed)
            if tower is not None and words is not None
            else None
        ),
    )


@dataclass(frozen=True)
class _Read:
    """The values of some pictures of a data set, for `map_pieces`."""

    model: Model
    data: Pictures
    layer: Layer
    reduction: Reduction
    batch_size: int

    def __call__(self, span: range, report: Callable[[int], None]) -> Arrays:
        rows: list[int] = []
        parts = [torch.empty(0, self.layer.units)]
        for batch in batches(
            self.data, self.model.preprocessing, batch_size=self.batch_size, span=span
        ):
            with torch.no_grad():
                taken = activations(
                    self.model, batch.images.to(self.model.device), [self.layer.name]
                )
            values = self.reduction(taken[self.layer.name], self.layer, batch.rows)
            parts.append(values.float().cpu())
            rows += batch.rows
            report(len(rows))
        return {"values": torch.cat(parts).numpy(), "rows": torch.tensor(rows).long().numpy()}


def _read(
    model: Model,
    data: Pictures,
    layer: Layer,
    reduce: Literal["max", "mean"],
    batch_size: int,
    engine: Engine,
    checkpoint: str | Path | Checkpoint | None,
    progress: Progress | None,
) -> tuple[Tensor, list[int]]:
    """(N, units) values, and the rows of the data set that could be read."""
    read = _Read(model, data, layer, Reduction(reduce), batch_size)
    spans = [range(at, min(at + _PIECE, len(data))) for at in range(0, len(data), _PIECE)]
    pieces = [Piece(f"rows-{span.start:08}", span, len(span)) for span in spans]
    job = {
        "command": "describe",
        "model": model.record(),
        "data": [data.sha256, data.state],
        "layer": layer.name,
        "reduce": reduce,
        "batch_size": batch_size,
    }
    opened = open_checkpoint(checkpoint, job, total=len(data), unit="pictures", engine=engine)
    with opened as kept:
        device, text = model.device.type, f"reading {layer.name}"
        whole = [*map_pieces(read, pieces, kept, device=device, progress=progress, text=text)]
    rows = [int(row) for one in whole for row in one["rows"]]
    if not rows:
        raise UserError(f"no picture of {data.root} could be read")
    return torch.cat([torch.from_numpy(one["values"]) for one in whole]), rows


def _labels(model: Model, data: Pictures) -> tuple[list[str | None], dict[str, str]]:
    """A synset or folder for each picture, and readable names of the model's classes."""
    found = [None] * len(data) if model.headless else data.labels(model)
    labels: list[str | None] = []
    names: dict[str, str] = {}
    for number, folder in zip(found, data.folders, strict=True):
        label = folder
        if number is not None and folder:
            label = model.synsets[number] or folder
            names[label] = model.classes[number]
        labels.append(label or None)
    return labels, names


def _examples(
    data: Pictures, values: Tensor, names: Sequence[str], wanted: Sequence[str]
) -> dict[str, Tensor]:
    """The pictures on which each wanted unit is highest, (k, 3, side, side) uint8."""
    found, read = {}, dict[int, Tensor]()
    column = {name: i for i, name in enumerate(names)}
    for name in wanted:
        order = values[:, column[name]].argsort(descending=True, stable=True)[:_EXAMPLES].tolist()
        for row in order:
            if row not in read:
                read[row] = images.to_uint8(data.shown(row, _SIDE))
        found[name] = torch.stack([read[row] for row in order])
    return found
