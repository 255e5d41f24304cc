"""`render_page(atlas)`: one HTML file that needs nothing beside it and opens from file://.

The source is page.html, style.css and viewer.js in this folder; pictures travel as JPEG sheets in
data: addresses, all else as one JSON element.
"""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz import images, results

if TYPE_CHECKING:
    from featviz.atlas.build import Atlas, Level

SHEET = 2048
"""pixels a side of a sheet; every browser can draw that"""
QUALITY = 76


def render_page(atlas: Atlas) -> str:
    """The page of an atlas as HTML."""
    from jinja2 import Environment
    from markupsafe import Markup

    here = Path(__file__).parent
    read = {name: (here / name).read_text(encoding="utf-8") for name in _SOURCES}
    document = describe(atlas)
    # Within a script element only "</" could end it early; "<!--" could hide what follows.
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    safe = text.replace("<", "\\u003c")
    page = Environment(autoescape=True).from_string(read["page.html"])
    return page.render(
        data=document,
        style=Markup(read["style.css"]),
        script=Markup(read["viewer.js"]),
        json=Markup(safe),
    )


_SOURCES = ("page.html", "style.css", "viewer.js")


def describe(atlas: Atlas) -> dict[str, Any]:
    """Everything that the page shows, as plain lists and numbers."""
    names = [atlas.name(row) for row in range(len(atlas.rows))]
    known = sorted(set(names))
    place = {name: i for i, name in enumerate(known)}
    return {
        "title": atlas.title,
        "layer": atlas.store.layer,
        "distance": "cosine distance",
        "method": _method(atlas),
        "numbers": [
            {"name": name, "text": results.show_number(number), "meaning": number.meaning}
            for name, number in atlas.numbers().items()
        ],
        "warnings": list(atlas.warnings),
        "names": known,
        "name": [place[name] for name in names],
        "paths": [atlas.store.pictures.paths[row] for row in atlas.rows],
        "k": atlas.neighbors.shape[1],
        "neighbors": atlas.neighbors.flatten().tolist(),
        "distances": _round(atlas.distances.flatten(), 3),
        "keeps": atlas.quality.kept.flatten().int().tolist(),
        "kept": _round(atlas.quality.per_row, 2),
        "views": {"map": _trim(atlas.lattice[0]), "mosaic": _trim(atlas.mosaic[0])},
        "thumbs": _sheets(atlas.thumbnails),
        "levels": [_level(level, len(atlas.rows)) for level in atlas.levels],
    }


def _method(atlas: Atlas) -> str:
    layout = atlas.layout
    if layout.divergence is None:
        return "Laid out by principal components (too few pictures for t-SNE)."
    return (
        f"Laid out by t-SNE ({layout.method}, perplexity {layout.perplexity:g}) on exact "
        f"neighbours in {atlas.store.layer}."
    )


def _round(values: Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _trim(places: Tensor) -> dict[str, Any]:
    """Columns and rows of the smallest rectangle that holds all places, and the places in it."""
    moved = places - places.min(0).values
    columns, rows = (moved.max(0).values + 1).tolist()
    return {"columns": columns, "rows": rows, "at": moved.flatten().tolist()}


def _level(level: Level, count: int) -> dict[str, Any]:
    made = level.synthetic
    of = [0] * count
    for number, cell in enumerate(level.grid.cells):
        for member in cell.members:
            of[member] = number
    return {
        "side": level.grid.side,
        "of": of,
        "cells": [
            {
                "row": cell.row, "column": cell.column, "members": list(cell.members),
                "sample": level.samples[number],
                "cosine": None if made is None else round(float(made.cosines[number]), 3),
            }
            for number, cell in enumerate(level.grid.cells)
        ],
        "icons": None if made is None else _sheets(_at_most(made.images, 128)),
    }  # fmt: skip


def _at_most(pictures: Tensor, size: int) -> Tensor:
    from featviz.atlas.build import resize

    small = resize(pictures, size) if pictures.shape[-1] > size else pictures
    return images.to_uint8(small)


def _sheets(pictures: Tensor) -> dict[str, Any]:
    """Pictures (N, 3, T, T) uint8 as square JPEG sheets in data: addresses."""
    size = pictures.shape[-1]
    columns = max(1, min(SHEET // size, math.ceil(math.sqrt(len(pictures)))))
    per_sheet = columns * columns
    sheets = []
    for start in range(0, len(pictures), per_sheet):
        part = pictures[start : start + per_sheet].numpy()
        rows = math.ceil(len(part) / columns)
        sheet = np.zeros((rows * size, columns * size, 3), dtype=np.uint8)
        for i, picture in enumerate(part):
            y, x = size * (i // columns), size * (i % columns)
            sheet[y : y + size, x : x + size] = picture.transpose(1, 2, 0)
        sheets.append(f"data:image/jpeg;base64,{base64.b64encode(_jpeg(sheet)).decode()}")
    return {"size": size, "columns": columns, "per_sheet": per_sheet, "sheets": sheets}


def _jpeg(sheet: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    picture = torch.from_numpy(sheet).permute(2, 0, 1).float() / 255
    images.to_pillow(picture).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
