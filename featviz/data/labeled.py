"""Pictures in memory at a model's size, with their classes, for analyses that use each often."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from featviz.data.datasets import Pictures, evenly, read_all
from featviz.data.from_python import Data, Labels, as_pictures, label_values
from featviz.data.labels import LabelReport
from featviz.errors import BadPicture, UserError, public, visible

if TYPE_CHECKING:
    from featviz.models.model import Model


@dataclass(frozen=True)
class LabeledPictures:
    """Pictures with names and labels, read and checked, for analyses that use each many times."""

    names: tuple[str, ...]
    pictures: Tensor
    """(N, C, H, W) in [0, 1], on the CPU"""
    labels: Tensor | None
    """(N,) class indices; None without labels"""
    data: Pictures | None
    """where they were read from"""
    source: Pictures | None
    """the whole data set that was given"""
    label_report: LabelReport | None
    """how the folders of the data set fit the model's classes"""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What does not fit, a sentence each."""
        return self.label_report.warnings if self.label_report is not None else ()

    @property
    def data_name(self) -> str:
        return self.data.name if self.data is not None else "a tensor"

    def spread(self, count: int) -> LabeledPictures:
        """At most `count` of the pictures, evenly spread."""
        if count >= len(self.names):
            return self
        rows = evenly(len(self.names), count)
        return replace(
            self,
            names=tuple(self.names[i] for i in rows),
            pictures=self.pictures[rows],
            labels=None if self.labels is None else self.labels[rows],
            data=None if self.data is None else self.data.select(rows),
        )

    @property
    def sha256(self) -> str:
        """Hash of the pictures' values."""
        return hashlib.sha256(self.pictures.contiguous().numpy().tobytes()).hexdigest()


def read_labeled(
    model: Model,
    pictures: Data,
    labels: Labels | None = None,
    *,
    count: int | None = None,
) -> LabeledPictures:
    """Pictures in memory at the model's size, with their classes.

    Args:
        model: Its size and classes.
        pictures: What `as_pictures` takes. Where some have classes of the model, those without are
            left out, with a warning. A float tensor (N, C, H, W) keeps its size.
        labels: Class indices or names; default: those of the data.
        count: Take at most so many, evenly spread.

    Raises:
        UserError: Pictures or labels that do not fit, or none is left.
    """
    model.need_classes()
    if is_batch(pictures):
        found = read_batch(model, pictures, labels)
        found = found.spread(count or len(found.names))
        return replace(found, pictures=found.pictures.cpu())
    pictures = as_pictures(pictures, labels, model=model)
    report = pictures.label_report(model)
    labeled = [i for i, label in enumerate(report.labels) if label is not None]
    data = pictures.select(labeled) if labeled else pictures
    data = data.spread(count) if count else data
    data, batch, skipped = read_all(data, model.preprocessing)
    classes = torch.tensor(data.labels(model)) if labeled else None
    report = pictures.label_report(model, skipped)
    return LabeledPictures(tuple(map(visible, data.paths)), batch, classes, data, pictures, report)


@public
def read_batch(model: Model, pictures: Data, labels: Labels | None = None) -> LabeledPictures:
    """Pictures of any kind as one batch at a model's size, with names and classes.

    Every analysis of single pictures begins with this call; attacks such as `pgd`, which take
    tensors only, are given its `pictures` and `labels`.

    Args:
        model: Its size and classes.
        pictures: What `as_pictures` takes; a float tensor (N, C, H, W) or (C, H, W) keeps its size.
        labels: Class indices or names; default: those of the data, where all have one.

    Raises:
        UserError: Pictures or labels that do not fit, or one cannot be read.

    Example:
        >>> batch = featviz.read_batch(model, ["cat.jpg", "dog.jpg"], ["tabby", "beagle"])
        >>> featviz.pgd(model, batch.pictures, batch.labels, eps=4 / 255)
    """
    if is_batch(pictures):
        batch = model.check(pictures, single=True)
        known = None if labels is None else class_indices(model, labels, len(batch))
        names = tuple(f"picture {i + 1}" for i in range(len(batch)))
        return LabeledPictures(names, batch, known, None, None, None)
    data, batch, skipped = read_all(as_pictures(pictures, labels, model=model), model.preprocessing)
    if skipped:
        raise BadPicture(skipped[0].reason)
    if labels is not None:
        known = class_indices(model, labels, len(batch))
    else:
        found = [label for label in data.labels(model) if label is not None]
        known = torch.tensor(found) if len(found) == len(batch) else None
    return LabeledPictures(
        tuple(map(visible, data.paths)), model.check(batch), known, data, data, None
    )


def opened(data: Data) -> Pictures | Tensor:
    """A float tensor as it is, all else as a data set."""
    return data if is_batch(data) else as_pictures(data)


def is_batch(pictures: Data) -> TypeGuard[Tensor]:
    """Whether it is a float tensor, which analyses take at its own size."""
    return isinstance(pictures, Tensor) and pictures.is_floating_point()


def class_indices(model: Model, labels: Labels, count: int) -> Tensor:
    """(N,) class indices from indices or names. Raises UserError."""
    values = [label for label in label_values(labels, count) if label is not None]
    if len(values) != count:
        raise UserError(f"{count - len(values)} of {count} labels are None; give a class for each")
    return torch.tensor([model.class_index(label) for label in values])
