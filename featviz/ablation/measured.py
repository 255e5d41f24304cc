"""What is measured with units silenced, and what follows from it; no words, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from featviz.ablation.silence import How
from featviz.comparison.paired import Flips, holm, mcnemar
from featviz.statistics import Estimate, Share, paired_difference, share


class Effect(NamedTuple):
    """What silencing does to some pictures."""

    flips: Flips
    change: Estimate
    """accuracy without the units minus that with them"""
    corrected: float
    """p of McNemar's exact test, by Holm's method"""


class PictureLogits(NamedTuple):
    """The logits of one picture."""

    name: str
    picture: Tensor
    """(3, H, W) in [0, 1]"""
    before: Tensor
    """(K,)"""
    after: Tensor
    """(A, K) in each run"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Measured:
    """A net with units silenced: A runs over the same N pictures, and R of random units."""

    model_name: str
    layer: str
    how: How
    names: tuple[str, ...]
    """what was silenced in each run: "conv5:12", "conv5:3+12", "conv5: direction 0" """
    classes: tuple[str, ...]
    """short names of the model's classes"""
    pictures: tuple[str, ...]
    """names of those that count"""
    labels: Tensor
    """(N,)"""
    predicted_labels: bool
    """they are the model's own predictions"""
    before: Tensor
    """(N,) predictions of the whole net"""
    after: Tensor
    """(A, N) predictions"""
    logit_change: Tensor
    """(A, N) change of the logit of the picture's class"""
    control_after: Tensor
    """(R, N)"""
    control_change: Tensor
    """(R, N)"""
    picture: PictureLogits | None = None
    what: str = "units"
    """or "directions" """

    @cached_property
    def right(self) -> Tensor:
        """(N,) bool: predictions of the whole net."""
        right: Tensor = self.before == self.labels
        return right

    @cached_property
    def right_after(self) -> Tensor:
        """(A, N) bool."""
        right: Tensor = self.after == self.labels
        return right

    @property
    def accuracy(self) -> Share:
        """Of the whole net."""
        return share(int(self.right.sum()), len(self.right))

    @cached_property
    def effects(self) -> list[Effect]:
        """Of each run on all pictures; p corrected for their number."""
        return _effects([_flips(self.right, right) for right in self.right_after])

    @cached_property
    def control_changes(self) -> Tensor:
        """(R,) changes of accuracy by random units."""
        right = self.control_after == self.labels
        return right.double().mean(1) - self.right.double().mean()

    @cached_property
    def shown_classes(self) -> Tensor:
        """(K',) classes that occur."""
        occurring: Tensor = self.labels.unique()
        return occurring

    @cached_property
    def _members(self) -> Tensor:
        """(N, K') 1 where the picture is of the class."""
        return (self.labels[:, None] == self.shown_classes).float()

    @cached_property
    def counts(self) -> Tensor:
        """(K',) pictures of each class that occurs."""
        return self._members.sum(0)

    @cached_property
    def fixed_and_broken(self) -> tuple[Tensor, Tensor]:
        """(A, K') counts of each class in each run: wrong to right, right to wrong."""
        fixed = (self.right_after & ~self.right).float() @ self._members
        broken = (~self.right_after & self.right).float() @ self._members
        return fixed, broken

    @cached_property
    def class_changes(self) -> Tensor:
        """(A, K') change of each class's accuracy."""
        fixed, broken = self.fixed_and_broken
        return (fixed - broken) / self.counts

    @cached_property
    def class_logits(self) -> Tensor:
        """(A, K') mean change of a class's logit on its own pictures."""
        return self.logit_change @ self._members / self.counts

    @cached_property
    def class_p(self) -> Tensor:
        """(A, K') p of McNemar's exact test, corrected for all runs and classes."""
        pairs = torch.stack(self.fixed_and_broken, -1).long().flatten(0, 1).tolist()
        return torch.tensor(holm([_p(*pair) for pair in pairs])).view(self.class_changes.shape)

    def hurt_most(self, run: int) -> list[int]:
        """Columns of `class_changes` in the order of their loss; equal ones by their logit."""
        change, logit = self.class_changes[run].tolist(), self.class_logits[run].tolist()
        return sorted(range(len(change)), key=lambda k: (change[k], logit[k]))

    def class_effect(self, run: int, column: int) -> Effect:
        """Of one run on the pictures of one class."""
        fixed, broken = (int(count[run, column]) for count in self.fixed_and_broken)
        n, before = int(self.counts[column]), int(self._class_right[column])
        flips = Flips(n, before, before + fixed - broken, fixed, broken)
        return Effect(flips, _change(flips), float(self.class_p[run, column]))

    @cached_property
    def _class_right(self) -> Tensor:
        return self.right.float() @ self._members

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """(A,) each: losses of the class hurt most, and of a class on average.

        The class is chosen on every other picture of each class, and measured on those between;
        classes with one picture are left out. Empty without classes of two.
        """
        rank = torch.zeros(len(self.labels), dtype=torch.long)
        for label in self.shown_classes:
            own = (self.labels == label).nonzero()[:, 0]
            rank[own] = torch.arange(len(own))
        halves = []
        loss = self.right.float() - self.right_after.float()
        for parity in (0, 1):
            members = self._members * (rank % 2 == parity)[:, None]
            halves.append((loss @ members, self.logit_change @ members, members.sum(0)))
        (chosen, logits, n), (measured, _, m) = halves
        usable = m > 0
        if not bool(usable.any()):
            return torch.empty(0), torch.empty(0)
        n, m = n[usable], m[usable]
        score = chosen[:, usable] / n - 1e-6 * logits[:, usable] / n
        best = score.argmax(1, keepdim=True)
        found = measured[:, usable] / m
        return found.gather(1, best)[:, 0], found.mean(1)

    @property
    def right_word(self) -> str:
        return "unchanged" if self.predicted_labels else "right"

    @property
    def worst_first(self) -> list[int]:
        """The runs by their change of accuracy, equal ones by the logit."""
        logits = self.logit_change.mean(1).tolist()
        return sorted(
            range(len(self.names)), key=lambda i: (self.effects[i].change.value or 0.0, logits[i])
        )


def _effects(flips: Sequence[Flips]) -> list[Effect]:
    corrected = holm([_p(one.fixed, one.broken) for one in flips])
    return [Effect(one, _change(one), p) for one, p in zip(flips, corrected, strict=True)]


def _flips(before: Tensor, after: Tensor) -> Flips:
    fixed, broken = int((~before & after).sum()), int((before & ~after).sum())
    return Flips(len(before), int(before.sum()), int(after.sum()), fixed, broken)


_p = lru_cache(maxsize=None)(mcnemar)


@lru_cache(maxsize=65536)
def _change(flips: Flips) -> Estimate:
    """The paired difference, from the counts alone."""
    n, before, _, fixed, broken = flips
    first = torch.arange(n) < before
    second = first.clone()
    second[:broken] = False
    second[before : before + fixed] = True
    return paired_difference(first, second)
