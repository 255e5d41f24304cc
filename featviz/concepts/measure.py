"""What a dictionary explains of rows that it was not fitted on, beside other directions.

Energy is the sum of squares; what is explained is 1 - |row - decoded|^2 / |row|^2, both summed over
rows. Beside the dictionary: single units (those of the largest variance), the right singular
vectors (uncentered PCA, which no other directions of the same number can exceed on the rows they
are fitted on), and random directions; of these a row takes its projection. A method by which every
row chooses its own few directions has to be compared with as many units that the row chooses, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featviz.concepts.dictionary import Dictionary
from featviz.concepts.moments import Moments
from featviz.concepts.sample import Sample
from featviz.statistics import percentiles, resampled_means


class Explained(NamedTuple):
    """Share of the energy that is explained, with its 95% interval over drawn pictures."""

    value: float
    low: float
    high: float
    n: int
    """pictures"""


@dataclass(frozen=True)
class Usage:
    """How rows use the concepts; values are of k concepts."""

    explained: Explained
    per_row: float
    """codes of a row that are not 0, on average"""
    share: Tensor
    """(k,): of the sum of squares of all codes"""
    active: Tensor
    """(k,): on which share of the rows the code is not 0"""
    strength: Tensor
    """(k,): mean absolute code where it is not 0"""
    together: Tensor
    """(k, k): on which share of the rows both codes are not 0"""


def usage(found: Dictionary, sample: Sample, seed: int) -> Usage:
    """How the rows of a sample use a dictionary."""
    k = len(found)
    sums = torch.zeros(sample.pictures, 2, dtype=torch.float64)
    square, size = torch.zeros(2, k, dtype=torch.float64)
    together = torch.zeros(k, k, dtype=torch.float64)
    for rows, owner in sample.blocks():
        codes = found.encode(rows)
        sums.index_add_(
            0, owner, torch.stack([_energy(rows - found.decode(codes)), _energy(rows)], 1)
        )
        square += codes.double().square().sum(0)
        size += codes.double().abs().sum(0)
        used = (codes != 0).float()
        together += (used.T @ used).double()
    count = together.diagonal()
    return Usage(
        _share_of(sums, seed),
        float(count.sum()) / len(sample),
        square / square.sum().clamp(min=1e-300),
        count / len(sample),
        size / count.clamp(min=1),
        together / len(sample),
    )


def beside(
    moments: Moments, sample: Sample, most: int, seed: int, *, chosen: bool = False
) -> dict[str, list[Explained]]:
    """What 1, 2, 4 ... `most` other directions explain, by their kind.

    Args:
        moments: Of the rows on which units are ranked and singular vectors computed.
        sample: The rows on which it is measured.
        most: Numbers of directions as in `numbers_to`.
        seed: Of the random directions, and of the intervals.
        chosen: Add "chosen": the strongest units of each row.
    """
    channels = sample.channels
    ranked = moments.covariance.diagonal().argsort(descending=True, stable=True)[:most]
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(channels, most, generator=generator, dtype=torch.float64)
    bases = {
        "units": torch.eye(channels, dtype=torch.float64)[ranked],
        "singular": moments.singular_vectors(most),
        "random": torch.linalg.qr(random)[0].T,
    }
    names = [*bases, *(["chosen"] if chosen else [])]
    along = {name: torch.zeros(sample.pictures, most, dtype=torch.float64) for name in names}
    whole = torch.zeros(sample.pictures, dtype=torch.float64)
    for rows, owner in sample.blocks():
        whole.index_add_(0, owner, _energy(rows))
        for name, basis in bases.items():
            along[name].index_add_(0, owner, (rows @ basis.float().T).double().square())
        if chosen:
            strongest = rows.abs().topk(most, dim=1).values
            along["chosen"].index_add_(0, owner, strongest.double().square())
    counts = torch.tensor(numbers_to(most))
    return {
        name: [
            _share_of(torch.stack([whole - taken, whole], 1), seed)
            for taken in parts.cumsum(1)[:, counts - 1].unbind(1)
        ]
        for name, parts in along.items()
    }


def numbers_to(most: int) -> list[int]:
    """1, 2, 4 ... and `most`."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def _energy(rows: Tensor) -> Tensor:
    """Sum of squares of each row, float64."""
    return rows.double().square().sum(1)


def _share_of(sums: Tensor, seed: int) -> Explained:
    """1 - left / whole of sums (P, 2) of P pictures."""
    left, whole = sums.sum(0).tolist()
    drawn = resampled_means(sums, seed=seed)
    shares = 1 - drawn[:, 0] / drawn[:, 1].clamp(min=1e-300)
    low, high = percentiles(shares)
    return Explained(1 - left / max(whole, 1e-300), low, high, len(sums))


def matched(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The partner of each direction of `one` among those of `other`, and |cosine| to it.

    One to one, so that the sum of all is as high as can be (Kuhn's Hungarian method).
    """
    from scipy.optimize import linear_sum_assignment

    cosines = (one.double() @ other.double().T).abs()
    rows, partners = linear_sum_assignment(cosines.numpy(), maximize=True)
    return torch.from_numpy(partners), cosines[rows, partners]


def stability(
    main: Dictionary, seeds: Mapping[int, Dictionary], halves: tuple[Dictionary, Dictionary]
) -> dict[str, Tensor]:
    """Of each concept, (k,): how alike it is found again.

    "seeds": |cosine| to its partner in fits of other seeds, on average; "halves": |cosine| between
    its partners in two fits on half the pictures each, which share no picture.
    """
    parts = [matched(main.directions, half.directions)[0] for half in halves]
    one, other = (half.directions[p] for half, p in zip(halves, parts, strict=True))
    found = {"halves": (one.double() * other.double()).sum(1).abs()}
    if seeds:
        values = [matched(main.directions, again.directions)[1] for again in seeds.values()]
        found["seeds"] = torch.stack(values).mean(0)
    return found
