"""How well values tell some pictures from all others: AUROC with its interval, and a threshold.

The area under the ROC curve is the probability that a picture of the set has a higher value than
one of the others, ties counted half: Mann and Whitney's U over the number of pairs.

    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver
        operating characteristic curves", 1988: the variance
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_Z = 1.959964
"""of a normal distribution, for 95%"""
_TAIL = 0.025


class Auroc(NamedTuple):
    """An area with the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Detection(NamedTuple):
    """Pictures whose value reaches a threshold."""

    threshold: float
    hits: int
    """pictures of the set that reach it"""
    false_alarms: int
    """other pictures that do"""


def centered_ranks(values: Tensor) -> Tensor:
    """Ranks within each column of values (N, U), less their mean, float64; ties share theirs."""
    from scipy.stats import rankdata

    ranks = rankdata(values.detach().cpu().double().numpy(), axis=0)
    return torch.from_numpy(ranks - (len(values) + 1) / 2)


def auroc(values: Tensor, members: Tensor) -> Auroc:
    """Of values (N,) for the pictures `members` (N,) bool, against all others.

    The interval has DeLong's variance on the scale of log odds. Where the sets do not overlap that
    variance is 0, and the other end is the area at which k pictures (the smaller set) would all be
    on the right side in 2.5% of samples, each with that chance.
    """
    inside, outside = values[members].double(), values[~members].double()
    m, n = len(inside), len(outside)
    both = torch.cat([inside, outside])[:, None]
    # How many of the other set are below, ties half: the rank among all less that among its own.
    above = centered_ranks(both)[:, 0] + (m + n + 1) / 2
    inside_wins = (above[:m] - centered_ranks(inside[:, None])[:, 0] - (m + 1) / 2) / n
    outside_wins = (above[m:] - centered_ranks(outside[:, None])[:, 0] - (n + 1) / 2) / m
    area = float(inside_wins.mean())
    if area in {0.0, 1.0}:
        near = _TAIL ** (1 / min(m, n))
        return Auroc(area, near if area else 0.0, 1.0 if area else 1 - near)
    variance = sum(
        float(wins.var()) / len(wins) if len(wins) > 1 else 0.25
        for wins in (inside_wins, outside_wins)
    )
    middle, half = math.log(area / (1 - area)), _Z * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-max(-700.0, min(700.0, middle + s * half)))) for s in (-1, 1))
    return Auroc(area, low, high)


def best_detection(values: Tensor, members: Tensor) -> Detection:
    """The threshold with the largest hit rate less false-alarm rate (Youden's J)."""
    order = values.double().sort(descending=True, stable=True)
    inside = members[order.indices].long()
    hits, false = inside.cumsum(0), (1 - inside).cumsum(0)
    last = torch.cat(
        [order.values[1:] != order.values[:-1], torch.tensor([True])]
    )  # of equal values
    gain = hits / max(1, int(hits[-1])) - false / max(1, int(false[-1]))
    at = int(gain.double().masked_fill(~last, -math.inf).argmax())
    return Detection(float(order.values[at]), int(hits[at]), int(false[at]))
