"""Units of two models that do the same, found by the correlation of their activations.

Each unit's activation is averaged over positions, so that a picture gives one number a unit. The
pairs are those of the largest sum of correlations, each unit in at most one pair (the Hungarian
method), so that two channels that swapped places are found again.

    Li et al., "Convergent Learning: Do different neural networks learn the same representations?",
        2016 (arXiv:1511.07543)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.statistics import middle


@dataclass(frozen=True)
class UnitMatch:
    """The units of a layer in two models."""

    layers: tuple[str, str]
    """its name in the first model and in the second"""
    pairs: tuple[tuple[int, int], ...]
    """unit of the first, unit of the second; highest correlation first"""
    correlation: Tensor
    """(C, D) float64 of the pooled activations of all units, 0 for those that never vary"""
    inactive: tuple[tuple[int, ...], tuple[int, ...]]
    """units that never vary on these pictures; they are in no pair"""
    by_chance: float | None
    """median correlation of pairs found in the same way after the pictures of the second were
    shuffled"""
    pictures: int

    @property
    def name(self) -> str:
        """ "conv5", or "conv5 and layer4" where the names differ."""
        return " and ".join(dict.fromkeys(self.layers))

    @property
    def values(self) -> Tensor:
        """(pairs,) the correlation of each pair."""
        rows, columns = zip(*self.pairs, strict=True) if self.pairs else ((), ())
        return self.correlation[list(rows), list(columns)]

    @property
    def median(self) -> float | None:
        """Of the correlations of the pairs."""
        return middle(self.values)


def match_units(
    first: Tensor, second: Tensor, layers: tuple[str, str], *, seed: int = 0
) -> UnitMatch:
    """Pair the units of two models.

    Args:
        first: (N, C) activation of each unit on each picture.
        second: (N, D) of the other model on the same pictures.
        layers: Names of the layer.
        seed: Of the shuffle that shows what chance gives.
    """
    correlation = correlate(first, second)
    active = tuple((_centered(x).norm(dim=0) > 0).nonzero()[:, 0] for x in (first, second))
    pairs = _assign(correlation, *active)
    order = torch.randperm(len(second), generator=torch.Generator().manual_seed(seed))
    shuffled = correlate(first, second[order])
    chance = [float(shuffled[i, j]) for i, j in _assign(shuffled, *active)]
    inactive = tuple(
        tuple(sorted(set(range(x.shape[1])) - set(kept.tolist())))
        for x, kept in zip((first, second), active, strict=True)
    )
    return UnitMatch(
        layers,
        tuple(sorted(pairs, key=lambda pair: (-float(correlation[pair]), pair))),
        correlation,
        (inactive[0], inactive[1]),
        middle(torch.tensor(chance)),
        len(first),
    )


def _centered(values: Tensor) -> Tensor:
    """(N, C) float64 minus the mean of each column; what rounding leaves of a constant is 0."""
    values = values.double()
    centered = values - values.mean(0)
    small = centered.norm(dim=0) <= 1e-7 * values.norm(dim=0)
    return centered.masked_fill(small, 0)


def correlate(first: Tensor, second: Tensor) -> Tensor:
    """(C, D) float64: Pearson's correlation of each column of (N, C) with each of (N, D)."""
    one, other = (_centered(values) for values in (first, second))
    one, other = (x / x.norm(dim=0).clamp(min=1e-300) for x in (one, other))
    return torch.matmul(one.T, other).clamp(-1, 1)


def _assign(correlation: Tensor, rows: Tensor, columns: Tensor) -> list[tuple[int, int]]:
    """Pairs of the largest sum among the given rows and columns."""
    from scipy.optimize import linear_sum_assignment

    part = correlation[rows][:, columns].numpy()
    at, to = linear_sum_assignment(part, maximize=True)
    return [(int(rows[i]), int(columns[j])) for i, j in zip(at, to, strict=True)]
