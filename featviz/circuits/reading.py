"""What enters a model's convolutions and linear layers, for every batch of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.data.datasets import Pictures, batches
from featviz.models.frozen import frozen
from featviz.models.layers import StopForward, tap

if TYPE_CHECKING:
    from featviz.models.model import Model

_MOST = 2**30  # bytes that are kept


class LayerInputs:
    """The inputs of layers, read in passes over a data set.

    Args:
        model: A model.
        data: The pictures.
        batch_size: Pictures at once.
        keep: Layers whose inputs the first pass keeps, as far as a gigabyte goes, for later reads.
    """

    def __init__(self, model: Model, data: Pictures, batch_size: int, *, keep: Sequence[str] = ()):
        self.model, self.data, self.batch_size = model, data, batch_size
        self._wanted = list(keep)
        self._kept: dict[str, list[Tensor]] = {}

    def read(self, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """The inputs (N, ...) of each layer, batch by batch."""
        if all(layer in self._kept for layer in layers):
            for batch in zip(*(self._kept[layer] for layer in layers), strict=True):
                yield dict(zip(layers, batch, strict=True))
            return
        first, self._wanted = self._wanted, []
        names = list(dict.fromkeys([*layers, *first]))
        kept: dict[str, list[Tensor]] = {}
        data = batches(self.data, self.model.preprocessing, batch_size=self.batch_size)
        for number, batch in enumerate(data):
            taken = self._taken(names, batch.images)
            if number == 0 and first:
                kept = {name: [] for name in self._affordable(taken, first)}
            for name, parts in kept.items():
                parts.append(taken[name])
            yield {layer: taken[layer] for layer in layers}
        self._kept |= kept

    # Not within `read`: a generator that an error leaves half-way would leave gradients off.
    def _taken(self, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
        tapped = tap(self.model, names, entering=names, stop=True)
        with frozen(self.model), torch.no_grad(), tapped as taken, suppress(StopForward):
            self.model(images.to(self.model.device))
        return taken

    def _affordable(self, taken: dict[str, Tensor], layers: Sequence[str]) -> Iterator[str]:
        """The layers whose inputs can be kept: the smallest first."""
        total = 0
        for name in sorted(layers, key=lambda layer: taken[layer].numel()):
            one = taken[name]
            total += one.nbytes // len(one) * len(self.data)
            if total <= _MOST:
                yield name
