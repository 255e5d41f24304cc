"""A unit in words: the sets of pictures that it responds to more than to others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SIGNIFICANT = 0.05
"""q below which a description is given"""


@dataclass(frozen=True)
class Match:
    """A set of pictures that a unit responds to more than to others: the best of its kind."""

    words: str
    """ "fish", "fish OR snake" """
    kind: str
    """ "class", "group" or "pair" """
    auroc: float
    low: float
    high: float
    """95% interval, of this set alone: it does not include that the set was searched for"""
    chance: float
    """what 95% of the searches under shuffled labels stay below"""
    p: float
    """share of such searches that find as much"""
    q: float
    """share of chance findings among the units with as large an AUROC (false discovery rate), times
    the number of kinds that were searched"""
    threshold: float
    """with the largest hit rate less false-alarm rate"""
    hits: int
    """pictures of the set whose value reaches it"""
    pictures: int
    """of the set"""
    false_alarms: int
    """other pictures whose value reaches it"""
    others: int

    @property
    def hit_rate(self) -> float:
        """Share of the set that reaches the threshold."""
        return self.hits / self.pictures

    @property
    def false_alarm_rate(self) -> float:
        """Share of the others that does."""
        return self.false_alarms / self.others

    @property
    def precision(self) -> float:
        """Share of the set among all pictures that reach the threshold."""
        return self.hits / max(1, self.hits + self.false_alarms)

    @property
    def significant(self) -> bool:
        """Whether chance does not explain it."""
        return self.q < SIGNIFICANT

    @property
    def detects(self) -> bool:
        """Whether it finds at least half of the set, and is right at least half of the time."""
        return self.hit_rate >= 0.5 and self.precision >= 0.5

    @property
    def facts(self) -> str:
        """The numbers in brackets behind the words."""
        return (
            f"AUROC {self.auroc:.2f} [{self.low:.2f} to {self.high:.2f}]; found on "
            f"{self.hit_rate:.0%} of {self.words}, false on {self.false_alarm_rate:.0%} of the "
            f"others, so {self.precision:.0%} of its findings are right"
        )


@dataclass(frozen=True)
class UnitDescription:
    """A unit in words."""

    unit: str
    active: bool
    """whether its value changes at all"""
    matches: Mapping[str, Match]
    """the best of each kind"""
    chosen: Match | None
    """the one that describes it; None where none is better than chance"""
    low: float
    high: float
    """smallest and largest value"""
    inside: Tensor
    """(bins,) pictures of the best set by value, from `low` to `high`"""
    outside: Tensor
    """(bins,) the others"""

    @property
    def best(self) -> Match | None:
        """The chosen match, or else the one nearest to it; None for an inactive unit."""
        ranked = sorted(self.matches.values(), key=lambda one: (one.q, -one.auroc))
        return self.chosen or next(iter(ranked), None)

    @property
    def words(self) -> str:
        """What describes it, or why nothing does."""
        if not self.active:
            return "inactive"
        return self.chosen.words if self.chosen else "no class or group"

    @property
    def sentence(self) -> str:
        """The description with its numbers, in one plain sentence without the unit's name."""
        if not self.active:
            return "inactive: it has the same value on every picture"
        if self.chosen is None:
            near = self.best
            best = f" (best: {near.words}, AUROC {near.auroc:.2f}, as by chance)" if near else ""
            return f"no class or group describes this unit{best}"
        return f"{self.chosen.words} ({self.chosen.facts}){self._broader}"

    @property
    def _broader(self) -> str:
        """The best group behind a class, where it says more."""
        group = self.matches.get("group")
        assert self.chosen is not None
        if not group or not group.significant or group.pictures <= self.chosen.pictures:
            return ""
        return f"; as a group: {group.words}, AUROC {group.auroc:.2f}"
