"""What `describe_units` and `describe_activations` return: a description of each unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.descriptions.figures import draw_summary
from featviz.descriptions.unit_svg import unit_figure
from featviz.results import significant
from featviz.statistics import share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.descriptions.text_names import TextNames
    from featviz.descriptions.tuning_result import Tuning

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Descriptions(results.Result):
    """Units in words."""

    kind: ClassVar[str] = "describe"

    subject: str
    """what was described: "relu5 of alexnet-mini" """
    units: tuple[UnitDescription, ...]
    pictures: int
    """with a label"""
    sets: Mapping[str, int]
    """how many classes and groups were searched"""
    permutations: int
    tuning: Tuning | None = None
    """drawn stimuli that the units prefer"""
    text_names: TextNames | None = None
    """names in the opinion of another model"""
    examples: Mapping[str, Tensor] = field(default_factory=dict)
    """pictures on which a unit is highest, by unit: (k, 3, h, w) uint8"""

    @property
    def title(self) -> str:
        return f"Descriptions of {self.subject}"

    @property
    def parts(self) -> Mapping[str, results.Result]:
        return {"tuning": self.tuning} if self.tuning else {}

    @property
    def described(self) -> list[UnitDescription]:
        """The units that have a description, highest AUROC first."""
        found = [one for one in self.units if one.chosen]
        return sorted(found, key=lambda one: -one.chosen.auroc if one.chosen else 0.0)

    def sentences(self) -> list[str]:
        """One a unit, with its name."""
        return [f"{one.unit}: {one.sentence}" for one in self.units]

    def numbers(self) -> dict[str, results.Number]:
        active = [one for one in self.units if one.active]
        found = {
            "described": share(len(self.described), len(active)).number(
                "of the active units have a class, group or pair beyond chance"
            ),
        }
        if self.described:
            best = self.described[0]
            found["best"] = results.Number(best.unit, "", best.sentence)
        detectors = sum(bool(one.chosen and one.chosen.detects) for one in self.units)
        found["detectors"] = results.Number(
            detectors,
            "",
            "units that find half of what describes them and are right half of the time; the "
            "others are selective, but detect nothing",
        )
        kinds = dict.fromkeys(kind for one in active for kind in one.matches)
        for kind in kinds:
            above = sum(one.matches[kind].auroc > one.matches[kind].chance for one in active)
            found[f"{kind} above chance"] = results.Number(
                above,
                f"of {len(active)}",
                f"units whose best {kind} is above 95% of the searches under shuffled labels "
                f"(chance alone: {0.05 * len(active):.0f})",
            )
        common = Counter(one.chosen.words for one in self.described if one.chosen)
        if common:
            words, count = common.most_common(1)[0]
            found["most common"] = results.Number(words, "", f"describes {count} units")
        searched = " and ".join(f"{n} {kind}" for kind, n in self.sets.items())
        return found | {
            "inactive": results.Number(len(self.units) - len(active), "", "constant units"),
            "pictures": results.Number(self.pictures, "", f"with labels; searched: {searched}"),
            "shuffles": results.Number(
                self.permutations, "", "searches under shuffled labels, for p"
            ),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "descriptions.svg",
            self.plot(),
            caption="Left: the AUROC of each unit's best set, highest first, beside what 95% of "
            "the searches under shuffled labels stay below. Right: hit rate and false-alarm rate "
            "of the described units at their best thresholds. A selective unit (high AUROC) is "
            "seldom a detector: where its set is rare, even few false alarms outnumber the hits.",
            alt=f"AUROC of the units of {self.subject}, and their hit and false-alarm rates",
        )
        for one in self.described:
            folder.figure(
                f"units/{results.file_stem(one.unit)}.svg",
                unit_figure(one, self.examples.get(one.unit)),
                caption=f"{one.unit}: {one.sentence}.",
                alt=f"Values of {one.unit} on {one.words} and on other pictures",
                units=[one.unit],
                detail=True,
            )

    def tables(self) -> Iterator[results.Table]:
        columns = (
            *("auroc", "low", "high", "chance_95", "p", "q", "pictures"),
            *("hit_rate", "false_alarm_rate", "precision", "threshold"),
        )

        def numbers(match: Match | None) -> list[float | int | str | None]:
            if match is None:
                return [""] * len(columns)
            m = match
            areas = (m.auroc, m.low, m.high, m.chance, m.p, m.q)
            rates = (m.hit_rate, m.false_alarm_rate, m.precision, m.threshold)
            return [*map(significant, areas), m.pictures, *map(significant, rates)]

        yield results.Table(
            "descriptions.csv",
            ("unit", "description", "kind", *columns),
            [
                (one.unit, one.words, one.chosen.kind if one.chosen else "", *numbers(one.chosen))
                for one in self.units
            ],
            caption="What describes each unit, with AUROC, its 95% interval, what 95% of the "
            "shuffled searches stay below, p, q (the share of chance findings among units with as "
            "large an AUROC, times the number of kinds), and hit rate, false-alarm rate and "
            "precision at the best threshold.",
        )
        yield results.Table(
            "best.csv",
            ("unit", "kind", "set", *columns),
            [
                (one.unit, kind, match.words, *numbers(match))
                for one in self.units
                for kind, match in one.matches.items()
            ],
            caption="The best class, group and pair of each unit, whether beyond chance or not.",
        )

        if self.text_names is not None:
            told = self.text_names
            yield results.Table(
                "text_names.csv",
                ("unit", "word", "score", "p"),
                [(n.unit, n.word, significant(n.score), significant(n.p)) for n in told.names],
                caption=f"The opinion of another model, {told.model}, not a property of this "
                f"network: the best of {told.words:,} words for the {told.pictures} pictures on "
                "which each unit is highest; p: how often random pictures get a word as good.",
            )

    def plot(self) -> Figure:
        return draw_summary(self)
