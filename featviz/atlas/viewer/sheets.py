"""Small pictures as JPEG sheets: `pack_sheets(pictures)`.

A sheet is at most 2048 pixels a side, which every browser can draw. Its cells are filled column by
column, so that the page can upload a whole column to the graphics card at once. Pictures do not mix
with those beside them: cells begin at multiples of JPEG's blocks of 8 pixels, the rest of a cell
repeats the picture's edge, and color has the resolution of brightness (4:4:4), because decoders
that interpolate coarser color mix it across the blocks' borders.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

SIDE = 2048
"""pixels a side of the largest sheet"""
BLOCK = 8
"""pixels a side of a block of JPEG"""
QUALITY = 76


@dataclass(frozen=True)
class Sheets:
    """Pictures of one size on a few sheets."""

    size: int
    """pixels a side of a picture"""
    pitch: int
    """pixels from one picture to the next"""
    rows: int
    """pictures in a column"""
    per_sheet: int
    files: tuple[bytes, ...]
    """JPEG"""


def pack_sheets(pictures: Tensor, *, side: int = SIDE) -> Sheets:
    """Pictures (N, 3, T, T) uint8, T at most `side`, in order on as few sheets as hold them."""
    count, size = len(pictures), pictures.shape[-1]
    pitch = -(-size // BLOCK) * BLOCK
    rows = max(1, min(side // pitch, math.isqrt(max(0, count - 1)) + 1))
    per_sheet = rows * rows
    files = tuple(
        _jpeg(_sheet(part.permute(0, 2, 3, 1).numpy(), pitch, rows))
        for part in pictures.split(per_sheet)
    )
    return Sheets(size, pitch, rows, per_sheet, files)


def _sheet(pictures: np.ndarray, pitch: int, rows: int) -> np.ndarray:
    """Pictures (n, T, T, 3) in columns of `rows`, with as many columns as they need."""
    count, size = pictures.shape[:2]
    columns = -(-count // rows)
    room = pitch - size
    cells = np.zeros((columns * rows, pitch, pitch, 3), dtype=np.uint8)
    cells[:count] = np.pad(pictures, ((0, 0), (0, room), (0, room), (0, 0)), mode="edge")
    grid = cells.reshape(columns, rows, pitch, pitch, 3).transpose(1, 2, 0, 3, 4)
    return grid.reshape(rows * pitch, columns * pitch, 3)


def _jpeg(sheet: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(
        buffer, format="JPEG", quality=QUALITY, subsampling="4:4:4", optimize=True
    )
    return buffer.getvalue()
