"""`build_atlas(model, store)`: a map of a store with icons, as a page, as prints and as numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from featviz import images, plots, results
from featviz.atlas.graph import build_graph, neighbors_wanted
from featviz.atlas.grid import Grid, assign, cut, top_classes
from featviz.atlas.icons import (
    SyntheticIcons,
    cell_means,
    medoids,
    synthetic_icons,
    within_cosines,
)
from featviz.atlas.layout import Layout, lay_out
from featviz.atlas.metrics import MapQuality, judge_map
from featviz.errors import BadPicture, UserError
from featviz.neighbors.exact import build_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.datasets import Pictures
    from featviz.embedding.store import Store
    from featviz.models.load import Model

Icons = Literal["sample", "synthetic", "both"]

MOST = 2500
"""pictures on one map; of larger stores an even sample is shown"""
NEIGHBORS = 10
ROOM = 2.8
"""places of the map's lattice for each picture: enough that islands keep their shape"""


@dataclass(frozen=True)
class Level:
    """One resolution of the atlas: its cells and an icon for each."""

    grid: Grid
    samples: tuple[int, ...]
    """the row whose picture stands for the cell: its medoid"""
    cosines: Tensor
    """(cells,) float64: mean cosine of a cell's members to their mean; 1 is all the same"""
    classes: tuple[tuple[tuple[str, float], ...], ...]
    """for each cell its largest classes with their shares of the cell, largest first; empty
    where the data has no classes"""
    synthetic: SyntheticIcons | None = None


@dataclass(frozen=True, kw_only=True)
class Atlas(results.Result):
    """A store as a map: where each picture is, cells at several resolutions, icons, quality."""

    kind: ClassVar[str] = "atlas"

    store: Store
    """what is shown"""
    rows: tuple[int, ...]
    """which rows of the store, in order; row numbers below count within these"""
    layout: Layout
    quality: MapQuality
    floor: MapQuality
    """the same numbers for the first two principal components"""
    levels: tuple[Level, ...]
    lattice: tuple[Tensor, int, int]
    """a place of its own for each picture near where it is on the map; columns; rows"""
    mosaic: tuple[Tensor, int, int]
    """the same without gaps"""
    neighbors: Tensor
    """(N, 10) the true neighbours of each picture"""
    distances: Tensor
    """(N, 10) and how far they are"""
    pictured: Tensor
    """(P,) int64, ascending: which rows have a thumbnail. All up to 20,000 rows; above that the
    samples of the finest cells and an even sample"""
    thumbnails: Tensor
    """(P, 3, T, T) uint8, of the rows in `pictured`"""

    @property
    def title(self) -> str:
        return f"Atlas of {self.store.title}"

    def name(self, row: int) -> str:
        """What the picture shows, by its class, else its file."""
        whole = self.rows[row]
        return self.store.class_name(whole) or Path(self.store.pictures.paths[whole]).name

    def numbers(self) -> dict[str, results.Number]:
        found, k = self.quality, self.quality.k
        shown = {
            f"recall@{k}": results.Number(
                found.recall, "fraction", f"of the {k} true neighbours are among the {k} on the map"
            ),
            "recall by chance": results.Number(found.recall_chance, "fraction", "a random map"),
            "recall of PCA": results.Number(
                self.floor.recall, "fraction", "the first two principal components as a map"
            ),
            "trustworthiness": results.Number(
                found.trustworthiness, "", "1: no neighbours on the map that are none in the space"
            ),
            "continuity": results.Number(
                found.continuity, "", "1: no neighbours in the space that are torn apart"
            ),
        }
        if found.class_space is not None:
            shown["class vote, space"] = results.Number(
                found.class_space, "fraction", f"of rows have the class of their {k} nearest"
            )
            shown["class vote, map"] = results.Number(
                found.class_map, "fraction", f"the same by the {k} nearest on the map"
            )
        shown["pictures"] = results.Number(len(self.rows), "", "on the map")
        if self.layout.divergence is not None:
            shown["divergence"] = results.Number(
                self.layout.divergence, "nats", "Kullback-Leibler, what t-SNE minimises"
            )
            shown["perplexity"] = results.Number(self.layout.perplexity, "", "after its cap")
        for level in self.levels:
            if level.synthetic is not None:
                shown["icons' cosine"] = results.Number(
                    float(level.synthetic.cosines.mean()), "",
                    "synthetic icon to its cell's mean, on average",
                )  # fmt: skip
        return shown

    def write(self, folder: results.Folder) -> None:
        from featviz.atlas.viewer.page import render_page

        (folder.path / "atlas.html").write_text(render_page(self), encoding="utf-8")
        method = self.layout.method
        folder.figure(
            "atlas.jpg", self.map_picture(),
            caption=f"Every picture once, on the free place of a lattice nearest to where {method} "
            "puts it. Near pictures are alike to the network; distances between islands mean "
            "little. atlas.html is the same to walk through.",
            alt="Map of small photographs in islands of similar content",
        )  # fmt: skip
        folder.figure(
            "mosaic.jpg", self.mosaic_picture(),
            caption="The same map pressed into a rectangle without gaps, every picture once.",
            alt="Dense mosaic of small photographs, similar ones side by side",
        )  # fmt: skip
        for level in self.levels:
            if level.synthetic is None:
                continue
            side = level.grid.side
            caption = (
                f"The map cut into {side} x {side} squares. Left: the picture nearest to the mean "
                "of each square. Right: the picture made to have that mean"
            )
            folder.figure(
                f"cells-{side}.jpg", self.cells_picture(level),
                caption=f"{caption} (mean cosine {level.synthetic.cosines.mean():.2f}).",
                alt="Two grids side by side, photographs and synthetic icons of the same cells",
            )  # fmt: skip
        folder.table(
            "layout.csv",
            ("row", "path", "class", "x", "y", "lattice_column", "lattice_row", "recall"),
            self._lines(),
            caption="Where each picture is (x to the right, y downwards, both in 0 to 1), and how "
            "many of its true neighbours it kept.",
        )
        folder.table(
            "cells.csv",
            ("side", "row", "column", "pictures", "sample", "cosine"),
            self._cell_lines(),
            caption="Every cell at every resolution, the row of its sample icon, and the cosine of "
            "its synthetic icon.",
        )
        folder.arrays(
            "layout.npz",
            {
                "xy": self.layout.xy.numpy(),
                "start": self.layout.start.numpy(),
                "rows": np.asarray(self.rows),
                "lattice": self.lattice[0].numpy(),
                "mosaic": self.mosaic[0].numpy(),
                "neighbors": self.neighbors.numpy(),
                "distances": self.distances.numpy(),
            },
            caption="Positions, principal components, places in lattice and mosaic, neighbours.",
        )

    def _lines(self) -> list[tuple[object, ...]]:
        pictures = self.store.pictures
        return [
            (
                whole, pictures.paths[whole], pictures.folders[whole],
                f"{x:.5f}", f"{y:.5f}", column, line, f"{kept:.2f}",
            )
            for whole, (x, y), (column, line), kept in zip(
                self.rows, self.layout.xy.tolist(), self.lattice[0].tolist(),
                self.quality.per_row.tolist(), strict=True,
            )
        ]  # fmt: skip

    def _cell_lines(self) -> list[tuple[object, ...]]:
        lines: list[tuple[object, ...]] = []
        for level in self.levels:
            for number, (cell, sample) in enumerate(
                zip(level.grid.cells, level.samples, strict=True)
            ):
                cosine = "" if level.synthetic is None else f"{level.synthetic.cosines[number]:.3f}"
                lines.append(
                    (
                        level.grid.side, cell.row, cell.column, len(cell.members),
                        self.rows[sample], cosine,
                    )
                )  # fmt: skip
        return lines

    def map_picture(self, width: int = 2000) -> Tensor:
        """Every picture at its place in the lattice, on white, (3, H, W)."""
        return self._lay_down(self.lattice[0], width=width)

    def mosaic_picture(self, width: int = 1600) -> Tensor:
        """Every picture at its place in the mosaic, (3, H, W)."""
        return self._lay_down(self.mosaic[0], width=width)

    def _lay_down(self, places: Tensor, *, width: int) -> Tensor:
        left, top = places.min(0).values.tolist()  # the empty rim of a lattice is not printed
        right, bottom = places.max(0).values.tolist()
        columns, rows = right - left + 1, bottom - top + 1
        size = max(8, min(width // max(columns, rows), self.thumbnails.shape[-1]))
        small = resize(self.thumbnails, size - 1)
        canvas = torch.ones(3, rows * size + 1, columns * size + 1)
        for picture, (column, row) in zip(small, places.tolist(), strict=True):
            y, x = (row - top) * size + 1, (column - left) * size + 1
            canvas[:, y : y + size - 1, x : x + size - 1] = picture
        return canvas

    def cells_picture(self, level: Level, width: int = 1200) -> Tensor:
        """Sample icons, and synthetic icons at their right, in the places of the cells."""
        side = level.grid.side
        places = torch.tensor([(cell.column, cell.row) for cell in level.grid.cells])
        size = max(8, min(width // side, 128))
        sheets = []
        icons = [self.thumbnails[list(level.samples)].float() / 255]
        if level.synthetic is not None:
            icons.append(level.synthetic.images)
        for pictures in icons:
            small = resize(pictures, size - 2)
            canvas = torch.ones(3, side * size + 2, side * size + 2)
            for picture, (column, row) in zip(small, places.tolist(), strict=True):
                top, left = row * size + 2, column * size + 2
                canvas[:, top : top + size - 2, left : left + size - 2] = picture
            sheets += [canvas, torch.ones(3, canvas.shape[1], size // 2)]
        return torch.cat(sheets[:-1], 2)

    def plot(self) -> Figure:
        picture = self.map_picture(1400)
        height = 7 * picture.shape[1] / picture.shape[2]
        figure = plots.new_figure(7, height + 0.5)
        plots.show_image(figure.subplots(), picture, self.title)
        return figure


def resize(pictures: Tensor, size: int) -> Tensor:
    """Pictures (N, 3, T, T), uint8 or floats in [0, 1], shrunk smoothly to (N, 3, size, size)."""
    floats = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    if pictures.shape[-1] == size:
        return floats
    parts = [
        torch.nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
        for part in floats.split(256)
    ]
    return torch.cat(parts).clamp(0, 1)


def build_atlas(
    model: Model | None,
    store: Store,
    pictures: Pictures | None = None,
    *,
    icons: Icons = "sample",
    sides: Sequence[int] | None = None,
    icon_side: int = 8,
    icon_steps: int = 128,
    perplexity: float = 30.0,
    iterations: tuple[int, int] = (250, 750),
    most: int = MOST,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Atlas:
    """Lay a store out on a map and cut it into cells with icons.

    model: the model that made the store; only synthetic icons need it, else None will do
    pictures: those of the store's rows, if they are not where the store remembers them
    icons: "sample" (photographs), "synthetic" or "both"
    sides: squares a side at each resolution; default: 4, 8, 16 ... while there are pictures for it
    icon_side: the resolution that gets synthetic icons; they cost `icon_steps` passes each
    perplexity, iterations: see `featviz.atlas.layout.lay_out`
    most: of larger stores an even sample of so many rows is shown

    Raises UserError for pictures that are not there, for synthetic icons without a model, and for a
    model with other weights than the store's.
    """
    started = time.perf_counter()
    if icons not in ("sample", "synthetic", "both"):
        raise UserError(f"unknown icons {icons!r}; take sample, synthetic or both")
    if icons != "sample":
        _check_model(model, store)
    shown = store.pictures if pictures is None else pictures
    if len(shown) != len(store):
        raise UserError(f"{len(shown)} pictures for a store of {len(store)} rows; give its own")
    rows = [i * len(store) // min(most, len(store)) for i in range(min(most, len(store)))]
    doubts = []
    if len(rows) < len(store):
        doubts.append(f"an even sample of {len(rows)} of {len(store)} pictures is shown")
    labels = [store.labels[row] for row in rows]
    index = build_index(store.take(rows))
    graph = build_graph(index, neighbors_wanted(len(rows), perplexity), progress)
    layout = lay_out(
        index,
        graph=graph,
        perplexity=perplexity,
        iterations=iterations,
        seed=seed,
        progress=progress,
    )
    vectors = index.take(range(len(rows)))
    near = graph.nearest(min(NEIGHBORS, graph.k))
    named = labels if any(labels) else None
    thumbnails, missing = _thumbnails(shown, rows, progress)
    if missing:
        doubts.append(f"{missing} pictures could not be read any more; they are grey on the map")
    classes = [store.class_name(row) for row in rows]
    levels = _levels(vectors, layout.xy, sides, classes)
    if icons != "sample":
        assert model is not None
        levels = _with_synthetic(
            model, store, vectors, layout.xy, levels, classes, icon_side, icon_steps, seed, progress
        )
    made = results.origin(
        model,
        parameters={
            "icons": icons, "sides": [level.grid.side for level in levels],
            "icon_side": icon_side, "icon_steps": icon_steps, "perplexity": perplexity,
            "iterations": list(iterations), "most": most,
            "store": None if store.folder is None else str(store.folder),
        },
        started=started,
        seed=seed,
    )  # fmt: skip
    return Atlas(
        origin=replace(made, model=store.origin.model, data=store.origin.data),
        warnings=tuple(doubts),
        store=store if pictures is None else replace(store, pictures=pictures),
        rows=tuple(rows),
        layout=layout,
        quality=judge_map(index, layout.xy, graph=graph, k=NEIGHBORS, labels=named),
        floor=judge_map(index, layout.start, graph=graph, k=NEIGHBORS),
        levels=levels,
        lattice=assign(layout.xy, room=ROOM),
        mosaic=assign(layout.xy),
        neighbors=near.rows,
        distances=near.distances,
        pictured=torch.arange(len(rows)),
        thumbnails=thumbnails,
    )


def _check_model(model: Model | None, store: Store) -> None:
    if model is None:
        raise UserError("synthetic icons are made by the model; name it with --model and --weights")
    if model.sha256 != (store.origin.model or {}).get("sha256"):
        raise UserError(
            f"{model.name} here has other weights than the {store.model_name} that made the store; "
            "its icons would show another space; give the same --model and --weights"
        )


def _thumbnails(
    pictures: Pictures,
    rows: Sequence[int],
    progress: Callable[[int, int, str], None] | None,
) -> tuple[Tensor, int]:
    """Small squares (N, 3, T, T) uint8 of some pictures, and how many could not be read."""
    size = 112 if len(rows) <= 1200 else 80 if len(rows) <= 2500 else 64
    found = torch.full((len(rows), 3, size, size), 200, dtype=torch.uint8)
    missing: list[BadPicture] = []
    for place, row in enumerate(rows):
        try:
            square = np.array(images.square(pictures.open(row), size))
            found[place] = torch.from_numpy(square).permute(2, 0, 1)
        except BadPicture as error:
            missing.append(error)
        if progress is not None and place % 32 == 0:
            progress(place, len(rows), "reading pictures")
    if len(missing) == len(rows):
        raise UserError(f"no picture of the store is there any more ({missing[0]}); give --data")
    return found, len(missing)


def _levels(
    vectors: Tensor, xy: Tensor, sides: Sequence[int] | None, classes: Sequence[str]
) -> tuple[Level, ...]:
    if sides is None:
        finest = max(4, math.isqrt(2 * len(vectors)))
        sides = [2**power for power in range(2, 8) if 2**power <= finest]
    grids = [cut(xy, side) for side in sides]
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return tuple(
        Level(grid, medoids(unit, grid), within_cosines(unit, vectors, grid),
              top_classes(classes, grid))
        for grid in grids
    )  # fmt: skip


def _with_synthetic(
    model: Model,
    store: Store,
    vectors: Tensor,
    xy: Tensor,
    levels: tuple[Level, ...],
    classes: Sequence[str],
    side: int,
    steps: int,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[Level, ...]:
    """The levels with synthetic icons for the one of `side` squares (added if it is not there)."""
    if side not in {level.grid.side for level in levels}:
        levels = tuple(
            sorted(
                [*levels, *_levels(vectors, xy, [side], classes)], key=lambda level: level.grid.side
            )
        )
    done = []
    for level in levels:
        if level.grid.side == side:
            made = synthetic_icons(
                model, store.layer, cell_means(vectors, level.grid), data=vectors,
                steps=steps, seed=seed, progress=progress,
            )  # fmt: skip
            level = replace(level, synthetic=made)
        done.append(level)
    return tuple(done)
