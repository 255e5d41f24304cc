"""Estimates with their intervals: shares, paired differences, medians, shrinkage, correlation.

In: counts, distances, values. Out: numbers with the 95% interval that belongs to them.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927
    Order-statistic interval of a median: ranks of Binomial(n, 1/2), free of any distribution
    Newcombe, "Improved confidence intervals for the difference between binomial proportions based
        on paired data", 1998 (method 10)
    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (percentile interval)
    Beta-binomial shrinkage: Efron and Morris, "Stein's estimation rule and its competitors - an
        empirical Bayes approach", 1973, for shares
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from featviz.results import Number

_LEVEL = 0.95


class Share(NamedTuple):
    """A fraction of n observations with its 95% Wilson interval."""

    hits: float
    n: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        """The fraction itself; None without observations."""
        return self.hits / self.n if self.n else None

    @property
    def interval(self) -> str:
        """ "38.2% to 41.0%" """
        return f"{100 * self.low:.1f}% to {100 * self.high:.1f}%"

    def number(self, meaning: str) -> Number:
        """The fraction for a result, with its interval and n."""
        return self.estimate(f"{meaning} ({self.hits:,g} of {self.n:,})")

    def estimate(self, meaning: str) -> Number:
        """The same without the counts in its meaning."""
        return Number(self.value, "fraction", meaning, self.low, self.high, self.n)


def share(hits: float, n: int) -> Share:
    """`hits` of n with the 95% Wilson interval; without observations the interval is [0, 1].

    For the sum of n values in [0, 1] the interval is wide enough, too: p (1 - p) bounds their
    variance.
    """
    if n == 0:
        return Share(0, 0, 0.0, 1.0)
    from scipy.stats import norm

    z = float(norm.ppf((1 + _LEVEL) / 2))
    middle = (hits + z * z / 2) / (n + z * z)
    half = z * math.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    # At 0 and n the formula's end is 0 and 1 exactly; rounding must not change that.
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == n else min(1.0, middle + half)
    return Share(hits, n, low, high)


class Estimate(NamedTuple):
    """A fraction, or a difference of two, over n observations with its 95% interval."""

    value: float | None
    low: float
    high: float
    n: int

    def number(self, meaning: str) -> Number:
        """The same for a result."""
        return Number(self.value, "fraction", meaning, self.low, self.high, self.n)


def paired_difference(first: Tensor, second: Tensor) -> Estimate:
    """Share of true values in `second` minus that in `first`, both (N,) bool, with 95% interval.

    Newcombe's method 10, from the two Wilson intervals and the correlation of the pairs. It is not
    empty where no observation differs.
    """
    n = len(first)
    if n == 0:
        return Estimate(None, -1.0, 1.0, 0)
    one, other = share(int(first.sum()), n), share(int(second.sum()), n)
    p, q = one.hits / n, other.hits / n
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - n / 2, 0.0)  # continuity
    scale = math.sqrt(one.hits * (n - one.hits) * other.hits * (n - other.hits))
    phi = product / scale if scale else 0.0

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))

    low = q - p - reach(q - other.low, one.high - p)
    high = q - p + reach(other.high - q, p - one.low)
    return Estimate(q - p, max(-1.0, low), min(1.0, high), n)


DRAWS = 1000
"""bootstrap samples of an interval"""


def resampled_means(values: Tensor, *, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """(draws, K) float64: means of the columns of values (N, K) over N rows drawn with return."""
    import numpy as np

    n = len(values)
    columns, random = values.double().numpy(), np.random.default_rng(seed)
    most = max(1, 4_000_000 // max(n, 1))  # draws at once, so that memory stays small
    parts = [
        random.multinomial(n, np.full(n, 1 / n), size=min(most, draws - done)) @ columns / n
        for done in range(0, draws, most)
    ]
    return torch.from_numpy(np.concatenate(parts))


def resampled_medians(values: Tensor, *, draws: int = DRAWS, seed: int = 0) -> Tensor:
    """(draws, K): medians of the columns of values (N, K) over N rows drawn with return."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=random)
    return values.cpu()[rows].median(1).values


def percentiles(values: Tensor) -> tuple[float, float]:
    """The ends of the middle 95% of bootstrap values (draws,)."""
    low, high = values.double().quantile(
        torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).double()
    )
    return float(low), float(high)


class Median(NamedTuple):
    """The median of n distances of which some are censored."""

    value: float | None
    """the smallest distance that at least half do not exceed; None if most are censored"""
    low: float
    high: float
    """ends of the interval; infinite where the data set no bound"""
    n: int
    censored: int
    """observations whose distance is only known to be larger than what was tried"""

    def number(self, unit: str, meaning: str) -> Number:
        """The median for a result; what is infinite is left empty."""
        low, high = (end if math.isfinite(end) else None for end in (self.low, self.high))
        return Number(self.value, unit, meaning, low, high, self.n)


def median(distances: Tensor) -> Median:
    """The median of distances (N,), infinite where none was found, with its interval.

    A censored distance counts as larger than all others and is never left out (leaving it out
    would make a model look weaker the more pictures withstand an attack). The median is Kaplan and
    Meier's: the smallest distance that at least half do not exceed. The interval's ends are the
    l-th smallest and l-th largest distance, l the largest rank with P(Binomial(n, 1/2) < l) at
    most 2.5%. With fewer than 6 distances no such rank exists and the interval is unbounded.
    """
    from scipy.stats import binom

    values = distances.double().sort().values.tolist()
    n = len(values)
    censored = sum(math.isinf(v) for v in values)
    if n == 0:
        return Median(None, 0.0, math.inf, 0, 0)
    middle = values[(n - 1) // 2]
    rank = int(binom.ppf((1 - _LEVEL) / 2, n, 0.5))  # smallest l with P(B <= l) >= 2.5%
    low, high = (values[rank - 1], values[n - rank]) if rank > 0 else (0.0, math.inf)
    return Median(middle if math.isfinite(middle) else None, low, high, n, censored)


def middle(values: Tensor) -> float | None:
    """The median of the finite values of any shape, with 5 digits, as `results.Number` takes it."""
    finite = values[values.isfinite()].double()
    return round(finite.quantile(0.5).item(), 5) if len(finite) else None


class Prior(NamedTuple):
    """A Beta(a, b) distribution of the classes' true shares."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    def shrink(self, hits: int, n: int) -> Shrunk:
        """Posterior mean of a class's share and its credible interval."""
        from scipy.stats import beta

        a, b = self.a + hits, self.b + n - hits
        low, high = beta.ppf([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], a, b)
        return Shrunk(a / (a + b), float(low), float(high))


class Shrunk(NamedTuple):
    """A share shrunk towards that of all classes: the fewer its pictures, the more."""

    value: float
    low: float
    high: float


_WEIGHT = (0.5, 1e4)
"""a + b of the prior, in pictures: below, classes are 0 or 1; above, all are equal"""


def fit_prior(hits: Sequence[int], n: Sequence[int]) -> Prior:
    """The Beta prior of the largest beta-binomial likelihood of the classes' counts.

    With 200 classes of 5 pictures some have no hit by chance alone; the prior estimates from all
    how far classes differ.

    Args:
        hits: Right pictures of each class.
        n: Pictures of each class; without any the prior is Beta(1, 1).

    Returns:
        Beta(a, b) with a + b from 0.5 to 10,000.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import betaln

    counts = np.array([(k, m) for k, m in zip(hits, n, strict=True) if m > 0], dtype=np.float64)
    if not len(counts):
        return Prior(1.0, 1.0)
    k, m = counts.T
    # One pseudo-count keeps the mean inside (0, 1) where all classes are right, or all wrong.
    mean = (k.sum() + 0.5) / (m.sum() + 1)

    def loss(at: np.ndarray) -> float:
        center, weight = 1 / (1 + np.exp(-at[0])), np.exp(at[1])
        a, b = center * weight, (1 - center) * weight
        likelihood = betaln(k + a, m - k + b) - betaln(a, b)
        return -float(likelihood.sum())

    narrow, wide = (math.log(weight) for weight in _WEIGHT)
    around = math.log(mean / (1 - mean))
    fits = [
        minimize(
            loss,
            [around, start],
            method="L-BFGS-B",
            bounds=[(around - 3, around + 3), (narrow, wide)],
        )
        for start in np.linspace(narrow, wide, 5)
    ]
    best = min(fits, key=lambda fit: float(fit.fun)).x
    center, weight = 1 / (1 + math.exp(-best[0])), math.exp(best[1])
    return Prior(center * weight, (1 - center) * weight)


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's correlation of two lists (N,); None for fewer than 3 pairs or constant values.

    Infinite values are ties at the end.
    """
    if len(one) < 3:
        return None
    found = float(rank_correlations(one[None], other[None]))
    return None if math.isnan(found) else found


def rank_correlations(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of each row of (N, C) with each of (M, C): (N, M) float64.

    Equal values share their mean rank. NaN where a row is constant.
    """
    from scipy.stats import rankdata

    def unit(values: Tensor) -> Tensor:
        ranks = torch.from_numpy(rankdata(values.detach().cpu().double().numpy(), axis=1))
        ranks -= ranks.mean(1, keepdim=True)
        return ranks.div(ranks.norm(dim=1, keepdim=True))

    return torch.matmul(unit(a), unit(b).T)
