"""What a count of pictures says, and how surely: intervals, medians with censoring, shrinkage.

In: counts and distances. Out: numbers with the interval that belongs to them. All intervals are
95%.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927
    Order-statistic interval of a median: ranks of Binomial(n, 1/2), free of any distribution
    Beta-binomial shrinkage: Efron and Morris, "Stein's estimation rule and its competitors - an
        empirical Bayes approach", 1973, for shares
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

_SURE = 0.95


class Share(NamedTuple):
    """A fraction of n pictures with its 95% Wilson interval."""

    right: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        return self.right / self.n if self.n else None

    @property
    def interval(self) -> str:
        return f"{100 * self.low:.1f}% to {100 * self.high:.1f}%"


def share(right: int, n: int) -> Share:
    """`right` of n with its 95% Wilson interval; without pictures the interval is everything."""
    if n == 0:
        return Share(0, 0, 0.0, 1.0)
    from scipy.stats import norm

    z = float(norm.ppf((1 + _SURE) / 2))
    middle = (right + z * z / 2) / (n + z * z)
    half = z * math.sqrt(right * (n - right) / n + z * z / 4) / (n + z * z)
    # At 0 and n the formula's end is 0 and 1 exactly; rounding must not say otherwise.
    low = 0.0 if right == 0 else max(0.0, middle - half)
    high = 1.0 if right == n else min(1.0, middle + half)
    return Share(right, n, low, high)


class Median(NamedTuple):
    """The middle of n distances of which some were never found."""

    value: float | None
    """the smallest distance within which half of the pictures fall; None if most stand"""
    low: float
    high: float
    """ends of the interval; infinite where the data set no bound"""
    n: int
    censored: int
    """pictures that did not fall: their distance is only known to be larger than what was tried"""


def median(distances: Tensor) -> Median:
    """The median of distances (N,), infinite where none was found, with its interval.

    A picture that stands counts as larger than all others and is never left out (leaving it out
    would make a model look weaker the more pictures withstand). The median is the smallest
    distance at which at least half have fallen, Kaplan and Meier's; the interval's ends are the
    l-th smallest and l-th largest distance, l the largest rank with P(Binomial(n, 1/2) < l) at
    most 2.5%. With fewer than 6 pictures no such rank exists and the interval is everything.
    """
    from scipy.stats import binom

    values = distances.double().sort().values.tolist()
    n = len(values)
    censored = sum(math.isinf(v) for v in values)
    if n == 0:
        return Median(None, 0.0, math.inf, 0, 0)
    middle = values[(n - 1) // 2]
    rank = int(binom.ppf((1 - _SURE) / 2, n, 0.5))  # smallest l with P(B <= l) >= 2.5%
    low, high = (values[rank - 1], values[n - rank]) if rank > 0 else (0.0, math.inf)
    return Median(middle if math.isfinite(middle) else None, low, high, n, censored)


class Prior(NamedTuple):
    """A Beta(a, b) distribution of the classes' true shares."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    def shrink(self, right: int, n: int) -> Shrunk:
        """A class's share as it looks in the light of all classes, with its credible interval."""
        from scipy.stats import beta

        a, b = self.a + right, self.b + n - right
        low, high = beta.ppf([(1 - _SURE) / 2, (1 + _SURE) / 2], a, b)
        return Shrunk(a / (a + b), float(low), float(high))


class Shrunk(NamedTuple):
    """A share drawn towards that of all classes, the more the fewer pictures it rests on."""

    value: float
    low: float
    high: float


_PICTURES_OF_THE_PRIOR = (0.5, 1e4)
"""how many pictures the prior may weigh: below, classes are 0 or 1; above, all are alike"""


def fit_prior(right: Sequence[int], n: Sequence[int]) -> Prior:
    """The Beta prior under which the classes' counts are likeliest (beta-binomial likelihood).

    right, n: right pictures and pictures of each class. With 200 classes of 5 pictures some have
    none right by chance alone; the prior learns from all how far classes differ at all. Without
    pictures it is Beta(1, 1). Its weight a + b stays within 0.5 to 10,000 pictures.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import betaln

    counts = np.array([(k, m) for k, m in zip(right, n, strict=True) if m > 0], dtype=np.float64)
    if not len(counts):
        return Prior(1.0, 1.0)
    k, m = counts.T
    # One pseudo-count keeps the mean inside (0, 1) where all classes are right, or all wrong.
    mean = (k.sum() + 0.5) / (m.sum() + 1)

    def unlikely(at: np.ndarray) -> float:
        centre, weight = 1 / (1 + np.exp(-at[0])), np.exp(at[1])
        a, b = centre * weight, (1 - centre) * weight
        likelihood = betaln(k + a, m - k + b) - betaln(a, b)
        return -float(likelihood.sum())

    narrow, wide = (math.log(weight) for weight in _PICTURES_OF_THE_PRIOR)
    around = math.log(mean / (1 - mean))
    tries = [
        minimize(
            unlikely,
            [around, start],
            method="L-BFGS-B",
            bounds=[(around - 3, around + 3), (narrow, wide)],
        )
        for start in np.linspace(narrow, wide, 5)
    ]
    best = min(tries, key=lambda found: float(found.fun)).x
    centre, weight = 1 / (1 + math.exp(-best[0])), math.exp(best[1])
    return Prior(centre * weight, (1 - centre) * weight)


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's correlation; infinite values are ties at the end. None for fewer than 3 pairs."""
    from scipy.stats import rankdata

    if len(one) < 3:
        return None
    x, y = rankdata(one.double().numpy()), rankdata(other.double().numpy())
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size else None
