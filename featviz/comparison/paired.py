"""Paired tests of two models on the same pictures.

McNemar, "Note on the sampling error of the difference between correlated proportions", 1947;
    the exact test is the binomial test of the pictures on which only one model is right
Holm, "A simple sequentially rejective multiple test procedure", 1979: the probability of one
    or more false alarms among all classes stays below the level
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featviz.statistics import Estimate, paired_difference

LEVEL = 0.05
"""of the corrected p below which a class counts as changed"""


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided p of the exact test that `fixed` and `broken` are equally likely."""
    from scipy.stats import binom

    n = fixed + broken
    return min(1.0, 2 * float(binom.cdf(min(fixed, broken), n, 0.5))) if n else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in the given order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, largest = [1.0] * len(values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


class Flips(NamedTuple):
    """On which of the pictures the second model is right and the first is not, and the reverse."""

    n: int
    first: int
    """right in the first model"""
    second: int
    fixed: int
    """wrong in the first, right in the second"""
    broken: int

    @property
    def p(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar(self.fixed, self.broken)


def flips(first: Tensor, second: Tensor) -> Flips:
    """Counts of two (N,) bool tensors: right in the first model, in the second."""
    return Flips(
        len(first),
        int(first.sum()),
        int(second.sum()),
        int((~first & second).sum()),
        int((first & ~second).sum()),
    )


@dataclass(frozen=True)
class ClassFlips:
    """The pictures of one class in both models."""

    name: str
    flips: Flips
    change: Estimate
    """accuracy of the second minus that of the first"""
    corrected: float
    """p, corrected for all classes by Holm's method"""

    @property
    def verdict(self) -> str:
        """ "worse", "better", or "" where chance explains the difference."""
        if self.corrected >= LEVEL:
            return ""
        return "better" if self.flips.fixed > self.flips.broken else "worse"


def class_flips(names: Sequence[str], first: Tensor, second: Tensor) -> list[ClassFlips]:
    """One entry for each class among `names` (N,), the largest loss first."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    pairs = [(first[torch.tensor(own)], second[torch.tensor(own)]) for own in rows.values()]
    counts = [flips(*pair) for pair in pairs]
    corrected = holm([one.p for one in counts])
    found = [
        ClassFlips(name, count, paired_difference(*pair), p)
        for name, count, pair, p in zip(rows, counts, pairs, corrected, strict=True)
    ]
    return sorted(found, key=lambda one: (one.change.value or 0.0, one.flips.p, one.name))


class Shown(NamedTuple):
    """A picture whose prediction was fixed or broken."""

    row: int
    picture: Tensor
    """(3, H, W)"""


class CurvePoint(NamedTuple):
    """Both models under one attack at one eps."""

    norm: str
    attack: str
    eps: float
    n: int
    first: int
    second: int
    change: Estimate


class CorruptionChange(NamedTuple):
    """Both models under one corruption, or under all."""

    name: str
    severity: str
    """"1" to "5", or "all" """
    first: float
    second: float
    change: Estimate
