"""Random changes of a picture while it is optimised, drawn for each picture on its own.

What survives small shifts, turns and changes of size is what the unit looks for; what does not is
a trick of the pixel grid. Shifts over at least one stride of the layer also wash out the lattice
that strided convolutions and pools print on a gradient.

Comes in: pictures (N, 3, H, W) and draws (N, 4). Goes out: pictures of the same size. Shift, turn
and scale are one affine map, sampled once, bilinearly, with the picture reflected at its borders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class Transforms:
    """How far a picture may be moved; zero leaves that change out.

    shift: pixels to each side, uniform and not rounded to whole pixels
    rotate: degrees to each side, uniform
    scale: natural logarithm of the largest enlargement; uniform from -scale to scale
    noise: standard deviation of Gaussian noise that is added last, in [0, 1] units
    """

    shift: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    noise: float = 0.0

    @property
    def still(self) -> bool:
        """Whether the geometry is left alone."""
        return not (self.shift or self.rotate or self.scale)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """`count` moves (count, 4): shift down and right (pixels), angle (radians), log scale."""
        reach = torch.tensor([self.shift, self.shift, math.radians(self.rotate), self.scale])
        return (2 * torch.rand(count, 4, generator=generator) - 1) * reach

    def apply(self, pictures: Tensor, moves: Tensor) -> Tensor:
        """Move each picture by its own row of `moves` (N, 4); noise is not part of this."""
        return pictures if self.still else move(pictures, moves)


def move(pictures: Tensor, moves: Tensor) -> Tensor:
    """Shift, turn and scale pictures (N, 3, H, W) about their centre by `moves` (N, 4).

    A positive shift moves the content down and right, a positive angle turns it clockwise, a
    positive log scale enlarges it. Pictures are reflected at their borders.
    """
    height, width = pictures.shape[-2:]
    down, right, angle, log_scale = moves.to(pictures.device).unbind(1)
    cos, sin = angle.cos() * (-log_scale).exp(), angle.sin() * (-log_scale).exp()
    # Where each pixel of the result comes from, in pixels from the centre: first undo the shift,
    # then the turn and the scale.
    y = torch.arange(height, device=pictures.device, dtype=pictures.dtype) - (height - 1) / 2
    x = torch.arange(width, device=pictures.device, dtype=pictures.dtype) - (width - 1) / 2
    y = (y[None] - down[:, None])[:, :, None]  # (N, H, 1)
    x = (x[None] - right[:, None])[:, None, :]  # (N, 1, W)
    cos, sin = cos[:, None, None], sin[:, None, None]
    from_x = (cos * x + sin * y) * (2 / width)
    from_y = (cos * y - sin * x) * (2 / height)
    grid = torch.stack([from_x, from_y], -1)  # (N, H, W, 2) in grid_sample's [-1, 1]
    return F.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
