"""Ice on the lens, drawn: feathers that grow, branch and branch again.

ImageNet-C lays photographs of frosted windows over its pictures. Those are not ours to give, so
five plates of ice are grown here from fixed seeds instead. They look like frost and hurt like
frost, but they are NOT the benchmark's: numbers under "frost" compare with each other only.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import torch
from torch import Tensor, nn

from featviz.corruptions import draws
from featviz.corruptions.draws import Streams

PLATES = 5
SIDE = 400
"""pixels of a plate; a picture is laid under a piece of 224, whatever its own side"""
_PIECE = 224
_TINT = (0.86, 0.95, 1.0)


def ice(streams: Streams, side: int) -> Tensor:
    """(N, 3, side, side) float32 in [0, 1]: for each stream a piece of one of the plates."""
    drawn = draws.integers(streams, (3,), 0, 2**31 - 1)
    pieces = []
    for plate, top, left in drawn.tolist():
        whole = grown(plate % PLATES)
        y, x = top % (SIDE - _PIECE + 1), left % (SIDE - _PIECE + 1)
        piece = whole[:, y : y + _PIECE, x : x + _PIECE][None]
        if side != _PIECE:
            piece = nn.functional.interpolate(
                piece, (side, side), mode="bilinear", align_corners=False, antialias=True
            )
        pieces.append(piece[0])
    return torch.stack(pieces).clamp(0, 1)


@lru_cache(maxsize=PLATES)
def grown(number: int) -> Tensor:
    """Plate 0 to 4, (3, SIDE, SIDE) float32 in [0, 1]: always the same."""
    seed = 1000 + number
    generator = torch.Generator().manual_seed(seed)
    needles = _needles(random.Random(seed))
    bright = _drawn(needles)
    haze = torch.zeros(SIDE, SIDE)
    for cells, weight in ((4, 0.45), (9, 0.3), (40, 0.12), (160, 0.13)):
        grains = torch.rand(1, 1, cells, cells, generator=generator)
        haze += (
            weight
            * nn.functional.interpolate(grains, (SIDE, SIDE), mode="bicubic", align_corners=True)[
                0, 0
            ]
        )
    # Ice scatters light: what lies round bright needles is bright.
    glow = torch.zeros(SIDE, SIDE)
    for reach in (3, 12):
        width = 2 * reach + 1
        glow += 0.5 * nn.functional.avg_pool2d(bright[None, None], width, 1, reach)[0, 0]
    light = 0.55 * (1 - torch.exp(-bright)) + 0.75 * (1 - torch.exp(-glow)) + 0.9 * (haze - 0.4)
    light = light.clamp(0, 1)
    # Thin ice is bluish, thick ice white.
    tint = torch.tensor(_TINT).view(3, 1, 1)
    return (light * (tint + (1 - tint) * light)).clamp(0, 1)


def _needles(draw: random.Random) -> Tensor:
    """(K, 5): y, x, angle, length and brightness of straight needles, stems and side branches."""

    between = draw.uniform
    found: list[tuple[float, float, float, float, float]] = []
    # Feathers lean together, for the glass is coldest on one side.
    lean = between(0, 2 * math.pi)
    for _ in range(560):
        y, x = between(-0.1, 1.1) * SIDE, between(-0.1, 1.1) * SIDE
        angle, length = lean + between(-2.0, 2.0), between(14, 34) * math.exp(between(0, 1.4))
        bend, spread = between(-0.015, 0.015), between(0.6, 1.1)
        walked = 0.0
        while walked < length:
            step = between(1.5, 4.5)
            left = 1 - walked / length
            found.append((y, x, angle, 2 * step, 0.25 + 0.35 * left))
            for side in (-1, 1):
                branch = (3 + 0.3 * length * left) * between(0.15, 1.0) ** 1.5
                found.append(
                    (
                        y,
                        x,
                        angle + side * (spread + between(-0.25, 0.25)),
                        branch,
                        between(0.15, 0.75),
                    )
                )
            y, x = y + step * math.sin(angle), x + step * math.cos(angle)
            angle, walked = angle + bend * step, walked + step
    return torch.tensor(found)


def _drawn(needles: Tensor) -> Tensor:
    """(SIDE, SIDE): the needles as fine lines that fade towards their tips."""
    y, x, angle, length, brightness = needles[:, :, None].unbind(1)
    at = torch.linspace(0, 1, 32)[None, :]
    down, right = y + at * length * angle.sin(), x + at * length * angle.cos()
    # A point's light goes to its four pixels; points lie closer on short needles, so each weighs
    # what it stands for.
    light = (brightness * (1 - 0.75 * at) * length / at.shape[1]).flatten()
    top, left = down.floor().flatten(), right.floor().flatten()
    below, beside = down.flatten() - top, right.flatten() - left
    canvas = torch.zeros(SIDE * SIDE)
    for dy, wy in ((0, 1 - below), (1, below)):
        for dx, wx in ((0, 1 - beside), (1, beside)):
            row, column = (top + dy).long(), (left + dx).long()
            there = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
            canvas.index_add_(0, (row * SIDE + column)[there], (light * wy * wx)[there])
    return canvas.view(SIDE, SIDE)
