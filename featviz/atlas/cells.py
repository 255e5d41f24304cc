"""Statistics of the rows in each cell: mean, medoid, spread, whitened directions.

In: rows (N, dim) or an index of them, and a grid. Cells are read in pieces, since one may hold most
of a large store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.errors import UserError

if TYPE_CHECKING:
    from featviz.atlas.grid import Grid
    from featviz.neighbors.exact import Index

RIDGE = 1.0
"""of the whitening, in units of the mean eigenvalue"""
_PIECE = 4096


def cell_means(vectors: Tensor | Index, grid: Grid) -> Tensor:
    """The mean vector of each cell's members, (cells, dim) float32."""
    return torch.stack([mean_row(vectors, cell.members) for cell in grid.cells])


def mean_row(vectors: Tensor | Index, rows: Sequence[int] | None = None) -> Tensor:
    """The mean of some rows (default: all), (dim,) float32."""
    chosen = range(len(vectors)) if rows is None else rows
    return (_total(_pieces(vectors, chosen)) / len(chosen)).float()


def medoids(vectors: Tensor | Index, grid: Grid) -> tuple[tuple[int, ...], Tensor]:
    """Of each cell the member in its middle, and how alike its members are.

    Returns:
        The members with the smallest sums of cosine distances to all of their cell, the lowest row
        where several are; and the mean cosine of each cell's members to its mean, (cells,)
        float64, 1 where all are alike.
    """
    chosen, cosines = [], []
    for cell in grid.cells:
        mean, middle = torch.zeros(2, 1, dtype=torch.float64)
        units: Iterable[Tensor] = ()
        for part in _pieces(vectors, cell.members):
            unit = unit_rows(part)
            mean, middle, units = mean + part.double().sum(0), middle + unit.sum(0), [unit]
        if len(cell.members) > _PIECE:  # read again rather than held
            units = map(unit_rows, _pieces(vectors, cell.members))
        # The sum of cosines to all members is the product with the sum of their unit vectors.
        closeness = torch.cat([unit @ middle for unit in units])
        chosen.append(cell.members[int(closeness.numpy().round(9).argmax())])
        mean = unit_rows((mean / len(cell.members)).float())
        cosines.append(middle @ mean / len(cell.members))
    return tuple(chosen), torch.stack(cosines)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows scaled to length 1 (zero rows stay zero), float64."""
    wide = rows.double()
    lengths: Tensor = wide.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return wide / lengths


def whiten(
    directions: Tensor,
    vectors: Tensor | Index,
    *,
    ridge: float = RIDGE,
    center: Tensor | None = None,
) -> Tensor:
    """Directions multiplied by the inverse of the data's second moment, each of length 1.

    With fewer rows than dimensions an (N, N) system is solved instead of a (dim, dim) one.

    Args:
        directions: (D, dim).
        vectors: (N, dim), the data, or an index of it.
        ridge: Added to the second moment, in units of its mean eigenvalue: 0.1 whitens strongly and
            follows rarely active units, 10 hardly changes a direction.
        center: (dim,) subtracted from the data first; its mean makes the second moment a
            covariance. Default: nothing.

    Returns:
        (D, dim) float32.

    Raises:
        UserError: The ridge is not above 0.
    """
    if ridge <= 0:
        raise UserError(f"ridge {ridge} leaves the whitening without bound; give more than 0")
    count, dim = len(vectors), directions.shape[1]
    middle = torch.zeros(dim) if center is None else center
    pieces = ((part - middle).double() for part in _pieces(vectors, range(count)))
    d = directions.double()
    if count < dim:
        x = torch.cat(list(pieces))
        added = ridge * max(float(x.square().sum()), 1e-30) / (count * dim)
        inner = x @ x.T / count + added * torch.eye(count).double()
        solved = (d - (x.T @ torch.linalg.solve(inner, x @ d.T / count)).T) / added
    else:
        moment = torch.zeros(dim, dim, dtype=torch.float64)
        for part in pieces:
            moment.addmm_(part.T, part, alpha=1 / count)
        moment.diagonal().add_(ridge * max(float(moment.trace()), 1e-30) / dim)
        solved = torch.linalg.solve(moment, d.T).T
    return unit_rows(solved).float()


def _pieces(vectors: Tensor | Index, rows: Sequence[int]) -> Iterator[Tensor]:
    for start in range(0, len(rows), _PIECE):
        part = rows[start : start + _PIECE]
        yield vectors[list(part)] if isinstance(vectors, Tensor) else vectors.take(part)


def _total(parts: Iterator[Tensor]) -> Tensor:
    """The sum of all rows, (dim,) float64."""
    total: Tensor = sum(part.double().sum(0) for part in parts)  # type: ignore[assignment]
    return total
