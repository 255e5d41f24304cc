"""Rows of a store by picture: those that a dictionary is fitted on, and the held-out ones.

Rows of one picture resemble each other, so a part holds a picture with all its rows, or not at all.
What fits into memory is read once; larger parts are read from the disk, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.embedding.positions import splitmix64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featviz.embedding.store import Store

HELD = 2**30
"""bytes of float32 rows that are kept in memory"""
_BLOCK = 8192


@dataclass(frozen=True)
class Sample:
    """Some pictures of a store with all their rows, in the store's order."""

    store: Store
    numbers: NDArray[np.int64]
    """of the rows in the store, (n,)"""
    owner: Tensor
    """(n,) int64: the picture of each row, counted from 0 within the sample"""

    @classmethod
    def of(cls, store: Store) -> Sample:
        """All rows of a store."""
        every = np.arange(len(store)) if store.of_picture is None else store.of_picture
        return cls._of_rows(store, np.arange(len(store)), every)

    @classmethod
    def _of_rows(
        cls, store: Store, numbers: NDArray[np.int64], pictures: NDArray[np.int64]
    ) -> Sample:
        owner = np.unique(pictures, return_inverse=True)[1]
        return cls(store, numbers, torch.from_numpy(owner.astype(np.int64)))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def pictures(self) -> int:
        """How many pictures the rows are of."""
        return int(self.owner.max()) + 1 if len(self) else 0

    @property
    def channels(self) -> int:
        return self.store.dim

    def split(self, share: float, seed: int) -> tuple[Sample, Sample]:
        """Two samples: of round(share * pictures) pictures drawn by `seed`, and of all others."""
        drawn = np.argsort(splitmix64(seed, np.arange(self.pictures, dtype=np.uint64)))
        chosen = np.zeros(self.pictures, bool)
        chosen[drawn[: round(share * self.pictures)]] = True
        owner = self.owner.numpy()
        one, other = (
            self._of_rows(self.store, self.numbers[rows], owner[rows])
            for rows in (chosen[owner], ~chosen[owner])
        )
        return one, other

    def limited(self, seed: int) -> Sample:
        """The same where it fits into memory, else so many of its rows, drawn by `seed`."""
        most = max(1, HELD // (4 * self.channels))
        if len(self) <= most:
            return self
        drawn = np.argsort(splitmix64(seed, np.arange(len(self), dtype=np.uint64)))
        rows = np.sort(drawn[:most])
        return self._of_rows(self.store, self.numbers[rows], self.owner.numpy()[rows])

    def all(self) -> Tensor:
        """All rows (n, C) float32, for samples that are `limited`."""
        return self.take(torch.arange(len(self)))

    @cached_property
    def _memory(self) -> Tensor | None:
        """All rows, where they are few enough."""
        if 4 * len(self) * self.channels > HELD:
            return None
        return self.store.take(torch.from_numpy(self.numbers))

    def take(self, rows: Tensor) -> Tensor:
        """Some rows (len(rows), C) float32, by their place in the sample."""
        if self._memory is not None:
            return self._memory.index_select(0, rows)
        return self.store.take(torch.from_numpy(self.numbers)[rows])

    def blocks(self, size: int = _BLOCK) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (at most `size`, C) and their pictures, in order."""
        for some in torch.arange(len(self)).split(size):
            yield self.take(some), self.owner[some]
