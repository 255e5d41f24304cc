"""`corruption_table`: how often a model is right under each corruption at each severity.

A cell of the table is a corruption at a severity. Cells are cut into pieces of some pictures, which
a checkpoint keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz import results
from featviz.attacks.evaluation import classify
from featviz.attacks.options import check_batch_size
from featviz.checkpoints import Arrays, Checkpoint, open_checkpoint
from featviz.corruptions.apply import check_shape, corrupt
from featviz.corruptions.constants import CORRUPTIONS, SEVERITIES, settings
from featviz.corruptions.result import Corruptions, corruption_warnings
from featviz.data.from_python import Data, Labels
from featviz.data.labeled import read_labeled
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.types import BatchSize, Count, Engine, Progress, Seed

if TYPE_CHECKING:
    from featviz.models.model import Model

_PIECE = 64  # pictures, or one batch if that is more
_UNIT = "corrupted pictures"


@public
def corruption_table(
    model: Model,
    pictures: Data,
    labels: Labels | None = None,
    *,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    count: Count | None = None,
    jpeg: bool = True,
    seed: Seed = 0,
    batch_size: BatchSize | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Corruptions:
    """Accuracy under each corruption at each severity, with its interval.

    Args:
        model: The classifier.
        pictures: What `as_pictures` takes; a float tensor (N, C, H, W) keeps its size.
        labels: Of a tensor's pictures, indices or names; a data set is labelled by its class
            folders. Without any the model's predictions on the clean pictures are used, with a
            warning.
        names: Of corruptions, see `CORRUPTIONS` and `EXTRA`.
        severities: Of 1 to 5.
        count: At most so many pictures, evenly spread.
        jpeg: Save every corrupted picture as JPEG of quality 85 before it is classified, as the
            published pictures are. Clean pictures are taken as they are.
        seed: Of the noise, see `corrupt`.
        batch_size: Pictures that the model computes at once; default: by its device.
        checkpoint: A folder for finished pieces, from which a second call with the same arguments
            goes on; None keeps them in memory.
        engine: "here", or "ray": the pieces are made by a Ray cluster.
        progress: Called with (done, total, text).

    Raises:
        UserError: An argument is out of range, or the checkpoint belongs to another job.
    """
    started = time.perf_counter()
    names, severities = tuple(dict.fromkeys(names)), tuple(sorted(set(severities)))
    if not names or not severities:
        raise UserError("no corruption or no severity was named")
    cells = [(name, severity) for name in names for severity in severities]
    check_shape((model.preprocessing.channels, *model.input_size), names, jpeg=jpeg)
    for cell in cells:
        settings(*cell, min(model.input_size))
    size = check_batch_size(batch_size, model.device)
    given = read_labeled(model, pictures, labels, count=count)
    n = len(given.pictures)
    parameters = {
        "names": list(names),
        "severities": list(severities),
        "count": count,
        "jpeg": jpeg,
        "batch_size": size,
        "labels": "predictions" if given.labels is None else "given",
    }
    job = parameters | {"model": model.record(), "seed": seed, "pictures": given.sha256}

    def corrupted(batch: Tensor, name: str, severity: int) -> Tensor:
        return corrupt(batch.to(model.device), name, severity, seed=seed, jpeg=jpeg)

    def predict(batch: Tensor) -> Tensor:
        return classify(model, batch.to(model.device), batch_size=size).argmax(1).cpu()

    total = n * len(cells)
    opened = open_checkpoint(checkpoint, job, total=total, unit=_UNIT, engine=engine)
    with opened as kept, frozen(model):
        clean = predict(given.pictures)
        found = _measure(
            corrupted, predict, given.pictures, cells, size, kept, model.device.type, progress
        )
    predictions = found.view(len(names), len(severities), n)
    own = clean if given.labels is None else given.labels
    right = (clean == own).nonzero()
    row = int(right[0]) if len(right) else 0
    example = given.pictures[row]
    result = Corruptions(
        origin=results.origin(
            model, parameters=parameters, started=started, data=given.data, seed=seed
        ),
        model_name=model.name,
        data_name=given.data_name,
        classes=model.class_names,
        names=given.names,
        labels=own,
        predicted_labels=given.labels is None,
        clean=clean,
        severities=severities,
        predictions=dict(zip(names, predictions, strict=True)),
        side=min(example.shape[-2:]),
        jpeg=jpeg,
        example={
            name: torch.cat([corrupted(example[None], name, s).cpu() for s in severities])
            for name in names
        },
        example_row=row,
        example_clean=example,
        seconds=time.perf_counter() - started,
        label_report=given.label_report,
    )
    return replace(result, warnings=(*given.warnings, *corruption_warnings(result)))


def _measure(
    corrupted: Callable[[Tensor, str, int], Tensor],
    predict: Callable[[Tensor], Tensor],
    pictures: Tensor,
    cells: Sequence[tuple[str, int]],
    size: int,
    kept: Checkpoint,
    device: str,
    progress: Progress | None,
) -> Tensor:
    """(cells, N) classes of the pictures (N, C, H, W) under each corruption and severity."""
    n, step = len(pictures), size * max(1, _PIECE // size)

    def make(work: tuple[str, int, int], report: Callable[[int], None]) -> Arrays:
        name, severity, start = work
        batches = pictures[start : start + step].split(size)
        found = [predict(corrupted(batch, name, severity)) for batch in batches]
        return {"predictions": torch.cat(found).numpy()}

    pieces = [
        Piece(f"{name}-{severity}-{start:06d}", (name, severity, start), min(step, n - start))
        for name, severity in cells
        for start in range(0, n, step)
    ]
    made = map_pieces(make, pieces, kept, device=device, progress=progress, text=_UNIT)
    return torch.from_numpy(np.concatenate([a["predictions"] for a in made])).view(-1, n)
