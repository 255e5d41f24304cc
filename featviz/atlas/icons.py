"""Synthetic icons: pictures optimized so that their activation has the direction of a cell's mean.

The objective is

    (h . w) max(.1, cos(h, v))^p

with h the activation, v the cell's mean and w = S v, whitened by S, the inverse second moment of
the data (Carter, Armstrong, Schubert, Johnson and Olah 2019, "Activation Atlas", Distill). Five
differences from its published code, each measured in docs/atlas.md:

    centered    the mean of all data is subtracted from h and v, because all cells share it
    a cosine    that code divides a mean over channels by one norm only, and takes it to w; here it
                is the cosine to v, the mean that the icon is measured against
    a ridge     on the second moment, so that hardly ever active units do not dominate
    fallback    where the cosine is below .1, h . v replaces h . w: along w alone some icons never
                reach .1
    a slope     below zero: behind a ReLU an inactive unit would have no gradient

Every icon is read by the model again; `CellMatch` says how well it matches its own cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.atlas.cells import RIDGE, mean_row, unit_rows, whiten
from featviz.atlas.levels import CellMatch, SyntheticIcons
from featviz.embedding.reduction import pool
from featviz.errors import UserError, check_fields
from featviz.maximization.batches import Stopped, Task, optimize_tasks
from featviz.maximization.objectives import SLOPE, Objective
from featviz.maximization.settings import Settings, canvas, settings_for
from featviz.models.layers import activations
from featviz.types import BatchSize, Engine, Power, Progress, Rate, Restarts, Side, Steps

if TYPE_CHECKING:
    from featviz.atlas.grid import Grid
    from featviz.checkpoints import Checkpoint
    from featviz.models.model import Layer, Model
    from featviz.neighbors.exact import Index

_FLOOR = 0.1


@dataclass(frozen=True)
class IconSettings:
    """How synthetic icons are made. Raises UserError for a value out of range."""

    steps: Steps = 128
    """of the optimization, as published; 512 are harsher rather than clearer"""
    power: Power = 4.0
    """of the cosine (the published notebook's): 0 rewards the projection alone, a larger power also
    that nothing else is active"""
    ridge: Rate | None = RIDGE
    """of the whitening, see `featviz.atlas.cells.whiten`; None: the centered means themselves"""
    restarts: Restarts = 1
    """icons made of each cell, from different starts; that with the best clean score is kept"""
    size: Side | None = None
    """of the pictures in pixels; default: by the layer's receptive field"""
    batch_size: BatchSize | None = None
    """pictures optimized, and kept in the checkpoint, together; default 16"""
    settings: Settings | None = None
    """of the optimization, in place of those for the layer with `steps`"""
    engine: Engine = "here"
    """or "ray": batches of icons are made by a Ray cluster"""

    def __post_init__(self) -> None:
        check_fields(self)


def synthetic_icons(
    model: Model,
    layer: str,
    means: Tensor,
    *,
    data: Tensor | Index | None = None,
    grids: Sequence[Grid] = (),
    samples: Tensor | None = None,
    pooled: bool = True,
    icon: IconSettings = IconSettings(),
    seed: int = 0,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> list[SyntheticIcons]:
    """Pictures whose activations have the directions of the cells' means.

    A cell whose mean is the mean of all data has no direction of its own and gets a gray picture.

    Args:
        model: The model.
        layer: The layer of the means.
        means: (D, dim), one a cell.
        data: The rows of the store, to center and whiten with; None does neither.
        grids: Whose cells these are, one after the other; there is one result for each. Default:
            one result, not compared with other cells.
        samples: (D, dim) the activations of the cells' sample pictures, to be compared.
        pooled: See `cell_objective`.
        icon: How they are made.
        seed: Of the starts.
        checkpoint: A folder in which finished batches of icons are kept, and from which the same
            call goes on after it was stopped; the caller removes it.
        progress: Called with the icons done.

    Raises:
        UserError: The means are of another width than the layer, or the checkpoint is another
            job's.
    """
    place = model.layer(layer)
    if means.dim() != 2 or means.shape[1] != place.units:
        raise UserError(
            f"means of shape {tuple(means.shape)} for {place.name}, which has {place.units} units"
        )
    center = torch.zeros(place.units) if data is None else mean_row(data)
    moved = means - center
    some = moved.norm(dim=1) > 1e-6 * means.norm(dim=1)
    directions = moved[some]
    if data is not None and icon.ridge is not None and len(directions):
        directions = whiten(directions, data, ridge=icon.ridge, center=center)
    objective = cell_objective(
        place, means[some], directions, center, power=icon.power, pooled=pooled
    )
    made = _optimized(model, place, objective, directions, icon, seed, checkpoint, progress)
    pictures = torch.full((len(means), *made.shape[1:]), 0.5)
    pictures[some] = made
    found = read_vectors(model, place, pictures, pooled=pooled)
    cosines = (unit_rows(found) * unit_rows(means)).sum(1)
    if not grids:
        return [SyntheticIcons(pictures, cosines)]
    parts = []
    sizes = [len(grid.cells) for grid in grids]
    for grid, rows in zip(grids, torch.arange(len(means)).split(sizes), strict=True):
        target = means[rows]
        parts.append(
            SyntheticIcons(
                pictures[rows],
                cosines[rows],
                nearest=nearest_means(found[rows], target, center),
                match=match_cells(found[rows], target, center, grid),
                shuffled=match_cells(found[rows], target, center, grid, shuffled=True),
                samples=None
                if samples is None
                else match_cells(samples[rows], target, center, grid),
            )
        )
    return parts


def cell_objective(
    layer: Layer,
    means: Tensor,
    whitened: Tensor,
    center: Tensor,
    *,
    power: float,
    pooled: bool = True,
) -> Objective:
    """(h . w) max(.1, cos(h, v))^power for each cell, of a layer as it is read before its ReLU.

    Where the cosine is below .1, (h . v) replaces (h . w).

    Args:
        layer: The layer.
        means: (D, dim) v.
        whitened: (D, dim) w.
        center: (dim,), subtracted from h and v.
        power: Of the cosine.
        pooled: Of a map h is the mean over all positions, as in a store of means; else the mean
            over the (up to four) positions in its middle, one of which such a store holds for each
            picture.
    """
    v = unit_rows(means - center).float()
    w = unit_rows(whitened).float()
    rectified = layer.kind in ("ReLU", "ReLU6")

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        values = acts[layer.name]
        if rectified:
            values = torch.nn.functional.leaky_relu(values, SLOPE)
        h = vectors_of(values, layer, pooled=pooled) - center.to(values)
        chosen = list(targets)
        along_v = (h * v[chosen].to(h)).sum(1)
        cosine = along_v / h.norm(dim=1).clamp_min(1e-6)
        dot = torch.where(cosine > _FLOOR, (h * w[chosen].to(h)).sum(1), along_v)
        scores: Tensor = dot * cosine.clamp_min(_FLOOR) ** power
        return scores

    text = f"cells' means in {layer.name}, cosine to the power of {power:g}"
    return Objective((layer.name,), len(means), text, score)


def vectors_of(values: Tensor, layer: Layer, *, pooled: bool) -> Tensor:
    """Activations (N, C), (N, C, H, W) or (N, tokens, C) as one vector a picture, (N, C)."""
    if values.dim() == 4 and not pooled:
        rows, columns = (slice((n - 1) // 2, n // 2 + 1) for n in values.shape[2:])
        values = values[:, :, rows, columns]
    return pool(values, layer)


def _optimized(
    model: Model,
    place: Layer,
    objective: Objective,
    directions: Tensor,
    icon: IconSettings,
    seed: int,
    checkpoint: str | Path | Checkpoint | None,
    progress: Progress | None,
) -> Tensor:
    """The pictures (D, 3, S, S) of an objective's targets; finished batches are kept."""
    size = icon.size or canvas(model, place)
    settings = icon.settings or settings_for(model, place, steps=icon.steps, size=size)
    if not len(directions):
        form = settings.parametrization
        return torch.full((0, 3, form.height, form.width), 0.5)
    keys = tuple(f"{place.key}/{row.numpy().tobytes().hex()}" for row in directions)
    (finished,), stopped = optimize_tasks(
        model,
        [Task(place, objective, settings, keys)],
        seed=seed,
        restarts=icon.restarts,
        batch_size=icon.batch_size,
        checkpoint=checkpoint,
        engine=icon.engine,
        progress=progress,
        text="making icons",
    )
    if stopped is not None or finished is None:
        raise Stopped(stopped or "stopped")
    return finished.made.images


def read_vectors(model: Model, place: Layer, pictures: Tensor, *, pooled: bool = True) -> Tensor:
    """The vectors (N, units) that a store would hold of pictures (N, 3, S, S), float32.

    Of a map that is not pooled: the mean over the positions in its middle.
    """
    found = []
    with torch.inference_mode():
        for part in pictures.split(64):
            values = activations(model, part.to(model.device), [place.name])[place.name]
            found.append(vectors_of(values, place, pooled=pooled).float().cpu())
    return torch.cat(found).clone()


def nearest_means(vectors: Tensor, means: Tensor, center: Tensor) -> Tensor:
    """For each vector (D, dim) the mean (C, dim) nearest to it by centered cosine, (D,)."""
    return (unit_rows(vectors - center) @ unit_rows(means - center).T).argmax(1)


def match_cells(
    vectors: Tensor, means: Tensor, center: Tensor, grid: Grid, *, shuffled: bool = False
) -> CellMatch:
    """How well vectors (C, dim), one a cell, match the means (C, dim) of their cells.

    With `shuffled` the mean over all ways to give each vector to another cell: the chance level.
    """
    count = len(means)
    plain = unit_rows(vectors) @ unit_rows(means).T
    centered = unit_rows(vectors - center) @ unit_rows(means - center).T
    nearest = centered.argmax(1)
    place = torch.tensor([(cell.row, cell.column) for cell in grid.cells])
    beside = ((place[:, None] - place[None]).abs().amax(2) <= 1).double()
    own = torch.nn.functional.one_hot(nearest, count).double()
    weight = torch.eye(count).double()
    if shuffled:
        weight = (1 - weight) / max(1, count - 1)
    return CellMatch(
        *(
            float((weight * table).sum() / count)
            for table in (plain, centered, own, beside[nearest])
        )
    )
