"""Bilinear resampling at any coordinates: the one resampler of rotations, zooms and distortions.

In: pictures (N, C, H, W) and coordinates in pixels, where (0, 0) is the centre of the first pixel.
At whole coordinates the weights are exactly 0 and 1, so the identity gives back the same bits.
Every output value is computed alone, in an order that no batch changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BORDERS = ("zeros", "edge", "reflect", "reflect101")
"""beyond the border: black; the last pixel on and on; mirrored at the border of the last pixel
(b a | a b), or at its centre (c b | a b c)"""


def fold(index: Tensor, size: int, border: str) -> Tensor:
    """Indices of any size brought into 0 .. size - 1, as the border rule has it."""
    if border in {"zeros", "edge"} or size == 1:
        return index.clamp(0, size - 1)
    period = 2 * size if border == "reflect" else 2 * size - 2
    turned = index.remainder(period)
    mirror = period - 1 - turned if border == "reflect" else period - turned
    return torch.where(turned < size, turned, mirror)


def bilinear(pictures: Tensor, y: Tensor, x: Tensor, *, border: str = "zeros") -> Tensor:
    """The pictures' values at coordinates (y, x), interpolated between the four nearest pixels.

    y, x: (N, h, w), or (h, w) for all. Returns (N, C, h, w). With border "zeros" a point half a
    pixel outside is half black.
    """
    count, channels, height, width = pictures.shape
    y, x = y.expand(count, *y.shape[-2:]), x.expand(count, *x.shape[-2:])
    top, left = y.floor(), x.floor()
    down, right = (y - top).to(pictures.dtype), (x - left).to(pictures.dtype)
    flat = pictures.reshape(count, channels, height * width)
    total = torch.zeros(count, channels, y[0].numel(), dtype=pictures.dtype, device=pictures.device)
    for dy, wy in ((0, 1 - down), (1, down)):
        for dx, wx in ((0, 1 - right), (1, right)):
            row, column = (top + dy).long(), (left + dx).long()
            weight = wy * wx
            if border == "zeros":
                there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                weight = weight * there
            at = fold(row, height, border) * width + fold(column, width, border)
            values = flat.gather(2, at.view(count, 1, -1).expand(-1, channels, -1))
            total += weight.view(count, 1, -1) * values
    return total.view(count, channels, *y.shape[-2:])


def pixel_grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(y, x) of every pixel of a square picture, (side, side) each, in float64."""
    line = torch.arange(side, dtype=torch.float64, device=device)
    return line[:, None].expand(side, side), line[None, :].expand(side, side)


def magnified(pictures: Tensor, factor: float) -> Tensor:
    """The middle of square pictures, `factor` (1 or more) times as large, in the same frame.

    The corners of the piece that is enlarged stay corners (as scipy's `zoom` places its samples);
    factor 1 gives the same bits.
    """
    side = pictures.shape[-1]
    piece = math.ceil(side / factor)
    first = (side - piece) // 2
    enlarged = round(piece * factor)
    step = (piece - 1) / (enlarged - 1) if enlarged > 1 else 0.0
    trim = (enlarged - side) // 2
    line = first + step * torch.arange(
        trim, trim + side, dtype=torch.float64, device=pictures.device
    )
    low = line.floor().long()
    high, share = (low + 1).clamp(max=side - 1), (line - low).to(pictures.dtype)
    rows = pictures[:, :, low] * (1 - share[:, None]) + pictures[:, :, high] * share[:, None]
    return rows[..., low] * (1 - share) + rows[..., high] * share
