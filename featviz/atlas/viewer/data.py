"""What an atlas's page carries: `carry(atlas)`.

Two parts. A small JSON document with words, sizes and numbers; and blocks: arrays with a name and a
type (u8, u16, u32), written row after row, little-endian. 20,000 pictures of 32 pixels take about
10 MB as a page, most of it JPEG; each row without a picture about 70 bytes.

Blocks, for N rows, P of them pictured, k neighbours:

    xy          (N, 2)  position on the map, [0, 1] as 0 to 65535
    class       (N,)    place in `classes`; absent without classes
    neighbors   (N, k)  true neighbours, nearest first
    distances   (N, k)  in units of `distance_unit`
    keeps       (N,)    bit i is set where neighbour i is among the k nearest on the map
    map, mosaic (N, 2)  column and row
    pictured    (P,)    which rows have a thumbnail, ascending; absent where all have
    tint        (P, 3)  the mean colour of the thumbnail
    paths               UTF-8, with a zero byte between two
    thumbs-J            JPEG sheet J
    L-of        (N,)    for level L: in which of its cells a row is
    L-place     (C, 2)  column and row of each of its cells
    L-sample    (C,)    the row that stands for the cell
    L-within    (C,)    cosine of the members to their mean, [0, 1] as 0 to 65535
    L-raised    (C, 3)  places in the level's `raised`: classes that the mean argues for; absent
                        without the model
    L-cosine    (C,)    of the synthetic icon to the mean, as `within`; absent without icons
    L-landed    (C,)    the cell whose mean is nearest to the icon; absent where nobody looked
    L-icons-J           sheets of synthetic icons
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featviz import images, results
from featviz.atlas.viewer.colours import COLOURS, class_colours
from featviz.atlas.viewer.sheets import Sheets, pack_sheets

if TYPE_CHECKING:
    from featviz.atlas.build import Atlas, Level
    from featviz.datasets import Pictures

Block = NDArray[Any] | bytes
"""an array of u1, u2 or u4, or a file's bytes"""

RAISED = 3
"""classes told of a cell that its mean argues for"""
LARGEST_ICON = 128
"""pixels a side of a synthetic icon on the page"""


def carry(atlas: Atlas) -> tuple[dict[str, Any], dict[str, Block]]:
    """(the document, the blocks) of the page of an atlas."""
    rows = atlas.rows
    count = len(rows)
    names = [atlas.store.class_name(row) for row in rows]
    known = sorted({name for name in names if name})
    distances = atlas.distances.double().clamp_min(0)
    unit = max(float(distances.max()) if distances.numel() else 0.0, 1e-12) / 65535
    bits = 2 ** torch.arange(atlas.quality.kept.shape[1])
    thumbs = pack_sheets(atlas.thumbnails)
    columns, blocks_of_views = {}, {}
    for view, (places, _, _) in {"map": atlas.lattice, "mosaic": atlas.mosaic}.items():
        columns[view], blocks_of_views[view] = _trim(places)
    blocks: dict[str, Block] = {
        "xy": _fractions(atlas.layout.xy),
        "neighbors": _smallest(atlas.neighbors),
        "distances": (distances / unit).round().numpy().astype("<u2"),
        "keeps": (atlas.quality.kept.long() * bits).sum(1).numpy().astype("<u2"),
        **blocks_of_views,
        "tint": atlas.thumbnails.flatten(2).float().mean(2).round().byte().numpy(),
        "paths": "\0".join(atlas.store.pictures.paths[row] for row in rows).encode(),
        **_files("thumbs", thumbs),
    }
    if len(atlas.pictured) < count:
        blocks["pictured"] = _smallest(atlas.pictured)
    colours: list[int] = []
    if known:
        place = {name: number for number, name in enumerate(known)}
        # Rows without a class come after all classes.
        codes = np.array([place.get(name, len(known)) for name in names])
        blocks["class"] = _smallest(torch.from_numpy(codes))
        able = codes < len(known)
        xy = atlas.layout.xy.double().numpy()[able]
        colours = class_colours(xy, codes[able], len(known))
    document: dict[str, Any] = {
        "title": atlas.title,
        "layer": atlas.store.layer,
        "model": atlas.store.model_name,
        "data": str(atlas.store.source["name"]),
        "dim": atlas.store.dim,
        "count": count,
        "whole": len(atlas.store),
        "k": atlas.neighbors.shape[1],
        "distance": "cosine distance",
        "distance_unit": unit,
        "method": _method(atlas),
        "base": _base(atlas.store.pictures),
        "recall": _recalls(atlas),
        "numbers": [
            {"name": name, "text": results.show_number(number), "meaning": number.meaning}
            for name, number in atlas.numbers().items()
        ],
        "warnings": list(atlas.warnings),
        "classes": known,
        "colours": COLOURS,
        "colour": colours,
        "views": columns,
        "thumbs": _grid(thumbs),
        "levels": [],
    }
    for number, level in enumerate(atlas.levels):
        described, more = _level(level, count, f"level{number}")
        document["levels"].append(described)
        blocks.update(more)
    return document, blocks


def _method(atlas: Atlas) -> str:
    layout = atlas.layout
    if layout.divergence is None:
        return "Laid out by principal components (too few pictures for t-SNE)."
    return (
        f"Laid out by t-SNE ({layout.method}, perplexity {layout.perplexity:g}) on exact "
        f"neighbours in {atlas.store.layer}."
    )


def _recalls(atlas: Atlas) -> list[dict[str, Any]]:
    """The neighbours kept, beside what they must be compared with."""
    shown = [
        ("this map", atlas.quality.recall),
        ("principal components", atlas.floor.recall),
        ("a random map", atlas.quality.recall_chance),
    ]
    return [{"name": name, "share": round(min(1.0, share), 4)} for name, share in shown]


def _base(pictures: Pictures) -> str | None:
    """The address of the folder of the pictures, None where they are no files."""
    root = pictures.root
    if root.suffix == ".tar" or not root.exists():
        return None
    folder = root if root.is_dir() else root.parent
    return Path(folder).resolve().as_uri() + "/"


def _trim(places: Tensor) -> tuple[dict[str, int], Block]:
    """Columns and rows of the smallest rectangle that holds all places, and the places in it."""
    moved = places - places.min(0).values
    columns, rows = (moved.max(0).values + 1).tolist()
    return {"columns": columns, "rows": rows}, moved.numpy().astype("<u2")


def _level(level: Level, count: int, prefix: str) -> tuple[dict[str, Any], dict[str, Block]]:
    cells = level.grid.cells
    of = np.zeros(count, dtype=np.int64)
    for number, cell in enumerate(cells):
        of[list(cell.members)] = number
    blocks: dict[str, Block] = {
        f"{prefix}-of": _smallest(torch.from_numpy(of)),
        f"{prefix}-place": np.array([(cell.column, cell.row) for cell in cells], dtype="<u2"),
        f"{prefix}-sample": _smallest(torch.tensor(level.samples)),
        f"{prefix}-within": _fractions(level.cosines),
    }
    described: dict[str, Any] = {"side": level.grid.side, "cells": len(cells), "icons": None}
    if level.effects is not None:
        names = sorted({name for cell in level.effects for name, _ in cell[:RAISED]})
        described["raised"] = names
        place = {name: number for number, name in enumerate(names)}
        rows = [[place[name] for name, _ in cell[:RAISED]] for cell in level.effects]
        full = [row + [len(names)] * (RAISED - len(row)) for row in rows]
        blocks[f"{prefix}-raised"] = _smallest(torch.tensor(full).reshape(-1, RAISED))
    made = level.synthetic
    if made is not None:
        if made.landed is not None:
            blocks[f"{prefix}-landed"] = _smallest(made.landed)
        icons = pack_sheets(_at_most(made.images, LARGEST_ICON))
        described["icons"] = _grid(icons)
        blocks[f"{prefix}-cosine"] = _fractions(made.cosines)
        blocks.update(_files(f"{prefix}-icons", icons))
    return described, blocks


def _at_most(pictures: Tensor, size: int) -> Tensor:
    from featviz.atlas.build import resize

    small = resize(pictures, size) if pictures.shape[-1] > size else pictures
    return images.to_uint8(small)


def _grid(sheets: Sheets) -> dict[str, int]:
    return {
        "size": sheets.size,
        "pitch": sheets.pitch,
        "rows": sheets.rows,
        "per_sheet": sheets.per_sheet,
        "sheets": len(sheets.files),
    }


def _files(name: str, sheets: Sheets) -> dict[str, Block]:
    return {f"{name}-{number}": file for number, file in enumerate(sheets.files)}


def _fractions(values: Tensor) -> NDArray[np.uint16]:
    """Values in [0, 1] (others are cut off) in steps of 1/65535."""
    return (values.double().clamp(0, 1) * 65535).round().numpy().astype("<u2")


def _smallest(values: Tensor) -> NDArray[Any]:
    """Whole numbers from zero in the smallest type that holds them."""
    most = int(values.max()) if values.numel() else 0
    kind = "u1" if most < 2**8 else "<u2" if most < 2**16 else "<u4"
    return values.numpy().astype(kind)
