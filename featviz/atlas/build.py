"""`build_atlas(model, store)`: a map of a store with icons, as a page, as prints and as numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from featviz import images, results
from featviz.atlas.effects import logit_effects, names_of, top_effects
from featviz.atlas.graph import build_graph, neighbors_wanted
from featviz.atlas.grid import Grid, assign, cut, top_classes
from featviz.atlas.icons import (
    POWER,
    RIDGE,
    SyntheticIcons,
    cell_means,
    icon_numbers,
    medoids,
    synthetic_icons,
    within_cosines,
)
from featviz.atlas.layout import Layout, lay_out
from featviz.atlas.metrics import MapQuality, Stability, compare_maps, judge_map
from featviz.errors import BadPicture, UserError
from featviz.neighbors.exact import build_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.datasets import Pictures
    from featviz.embedding.store import Store
    from featviz.models.model import Model
    from featviz.neighbors.exact import Index

Icons = Literal["sample", "synthetic", "both"]

MOST = 20_000
"""pictures on one map, by default; of larger stores an even sample is shown"""
PICTURED = 20_000
"""pictures that have a thumbnail; on larger maps the others are dots"""
SIDES = (5, 10, 20, 40, 80, 160)
"""squares a side, as long as there are half as many pictures as squares"""
MOST_SIDE = 320
EFFECTS = 400
"""cells of a resolution up to which their effects on the logits are found"""
GREY = 200
"""the level of grey where a picture is missing"""
# Pixels a side of a thumbnail, by the number of them: all together stay below 70 MB.
_THUMBNAILS = ((1200, 112), (2500, 80), (8000, 48))
_SMALLEST = 32
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
    effects: tuple[tuple[tuple[str, float], ...], ...] | None = None
    """for each cell the classes whose logits its mean raises most above the mean logit, to first
    order (`featviz.atlas.effects`); None without the model"""
    synthetic: SyntheticIcons | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
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
    stability: Stability | None = None
    """how far the maps of several seeds agree, where they were made"""

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
            "distance correlation": results.Number(
                found.correlation,
                "",
                "Spearman: distances in the space and on the map, over pairs of pictures",
            ),
        }
        if found.recall_wide is not None:
            shown["recall@50"] = results.Number(
                found.recall_wide, "fraction", "the same share for 50 neighbours"
            )
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
        if self.stability is not None:
            shown["Procrustes distance"] = results.Number(
                self.stability.procrustes, "", "between maps of two seeds, on average; 0: the same"
            )
            shown["overlap of seeds"] = results.Number(
                self.stability.overlap,
                "fraction",
                f"of the {self.stability.k} nearest on the map of one seed are so on another's",
            )
        for level in self.levels:
            side = level.grid.side
            sizes = torch.tensor([len(cell.members) for cell in level.grid.cells])
            shown[f"cosine in cells at {side}"] = results.Number(
                float((level.cosines * sizes).sum() / sizes.sum()),
                "",
                f"picture to the mean of its square, {len(level.grid.cells)} of them with pictures",
            )
        made = [level for level in self.levels if level.synthetic is not None]
        for level in made:
            assert level.synthetic is not None
            of = f" at {level.grid.side}" if len(made) > 1 else ""
            for name, (value, meaning) in icon_numbers(level.synthetic).items():
                unit = "fraction" if "land" in name else ""
                shown[name + of] = results.Number(value, unit, meaning)
        return shown

    def write(self, folder: results.Folder) -> None:
        from featviz.atlas.viewer.page import render_page

        (folder.path / "atlas.html").write_text(render_page(self), encoding="utf-8")
        method = self.layout.method
        folder.figure(
            "atlas.jpg",
            self.map_picture(),
            caption=f"Every picture once, on the free place of a lattice nearest to where {method} "
            "puts it. Near pictures are alike to the network; distances between islands mean "
            "little. atlas.html is the same to walk through.",
            alt="Map of small photographs in islands of similar content",
        )
        folder.figure(
            "mosaic.jpg",
            self.mosaic_picture(),
            caption="The same map pressed into a rectangle without gaps, every picture once.",
            alt="Dense mosaic of small photographs, similar ones side by side",
        )
        for level in self.levels:
            if level.synthetic is None:
                continue
            side = level.grid.side
            folder.figure(
                f"cells-{side}.jpg",
                self.cells_picture(level),
                caption=f"The map cut into {side} x {side} squares. Left: the picture nearest to "
                "the mean of each square. Right: the picture made to have that mean. "
                + _landing_words(level.synthetic),
                alt="Two grids side by side, photographs and synthetic icons of the same cells",
            )
        from featviz.atlas.prints import print_page

        page = print_page(self)
        for file in ("print.png", "print.pdf"):
            folder.figure(
                file,
                page,
                caption="The map for print, with the largest classes framed in colour and how far "
                "it may be believed. Axes of a t-SNE map have no scale.",
                alt="Map of small photographs with a legend of classes and a line of numbers",
            )
        folder.table(
            "layout.csv",
            ("row", "path", "class", "x", "y", "lattice_column", "lattice_row", "recall"),
            self._lines(),
            caption="Where each picture is (x to the right, y downwards, both in 0 to 1), and how "
            "many of its true neighbours it kept.",
        )
        folder.table(
            "cells.csv",
            (
                "side",
                "row",
                "column",
                "pictures",
                "sample",
                "within_cosine",
                "classes",
                "effects",
                "icon_cosine",
                "icon_lands_row",
                "icon_lands_column",
            ),
            self._cell_lines(),
            caption="Every cell at every resolution: how many pictures, the row of its sample icon "
            "(its medoid), the mean cosine of its pictures to their mean, its largest classes with "
            "their shares, the logits that its mean raises most above the mean logit, the cosine "
            "of its synthetic icon to its mean, and the cell whose mean is nearest to that icon.",
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
                whole,
                pictures.paths[whole],
                pictures.folders[whole],
                f"{x:.5f}",
                f"{y:.5f}",
                column,
                line,
                f"{kept:.2f}",
            )
            for whole, (x, y), (column, line), kept in zip(
                self.rows,
                self.layout.xy.tolist(),
                self.lattice[0].tolist(),
                self.quality.per_row.tolist(),
                strict=True,
            )
        ]

    def _cell_lines(self) -> list[tuple[object, ...]]:
        lines: list[tuple[object, ...]] = []
        for level in self.levels:
            made = level.synthetic
            landed = None if made is None else made.landed
            for number, cell in enumerate(level.grid.cells):
                home = None if landed is None else level.grid.cells[int(landed[number])]
                lines.append(
                    (
                        level.grid.side,
                        cell.row,
                        cell.column,
                        len(cell.members),
                        self.rows[level.samples[number]],
                        f"{level.cosines[number]:.4f}",
                        names_of(level.classes[number], ".3f"),
                        "" if level.effects is None else names_of(level.effects[number]),
                        "" if made is None else f"{made.cosines[number]:.3f}",
                        "" if home is None else home.row,
                        "" if home is None else home.column,
                    )
                )
        return lines

    def map_picture(self, width: int = 2000) -> Tensor:
        """Every picture at its place in the lattice, on white, (3, H, W)."""
        return self._lay_down(self.lattice[0], width=width)

    def mosaic_picture(self, width: int = 1600) -> Tensor:
        """Every picture at its place in the mosaic, (3, H, W)."""
        return self._lay_down(self.mosaic[0], width=width)

    def pictures_of(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Thumbnails of some rows, (len(rows), 3, T, T) uint8; grey where there is none."""
        wanted = torch.as_tensor(rows, dtype=torch.int64)
        if len(self.pictured) == len(self.rows):
            return self.thumbnails[wanted]
        place = torch.searchsorted(self.pictured, wanted).clamp_max(len(self.pictured) - 1)
        found = self.thumbnails[place].clone()
        found[self.pictured[place] != wanted] = GREY
        return found

    def _lay_down(self, places: Tensor, *, width: int) -> Tensor:
        left, top = places.min(0).values.tolist()  # the empty rim of a lattice is not printed
        right, bottom = places.max(0).values.tolist()
        columns, rows = right - left + 1, bottom - top + 1
        size = max(4, min(width // max(columns, rows), self.thumbnails.shape[-1]))
        canvas = torch.full((3, rows * size + 1, columns * size + 1), 255, dtype=torch.uint8)
        for start in range(0, len(places), 1024):
            some = places[start : start + 1024].tolist()
            pictures = self.pictures_of(range(start, start + len(some)))
            small = images.to_uint8(resize(pictures, size - 1))
            for picture, (column, row) in zip(small, some, strict=True):
                y, x = (row - top) * size + 1, (column - left) * size + 1
                canvas[:, y : y + size - 1, x : x + size - 1] = picture
        return canvas.float() / 255

    def cells_picture(self, level: Level, width: int = 1200) -> Tensor:
        """Sample icons, and synthetic icons at their right, in the places of the cells."""
        side = level.grid.side
        places = torch.tensor([(cell.column, cell.row) for cell in level.grid.cells])
        size = max(8, min(width // side, 128))
        sheets = []
        icons = [self.pictures_of(level.samples).float() / 255]
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
        from featviz.atlas.prints import print_page

        return print_page(self)


def _landing_words(icons: SyntheticIcons) -> str:
    """How near icons came to their cells, as a sentence."""
    text = f"Mean cosine to that mean: {icons.cosines.mean():.2f}"
    if icons.landing is None or icons.shuffled is None:
        return f"{text}."
    made, chance, real = icons.landing, icons.shuffled, icons.samples
    text += (
        f"; less the mean of all data {made.centred:.2f}"
        + ("" if real is None else f" (photographs {real.centred:.2f})")
        + f". {made.own:.0%} of the icons are nearest to the mean of their own square"
        + ("" if real is None else f" (photographs {real.own:.0%})")
        + f", {made.near:.0%} to it or one of the 8 around it; by chance {chance.own:.1%} and "
        f"{chance.near:.1%}."
    )
    return text


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
    icon_side: int | Sequence[int] = 10,
    icon_steps: int = 128,
    icon_power: float = POWER,
    icon_ridge: float | None = RIDGE,
    icon_tries: int = 1,
    perplexity: float = 30.0,
    iterations: tuple[int, int] | None = None,
    method: str = "auto",
    seeds: int = 1,
    most: int = MOST,
    seed: int = 0,
    partial: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Atlas:
    """Lay a store out on a map and cut it into cells with icons.

    model: the model that made the store. Synthetic icons need it; where it is given the effect of
        each cell's mean on the logits is found too. Else None will do
    pictures: those of the store's rows, if they are not where the store remembers them
    icons: "sample" (photographs), "synthetic" or "both"
    sides: squares a side at each resolution; default: 5, 10, 20, 40 ... while there are half as
        many pictures as squares
    icon_side: the resolutions that get synthetic icons; they cost `icon_steps` passes each
    icon_power, icon_ridge, icon_tries: see `featviz.atlas.icons.synthetic_icons`
    perplexity, iterations, method: see `featviz.atlas.layout.lay_out`
    seeds: so many maps are made, from `seed` on; the first is shown, and the others say how far it
        depends on the seed
    most: of larger stores an even sample of so many rows is shown
    partial: a folder for finished icons, from which the same call goes on after it was killed; the
        caller removes it

    Raises UserError for pictures that are not there, for synthetic icons without a model, and for a
    model with other weights than the store's.
    """
    started = time.perf_counter()
    icon_sides = [icon_side] if isinstance(icon_side, int) else sorted(set(icon_side))
    _check(icons, [*(sides or ()), *icon_sides], seeds, most)
    if icons != "sample" and model is None:
        raise UserError("synthetic icons are made by the model; name it with --model and --weights")
    if model is not None:
        check_model(model, store)
    shown = store.pictures if pictures is None else pictures
    if len(shown) != len(store):
        raise UserError(f"{len(shown)} pictures for a store of {len(store)} rows; give its own")
    placed = store if pictures is None else replace(store, pictures=pictures)
    rows = [i * len(store) // min(most, len(store)) for i in range(min(most, len(store)))]
    doubts = []
    if len(rows) < len(store):
        doubts.append(f"an even sample of {len(rows)} of {len(store)} pictures is shown")
    if len(rows) < 2:
        raise UserError(f"a map needs at least 2 pictures, there are {len(rows)}")
    labels = [store.labels[row] for row in rows]
    classes = [store.class_name(row) for row in rows]
    index = build_index(store if len(rows) == len(store) else store.take(rows))
    graph = build_graph(index, neighbors_wanted(len(rows), perplexity), progress)
    if graph.recall < 1:
        doubts.append(f"of the neighbours it is made from {graph.recall:.1%} are the true ones")
    maps = [
        lay_out(
            index,
            graph=graph,
            perplexity=perplexity,
            iterations=iterations,
            method=method,
            seed=seed + more,
            progress=progress,
        )
        for more in range(seeds)
    ]
    layout = maps[0]
    if sides is None:
        sides = [side for side in SIDES if side == SIDES[0] or side * side <= 2 * len(rows)]
    wanted = {*sides, *(icon_sides if icons != "sample" else ())}
    levels = [_level(index, cut(layout.xy, side), classes) for side in sorted(wanted)]
    pictured = _pictured(len(rows), levels)
    thumbnails, missing = _thumbnails(placed, [rows[row] for row in pictured], progress)
    if missing:
        doubts.append(f"{missing} pictures could not be read any more; they are grey on the map")
    if model is not None:
        levels = _with_effects(model, placed, index, rows, levels)
    if icons != "sample":
        assert model is not None
        levels = _with_synthetic(
            model,
            store,
            index,
            levels,
            icon_sides,
            steps=icon_steps,
            power=icon_power,
            ridge=icon_ridge,
            tries=icon_tries,
            seed=seed,
            partial=partial,
            progress=progress,
        )
    near = graph.nearest(min(NEIGHBORS, len(rows) - 1))
    made = results.origin(
        model,
        parameters={
            "icons": icons,
            "sides": [level.grid.side for level in levels],
            "icon_side": icon_sides,
            "icon_steps": icon_steps,
            "icon_power": icon_power,
            "icon_ridge": icon_ridge,
            "icon_tries": icon_tries,
            "perplexity": perplexity,
            "iterations": list(layout.iterations),
            "method": method,
            "seeds": seeds,
            "most": most,
            "store": None if store.folder is None else str(store.folder),
        },
        started=started,
        seed=seed,
    )
    return Atlas(
        origin=replace(made, model=store.origin.model, data=store.origin.data),
        warnings=tuple(doubts),
        store=placed,
        rows=tuple(rows),
        layout=layout,
        quality=judge_map(
            index, layout.xy, graph=graph, k=NEIGHBORS, labels=labels if any(labels) else None
        ),
        floor=judge_map(index, layout.start, graph=graph, k=NEIGHBORS),
        levels=tuple(levels),
        lattice=assign(layout.xy, room=ROOM),
        mosaic=assign(layout.xy),
        neighbors=near.rows,
        distances=near.distances,
        pictured=torch.tensor(pictured),
        thumbnails=thumbnails,
        stability=compare_maps([each.xy for each in maps]) if seeds > 1 else None,
    )


def _check(icons: str, sides: Sequence[int], seeds: int, most: int) -> None:
    if icons not in ("sample", "synthetic", "both"):
        raise UserError(f"unknown icons {icons!r}; take sample, synthetic or both")
    wrong = [side for side in sides if not 1 <= side <= MOST_SIDE]
    if wrong:
        raise UserError(f"{wrong[0]} squares a side; there are 1 to {MOST_SIDE}")
    if seeds < 1 or most < 2:
        raise UserError(f"seeds {seeds}, most {most}: seeds is 1 or more, most 2 or more")


def check_model(model: Model, store: Store) -> None:
    """Raise UserError unless it is the model that made the store."""
    if model.sha256 != (store.origin.model or {}).get("sha256"):
        raise UserError(
            f"{model.name} here has other weights than the {store.model_name} that made the store; "
            "its icons would show another space; give the same --model and --weights"
        )


def _level(index: Index, grid: Grid, classes: Sequence[str]) -> Level:
    return Level(
        grid,
        medoids(index, grid),
        within_cosines(index, cell_means(index, grid), grid),
        top_classes(classes, grid),
    )


def _pictured(count: int, levels: Sequence[Level]) -> list[int]:
    """Which of `count` rows get a thumbnail: all, or samples of the finest cells and a spread."""
    if count <= PICTURED:
        return list(range(count))
    chosen: set[int] = set()
    for level in levels:  # from coarse to fine, as far as there is room
        if len(chosen | set(level.samples)) <= PICTURED:
            chosen |= set(level.samples)
    rest = [row for row in range(count) if row not in chosen]
    room = PICTURED - len(chosen)
    chosen |= {rest[i * len(rest) // room] for i in range(room)}
    return sorted(chosen)


def _thumbnails(
    store: Store,
    rows: Sequence[int],
    progress: Callable[[int, int, str], None] | None,
) -> tuple[Tensor, int]:
    """Small squares (N, 3, T, T) uint8 of some rows, and how many could not be read.

    Of rows that are single positions of a map: what the position sees.
    """
    size = next((size for most, size in _THUMBNAILS if len(rows) <= most), _SMALLEST)
    found = torch.full((len(rows), 3, size, size), GREY, dtype=torch.uint8)

    def read(place: int) -> BadPicture | None:
        try:
            if store.positions is not None and store.receptive_field is not None:
                seen = images.to_uint8(store.crop(rows[place])[None])[0]
                found[place] = images.to_uint8(resize(seen[None], size))[0]
            else:
                square = np.array(images.square(store.pictures.open(rows[place]), size))
                found[place] = torch.from_numpy(square).permute(2, 0, 1)
        except BadPicture as error:
            return error
        return None

    missing: list[BadPicture] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding leaves python alone
        for place, error in enumerate(threads.map(read, range(len(rows)))):
            if error is not None:
                missing.append(error)
            if progress is not None and place % 32 == 0:
                progress(place, len(rows), "reading pictures")
    if len(missing) == len(rows):
        raise UserError(f"no picture of the store is there any more ({missing[0]}); give --data")
    return found, len(missing)


def _with_effects(
    model: Model, store: Store, index: Index, rows: Sequence[int], levels: list[Level]
) -> list[Level]:
    """The levels of at most EFFECTS cells with the effect of each cell's mean on the logits.

    Of a layer with positions the effect is taken at the activation of the cell's sample picture;
    without these pictures there is none.
    """
    done = []
    for level in levels:
        if not model.headless and len(level.grid.cells) <= EFFECTS:
            means = cell_means(index, level.grid)
            with suppress(BadPicture):
                where = standing(model, store, [rows[row] for row in level.samples])
                effects = logit_effects(model, store.layer, means, **where)
                level = replace(level, effects=top_effects(model, effects))
        done.append(level)
    return done


def standing(model: Model, store: Store, rows: Sequence[int]) -> dict[str, Tensor]:
    """Where `logit_effects` is to stand for vectors of some rows; nothing for plain vectors.

    Raises BadPicture if a picture is not there any more.
    """
    if len(store.shape) == 1:
        return {}
    pictures = [store.pictures.read(row, model.resize, model.input_size) for row in rows]
    where = {"pictures": torch.stack(pictures)}
    if store.positions is not None:
        where["positions"] = torch.from_numpy(np.asarray(store.positions)[list(rows)]).long()
    return where


def _with_synthetic(
    model: Model,
    store: Store,
    index: Index,
    levels: list[Level],
    sides: Sequence[int],
    **options: Any,
) -> list[Level]:
    """The levels with synthetic icons for those of `sides` squares."""
    chosen = [level for level in levels if level.grid.side in sides]
    samples = [row for level in chosen for row in level.samples]
    made = synthetic_icons(
        model,
        store.layer,
        torch.cat([cell_means(index, level.grid) for level in chosen]),
        data=index,
        grids=[level.grid for level in chosen],
        samples=index.take(samples),
        pooled=store.positions is None,
        **options,
    )
    by_side = {level.grid.side: icons for level, icons in zip(chosen, made, strict=True)}
    return [replace(level, synthetic=by_side.get(level.grid.side)) for level in levels]
