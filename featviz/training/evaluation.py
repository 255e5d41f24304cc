"""`evaluate(model, pictures)`: how often a model is right, and how far its confidence is true.

In: labeled pictures. Out: top-1 and top-k with their intervals, and the calibration.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, for
        the ten crops
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from featviz import results
from featviz.data.datasets import Skipped, batches
from featviz.data.from_python import Data, Labels, as_pictures
from featviz.data.labels import LabelReport, no_labels
from featviz.errors import UserError, public
from featviz.models.model import Model
from featviz.models.precision import choose_precision, has_bfloat16, in_precision
from featviz.pictures.preprocessing import Preprocessing, shown
from featviz.statistics import Share, share
from featviz.training.calibration import Calibration
from featviz.training.figures import draw_classes
from featviz.types import AutoPrecision, BatchSize, Progress, Top

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
    """(N, k): the most likely classes, best first; k is 5 unless another `top` was asked for"""
    confidences: Tensor
    """(N,) probability of the most likely class"""
    names: tuple[str, ...]
    """of the pictures that count"""
    label_report: LabelReport | None = None
    """how the data's folders fit the classes"""

    @cached_property
    def hits(self) -> Tensor:
        """(N, 2) bool: the label is the most likely class, is among the k most likely."""
        return hits(self.labels, self.predictions)

    @property
    def top(self) -> int:
        """How many of the most likely classes `top_k` counts."""
        return self.predictions.shape[1]

    @cached_property
    def calibration(self) -> Calibration:
        """Whether the model is right as often as it is sure."""
        return Calibration(self.confidences, self.hits[:, 0])

    @property
    def top1(self) -> Share:
        """Pictures whose most likely class is the right one."""
        return share(int(self.hits[:, 0].sum()), len(self.labels))

    @property
    def top_k(self) -> Share:
        """Pictures whose right class is among the k most likely."""
        return share(int(self.hits[:, 1].sum()), len(self.labels))

    @cached_property
    def per_class(self) -> dict[int, tuple[Share, Share]]:
        """Top-1 and top-k of each class that occurs, by its index."""
        table = {}
        for label in self.labels.unique().tolist():
            mine = self.hits[self.labels == label]
            first, within = mine.sum(0).tolist()
            table[label] = (share(first, len(mine)), share(within, len(mine)))
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
        found = {"top-1": self.top1.number("the most likely class is right")}
        if self.top > 1:
            found[f"top-{self.top}"] = self.top_k.number(
                f"the right class is among the {self.top} most likely"
            )
        return found | {
            "pictures": results.Number(len(self.labels), "", "that counted"),
            "classes": results.Number(
                len(self.per_class), "", f"that occur, of {len(self.classes)}"
            ),
            **self.calibration.numbers(),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "classes.svg",
            self.plot(),
            caption="Left: top-1 of every class, best first. Right: the classes right most often "
            "and least often. Both with Wilson's 95% interval.",
            alt="Decreasing curve of accuracy by class, and the best and worst classes by name",
        )
        folder.figure(
            "reliability.svg",
            self.calibration.plot(),
            caption="Reliability diagram. Above: of the predictions of similar confidence, how "
            "many are right, with Wilson's 95% interval; on the dotted line the model is as often "
            "right as it is sure. Below: how many predictions have which confidence.",
            alt="Accuracy against confidence, and a histogram of the confidences",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "classes.csv",
            ("class", "pictures", "top1", "low", "high", f"top{self.top}", "mistaken_for", "times"),
            [self._row(label) for label in self.weakest_first],
            caption="Each class, the weakest first: top-1 with its 95% interval, top-k, and the "
            "wrong class most often predicted.",
        )
        yield results.Table(
            "pictures.csv",
            ("picture", "label", "predicted", "confidence", "right", f"right_top{self.top}"),
            (
                (
                    self.names[i],
                    self.classes[int(self.labels[i])],
                    self.classes[int(self.predictions[i, 0])],
                    round(float(self.confidences[i]), 5),
                    *map(int, self.hits[i].tolist()),
                )
                for i in range(len(self.names))
            ),
            caption="Every picture that counts: its class, the most likely class with its "
            "probability, and whether the class is that one or among the k most likely.",
        )

    @property
    def weakest_first(self) -> list[int]:
        """The classes that occur by top-1; of equal ones that with more pictures is first."""
        table = self.per_class
        return sorted(table, key=lambda label: (table[label][0].value or 0, -table[label][0].n))

    def _row(self, label: int) -> tuple[Any, ...]:
        first, within = self.per_class[label]
        other = self.mistaken_for(label)
        wrong = (self.classes[other[0]], other[1]) if other else ("", 0)
        shares = [round(v or 0.0, 4) for v in (first.value, first.low, first.high, within.value)]
        return self.classes[label], first.n, *shares, *wrong

    def plot(self) -> Figure:
        classes = [(self.classes[i], first) for i, (first, _) in self.per_class.items()]
        return draw_classes(classes, self.top1)


@public
def evaluate(
    model: Model,
    data: Data,
    labels: Labels | None = None,
    *,
    top: Top = 5,
    ten_crop: bool = False,
    batch_size: BatchSize = 64,
    precision: AutoPrecision = "float32",
    progress: Progress | None = None,
) -> EvalResult:
    """Top-1, top-k and calibration of a model on pictures in class folders, with 95% intervals.

    Pictures that cannot be read, or whose folder is no class of the model, do not count and are
    named in the warnings.

    Args:
        model: The classifier.
        data: What `as_pictures` takes: class folders, a Dataset, a DataLoader ...; pictures are
            resized and cropped for the model.
        labels: The class of each picture; default: those of the data.
        top: k of top-k; at most one less than there are classes.
        ten_crop: Average the probabilities of ten crops: the four corners and the center of the
            resized picture, and their mirror images (Krizhevsky et al. 2012). Takes ten passes a
            picture, and a model whose pictures are resized to more than its input size.
        batch_size: Pictures a forward pass.
        precision: "float32", "bfloat16", or "auto": bfloat16 where the processor computes in it.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: No picture is left, `top` is below 1, or there is no room for ten crops.
    """
    model.need_classes()
    started = time.perf_counter()
    pictures = as_pictures(data, labels, model=model)
    report = pictures.label_report(model)
    rows = [row for row, label in enumerate(report.labels) if label is not None]
    if not rows:
        raise no_labels(report, pictures.root, model.name)
    chosen = choose_precision(precision, lambda: has_bfloat16(model.device))
    counted = pictures.select(rows)
    truth = torch.tensor([report.labels[row] for row in rows])
    preprocessing = _around_crops(model) if ten_crop else model.preprocessing
    top = max(1, min(top, len(model.classes) - 1))
    skipped: list[Skipped] = []

    def labeled() -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        for batch in batches(
            counted,
            preprocessing,
            batch_size=max(1, batch_size // 10) if ten_crop else batch_size,
            skipped=skipped,
        ):
            yield batch.images.to(model.device), truth[list(batch.rows)]
            done += len(batch.rows)
            if progress:
                progress(done, len(counted), "classifying")

    with in_precision(model, chosen) as forward:
        run = partial(_mean_of_crops, forward, model.input_size) if ten_crop else forward
        found = predict(run, labeled(), top=top)
    unread = {one.row for one in skipped}
    report = pictures.label_report(model, skipped)
    return EvalResult(
        origin=results.origin(
            model,
            parameters={
                "top": top,
                "ten_crop": ten_crop,
                "batch_size": batch_size,
                "precision": precision,
            },
            started=started,
            data=pictures,
        ),
        warnings=report.warnings,
        label_report=report,
        model_name=model.name,
        classes=model.classes,
        labels=found.labels,
        predictions=found.classes,
        confidences=found.confidences,
        names=tuple(path for row, path in enumerate(counted.paths) if row not in unread),
    )


def _around_crops(model: Model) -> Preprocessing:
    """The whole resized square, from which ten crops are taken."""
    own = model.preprocessing
    tall, wide = (own.resize,) * 2 if isinstance(own.resize, int) else own.resize
    height, width = own.size
    if tall <= height and wide <= width:
        raise UserError(
            f"{model.name} reads pictures at {shown(own.size)} pixels without a margin, so there "
            "are no ten different crops; give a larger --resize"
        )
    return replace(own, size=(max(tall, height), max(wide, width)))


def _mean_of_crops(
    forward: Callable[[Tensor], Tensor], size: tuple[int, int], pictures: Tensor
) -> Tensor:
    """Log of the mean probability (B, classes) over ten crops of each picture."""
    views = ten_crops(pictures, size)
    probabilities: Tensor = forward(views.flatten(0, 1)).float().softmax(1)
    mean: Tensor = probabilities.unflatten(0, views.shape[:2]).mean(0)
    return mean.log()


def ten_crops(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(10, N, C, height, width): corners and center of pictures (N, C, H, W), and mirrored."""
    height, width = size
    down, right = pictures.shape[-2] - height, pictures.shape[-1] - width
    corners = ((0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2)))
    crops = torch.stack([pictures[..., y : y + height, x : x + width] for y, x in corners])
    return torch.cat([crops, crops.flip(-1)])


class Predicted(NamedTuple):
    """What a model said of labeled pictures."""

    labels: Tensor
    """(N,)"""
    classes: Tensor
    """(N, k) the most likely ones, best first"""
    confidences: Tensor
    """(N,) probability of the most likely class"""


@torch.inference_mode()
def predict(
    forward: Callable[[Tensor], Tensor],
    labeled: Iterable[tuple[Tensor, Tensor]],
    *,
    top: int = 5,
) -> Predicted:
    """The most likely classes of all batches.

    Args:
        forward: Pictures to logits (B, classes).
        labeled: (pictures, labels) of each batch.
        top: How many classes.
    """
    labels, predictions, confidences = [], [], []
    for pictures, right in labeled:
        probabilities = forward(pictures).double().cpu().softmax(1)
        highest = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        predictions.append(highest.indices)
        confidences.append(highest.values[:, 0].float())
        labels.append(right)
    return Predicted(torch.cat(labels), torch.cat(predictions), torch.cat(confidences))


def hits(labels: Tensor, predictions: Tensor) -> Tensor:
    """(N, 2) bool: the label is the first prediction, is among all of them."""
    found = predictions == labels[:, None]
    return torch.stack([found[:, 0], found.any(1)], dim=1)
