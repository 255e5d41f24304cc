"""Bilinear resampling at any coordinates: the one resampler of rotations, zooms and distortions.

In: pictures (N, C, H, W) and coordinates in pixels, where (0, 0) is the center of the first pixel.
The identity gives back the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_PADDING = {
    "zeros": "zeros",
    "edge": "border",
    "reflect": "reflection",
    "reflect101": "reflection",
}
"""beyond the border: black; the last pixel on and on; mirrored at the border of the last pixel
(b a | a b), or at its center (c b | a b c)"""


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
    # In float64 whole coordinates have weights of 0 and 1 up to what float32 rounds away.
    centers = border == "reflect101"  # -1 and 1 are the outer pixels' centers, else their borders

    def scaled(at: Tensor, size: int) -> Tensor:
        return 2 * at / max(size - 1, 1) - 1 if centers else (2 * at + 1) / size - 1

    grid = torch.stack([scaled(x, pictures.shape[-1]), scaled(y, pictures.shape[-2])], -1)
    found = nn.functional.grid_sample(
        pictures.double(),
        grid.double().expand(len(pictures), -1, -1, -1),
        padding_mode=_PADDING[border],
        align_corners=centers,
    )
    return found.to(pictures.dtype)


def pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(y, x) of every pixel of a picture, (height, width) each, in float64."""
    y, x = (torch.arange(n, dtype=torch.float64, device=device) for n in (height, width))
    return y[:, None].expand(height, width), x[None, :].expand(height, width)


def magnified(pictures: Tensor, factor: float) -> Tensor:
    """The middle of pictures, `factor` (1 or more) times as large, in the same frame.

    The corners of the piece that is enlarged stay corners (as scipy's `zoom` places its samples);
    factor 1 gives the same bits.
    """
    rows, columns = (_enlarged_line(side, factor, pictures) for side in pictures.shape[-2:])
    low, high, share = rows
    found = pictures[:, :, low] * (1 - share[:, None]) + pictures[:, :, high] * share[:, None]
    low, high, share = columns
    return found[..., low] * (1 - share) + found[..., high] * share


def _enlarged_line(side: int, factor: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel of a line, enlarged: the two it lies between, and the share of the second."""
    piece = math.ceil(side / factor)
    first = (side - piece) // 2
    enlarged = round(piece * factor)
    step = (piece - 1) / (enlarged - 1) if enlarged > 1 else 0.0
    trim = (enlarged - side) // 2
    line = first + step * torch.arange(trim, trim + side, dtype=torch.float64, device=like.device)
    low = line.floor().long()
    return low, (low + 1).clamp(max=side - 1), (line - low).to(like.dtype)
