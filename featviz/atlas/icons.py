"""What a cell looks like: the picture of the data nearest to its mean, or one made to be its mean.

The synthetic icon maximises the activation along the cell's mean direction (Carter, Armstrong,
Schubert, Johnson and Olah 2019, "Activation Atlas", Distill). Two differences from its published
code: the cosine is a cosine (that code divides a mean over channels by one norm only), and the
inverse second moment that whitens a direction has a ridge, so units that are hardly ever active do
not take over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.atlas.grid import Grid
from featviz.embedding.extract import embed_batch

if TYPE_CHECKING:
    from featviz.models.load import Model


@dataclass(frozen=True)
class SyntheticIcons:
    """Pictures made for the cells of a grid, and how near they came."""

    images: Tensor
    """(cells, 3, S, S) in [0, 1]"""
    cosines: Tensor
    """(cells,) between the activation of the saved picture and the cell's mean"""


def medoids(unit: Tensor, grid: Grid) -> tuple[int, ...]:
    """For each cell the member with the smallest sum of cosine distances to all its members.

    unit: (N, dim) rows of length 1 (or 0). The lowest row wins a tie.
    """
    rows = unit.numpy()
    chosen = []
    for cell in grid.cells:
        members = rows[list(cell.members)]
        # sum of cosines to all = product with their sum, so the medoid is one product away
        closeness = members @ members.sum(0, dtype=np.float64)
        chosen.append(cell.members[int(closeness.round(9).argmax())])
    return tuple(chosen)


def cell_means(vectors: Tensor, grid: Grid) -> Tensor:
    """The mean vector of each cell's members, (cells, dim)."""
    return torch.stack([vectors[list(cell.members)].mean(0) for cell in grid.cells])


def within_cosines(unit: Tensor, vectors: Tensor, grid: Grid) -> Tensor:
    """How much of one kind each cell is: mean cosine of its members to their mean, (cells,)."""
    means = torch.nn.functional.normalize(cell_means(vectors, grid).double(), dim=1)
    return torch.stack(
        [
            (unit[list(cell.members)].double() @ mean).mean()
            for cell, mean in zip(grid.cells, means, strict=True)
        ]
    )


def whiten(directions: Tensor, vectors: Tensor, *, ridge: float = 1.0) -> Tensor:
    """Directions multiplied by the inverse of the data's second moment, each of length 1.

    directions: (D, dim); vectors: (N, dim), the data
    ridge: added to the second moment, in units of its mean eigenvalue: 0.1 whitens strongly and
        follows rare units, 10 hardly changes a direction

    With fewer rows than dimensions an (N, N) system is solved instead of a (dim, dim) one.
    """
    x = vectors.double()
    count, dim = x.shape
    added = ridge * float(x.square().sum()) / (count * dim)
    d = directions.double()
    if count < dim:
        gram = x @ x.T / count
        inner = torch.linalg.solve(gram + added * torch.eye(count).double(), x @ d.T / count)
        solved = (d - (x.T @ inner).T) / added
    else:
        moment = x.T @ x / count
        solved = torch.linalg.solve(moment + added * torch.eye(dim).double(), d.T).T
    lengths = solved.norm(dim=1, keepdim=True).clamp_min(1e-30)
    unit: Tensor = (solved / lengths).float()
    return unit


def synthetic_icons(
    model: Model,
    layer: str,
    means: Tensor,
    *,
    data: Tensor | None = None,
    ridge: float = 1.0,
    steps: int = 128,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> SyntheticIcons:
    """Pictures whose activations point where the cells' means (D, dim) point.

    data: the rows of the store, to whiten the directions with; None leaves them as they are. The
        means of all cells have much in common; unwhitened icons come nearer to them (alexnet-mini:
        cosine .88 against .78) but look all alike
    ridge: see `whiten`

    Behind a ReLU a silent unit has no gradient, so the layer before it is maximised.
    """
    from featviz.maximization.optimize import maximize_directions

    directions = means if data is None else whiten(means, data, ridge=ridge)
    result = maximize_directions(
        model, before_relu(model, layer), directions, steps=steps, seed=seed, progress=progress
    )
    pictures = result.images
    return SyntheticIcons(pictures, cosines_to(model, layer, pictures, means))


def before_relu(model: Model, layer: str) -> str:
    """The layer whose output a ReLU layer takes, or the layer itself if it is no ReLU."""
    place = model.layer(layer)
    order = list(model.layers.values())
    number = order.index(place)
    if place.kind != "ReLU" or number == 0 or order[number - 1].shape != place.shape:
        return place.name
    return order[number - 1].name


def cosines_to(model: Model, layer: str, pictures: Tensor, means: Tensor) -> Tensor:
    """Cosine (N,) between the activation of each picture and its own mean."""
    found = torch.cat([embed_batch(model, part, layer) for part in pictures.split(64)])
    cosines: Tensor = torch.nn.functional.cosine_similarity(found.double(), means.double(), dim=1)
    return cosines
