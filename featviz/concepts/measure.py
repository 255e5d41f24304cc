"""What a dictionary explains of rows that it was not fitted on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from featviz.concepts.dictionary import Dictionary
from featviz.concepts.sample import Sample
from featviz.statistics import percentiles, resampled_means


class Explained(NamedTuple):
    """Share of the energy (sum of squares) of rows that is explained, with 95% interval."""

    value: float
    low: float
    high: float
    n: int
    """pictures"""


def explained(dictionary: Dictionary, sample: Sample, seed: int) -> Explained:
    """Of a sample's rows, 1 - |row - decoded|^2 / |row|^2, both summed over all rows."""
    sums = torch.zeros(sample.pictures, 2, dtype=torch.float64)
    for rows, owner in sample.blocks():
        left = rows - dictionary.decode(dictionary.encode(rows))
        both = torch.stack([energy(left), energy(rows)], 1)
        sums.index_add_(0, owner, both)
    return share_of(sums, seed)


def energy(rows: Tensor) -> Tensor:
    """Sum of squares of each row, float64."""
    return rows.double().square().sum(1)


def share_of(sums: Tensor, seed: int) -> Explained:
    """1 - left / whole of sums (P, 2) of P pictures; the interval is over drawn pictures."""
    left, whole = sums.sum(0).tolist()
    drawn = resampled_means(sums, seed=seed)
    low, high = percentiles(1 - drawn[:, 0] / drawn[:, 1])
    return Explained(1 - left / whole, low, high, len(sums))
