"""What an atlas's page shows (`PageData`), and how it is written into the page (`encode_page`).

Two parts. A small JSON document with words, sizes and numbers; and blocks: arrays with a name and a
type (u8, u16, u32), written row after row, little-endian. 20,000 pictures of 32 pixels take about
10 MB as a page, most of it JPEG; each row without a picture about 70 bytes.

Blocks, for N rows, P of them with a thumbnail, k neighbors:

    xy          (N, 2)  position on the map, [0, 1] as 0 to 65535
    class       (N,)    index in `classes`; absent without classes
    neighbors   (N, k)  true neighbors, nearest first
    distances   (N, k)  in units of `distance_unit`
    keeps       (N,)    bit i is set where neighbor i is among the k nearest on the map
    map, mosaic (N, 2)  column and row
    pictured    (P,)    which rows have a thumbnail, ascending; absent where all have
    tint        (P, 3)  the mean color of the thumbnail
    paths               UTF-8, with a zero byte between two
    thumbs-J            JPEG sheet J
    L-of        (N,)    for level L: in which of its cells a row is
    L-place     (C, 2)  column and row of each of its cells
    L-sample    (C,)    the row of the cell's sample icon
    L-within    (C,)    cosine of the members to their mean, [0, 1] as 0 to 65535
    L-raised    (C, 3)  indices in the level's `raised`: classes whose logits the mean raises most;
                        absent without the model
    L-cosine    (C,)    of the synthetic icon to the mean, as `within`; absent without icons
    L-nearest   (C,)    the cell whose mean is nearest to the icon; absent where not measured
    L-icons-J           sheets of synthetic icons
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featviz import results
from featviz.atlas.colors import COLORS, class_colors
from featviz.atlas.viewer.sheets import Sheets, pack_sheets
from featviz.pictures import images

if TYPE_CHECKING:
    from featviz.atlas.levels import Level
    from featviz.atlas.thumbnails import Thumbnails

Block = NDArray[Any] | bytes
"""an array of u1, u2 or u4, or a file's bytes"""

_AS_THEY_ARE = ("title", "layer", "model", "data", "dim", "whole", "method", "base")
RAISED = 3
"""classes that are named for a cell"""
LARGEST_ICON = 128
"""pixels a side of a synthetic icon on the page"""


@dataclass(frozen=True, kw_only=True)
class PageData:
    """What the page of an atlas shows."""

    title: str
    layer: str
    model: str
    data: str
    """name of the data set"""
    dim: int
    """of the layer"""
    whole: int
    """pictures in the store, of which the map may show a sample"""
    method: str
    """how the map was made, as a sentence"""
    recall: Mapping[str, float]
    """fraction of neighbors kept: by this map, by its baselines"""
    numbers: Mapping[str, results.Number]
    warnings: Sequence[str] = ()
    base: str | None = None
    """address of the folder of the pictures, where they are files"""
    paths: Sequence[str]
    """(N) of the pictures"""
    classes: Sequence[str]
    """(N) class of each row, "" where there is none"""
    xy: Tensor
    """(N, 2) positions in [0, 1]"""
    neighbors: Tensor
    """(N, k) the nearest rows in the space"""
    distances: Tensor
    """(N, k) to them"""
    kept: Tensor
    """(N, k) bool: whether they are among the k nearest on the map"""
    places: Mapping[str, Tensor]
    """"map" and "mosaic": (N, 2) column and row"""
    thumbnails: Thumbnails
    levels: Sequence[Level]


def encode_page(page: PageData) -> tuple[dict[str, Any], dict[str, Block]]:
    """The document and the blocks of a page."""
    count, k = page.neighbors.shape
    distances = page.distances.double().clamp_min(0)
    unit = max(float(distances.max()) if distances.numel() else 0.0, 1e-12) / 65535
    thumbs = pack_sheets(page.thumbnails.images)
    blocks: dict[str, Block] = {
        "xy": _fractions(page.xy),
        "neighbors": _smallest(page.neighbors),
        "distances": (distances / unit).round().numpy().astype("<u2"),
        "keeps": (page.kept.long() * 2 ** torch.arange(k)).sum(1).numpy().astype("<u2"),
        "tint": page.thumbnails.images.flatten(2).float().mean(2).round().byte().numpy(),
        "paths": "\0".join(page.paths).encode(errors="backslashreplace"),
        **_files("thumbs", thumbs),
    }
    views = {}
    for view, places in page.places.items():
        moved = places - places.min(0).values  # the smallest rectangle that holds all places
        columns, rows = (moved.max(0).values + 1).tolist()
        views[view] = {"columns": columns, "rows": rows}
        blocks[view] = moved.numpy().astype("<u2")
    if len(page.thumbnails.rows) < count:
        blocks["pictured"] = _smallest(page.thumbnails.rows)
    known = sorted({*page.classes} - {""})
    chosen: list[int] = []
    if known:
        index = {name: number for number, name in enumerate(known)}
        # Rows without a class come after all classes.
        codes = np.array([index.get(name, len(known)) for name in page.classes])
        blocks["class"] = _smallest(torch.from_numpy(codes))
        able = codes < len(known)
        chosen = class_colors(page.xy.double().numpy()[able], codes[able], len(known))
    levels = []
    for number, level in enumerate(page.levels):
        described, more = _encode_level(level, count, f"level{number}")
        levels.append(described)
        blocks |= more
    document = {
        **{name: getattr(page, name) for name in _AS_THEY_ARE},
        "count": count,
        "k": k,
        "distance": "cosine distance",
        "distance_unit": unit,
        "recall": [
            {"name": name, "share": round(min(1.0, value), 7)}
            for name, value in page.recall.items()
        ],
        "numbers": [
            {"name": name, "text": results.show_number(number), "meaning": number.meaning}
            for name, number in page.numbers.items()
        ],
        "warnings": list(page.warnings),
        "classes": known,
        "colors": COLORS,
        "color": chosen,
        "views": views,
        "thumbs": _described(thumbs),
        "levels": levels,
    }
    return document, blocks


def _encode_level(level: Level, count: int, prefix: str) -> tuple[dict[str, Any], dict[str, Block]]:
    cells = level.grid.cells
    of = torch.zeros(count, dtype=torch.int64)
    for number, cell in enumerate(cells):
        of[list(cell.members)] = number
    blocks: dict[str, Block] = {
        f"{prefix}-of": _smallest(of),
        f"{prefix}-place": np.array([(cell.column, cell.row) for cell in cells], dtype="<u2"),
        f"{prefix}-sample": _smallest(torch.tensor(level.samples)),
        f"{prefix}-within": _fractions(level.cosines),
    }
    described: dict[str, Any] = {"side": level.grid.side, "cells": len(cells), "icons": None}
    if level.effects is not None:
        top = [[name for name, _ in cell[:RAISED]] for cell in level.effects]
        names = sorted({name for cell in top for name in cell})
        index = {name: number for number, name in enumerate(names)}
        full = [[*map(index.get, cell), *[len(names)] * (RAISED - len(cell))] for cell in top]
        blocks[f"{prefix}-raised"] = _smallest(torch.tensor(full).reshape(-1, RAISED))
        described["raised"] = names
    made = level.synthetic
    if made is not None:
        if made.nearest is not None:
            blocks[f"{prefix}-nearest"] = _smallest(made.nearest)
        size = min(made.images.shape[-1], LARGEST_ICON)
        icons = pack_sheets(images.to_uint8(images.resize(made.images, size)))
        described["icons"] = _described(icons)
        blocks[f"{prefix}-cosine"] = _fractions(made.cosines)
        blocks |= _files(f"{prefix}-icons", icons)
    return described, blocks


def _described(sheets: Sheets) -> dict[str, int]:
    found = {name: getattr(sheets, name) for name in ("size", "pitch", "rows", "per_sheet")}
    return found | {"sheets": len(sheets.files)}


def _files(name: str, sheets: Sheets) -> dict[str, Block]:
    return {f"{name}-{number}": file for number, file in enumerate(sheets.files)}


def _fractions(values: Tensor) -> NDArray[np.uint16]:
    """Values in [0, 1] (others are clipped) in steps of 1/65535."""
    return (values.double().clamp(0, 1) * 65535).round().numpy().astype("<u2")


def _smallest(values: Tensor) -> NDArray[Any]:
    """Whole numbers from zero in the smallest type that holds them."""
    most = int(values.max()) if values.numel() else 0
    kind = "u1" if most < 2**8 else "<u2" if most < 2**16 else "<u4"
    return values.numpy().astype(kind)
