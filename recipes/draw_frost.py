"""Draw the plates of ice that the corruption frost lays over pictures: needles that branch.

python recipes/draw_frost.py [--out featviz/assets/frost.png]

ImageNet-C uses photographs of frosted windows, which may not be distributed here. The five plates
are drawn from fixed seeds, in gray (`featviz.corruptions.frost` tints them), side by side in one
PNG.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from featviz.corruptions.frost import PLATES, SIDE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[1] / "featviz" / "assets" / "frost.png"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    plates = torch.cat([draw(number) for number in range(PLATES)], 1)
    Image.fromarray((255 * plates).round().to(torch.uint8).numpy()).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def draw(number: int) -> Tensor:
    """Plate `number`, (SIDE, SIDE) in [0, 1], always the same."""
    seed = 1000 + number
    generator = torch.Generator().manual_seed(seed)
    needles = needles_of(random.Random(seed))
    bright = rendered(needles)
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
    return light.clamp(0, 1)


def needles_of(rng: random.Random) -> Tensor:
    """(K, 5): y, x, angle, length and brightness of straight needles, stems and side branches."""

    between = rng.uniform
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


def rendered(needles: Tensor) -> Tensor:
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


if __name__ == "__main__":
    main()
