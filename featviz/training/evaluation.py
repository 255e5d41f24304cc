"""`evaluate(model, pictures)`: top-1 and top-5 with their intervals, over all and by class."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.datasets import Pictures, Skipped, batches, open_pictures
from featviz.errors import public
from featviz.labels import LabelReport, no_labels
from featviz.models.model import Model
from featviz.models.precision import choose_precision, has_bfloat16, in_precision
from featviz.statistics import Share, share
from featviz.training.figures import draw_classes
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class EvalResult(results.Result):
    """How often a model is right on labeled pictures."""

    kind: ClassVar[str] = "eval"

    model_name: str
    classes: tuple[str, ...]
    """names of the model's classes"""
    labels: Tensor
    """(N,): the right class of each picture that counts"""
    predictions: Tensor
    """(N, 5): the most likely classes, best first"""
    label_report: LabelReport | None = None
    """how the data's folders fit the classes"""

    @cached_property
    def hits(self) -> Tensor:
        """(N, 2) bool: the label is the most likely class, is among the five most likely."""
        return hits(self.labels, self.predictions)

    @property
    def top1(self) -> Share:
        """Pictures whose most likely class is the right one."""
        return share(int(self.hits[:, 0].sum()), len(self.labels))

    @property
    def top5(self) -> Share:
        """Pictures whose right class is among the five most likely."""
        return share(int(self.hits[:, 1].sum()), len(self.labels))

    @cached_property
    def per_class(self) -> dict[int, tuple[Share, Share]]:
        """Top-1 and top-5 of each class that occurs, by its index."""
        table = {}
        for label in self.labels.unique().tolist():
            mine = self.hits[self.labels == label]
            first, five = mine.sum(0).tolist()
            table[label] = (share(first, len(mine)), share(five, len(mine)))
        return table

    def mistaken_for(self, label: int) -> tuple[int, int] | None:
        """The wrong class most often predicted for pictures of `label`, and how often; or None."""
        mine = self.predictions[self.labels == label, 0]
        counts = torch.bincount(mine[mine != label], minlength=len(self.classes))
        return (int(counts.argmax()), int(counts.max())) if int(counts.sum()) else None

    @property
    def title(self) -> str:
        return f"Accuracy of {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        return {
            "top-1": self.top1.number("the most likely class is right"),
            "top-5": self.top5.number("the right class is among the five most likely"),
            "pictures": results.Number(len(self.labels), "", "that counted"),
            "classes": results.Number(
                len(self.per_class), "", f"that occur, of {len(self.classes)}"
            ),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "classes.svg",
            self.plot(),
            caption="Left: top-1 of every class, best first. Right: the classes right most often "
            "and least often. Both with Wilson's 95% interval.",
            alt="Decreasing curve of accuracy by class, and the best and worst classes by name",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "classes.csv",
            ("class", "pictures", "top1", "low", "high", "top5", "mistaken_for", "times"),
            [self._row(label) for label in self.per_class],
            caption="Each class: top-1 with its 95% interval, top-5, and the wrong class most "
            "often predicted.",
        )

    def _row(self, label: int) -> tuple[Any, ...]:
        first, five = self.per_class[label]
        other = self.mistaken_for(label)
        wrong = (self.classes[other[0]], other[1]) if other else ("", 0)
        shares = [round(v or 0.0, 4) for v in (first.value, first.low, first.high, five.value)]
        return self.classes[label], first.n, *shares, *wrong

    def plot(self) -> Figure:
        classes = [(self.classes[i], first) for i, (first, _) in self.per_class.items()]
        return draw_classes(classes, self.top1)


@public
def evaluate(
    model: Model,
    data: str | Path | Pictures,
    *,
    batch_size: int = 64,
    precision: AutoPrecision = "float32",
    progress: Progress | None = None,
) -> EvalResult:
    """Top-1 and top-5 of a model on pictures in class folders, with 95% intervals.

    Pictures that cannot be read, or whose folder is no class of the model, do not count and are
    named in the warnings.

    Args:
        model: The classifier.
        data: Folders named by synset or class name; pictures are resized and cropped for the model.
        batch_size: Pictures a forward pass.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the processor computes in it.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: No picture is left.
    """
    started = time.perf_counter()
    pictures = data if isinstance(data, Pictures) else open_pictures(data)
    report = pictures.label_report(model)
    rows = [row for row, label in enumerate(report.labels) if label is not None]
    if not rows:
        raise no_labels(report, pictures.root, model.name)
    chosen = choose_precision(precision, lambda: has_bfloat16(model.device))
    counted = pictures.select(rows)
    truth = torch.tensor([report.labels[row] for row in rows])
    skipped: list[Skipped] = []

    def labeled() -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        for batch in batches(
            counted,
            model.preprocessing,
            batch_size=batch_size,
            skipped=skipped,
        ):
            yield batch.images.to(model.device), truth[list(batch.rows)]
            done += len(batch.rows)
            if progress:
                progress(done, len(counted), "classifying")

    with in_precision(model, model.blank(), chosen) as forward:
        labels, predictions = predict(forward, labeled())
    report = pictures.label_report(model, skipped)
    return EvalResult(
        origin=results.origin(
            model,
            parameters={"batch_size": batch_size, "precision": precision},
            started=started,
            data=pictures,
        ),
        warnings=report.warnings,
        label_report=report,
        model_name=model.name,
        classes=model.classes,
        labels=labels,
        predictions=predictions,
    )


@torch.inference_mode()
def predict(
    forward: Callable[[Tensor], Tensor], labeled: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Labels (N,) and the five most likely classes (N, 5), best first, of all batches.

    Args:
        forward: Pictures to logits (B, classes).
        labeled: (pictures, labels) of each batch.
    """
    labels, predictions = [], []
    for pictures, right in labeled:
        logits = forward(pictures).float().cpu()
        predictions.append(logits.topk(min(5, logits.shape[1]), dim=1).indices)
        labels.append(right)
    return torch.cat(labels), torch.cat(predictions)


def hits(labels: Tensor, predictions: Tensor) -> Tensor:
    """(N, 2) bool: the label is the first prediction, is among all of them."""
    found = predictions == labels[:, None]
    return torch.stack([found[:, 0], found.any(1)], dim=1)
