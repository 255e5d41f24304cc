"""`build_atlas(model, store)`: a map of a store, cut into cells with icons."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from featviz import results
from featviz.atlas.cells import cell_means
from featviz.atlas.effects import logit_effects, top_effects
from featviz.atlas.graph import build_graph, neighbors_wanted
from featviz.atlas.grid import assign, cut
from featviz.atlas.icons import IconSettings, synthetic_icons
from featviz.atlas.layout import LayoutSettings, lay_out
from featviz.atlas.levels import Level, make_level
from featviz.atlas.metrics import NEIGHBORS, compare_maps, map_neighbors, map_quality, overlap
from featviz.atlas.result import Atlas
from featviz.atlas.thumbnails import read_thumbnails
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.data.datasets import evenly
from featviz.data.from_python import Data, as_pictures
from featviz.errors import BadPicture, UserError, public
from featviz.models.layers import need_gradients
from featviz.neighbors.exact import build_index
from featviz.types import Most, Progress, Seed, Seeds
from featviz.wording import counted

if TYPE_CHECKING:
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
"""cells of a resolution up to which their effects on the logits are computed"""
ROOM = 2.8
"""places of the map's lattice for each picture: enough that clusters keep their shape"""


@public
def build_atlas(
    model: Model | None,
    store: Store,
    pictures: Data | None = None,
    *,
    icons: Icons = "sample",
    sides: Sequence[int] | None = None,
    icon_side: int | Sequence[int] = 10,
    icon: IconSettings = IconSettings(),
    layout: LayoutSettings = LayoutSettings(),
    seeds: Seeds = 1,
    most: Most = MOST,
    seed: Seed = 0,
    links: bool = False,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Atlas:
    """Lay a store out on a map and cut it into cells with icons.

    Args:
        model: The model that made the store, or None. Synthetic icons need it; where it is given
            the effect of each cell's mean on the logits is computed too.
        store: The activations.
        pictures: Those of the store's rows, if they are not where the store says.
        icons: "sample" (pictures of the store), "synthetic" or "both".
        sides: Squares a side at each resolution; default: 5, 10, 20, 40 ... while there are half as
            many pictures as squares.
        icon_side: The resolutions that get synthetic icons.
        icon: How these are made.
        layout: How the map is laid out.
        seeds: Maps to make, from `seed` on; the first is shown, and the others say how much it
            depends on the seed.
        most: Of larger stores an even sample of so many rows is shown.
        seed: Of the layout and the icons.
        links: Link the files of the pictures from the page, by their place on this machine.
        checkpoint: A folder for finished parts of the neighbors, the layout and the icons, from
            which the same call goes on after it was stopped; the caller removes it.
        progress: Called as (done, total, text).

    Raises:
        UserError: The pictures cannot be read, synthetic icons without a model, a model with other
            weights than the store's, or an option out of range.
    """
    started = time.perf_counter()
    icon_sides = [icon_side] if isinstance(icon_side, int) else sorted(set(icon_side))
    _check(icons, [*(sides or ()), *icon_sides], seeds, most)
    if model is not None and not model.headless:
        need_gradients(model, ["logits"], cut=True)
    placed = _checked_store(model, store, pictures, needs_model=icons != "sample")
    count = min(most, len(store))
    rows = evenly(len(store), most)
    warnings = []
    if count < len(store):
        warnings.append(f"an even sample is shown: {count} of {counted(len(store), 'picture')}")
    if count < 2:
        raise UserError(f"a map needs at least 2 pictures, there are {count}")
    index = build_index(store if count == len(store) else store.take(rows))
    parameters = {
        "icons": icons,
        "icon_side": icon_sides,
        "icon_steps": icon.steps,
        "icon_power": icon.power,
        "icon_ridge": icon.ridge,
        "icon_restarts": icon.restarts,
        "perplexity": layout.perplexity,
        "exaggeration": layout.exaggeration,
        "method": layout.method,
        "seeds": seeds,
        "most": most,
    }
    job = parameters | {"sides": sides, "seed": seed} | _job(model, store, layout, icon)
    with open_checkpoint(checkpoint, job, engine=icon.engine) as kept:
        wanted = neighbors_wanted(count, layout.perplexity)
        graph = build_graph(index, wanted, progress, kept=kept.part("graph"))
        if graph.recall < 1:
            warnings.append(
                f"{graph.recall:.1%} of the neighbors it is made from are the true ones"
            )
        maps = [
            lay_out(
                index,
                layout,
                graph=graph,
                seed=number,
                kept=kept.part(f"layout-{number}"),
                progress=progress,
            )
            for number in range(seed, seed + seeds)
        ]
        shown = maps[0]
        warnings += shown.warnings
        if sides is None:
            sides = [side for side in SIDES if side == SIDES[0] or side * side <= 2 * count]
        shown_sides = sorted({*sides, *(icon_sides if icons != "sample" else ())})
        classes = [store.class_name(row) for row in rows]
        levels = [make_level(index, cut(shown.xy, side), classes) for side in shown_sides]
        thumbnails, missing = read_thumbnails(placed, rows, _pictured(count, levels), progress)
        if missing:
            warnings.append(
                f"{counted(missing, 'picture')} could not be read any more: gray on the map"
            )
        if model is not None:
            levels = [_with_effects(model, placed, index, rows, level) for level in levels]
            if icons != "sample":
                levels = _with_synthetic(
                    model,
                    store,
                    index,
                    levels,
                    icon_sides,
                    icon,
                    seed,
                    kept.part("icons"),
                    progress,
                )
    near = graph.nearest(min(NEIGHBORS, count - 1))
    labels = [store.labels[row] for row in rows]
    made = results.origin(
        model,
        parameters={
            **parameters,
            "sides": [level.grid.side for level in levels],
            "steps": list(shown.steps),
            "store": store.folder,
        },
        started=started,
        seed=seed,
        base=store.origin,
    )
    return Atlas(
        origin=made,
        warnings=tuple(warnings),
        store=placed,
        rows=tuple(rows),
        layout=shown,
        quality=map_quality(index, shown.xy, graph=graph, labels=labels if any(labels) else None),
        pca_recall=overlap(near.rows, map_neighbors(shown.start, near.k)),
        levels=tuple(levels),
        lattice=assign(shown.xy, room=ROOM),
        mosaic=assign(shown.xy),
        neighbors=near.rows,
        distances=near.distances,
        thumbnails=thumbnails,
        stability=compare_maps([each.xy for each in maps]) if seeds > 1 else None,
        links=links,
    )


def _check(icons: str, sides: Sequence[int], seeds: int, most: int) -> None:
    wrong = [side for side in sides if not 1 <= side <= MOST_SIDE]
    if wrong:
        raise UserError(f"{wrong[0]} squares a side; there are 1 to {MOST_SIDE}")


def _job(
    model: Model | None, store: Store, layout: LayoutSettings, icon: IconSettings
) -> dict[str, Any]:
    """What unfinished work depends on beside the parameters that a result names."""
    return {
        "rows": store.digest,
        "model": model and model.sha256,
        "device": model and model.device.type,
        "steps": layout.steps,
        "icon_size": icon.size,
        "icon_batch_size": icon.batch_size,
        "icon_settings": icon.settings and icon.settings.record(),
    }


def _checked_store(
    model: Model | None, store: Store, pictures: Data | None, *, needs_model: bool
) -> Store:
    """The store with the pictures that are given."""
    if model is not None:
        check_model(model, store)
    elif needs_model:
        raise UserError("synthetic icons are made by the model; name it with --model and --weights")
    if pictures is None:
        return store
    pictures = as_pictures(pictures)
    if len(pictures) != len(store):
        found = counted(len(pictures), "picture")
        raise UserError(f"{found} for a store of {counted(len(store), 'row')}; give its own")
    return replace(store, pictures=pictures)


def check_model(model: Model, store: Store) -> None:
    """Raise UserError unless it is the model that made the store."""
    if model.sha256 != (store.origin.model or {}).get("sha256"):
        raise UserError(
            f"{model.name} here has other weights than the {store.model_name} that made the store; "
            "its icons would show another space; give the same --model and --weights"
        )
    if store.reduced in {"max", "map"}:
        raise UserError(
            f"{store.title} holds a {store.reduced} of each picture, and icons are made for means "
            "and single positions; embed with --position mean or random"
        )


def _pictured(count: int, levels: Sequence[Level]) -> Tensor:
    """Which of `count` rows get a thumbnail: all, or samples of the cells and an even sample."""
    if count <= PICTURED:
        return torch.arange(count)
    chosen: set[int] = set()
    for level in levels:  # from coarse to fine, as far as there is room
        if len(chosen | set(level.samples)) <= PICTURED:
            chosen |= set(level.samples)
    rest = [row for row in range(count) if row not in chosen]
    chosen |= {rest[i] for i in evenly(len(rest), PICTURED - len(chosen))}
    return torch.tensor(sorted(chosen))


def _with_effects(
    model: Model, store: Store, index: Index, rows: Sequence[int], level: Level
) -> Level:
    """A level of at most EFFECTS cells with the effect of each cell's mean on the logits.

    None where the pictures that it is computed at cannot be read.
    """
    if not model.headless and len(level.grid.cells) <= EFFECTS:
        with suppress(BadPicture):
            samples = [rows[row] for row in level.samples]
            effects = cell_effects(model, store, cell_means(index, level.grid), samples)
            return replace(level, effects=top_effects(model, effects))
    return level


def cell_effects(model: Model, store: Store, means: Tensor, rows: Sequence[int]) -> Tensor:
    """The effects (cells, classes) of cells' means on the logits.

    Of a layer with positions at the activations of the cells' sample pictures, the store's `rows`.
    Raises BadPicture if one of these cannot be read.
    """
    if len(store.shape) == 1:
        return logit_effects(model, store.layer, means)
    pictures = [store.pictures.read(row, model.preprocessing) for row in rows]
    positions = None
    if store.positions is not None:
        positions = torch.from_numpy(np.asarray(store.positions)[list(rows)]).long()
    return logit_effects(
        model, store.layer, means, pictures=torch.stack(pictures), positions=positions
    )


def _with_synthetic(
    model: Model,
    store: Store,
    index: Index,
    levels: Sequence[Level],
    sides: Sequence[int],
    icon: IconSettings,
    seed: int,
    checkpoint: Checkpoint,
    progress: Progress | None,
) -> list[Level]:
    """The levels with synthetic icons for those of `sides` squares."""
    chosen = [level for level in levels if level.grid.side in sides]
    made = synthetic_icons(
        model,
        store.layer,
        torch.cat([cell_means(index, level.grid) for level in chosen]),
        data=index,
        grids=[level.grid for level in chosen],
        samples=index.take([row for level in chosen for row in level.samples]),
        pooled=store.positions is None,
        icon=icon,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    by_side = {level.grid.side: icons for level, icons in zip(chosen, made, strict=True)}
    return [replace(level, synthetic=by_side.get(level.grid.side)) for level in levels]
