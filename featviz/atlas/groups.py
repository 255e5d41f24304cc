"""Rows in groups of near ones, so that neighbors are looked for in the groups near a row.

All rows against all would take time with the square of their number. k-means makes about four times
as many groups as the root of the number of rows, so that finding a row's nearest groups takes no
longer than looking through them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.data.datasets import evenly

_FEWEST = 128
"""rows of a group, on average, at least"""
_SAMPLE = 24
"""rows for each group from which its mean is found"""
_ROUNDS = 5
_ROWS = 4096
"""rows that are compared with all means at a time"""


@dataclass(frozen=True)
class Groups:
    """A partition of rows."""

    members: tuple[Tensor, ...]
    """rows of each group, ascending; at least one, and at most twice the average"""
    means: Tensor
    """(groups, axes)"""

    def nearest(self, rows: Tensor, count: int) -> Tensor:
        """The groups whose means are nearest to rows (R, axes): (R, count), nearest first."""
        return _nearest(rows, self.means, min(count, len(self.means)))

    def holding(self, rows: Tensor, near: Tensor, share: float, fewest: int) -> int:
        """How many of their nearest groups hold a share of the neighbors (R, k) of rows.

        So many that any of them have at least `fewest` rows.
        """
        own = torch.empty(sum(map(len, self.members)), dtype=torch.int64)
        for number, members in enumerate(self.members):
            own[members] = number
        rank = self.nearest(rows, len(self.means)).argsort(1).gather(1, own[near])
        last = int(rank.flatten().sort().values[math.ceil(share * rank.numel()) - 1])
        sizes = torch.tensor(sorted(map(len, self.members))).cumsum(0)
        return max(last, int((sizes < fewest).sum())) + 1


def find_groups(rows: Tensor, size: int | None = None) -> Groups:
    """Groups of rows (N, axes), of about `size` rows each."""
    size = size or max(_FEWEST, math.isqrt(len(rows)) // 4)
    count = max(1, len(rows) // size)
    sample = rows[evenly(len(rows), _SAMPLE * count)]
    means = sample[evenly(len(sample), count)]
    for _ in range(_ROUNDS):
        means = _means(sample, _nearest(sample, means, 1)[:, 0], means)
    own = _nearest(rows, means, 1)[:, 0]
    sizes = torch.bincount(own, minlength=count).tolist()
    parts = [
        (part, mean)
        for members, mean in zip(own.argsort(stable=True).split(sizes), means, strict=True)
        for part in members.split(2 * size)
        if len(part)
    ]
    members, kept = zip(*parts, strict=True)
    return Groups(members, torch.stack(kept))


def _means(rows: Tensor, own: Tensor, before: Tensor) -> Tensor:
    """Of the rows of each group; that of before where it has none."""
    sizes = torch.bincount(own, minlength=len(before))[:, None]
    sums = torch.zeros_like(before).index_add_(0, own, rows)
    return torch.where(sizes > 0, sums / sizes.clamp_min(1), before)


def _nearest(rows: Tensor, means: Tensor, count: int) -> Tensor:
    """The nearest means of each row, (N, count), nearest first."""
    bias = means.square().sum(1) / 2
    parts = [torch.addmm(-bias, part, means.T).topk(count, 1).indices for part in rows.split(_ROWS)]
    return torch.cat(parts)
