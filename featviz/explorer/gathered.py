"""What the explorer shows beside the network: pictures with their place in the feature space, and
what its units respond to.

Comes in: a model, pictures, and a folder of results. Goes out: `Gathered`, a JSON document and
blocks of bytes that the page reads by name:

    vectors        (N, dim) int8, row after row: a picture's activations, each row over its
                   own largest value; deflated
    places         (N, 2) float32 in [0, 1]: places of their own on a lattice over the map; absent
                   for fewer than 8 pictures
    thumbs-J       JPEG sheets of thumbnails
    sample-I       JPEG of a picture to begin with, as large as the model takes it
    LAYER-U-made, LAYER-U-patches
                   JPEG: a picture made for a unit, and pieces of pictures that activate it
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from featviz.atlas.build import ROOM
from featviz.atlas.graph import build_graph
from featviz.atlas.grid import assign
from featviz.atlas.layout import FEWEST, lay_out
from featviz.atlas.metrics import map_neighbors, overlap
from featviz.atlas.viewer.sheets import pack_sheets
from featviz.embedding.extract import embed
from featviz.gallery.reader import Entry, Figure, read_entries
from featviz.neighbors.exact import build_index
from featviz.pictures import images

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.embedding.store import Store
    from featviz.models.model import Model
    from featviz.types import Progress

MOST = 400
"""pictures among which neighbors are searched; of more an even sample is taken"""
SAMPLES = 18
"""pictures to begin with"""
THUMB = 48
"""pixels a side of a thumbnail"""
UNITS = 24
"""units of a layer that are shown with pictures"""
ITSELF = 0.002
"""cosine distance of a picture from itself that comes of its JPEG file and of rounding its list"""
NEAR = 10
"""neighbors by which the map is judged"""
LARGEST = {"made": 112, "patches": 200}
"""pixels a side of a unit's pictures"""


@dataclass(frozen=True)
class Gathered:
    """What the page shows beside the network."""

    document: dict[str, Any] = field(default_factory=dict)
    blocks: dict[str, bytes] = field(default_factory=dict)
    skipped: int = 0
    """pictures that cannot be read"""

    def __or__(self, other: Gathered) -> Gathered:
        return Gathered(
            self.document | other.document,
            self.blocks | other.blocks,
            self.skipped + other.skipped,
        )


def gather(
    model: Model,
    pictures: Pictures,
    *,
    run: str | Path | None = None,
    most: int = MOST,
    seed: int = 0,
    progress: Progress | None = None,
) -> Gathered:
    """Everything that the page shows beside the network.

    Args:
        model: The model that runs in the page.
        pictures: Among them the page searches neighbors; some are offered to begin with.
        run: A folder with result folders, from which pictures of units are taken.
        most: Of more pictures an even sample is taken.
        seed: Of the map.
        progress: Called as (done, total, text).

    Raises:
        UserError: None of the pictures can be read, or `run` is no folder.
    """
    store = embed(model, pictures.spread(most), progress=progress)
    found = _samples(model, store) | _space(store, seed, progress)
    return found if run is None else found | unit_pictures(run, model.sha256)


def _samples(model: Model, store: Store) -> Gathered:
    """Pictures to begin with, spread over the classes."""
    rows = _certain(model, store)
    chosen = (
        [rows[i * len(rows) // SAMPLES] for i in range(SAMPLES)] if len(rows) > SAMPLES else rows
    )
    listed, blocks = [], {}
    for number, row in enumerate(chosen):
        picture = store.pictures.read(row, model.preprocessing)
        blocks[f"sample-{number}"] = _jpeg(images.three_channels(picture), quality=92)
        listed.append({"name": _name(store, row), "block": f"sample-{number}"})
    return Gathered({"samples": listed}, blocks)


def _certain(model: Model, store: Store) -> list[int]:
    """One row of each class folder, the surest right prediction; all rows of data without."""
    if model.headless or not any(store.labels):
        return list(range(len(store)))
    known = store.pictures.labels(model)
    best: dict[str, tuple[bool, float, int]] = {}
    for start in range(0, len(store), 64):
        rows = range(start, min(start + 64, len(store)))
        batch = torch.stack([store.pictures.read(row, model.preprocessing) for row in rows])
        with torch.no_grad():
            shares = model(batch.to(model.device)).softmax(1).cpu().max(1)
        for row, share, found in zip(
            rows, shares.values.tolist(), shares.indices.tolist(), strict=True
        ):
            folder, candidate = store.labels[row], (known[row] == found, share, -row)
            best[folder] = max(best.get(folder, candidate), candidate)
    return [-row for *_, row in sorted(best.values(), reverse=True)]


def _space(store: Store, seed: int, progress: Progress | None) -> Gathered:
    """Vectors, thumbnails and places of all pictures."""
    vectors = store.matrix()
    scale = vectors.abs().amax(1).clamp_min(1e-12) / 127
    rounded = (vectors / scale[:, None]).round().to(torch.int8)
    thumbs = pack_sheets(
        torch.stack(
            [images.to_uint8(store.pictures.shown(row, THUMB)) for row in range(len(store))]
        )
    )
    about = {name: getattr(thumbs, name) for name in ("size", "pitch", "rows", "per_sheet")}
    blocks = {
        "vectors": zlib.compress(rounded.numpy().tobytes(), 9),
        **{f"thumbs-{number}": file for number, file in enumerate(thumbs.files)},
    }
    document: dict[str, Any] = {
        "layer": store.layer,
        "count": len(store),
        "dim": store.dim,
        "source": str(store.source["name"]),
        "names": [_name(store, row) for row in range(len(store))],
        "classes": [store.class_name(row) or "" for row in range(len(store))],
        "rounding": largest_rounding(vectors, rounded),
        "itself": ITSELF,
        "thumbs": {"name": "thumbs", "sheets": len(thumbs.files), **about},
        "placed": len(store) >= FEWEST,
        "kept": None,
        "chance": None,
    }
    if document["placed"]:
        layout = lay_out(build_index(store), seed=seed, progress=progress)
        lattice, columns, rows = assign(layout.xy, room=ROOM)
        side = max(columns, rows)
        k = min(NEAR, len(store) - 1)
        near = build_graph(build_index(store), k).rows
        document |= {
            "pitch": 1 / side,
            "kept": overlap(near, map_neighbors(lattice.double(), k)),
            "chance": k / (len(store) - 1),
        }
        blocks["places"] = ((lattice + 0.5) / side).numpy().astype("<f4").tobytes()
    return Gathered({"pictures": document}, blocks, len(store.skipped))


def largest_rounding(vectors: Tensor, rounded: Tensor) -> float:
    """The largest change of a cosine distance between two rows when they are rounded."""
    exact, other = (
        torch.nn.functional.normalize(rows.double(), dim=1) for rows in (vectors, rounded)
    )
    return float((exact @ exact.T - other @ other.T).abs().max())


def _name(store: Store, row: int) -> str:
    kind = store.class_name(row)
    file = Path(store.pictures.paths[row]).stem
    return f"{kind} {file}" if kind else file


def unit_pictures(run: str | Path, sha256: str) -> Gathered:
    """Pictures of units from the results of one model in a folder.

    Maximized pictures (kind "maximize") and top patches (kind "examples"), of at most `UNITS` units
    a layer; results of other models are passed over.
    """
    entries = [
        one for one in read_entries(Path(run))[0] if one.model and one.model.sha256 == sha256
    ]
    units: dict[str, dict[str, dict[str, Any]]] = {}
    blocks: dict[str, bytes] = {}
    for kind, entry, figure in _figures(entries):
        layer, _, unit = figure.units[0].rpartition(":")
        known = units.setdefault(layer, {})
        if unit not in known and len(known) == UNITS:
            continue
        name = f"{layer}-{unit}-{kind}"
        with Image.open(entry.folder / figure.file) as picture:
            blocks[name] = _smaller(picture, LARGEST[kind])
        known.setdefault(unit, {"unit": int(unit)})[kind] = name
    listed = {
        layer: sorted(known.values(), key=lambda one: one["unit"]) for layer, known in units.items()
    }
    return Gathered({"units": listed}, blocks)


def _figures(entries: list[Entry]) -> Iterator[tuple[str, Entry, Figure]]:
    """Pictures of one unit each: ("made" or "patches", result, figure); the first of each kind."""
    kinds: Mapping[str, str] = {"maximize": "made", "examples": "patches"}
    seen = set()
    for entry in entries:
        kind = kinds.get(entry.kind)
        for figure in entry.figures if kind else ():
            named = len(figure.units) == 1 and figure.units[0].rpartition(":")[2].isdigit()
            own = named and figure.file.startswith("units/") and not figure.vector
            if kind is not None and own and (kind, figure.units[0]) not in seen:
                seen.add((kind, figure.units[0]))
                yield kind, entry, figure


def _smaller(picture: Image.Image, side: int) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _encoded(small, 80)


def _jpeg(picture: Tensor, quality: int) -> bytes:
    return _encoded(images.to_pillow(picture), quality)


def _encoded(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()
