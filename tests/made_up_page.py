"""The data of an atlas's page from random numbers, of any size, without a model: for the tests of
the viewer and its benchmark.

Rows are in round clusters, one a class. Unless others are given, every picture is flat in a color
of its own, so that one pixel of the page tells which row it belongs to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featviz.atlas.grid import cut, top_classes
from featviz.atlas.levels import Level
from featviz.atlas.thumbnails import Thumbnails
from featviz.atlas.viewer.data import PageData
from featviz.results import Number

K = 10


def color_of(numbers: Tensor) -> Tensor:
    """A color (..., 3) for each number: near ones differ by more than JPEG changes them."""
    return torch.stack(
        [40 + 37 * numbers % 180, 40 + 71 * numbers % 180, 40 + 113 * numbers % 180], -1
    )


def made_up_page(
    count: int,
    *,
    pictured: int | None = None,
    size: int = 32,
    classes: int = 20,
    pictures: Tensor | None = None,
    seed: int = 0,
) -> PageData:
    """An atlas of `count` rows of which every n-th has a thumbnail of `size` pixels.

    `pictures` (any, 3, size, size) uint8 are taken in turn instead of flat colors.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.arange(count) % classes
    middles = 0.1 + 0.8 * torch.rand(classes, 2, generator=generator)
    spread = 0.5 / classes**0.5
    xy = middles[own] + spread * 0.3 * torch.randn(count, 2, generator=generator)
    xy = (xy - xy.min(0).values) / (xy.max(0).values - xy.min(0).values).max()
    shown = torch.arange(0, count, max(1, count // (pictured or count)))
    colors = color_of(shown).to(torch.uint8)
    thumbnails = colors[:, :, None, None].expand(-1, -1, size, size).contiguous()
    if pictures is not None:
        thumbnails = pictures[torch.arange(len(shown)) % len(pictures)]
    neighbors = (torch.arange(count)[:, None] + classes * torch.arange(1, K + 1)) % count
    kept = torch.rand(count, K, generator=generator) < 0.5
    labels = tuple(f"class {int(number):02d}" for number in own)
    paths = tuple(f"{label}/{row:06d}.jpg" for row, label in enumerate(labels))
    recall = float(kept.double().mean())
    return PageData(
        title="fc7 of nothing on random numbers",
        layer="fc7",
        model="nothing",
        data="random numbers",
        dim=4096,
        whole=count,
        method="Made up.",
        recall={"this map": recall, "principal components": 0.05, "a random map": 0.01},
        numbers={"recall@10": Number(recall, "fraction", "made up")},
        paths=paths,
        classes=labels,
        xy=xy,
        neighbors=neighbors,
        distances=0.05 * torch.arange(1, K + 1).repeat(count, 1),
        kept=kept,
        places={"map": _in_lines(xy, 2.8), "mosaic": _in_lines(xy, 1.0)},
        thumbnails=Thumbnails(shown, thumbnails),
        levels=_levels(xy, shown, labels),
    )


def _levels(xy: Tensor, pictured: Tensor, labels: tuple[str, ...]) -> tuple[Level, ...]:
    able = set(pictured.tolist())
    levels = []
    for side in (4, 8, 16, 32):
        grid = cut(xy, side)
        samples = tuple(
            next((row for row in cell.members if row in able), cell.members[0])
            for cell in grid.cells
        )
        levels.append(
            Level(grid, samples, torch.full((len(samples),), 0.5), top_classes(labels, grid))
        )
    return tuple(levels)


def _in_lines(xy: Tensor, room: float) -> Tensor:
    """Some place of its own for each row: lines of equal length by y, in each by x."""
    count = len(xy)
    columns = math.ceil(math.sqrt(count * room))
    a_line = columns if room == 1.0 else max(1, int(columns / room**0.5))
    order = torch.argsort(xy[:, 1])
    places = torch.empty(count, 2, dtype=torch.long)
    for line, rows in enumerate(order.split(a_line)):
        sorted_rows = rows[torch.argsort(xy[rows, 0])]
        at = torch.arange(len(rows)) * columns // a_line
        places[sorted_rows] = torch.stack([at, torch.full_like(at, line)], 1)
    return places
