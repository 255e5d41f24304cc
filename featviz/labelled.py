"""Pictures with their labels and names, from a data set or a tensor, as analyses of many take them.

Pictures stay in memory: these analyses look at each of them many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import datasets
from featviz.datasets import Pictures
from featviz.errors import UserError
from featviz.images import check_pictures

if TYPE_CHECKING:
    from featviz.models.model import Model


@dataclass(frozen=True)
class Labelled:
    """What an analysis is given, read and checked."""

    names: tuple[str, ...]
    pictures: Tensor
    """(N, 3, S, S) in [0, 1], on the CPU"""
    labels: Tensor | None
    """(N,) class indices; None if nobody gave any"""
    data: Pictures | None
    """where they were read from"""
    warnings: tuple[str, ...]

    @property
    def data_name(self) -> str:
        return self.data.name if self.data is not None else "a tensor"


def read_labelled(
    model: Model,
    pictures: Pictures | Tensor,
    labels: Sequence[int | str] | Tensor | None = None,
    *,
    count: int | None = None,
) -> Labelled:
    """The pictures as the model wants them, at most `count`, evenly spread.

    A data set is labelled by its class folders; pictures in folders that are no class of the model
    are left out, and that is said. A tensor's labels are indices or names.

    Raises UserError for pictures or labels that do not fit, or if none is left.
    """
    if isinstance(pictures, Tensor):
        batch = check_pictures(pictures).cpu()
        given = None if labels is None else _indices(model, labels, len(batch))
        if count and count < len(batch):
            rows = [i * len(batch) // count for i in range(count)]
            batch, given = batch[rows], None if given is None else given[rows]
        names = tuple(f"picture {i + 1}" for i in range(len(batch)))
        return Labelled(names, batch, given, None, ())
    warnings = []
    known = pictures.labels(model)
    labelled = [i for i, label in enumerate(known) if label is not None]
    if labelled and len(labelled) < len(pictures):
        warnings.append(
            f"{len(pictures) - len(labelled)} of {len(pictures)} pictures are left out: their "
            f"folders are no classes of {model.name}"
        )
    data = pictures.select(labelled) if labelled else pictures
    data = data.spread(count) if count else data
    data, batch, skipped = datasets.read_all(data, resize=model.resize, crop=model.input_size)
    if skipped:
        warnings.append(f"{len(skipped)} pictures could not be read, first {skipped[0].reason}")
    found = [label for label in data.labels(model) if label is not None]
    return Labelled(
        data.paths, batch, torch.tensor(found) if labelled else None, data, tuple(warnings)
    )


def _indices(model: Model, labels: Sequence[int | str] | Tensor, count: int) -> Tensor:
    given = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if len(given) != count:
        raise UserError(f"{len(given)} labels for {count} pictures; give one a picture")
    return torch.tensor([model.class_index(label) for label in given])
