"""Small squares of the pictures of a map, for the page and for the prints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.data.datasets import in_order
from featviz.errors import BadPicture, UserError
from featviz.pictures import images

if TYPE_CHECKING:
    from featviz.embedding.store import Store
    from featviz.types import Progress

GRAY = 200
"""the gray level where there is no picture"""
# Pixels a side of a thumbnail, by the number of them: all together stay below 70 MB.
_SIZES = ((1200, 112), (2500, 80), (8000, 48))
_SMALLEST = 32


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails of some or all of a map's rows; `thumbnails[rows]` is gray for the others."""

    rows: Tensor
    """(P,) int64, ascending: which rows have one"""
    images: Tensor
    """(P, 3, T, T) uint8"""

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.images.shape[-1]

    def __getitem__(self, rows: Sequence[int] | Tensor) -> Tensor:
        wanted = torch.as_tensor(rows, dtype=torch.int64)
        place = torch.searchsorted(self.rows, wanted).clamp_max(len(self.rows) - 1)
        found = self.images[place]
        found[self.rows[place] != wanted] = GRAY
        return found


def read_thumbnails(
    store: Store, rows: Sequence[int], chosen: Tensor, progress: Progress | None = None
) -> tuple[Thumbnails, int]:
    """Thumbnails of a map's rows, and how many pictures could not be read (these are gray).

    Of a store of single positions: the part of the picture that the position sees.

    Args:
        store: Whose pictures are shown.
        rows: The store's row of each row of the map.
        chosen: Which rows of the map get a thumbnail, ascending.
        progress: Called with the number of pictures read.

    Raises:
        UserError: None of the pictures can be read.
    """
    size = next((size for most, size in _SIZES if len(chosen) <= most), _SMALLEST)
    found = torch.full((len(chosen), 3, size, size), GRAY, dtype=torch.uint8)
    wanted = [rows[row] for row in chosen.tolist()]

    def read(row: int) -> Tensor:
        if store.positions is not None and store.receptive_field is not None:
            seen = images.to_uint8(store.crop(row)[None])
            return images.to_uint8(images.resize(seen, size))[0]
        return images.to_uint8(store.pictures.shown(row, size))

    missing: list[BadPicture] = []
    for place, (_, picture) in enumerate(in_order(read, wanted, workers=os.cpu_count() or 1)):
        if isinstance(picture, BadPicture):
            missing.append(picture)
        else:
            found[place] = picture
        if progress is not None and place % 32 == 0:
            progress(place, len(wanted), "reading pictures")
    if len(missing) == len(wanted):
        raise UserError(f"no picture of the store can be read any more ({missing[0]}); give --data")
    return Thumbnails(chosen, found), len(missing)
