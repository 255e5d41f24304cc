"""Blur: out of focus, through frosted glass, by motion, by zooming while the shutter is open.

Pictures (N, C, H, W) in [0, 1] come in; the same shape goes out.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from featviz.corruptions import draws
from featviz.corruptions.constants import zoom_factors
from featviz.corruptions.draws import Streams
from featviz.pictures.resampling import fold, magnified


def gaussian_weights(taps: Tensor, sigma: float) -> Tensor:
    """(k,) float64 weights of a Gaussian at whole-numbered taps, with sum 1."""
    weights = torch.exp(-0.5 * (taps.double() / sigma) ** 2)
    return weights / weights.sum()


@lru_cache(maxsize=64)
def gaussian_matrix(side: int, sigma: float, reach: int, border: str) -> Tensor:
    """(side, side) float64: row i holds the weights of all pixels of a line for pixel i.

    A dense matrix costs little at these sizes and takes any border and any sigma, also one that
    is larger than the picture (severity 1 of elastic_transform has such a one).
    """
    if sigma <= 0:
        return torch.eye(side, dtype=torch.float64)
    taps = torch.arange(-reach, reach + 1)
    columns = fold(torch.arange(side)[:, None] + taps, side, border)
    weights = gaussian_weights(taps, sigma).expand(side, -1).contiguous()
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, columns, weights)


def smooth(
    pictures: Tensor, sigma: float, *, truncate: float = 4.0, border: str = "edge"
) -> Tensor:
    """A Gaussian blur of (N, C, H, W), cut at `truncate` sigmas."""
    reach = int(truncate * sigma + 0.5)
    down, across = (
        gaussian_matrix(side, sigma, reach, border).to(pictures) for side in pictures.shape[-2:]
    )
    return down @ pictures @ across.T


def gaussian(pictures: Tensor, streams: Streams, sigma: float) -> Tensor:
    """A Gaussian blur; beyond the border its last pixel goes on."""
    return smooth(pictures, sigma).clamp(0, 1)


@lru_cache(maxsize=64)
def disk(radius: float, edge: float) -> Tensor:
    """(k, k) float64: a disk that sums to 1, its edge softened by a Gaussian of sigma `edge`."""
    reach, soft = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    inside = (line[:, None] ** 2 + line[None, :] ** 2 <= radius**2).double()
    matrix = gaussian_matrix(len(line), edge, soft, "reflect101")
    soft_disk = matrix @ (inside / inside.sum()) @ matrix.T
    empty = int((soft_disk.abs().sum(0) > 0).nonzero()[0])  # zeros around it cost time only
    return soft_disk[empty : len(line) - empty, empty : len(line) - empty]


def defocus(pictures: Tensor, streams: Streams, radius: float, edge: float) -> Tensor:
    """Every point becomes a disk, as behind a lens that is out of focus."""
    kernel = disk(radius, edge).to(pictures)
    reach = len(kernel) // 2
    rows, columns = (
        fold(torch.arange(-reach, side + reach, device=pictures.device), side, "reflect101")
        for side in pictures.shape[-2:]
    )
    padded = pictures[:, :, rows][:, :, :, columns]
    # TF32 would be off by a third of a level.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        blurred = nn.functional.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None])
    return blurred.view_as(pictures).clamp(0, 1)


def glass(
    pictures: Tensor, streams: Streams, sigma: float, farthest: float, rounds: float
) -> Tensor:
    """As through frosted glass: blurred, its pixels displaced at random, blurred again.

    The benchmark walks from the last pixel to the first and means to swap each with one nearby;
    but its arrays are views, and so the pixel only takes the other's value, which may itself have
    been taken before. That is what its pictures show, and what is done here, for all pixels at
    once: each follows the chain of values taken earlier to its end (in as many steps as the
    logarithm of the chain's length).
    """
    jump = int(farthest)
    x = torch.floor(smooth(pictures, sigma).clamp(0, 1) * 255) / 255
    for _ in range(int(rounds)):
        moves = draws.integers(streams, (2, *pictures.shape[-2:]), -jump, jump)
        source = displaced(moves, jump).to(x.device)
        x = x.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, x.shape[1], -1))
        x = x.view_as(pictures)
    return smooth(x, sigma).clamp(0, 1)


def displaced(moves: Tensor, jump: int) -> Tensor:
    """Where each pixel's value comes from, (N, H, W) flat indices.

    moves: (N, 2, H, W), down and right, from -jump to jump - 1.
    """
    height, width = moves.shape[-2:]
    own = torch.arange(height * width).view(height, width)
    row, column = own // width, own % width
    walked = (row > jump) & (row <= height - jump) & (column > jump) & (column <= width - jump)
    taken = torch.where(walked, own + moves[:, 0] * width + moves[:, 1], own)
    # A pixel taken from has been overwritten before if the walk met it earlier.
    earlier = walked.flatten()[taken] & (taken > own)
    end = torch.where(earlier, taken, own)  # one step up the chain
    while True:
        further = end.flatten(1).gather(1, end.flatten(1)).view_as(end)
        if torch.equal(further, end):
            break
        end = further
    return taken.flatten(1).gather(1, end.flatten(1)).view_as(taken)


def motion(pictures: Tensor, streams: Streams, radius: float, sigma: float) -> Tensor:
    """The camera moves in one direction, up to 45 degrees off the horizontal."""
    angles = draws.uniform(streams, (), -45, 45)
    return streaked(pictures, radius, sigma, angles)


def streaked(pictures: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """Half a Gaussian, 2 radius + 1 pixels long, along each picture's own direction.

    As ImageMagick's motion blur: whole pixels along the line, the border's pixels going on, the
    result in 8 bits. degrees: (N,), clockwise from the right.
    """
    length = 2 * math.ceil(radius) + 1
    weights = gaussian_weights(torch.arange(length), sigma)
    height, width = pictures.shape[-2:]
    rows, columns = (
        torch.arange(-length, side + length, device=pictures.device).clamp(0, side - 1)
        for side in (height, width)
    )
    padded = pictures[:, :, rows][:, :, :, columns]
    parts = []
    for picture, angle in zip(padded, degrees.tolist(), strict=True):
        right, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        total = torch.zeros_like(pictures[0])
        for i, weight in enumerate(weights.tolist()):
            left = length + math.ceil(i * right - 0.5)
            top = length + math.ceil(i * down - 0.5)
            total += weight * picture[:, top : top + height, left : left + width]
        parts.append(total)
    return (torch.stack(parts).clamp(0, 1) * 255).round() / 255


def zoom(pictures: Tensor, streams: Streams, farthest: float, step: float) -> Tensor:
    """The mean of the picture and of itself, zoomed in more and more."""
    factors = zoom_factors(farthest, step)
    total = pictures.clone()
    for factor in factors:
        total += magnified(pictures, factor)
    return (total / (len(factors) + 1)).clamp(0, 1)
