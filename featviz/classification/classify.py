"""`classify(model, pictures)`: the most likely classes of each picture, with their probabilities.

In: pictures of any kind. Out: for each the first five classes, as in figure 4 of

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from featviz import results
from featviz.classification.result import Classified
from featviz.data.datasets import Pictures, Skipped, batches, evenly
from featviz.data.from_python import Data, Labels, as_pictures
from featviz.errors import public, visible
from featviz.models.model import Model
from featviz.models.precision import choose_precision, has_bfloat16, in_precision
from featviz.types import AutoPrecision, BatchSize, Count, Probability, Progress, Top
from featviz.wording import counted


@public
def classify(
    model: Model,
    data: Data,
    labels: Labels | None = None,
    *,
    top: Top = 5,
    probability: Probability = "auto",
    shown: Count = 24,
    batch_size: BatchSize = 64,
    precision: AutoPrecision = "float32",
    progress: Progress | None = None,
) -> Classified:
    """The most likely classes of each picture, and the right one where it is known.

    Pictures are read as they are needed. One that cannot be read is left out and named in the
    warnings.

    Args:
        model: The classifier.
        data: What `as_pictures` takes: paths, folders, tensors, a Dataset ...
        labels: The right class of each picture, by number or name; default: those of the data,
            where a class folder is a class of the model.
        top: How many classes; all of them where the model has fewer.
        probability: How logits become probabilities. "softmax": the classes exclude each other,
            and all probabilities add up to 1. "sigmoid": each class by itself, for networks of
            several labels. "auto": a sigmoid where the network ends in one, else a softmax. (A
            network of one logit has two classes, for which both are the same.)
        shown: So many pictures are drawn, evenly spread over the data.
        batch_size: Pictures a forward pass.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the processor computes in it.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: The model has no classes, a label is no class, or no picture can be read.

    Example:
        >>> found = featviz.classify(model, ["cat.jpg", "dog.jpg"])
        >>> found.best  # (("tabby", 0.83), ("beagle", 0.61))
    """
    model.need_classes()
    started = time.perf_counter()
    pictures = as_pictures(data, labels, model=model)
    chosen = choose_precision(precision, lambda: has_bfloat16(model.device))
    drawn = set(evenly(len(pictures), shown))
    independent = probability == "sigmoid" or (probability == "auto" and _ends_in_sigmoid(model))
    found = _Found(pictures.labels(model))
    skipped: list[Skipped] = []
    with in_precision(model, chosen) as forward, torch.inference_mode():
        for batch in batches(pictures, model.preprocessing, batch_size=batch_size, skipped=skipped):
            logits = forward(batch.images.to(model.device)).double().cpu()
            found.add(batch.rows, logits.sigmoid() if independent else logits.softmax(1), top)
            found.keep(batch.images, [row in drawn for row in batch.rows])
            if progress:
                progress(batch.rows[-1] + 1, len(pictures), "classifying")
    return Classified(
        origin=results.origin(
            model,
            parameters={
                "top": top,
                "probability": probability,
                "shown": shown,
                "batch_size": batch_size,
                "precision": precision,
            },
            started=started,
            data=pictures,
        ),
        warnings=_warnings(pictures, model, skipped),
        model_name=model.name,
        classes=model.classes,
        synsets=model.synsets,
        names=tuple(visible(pictures.paths[row]) for row in found.rows),
        labels=torch.tensor(found.labels),
        ranks=torch.tensor(found.ranks),
        label_probabilities=torch.tensor(found.of_label, dtype=torch.float64),
        predictions=torch.cat(found.predictions),
        probabilities=torch.cat(found.probabilities),
        independent=independent,
        drawn=tuple(i for i, row in enumerate(found.rows) if row in drawn),
        pictures=torch.cat(found.pictures),
    )


def _ends_in_sigmoid(model: Model) -> bool:
    return model.pick.operation == "sigmoid" and not model.pick.one


def _warnings(pictures: Pictures, model: Model, skipped: list[Skipped]) -> tuple[str, ...]:
    """What could not be read, and what does not fit where there are labels at all."""
    report = pictures.label_report(model)
    notes = [f"left out: {one.reason}" for one in skipped[:5]]
    if len(skipped) > 5:
        notes.append(f"left out: {counted(len(skipped) - 5, 'more picture')} that cannot be read")
    unmatched = report.ambiguities if report.labeled else []
    return (*notes, *unmatched, *report.left_out.notes)


class _Found:
    """What is kept of all batches: a few numbers a picture, and the pictures to draw."""

    def __init__(self, labels: tuple[int | None, ...]):
        self._known = labels
        self.rows: list[int] = []
        self.labels: list[int] = []
        self.ranks: list[int] = []
        self.of_label: list[float] = []
        self.predictions: list[Tensor] = []
        self.probabilities: list[Tensor] = []
        self.pictures: list[Tensor] = []

    def add(self, rows: tuple[int, ...], probabilities: Tensor, top: int) -> None:
        """The rows of a batch with their probabilities (B, classes)."""
        highest = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        self.predictions.append(highest.indices)
        self.probabilities.append(highest.values)
        self.rows += rows
        for row, mine in zip(rows, probabilities, strict=True):
            label = self._known[row]
            own = None if label is None else mine[label]
            self.labels.append(-1 if label is None else label)
            self.ranks.append(0 if own is None else 1 + int((mine > own).sum()))
            self.of_label.append(float("nan") if own is None else float(own))

    def keep(self, images: Tensor, wanted: list[bool]) -> None:
        """The pictures of a batch (B, C, H, W) that are wanted."""
        self.pictures.append(images[torch.tensor(wanted)])
