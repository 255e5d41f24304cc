"""The best class, the best group and the best pair for each unit, and what chance reaches.

Sets of pictures are unions of atoms: pictures with the same labels. Values are ranked once; for a
set the AUROC follows from the sum of its ranks, so one matrix of rank sums (atoms x units) gives
all sets for all units by products. A pair (A OR B, A AND B, A AND NOT B) begins with one of the
unit's best sets, as in INVERT's beam.

Chance: labels are shuffled over the pictures, and the whole search is made again. The share of
searches that find as much is the p-value.

    Bykov et al., "Labeling Neural Representations with Inverse Recognition" (INVERT), 2023
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featviz.descriptions.auroc import centered_ranks

OPERATIONS = ("AND", "OR", "AND NOT")
_CHUNK = 256
"""units of which pairs are searched at once"""
_ROUNDING = 1e-6
"""of areas in float32"""


class Found(NamedTuple):
    """The best of each unit, (U,) each; where there is nothing to search, `area` is NaN."""

    area: Tensor
    first: Tensor
    """index of a set"""
    second: Tensor
    """index of the other one; -1 for a single set"""
    operation: Tensor
    """index into OPERATIONS"""


@dataclass(frozen=True)
class Sets:
    """Sets of pictures, by atoms."""

    atoms: Tensor
    """(N,) the atom of each picture"""
    members: Tensor
    """(S, K) bool: atoms of each set"""
    kinds: tuple[str, ...]
    """of each set: "class" or "group" """
    least: int
    """pictures of the smallest set that is searched, and of its complement"""

    @staticmethod
    def of(members: Tensor, kinds: Sequence[str], least: int) -> Sets:
        """From members (S, N) bool."""
        patterns, atoms = members.T.unique(dim=0, return_inverse=True)
        return Sets(atoms, patterns.T.contiguous(), tuple(kinds), least)

    def pictures(self, first: int, second: int = -1, operation: int = 0) -> Tensor:
        """(N,) bool: the pictures of a set or of a pair."""
        a = self.members[first]
        if second >= 0:
            b = self.members[second]
            a = (a & b, a | b, a & ~b)[operation]
        return a[self.atoms]


class Search:
    """The search over sets and pairs for units with given values."""

    def __init__(self, values: Tensor, sets: Sets, *, pairs: bool, beam: int):
        """values: (N, U)"""
        self.sets, self.beam = sets, beam
        self.ranks = centered_ranks(values)
        count = len(values)
        sizes = torch.bincount(sets.atoms, minlength=sets.members.shape[1]).double()
        self._members = sets.members.double()
        size = self._members @ sizes
        self.usable = (size >= sets.least) & (count - size >= sets.least)
        self._scale = _scale(size, self.usable, count)
        self._pairs = []
        if pairs:
            common = (self._members * sizes) @ self._members.T
            a, b = size[:, None], size[None]
            union = a + b - common
            for n, own in (
                (common, (common < a) & (common < b)),
                (union, (union > a) & (union > b)),
                (a - common, common > 0),
            ):
                fits = own & (n >= sets.least) & (count - n >= sets.least)
                fits &= self.usable[:, None] & self.usable[None]
                self._pairs.append(_scale(n, fits, count))
        self._single = {torch.float64: (self._members, self._scale, self._pairs)}
        self._single[torch.float32] = (
            self._members.float(),
            self._scale.float(),
            [one.float() for one in self._pairs],
        )

    @property
    def has_pairs(self) -> bool:
        """Whether any pair is another set than its parts."""
        return any(bool((scale > 0).any()) for scale in self._pairs)

    def best(self, ranks: Tensor, atoms: Tensor) -> dict[str, Found]:
        """The best class, group and pair of each unit, from ranks (N, U) and atoms (N,)."""
        members, scale, pairs = self._single[ranks.dtype]
        sums = ranks.new_zeros(members.shape[1], ranks.shape[1]).index_add_(0, atoms, ranks)
        single = (members @ sums).mul_(scale[:, None]).add_(0.5)
        single[~self.usable] = -1
        found = {}
        for kind in dict.fromkeys(self.sets.kinds):
            rows = torch.tensor([i for i, one in enumerate(self.sets.kinds) if one == kind])
            area, at = single[rows].max(0)
            found[kind] = Found(area, rows[at], torch.full_like(at, -1), torch.zeros_like(at))
        if pairs:
            parts = [
                self._best_pairs(sums[:, i : i + _CHUNK], single[:, i : i + _CHUNK], members, pairs)
                for i in range(0, ranks.shape[1], _CHUNK)
            ]
            found["pair"] = Found(*(torch.cat(column) for column in zip(*parts, strict=True)))
        return found

    def _best_pairs(
        self, sums: Tensor, single: Tensor, members: Tensor, scales: list[Tensor]
    ) -> Found:
        """Of some units: sums (K, U), single (S, U)."""
        width, units = min(self.beam, len(single)), sums.shape[1]
        first = single.topk(width, dim=0).indices.T  # (U, W)
        whole = members @ sums  # (S, U)
        a = whole.T.gather(1, first)[:, :, None]  # (U, W, 1)
        b = whole.T[:, None, :]  # (U, 1, S)
        both = (members[first] * sums.T[:, None, :]).flatten(0, 1) @ members.T
        both = both.unflatten(0, (units, width))  # (U, W, S): rank sums of the pictures in both
        best = sums.new_full((units,), -1.0)
        at, operation = torch.zeros(units, dtype=torch.long), torch.zeros(units, dtype=torch.long)
        for number, (total, scale) in enumerate(
            zip((both, a + b - both, a - both), scales, strict=True)
        ):
            factor = scale[first]
            area = torch.where(factor > 0, total * factor + 0.5, -1.0).flatten(1)
            value, where = area.max(1)
            better = value > best
            best = torch.where(better, value, best)
            at = torch.where(better, where, at)
            operation = torch.where(better, number, operation)
        count = len(single)
        chosen = first.gather(1, (at // count)[:, None])[:, 0]
        return Found(best, chosen, at % count, operation)

    def measured(self) -> dict[str, Found]:
        """With the labels as they are."""
        return self.best(self.ranks, self.sets.atoms)

    def shuffled(
        self, count: int, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Tensor]:
        """(count, U) of each kind: the best areas under shuffled labels, in float32."""
        random = torch.Generator().manual_seed(seed)
        ranks = self.ranks.float()
        found: dict[str, list[Tensor]] = {}
        for i in range(count):
            order = torch.randperm(len(ranks), generator=random)
            for kind, best in self.best(ranks, self.sets.atoms[order]).items():
                found.setdefault(kind, []).append(best.area)
            if progress is not None:
                progress(i + 1, count)
        return {kind: torch.stack(areas) for kind, areas in found.items()}


def _scale(size: Tensor, fits: Tensor, count: int) -> Tensor:
    """1 / (pictures inside x outside); 0 for what is not searched."""
    pairs = size * (count - size)
    return torch.where(fits, 1 / pairs.clamp(min=1), 0.0)


def p_values(measured: Tensor, shuffled: Tensor) -> Tensor:
    """(U,): the share of searches, this one among them, that reach as large an area."""
    reached = (shuffled >= measured.float() - _ROUNDING).sum(0)
    return (reached + 1).double() / (len(shuffled) + 1)


def q_values(measured: Tensor, shuffled: Tensor) -> Tensor:
    """(U,): the share of chance findings among the units that reach a unit's area.

    How many units reach it under shuffled labels, on average (the measured labels are counted as
    one shuffle), over how many do: Storey and Tibshirani, "Statistical significance for genomewide
    studies", 2003. The smallest q is 1 / (shuffles + 1), however many units there are.
    """
    order = measured.argsort(descending=True, stable=True)
    areas, chance = measured[order].float() - _ROUNDING, shuffled.flatten().sort().values
    reached = torch.arange(1, len(areas) + 1).double()
    by_chance = len(chance) - torch.searchsorted(chance, areas)
    share = (by_chance + reached) / (len(shuffled) + 1) / reached
    least = share.flip(0).cummin(0).values.flip(0).clamp(max=1)
    return torch.empty_like(least).scatter_(0, order, least)
