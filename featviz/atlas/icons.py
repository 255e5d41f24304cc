"""What a cell looks like: the picture of the data nearest to its mean, or one made to be its mean.

The synthetic icon maximises

    (h . w) max(.1, cos(h, v))^p

with h the activation, v the cell's mean and w = S v, whitened by S, the inverse second moment of
the data (Carter, Armstrong, Schubert, Johnson and Olah 2019, "Activation Atlas", Distill). Five
differences from its published code, each for a reason that docs/atlas.md measures:

    centred     the mean of all data is taken from h and v, because all cells have it in common
    a cosine    that code divides a mean over channels by one norm only, and takes it to w; ours is
                the cosine to v, where the icon is meant to land
    a ridge     on the second moment, so units that are hardly ever active do not take over
    a way back  where the cosine is below .1, v is climbed: along w alone some icons never arrive
    a slope     below zero: behind a ReLU a silent unit would have no gradient

Every icon is read by the model again. `Landing` says how near to its own cell it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featviz.atlas.grid import Cell, Grid
from featviz.errors import UserError
from featviz.models.layers import activations

if TYPE_CHECKING:
    from featviz.maximization.objectives import Objective
    from featviz.models.model import Layer, Model
    from featviz.neighbors.exact import Index

POWER = 4.0
"""of the cosine; the published notebook's"""
RIDGE = 1.0
"""of the whitening, in units of the mean eigenvalue"""
SLOPE = 0.1
"""of a ReLU below zero, while an icon is made"""
_FLOOR = 0.1
_CHUNK = 4096


@dataclass(frozen=True)
class Landing:
    """How near pictures come to their cells, all means over the cells."""

    cosine: float
    """between a picture's activation and its cell's mean"""
    centred: float
    """the same after the mean of the data is taken from both: 0 is nothing in common but that"""
    own: float
    """share whose nearest mean, by the centred cosine, is their own cell's"""
    near: float
    """share whose nearest mean is that of their own cell or of one of the 8 around it"""


@dataclass(frozen=True)
class SyntheticIcons:
    """Pictures made for the cells of a grid, and how near they came."""

    images: Tensor
    """(cells, 3, S, S) in [0, 1]"""
    cosines: Tensor
    """(cells,) between the activation of the saved picture and the cell's mean"""
    landed: Tensor | None = None
    """(cells,) int64: the cell whose mean is nearest to it"""
    landing: Landing | None = None
    shuffled: Landing | None = None
    """the mean over all ways to give each icon to another cell: chance"""
    samples: Landing | None = None
    """the same numbers for the sample pictures, which have a part in their cells' means"""


def medoids(vectors: Tensor | Index, grid: Grid) -> tuple[int, ...]:
    """For each cell the member with the smallest sum of cosine distances to all its members.

    vectors: (N, dim) rows, or an index of them. The lowest row wins a tie.
    """
    chosen = []
    for cell in grid.cells:
        # sum of cosines to all = product with their sum, so the medoid is one product away
        total = _total(_unit(part) for part in _parts(vectors, cell))
        closeness = torch.cat([_unit(part) @ total for part in _parts(vectors, cell)])
        chosen.append(cell.members[int(closeness.numpy().round(9).argmax())])
    return tuple(chosen)


def cell_means(vectors: Tensor | Index, grid: Grid) -> Tensor:
    """The mean vector of each cell's members, (cells, dim) float32."""
    return torch.stack(
        [(_total(_parts(vectors, cell)) / len(cell.members)).float() for cell in grid.cells]
    )


def within_cosines(vectors: Tensor | Index, means: Tensor, grid: Grid) -> Tensor:
    """How much of one kind each cell is: mean cosine of its members to its mean, (cells,)."""
    return torch.stack(
        [
            _total(_unit(part) for part in _parts(vectors, cell)) @ mean / len(cell.members)
            for cell, mean in zip(grid.cells, _unit(means), strict=True)
        ]
    )


def _parts(vectors: Tensor | Index, cell: Cell) -> Iterator[Tensor]:
    """The rows of a cell's members, some at a time: a cell may hold most of a large store."""
    for start in range(0, len(cell.members), _CHUNK):
        yield _rows(vectors, cell.members[start : start + _CHUNK])


def _rows(vectors: Tensor | Index, rows: Sequence[int]) -> Tensor:
    return vectors[list(rows)] if isinstance(vectors, Tensor) else vectors.take(rows)


def _total(parts: Iterator[Tensor]) -> Tensor:
    """The sum of all rows, (dim,) float64."""
    total: Tensor = sum(part.double().sum(0) for part in parts)  # type: ignore[assignment]
    return total


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1 (or 0), float64."""
    wide = rows.double()
    lengths: Tensor = wide.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return wide / lengths


def mean_of(vectors: Tensor | Index) -> Tensor:
    """The mean row, (dim,) float32."""
    count = len(vectors)
    return (_total(_all(vectors)) / count).float()


def _all(vectors: Tensor | Index) -> Iterator[Tensor]:
    for start in range(0, len(vectors), _CHUNK):
        yield _rows(vectors, range(start, min(start + _CHUNK, len(vectors))))


def whiten(
    directions: Tensor,
    vectors: Tensor | Index,
    *,
    ridge: float = RIDGE,
    centre: Tensor | None = None,
) -> Tensor:
    """Directions multiplied by the inverse of the data's second moment, each of length 1.

    directions: (D, dim); vectors: (N, dim), the data, or an index of it
    ridge: added to the second moment, in units of its mean eigenvalue: 0.1 whitens strongly and
        follows rare units, 10 hardly changes a direction
    centre: (dim,) taken from the data first; its mean makes the second moment a covariance

    With fewer rows than dimensions an (N, N) system is solved instead of a (dim, dim) one.
    """
    if ridge <= 0:
        raise UserError(f"a ridge of {ridge} whitens without bound; give more than 0")
    count, dim = len(vectors), directions.shape[1]
    middle = torch.zeros(dim) if centre is None else centre
    d = directions.double()
    if count < dim:
        x = torch.cat([(part - middle).double() for part in _all(vectors)])
        added = ridge * max(float(x.square().sum()), 1e-30) / (count * dim)
        inner = torch.linalg.solve(
            x @ x.T / count + added * torch.eye(count).double(), x @ d.T / count
        )
        solved = (d - (x.T @ inner).T) / added
    else:
        moment = torch.zeros(dim, dim, dtype=torch.float64)
        for part in _all(vectors):
            wide = (part - middle).double()
            moment.addmm_(wide.T, wide, alpha=1 / count)
        added = ridge * max(float(moment.trace()), 1e-30) / dim
        moment.diagonal().add_(added)
        solved = torch.linalg.solve(moment, d.T).T
    unit: Tensor = _unit(solved).float()
    return unit


def towards(
    layer: Layer,
    means: Tensor,
    whitened: Tensor,
    centre: Tensor,
    *,
    power: float = POWER,
    pooled: bool = True,
) -> Objective:
    """(h . w) max(.1, cos(h, v))^power for each cell, of a layer as it is read before its ReLU.

    means: (D, dim) v; whitened: (D, dim) w; centre: (dim,), taken from h and v
    Where the cosine is below .1, (h . v) stands in the place of (h . w).

    pooled: of a map h is the mean over all positions, as in a store of means; else the mean over
        the (up to four) positions in its middle, one of which such a store holds for each picture
    """
    from featviz.maximization.objectives import Objective

    aims = _unit(means - centre).float()
    drives = _unit(whitened).float()
    rectified = layer.kind in ("ReLU", "ReLU6")

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        values = acts[layer.name]
        if rectified:
            values = torch.nn.functional.leaky_relu(values, SLOPE)
        h = vectors_of(values, layer, pooled=pooled) - centre.to(values)
        chosen = list(targets)
        along = (h * aims[chosen].to(h)).sum(1)
        straight = along / h.norm(dim=1).clamp_min(1e-6)
        # Below the floor w alone is climbed, and it may lead ever farther from v: v does not.
        dot = torch.where(straight > _FLOOR, (h * drives[chosen].to(h)).sum(1), along)
        scores: Tensor = dot * straight.clamp_min(_FLOOR) ** power
        return scores

    text = f"cells' means in {layer.name}, cosine to the power of {power:g}"
    return Objective((layer.name,), len(means), text, score)


def vectors_of(values: Tensor, layer: Layer, *, pooled: bool) -> Tensor:
    """Activations (N, C), (N, C, H, W) or (N, tokens, C) as one vector a picture, (N, C)."""
    if values.dim() == 3:
        return torch.mean(values, 1 if values.shape[2] == layer.units else 2)
    if values.dim() == 4:
        if not pooled:
            height, width = values.shape[2:]
            rows = slice((height - 1) // 2, height // 2 + 1)
            values = values[:, :, rows, (width - 1) // 2 : width // 2 + 1]
        return torch.mean(values, (2, 3))
    return values


def synthetic_icons(
    model: Model,
    layer: str,
    means: Tensor,
    *,
    data: Tensor | Index | None = None,
    grids: Sequence[Grid] = (),
    samples: Tensor | None = None,
    pooled: bool = True,
    ridge: float | None = RIDGE,
    power: float = POWER,
    steps: int = 128,
    tries: int = 1,
    size: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    partial: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> list[SyntheticIcons]:
    """Pictures whose activations point where the cells' means (D, dim) point.

    data: the rows of the store, to centre and whiten with; None does neither
    grids: whose cells these are, one after the other; the answer has one part for each. Default:
        one part, without a landing
    samples: (D, dim) the activations of the cells' sample pictures, to be compared
    pooled: see `towards`
    ridge: of the whitening, see `whiten`; None climbs along the (centred) means themselves
    power: of the cosine: 0 rewards the projection alone, more rewards pointing nowhere else
    steps: of the ascent; 128 as published, 512 are harsher rather than clearer
    tries: icons made of each cell, from different starts; that with the best clean score is kept
    size: of the pictures in pixels; default: what the layer's receptive field asks for
    partial: a folder in which finished icons are kept, and from which the same call goes on after
        it was killed; the caller removes it
    options: see `featviz.maximization.settings.Settings`

    A cell whose mean is the mean of all data has no direction of its own and gets a grey picture.
    Raises KeyboardInterrupt when stopped; what is finished is in `partial`.
    """
    from featviz.maximization.settings import canvas, settings_for, with_changes
    from featviz.maximization.shards import Task, climb_tasks

    place = model.layer(layer)
    if means.dim() != 2 or means.shape[1] != place.units:
        raise UserError(
            f"means of shape {tuple(means.shape)} for {place.name}, which has {place.units} units"
        )
    centre = torch.zeros(place.units) if data is None else mean_of(data)
    moved = means - centre
    able = [i for i, row in enumerate(moved) if float(row.norm()) > 1e-6 * float(means[i].norm())]
    side = size or canvas(model, place)
    pictures = torch.full((len(means), 3, side, side), 0.5)
    if able:
        aims = means[able]
        drives = moved[able]
        if data is not None and ridge is not None:
            drives = whiten(drives, data, ridge=ridge, centre=centre)
        settings = with_changes(settings_for(model, place, steps=steps, size=side), options)
        goal = towards(place, aims, drives, centre, power=power, pooled=pooled)
        keys = tuple(
            f"{place.path}/{torch.stack([aim, drive]).numpy().tobytes().hex()}"
            for aim, drive in zip(aims, drives, strict=True)
        )
        (climbed,), stopped = climb_tasks(
            model,
            [Task(place, goal, None, settings, keys)],
            seed=seed,
            tries=tries,
            batch_size=batch_size,
            partial=None if partial is None else Path(partial),
            progress=None
            if progress is None
            else lambda done, total, _: progress(done, total, "making icons"),
        )
        if stopped:
            raise KeyboardInterrupt
        assert climbed is not None
        pictures[[able[i] for i in climbed.order]] = climbed.climb.images
    found = encoded(model, place, pictures, pooled=pooled)
    cosines = (_unit(found) * _unit(means)).sum(1)
    parts = []
    start = 0
    for grid in tuple(grids) or (None,):
        rows = slice(start, len(means) if grid is None else start + len(grid.cells))
        start = rows.stop
        icons = SyntheticIcons(pictures[rows], cosines[rows])
        if grid is not None:
            icons = SyntheticIcons(
                pictures[rows],
                cosines[rows],
                landed=landed(found[rows], means[rows], centre),
                landing=land(found[rows], means[rows], centre, grid),
                shuffled=land(found[rows], means[rows], centre, grid, shuffled=True),
                samples=None if samples is None else land(samples[rows], means[rows], centre, grid),
            )
        parts.append(icons)
    return parts


def encoded(model: Model, place: Layer, pictures: Tensor, *, pooled: bool = True) -> Tensor:
    """The vectors (N, units) that a store would hold of pictures (N, 3, S, S), float32.

    Of a map that is not pooled: the mean over the positions in its middle, as `towards` reads it.
    """
    found = []
    with torch.inference_mode():
        for part in pictures.split(64):
            values = activations(model, part.to(model.device), [place.name])[place.name]
            found.append(vectors_of(values, place, pooled=pooled).float().cpu())
    return torch.cat(found).clone()


def landed(vectors: Tensor, means: Tensor, centre: Tensor) -> Tensor:
    """For each vector (D, dim) the mean (C, dim) nearest to it by centred cosine, (D,)."""
    return (_unit(vectors - centre) @ _unit(means - centre).T).argmax(1)


def land(
    vectors: Tensor, means: Tensor, centre: Tensor, grid: Grid, *, shuffled: bool = False
) -> Landing:
    """How near vectors (C, dim), one a cell, come to the means (C, dim) of their cells.

    shuffled: the mean over all ways to give each vector to another cell instead, which is chance
    """
    count = len(means)
    plain = _unit(vectors) @ _unit(means).T
    centred = _unit(vectors - centre) @ _unit(means - centre).T
    place = torch.tensor([(cell.row, cell.column) for cell in grid.cells])
    beside = ((place[:, None] - place[None]).abs().amax(2) <= 1).double()
    best = torch.nn.functional.one_hot(centred.argmax(1), count).double()
    close = beside[centred.argmax(1)]
    weight = torch.eye(count).double()
    if shuffled:
        weight = (1 - weight) / max(1, count - 1)
    return Landing(
        *(float((weight * table).sum() / count) for table in (plain, centred, best, close))
    )


def icon_numbers(icons: SyntheticIcons) -> dict[str, tuple[float, str]]:
    """The numbers of icons by name, each with its meaning."""
    shown = {
        "icons' cosine": (
            float(icons.cosines.mean()),
            "synthetic icon to its cell's mean, on average",
        )
    }
    for name, found in (
        ("icons", icons.landing),
        ("samples", icons.samples),
        ("shuffled icons", icons.shuffled),
    ):
        if found is None:
            continue
        if name != "icons":
            shown[f"{name}' cosine"] = (found.cosine, "the same")
        shown[f"{name}' centred cosine"] = (
            found.centred,
            "after the mean of all data is taken off",
        )
        shown[f"{name} that land"] = (found.own, "are nearest to the mean of their own cell")
        shown[f"{name} that land near"] = (found.near, "or to that of one of the 8 around it")
    return shown
