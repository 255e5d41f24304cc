"""Rows in groups of near ones, so that neighbors are looked for group by group.

All rows against all would take time with the square of their number. k-means along the first axes
makes groups of about 256 rows; the neighbors of a group's rows are looked for among the rows of the
groups that are nearest to them, the same for the whole group, which makes it a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.data.datasets import evenly

MEMBERS = 256
"""rows of a group, on average"""
_AXES = 64
"""along which groups are made"""
_SAMPLE = 32
"""rows for each group from which its mean is found"""
_ROUNDS = 6
_NEAREST = 8
"""groups that each row names as near"""
_ROWS = 4096
"""rows that are compared with all means at a time"""


@dataclass(frozen=True)
class Groups:
    """A partition of rows."""

    members: tuple[Tensor, ...]
    """rows of each group, ascending; at least one"""
    named: Tensor
    """(N, at most 8) the groups whose means are nearest to each row; the first is its own"""

    def among(self, number: int, most: int) -> Tensor:
        """Rows near those of a group, ascending: those of the groups that its own name most often.

        Whole groups are taken, its own first, until there are at least `most` rows.
        """
        mine = self.named[self.members[number]].flatten()
        votes = torch.bincount(mine, minlength=len(self.members))
        votes[number] = len(self.named) + 1
        order = votes.argsort(descending=True, stable=True)
        sizes = torch.tensor([len(rows) for rows in self.members])[order].cumsum(0)
        wanted = int((sizes < most).sum()) + 1
        return torch.cat([self.members[i] for i in order[:wanted].tolist()]).sort().values


def find_groups(rows: Tensor, size: int = MEMBERS) -> Groups:
    """Groups of rows (N, axes), whose first axes are those along which they differ most."""
    rows = rows[:, :_AXES].contiguous()
    count = max(1, len(rows) // size)
    sample = rows[evenly(len(rows), _SAMPLE * count)]
    means = sample[evenly(len(sample), count)]
    for _ in range(_ROUNDS):
        own = _nearest(sample, means, 1)[:, 0]
        sizes = torch.bincount(own, minlength=count)
        sums = torch.zeros_like(means).index_add_(0, own, sample)
        means = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], means)
    own = _nearest(rows, means, 1)[:, 0]
    used = own.unique()  # groups that no row belongs to would never be searched
    named = _nearest(rows, means[used], min(_NEAREST, len(used)))
    order = named[:, 0].argsort(stable=True)
    sizes = torch.bincount(named[:, 0], minlength=len(used))
    return Groups(order.split(sizes.tolist()), named)


def _nearest(rows: Tensor, means: Tensor, count: int) -> Tensor:
    """The nearest means of each row, (N, count), nearest first."""
    bias = means.square().sum(1) / 2
    parts = [torch.addmm(-bias, part, means.T).topk(count, 1).indices for part in rows.split(_ROWS)]
    return torch.cat(parts)
