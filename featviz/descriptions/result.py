"""What `describe_units` and `describe_activations` return: a description of each unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.descriptions.figures import draw_summary
from featviz.descriptions.unit_description import Match, UnitDescription
from featviz.descriptions.unit_svg import unit_figure
from featviz.results import significant
from featviz.statistics import share
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.descriptions.text_names import TextNames
    from featviz.descriptions.tuning_result import Tuning


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
            found["most common"] = results.Number(words, "", f"describes {counted(count, 'unit')}")
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
        return draw_summary(self.units)
