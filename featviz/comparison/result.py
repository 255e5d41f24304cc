"""`Comparison`: two models on the same pictures, as numbers, tables and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.comparison import figures
from featviz.comparison.measured import SEARCH, Measured
from featviz.comparison.paired import (
    LEVEL,
    ClassFlips,
    CorruptionChange,
    CurvePoint,
    Flips,
    Shown,
    class_flips,
    flips,
)
from featviz.comparison.units import UnitMatch
from featviz.data.labels import LabelReport
from featviz.statistics import (
    Estimate,
    paired_difference,
    percentiles,
    resampled_means,
    share,
)
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 100
_CHANGE = ("first", "second", "change", "low", "high")
CLASS_COLUMNS = ("class", "pictures", "fixed", "broken", *_CHANGE, "p", "p_holm", "verdict")
PICTURE_COLUMNS = (
    *("picture", "label", "first", "second"),
    *("confidence_first", "confidence_second", "change"),
)
CURVE_COLUMNS = ("norm", "eps", "eps_text", "attack", "n", *_CHANGE)


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(results.Result):
    """Two models on the same pictures; row i of both is the same picture."""

    kind: ClassVar[str] = "compare"

    data_name: str
    first: Measured
    second: Measured
    units: tuple[UnitMatch, ...] = ()
    shown: Mapping[str, tuple[Shown, ...]] = field(default_factory=dict)
    """some of the pictures that were "fixed" and "broken" """
    label_report: LabelReport | None = None
    """how the data's folders fit the classes; None for saved results"""

    @property
    def title(self) -> str:
        both = f"{self.first.name} and {self.second.name}"
        return f"{both} on {counted(len(self.first.names), 'picture')} of {self.data_name}"

    @property
    def models(self) -> tuple[Measured, Measured]:
        return self.first, self.second

    @cached_property
    def flips(self) -> Flips:
        """Over all pictures."""
        return flips(self.first.right, self.second.right)

    @cached_property
    def change(self) -> Estimate:
        """Top-1 of the second minus top-1 of the first."""
        return paired_difference(self.first.right, self.second.right)

    @cached_property
    def classes(self) -> list[ClassFlips]:
        """One entry a class, the largest loss first."""
        return class_flips(self.first.classes, self.first.right, self.second.right)

    @cached_property
    def curves(self) -> list[CurvePoint]:
        """Accuracy of both at each eps of the grid, by norm and attack."""
        return [
            point
            for norm in self.first.robustness
            if norm in self.second.robustness
            for point in self._curve(norm)
        ]

    def _curve(self, norm: str) -> Iterator[CurvePoint]:
        one, other = (model.robustness[norm] for model in self.models)
        order = _same_order(one.names, other.names)
        if order is None:
            return
        for attack in one.distances:
            if attack not in other.distances:
                continue
            near, far = one.distances[attack], other.distances[attack][order]
            for eps in (0.0, *(eps for eps in one.eps if eps in other.eps)):
                first, second = ((d > eps) & (d > 0) for d in (near, far))
                change = paired_difference(first, second)
                counts = int(first.sum()), int(second.sum())
                yield CurvePoint(norm, attack, eps, len(order), *counts, change)

    @cached_property
    def corruptions(self) -> list[CorruptionChange]:
        """Accuracy of both under each corruption and severity that both saw; first the mean."""
        one, other = self.first.corrupted, self.second.corrupted
        if one is None or other is None:
            return []
        order = _same_order(one.names, other.names)
        if order is None:
            return []
        names = [name for name in one.corruptions if name in other.corruptions]
        severities = [s for s in one.severities if s in other.severities]

        def cells(table: Tensor, own: tuple[str, ...], levels: tuple[int, ...]) -> Tensor:
            rows = table[[own.index(name) for name in names]]
            return rows[:, [levels.index(s) for s in severities]]

        first = cells(one.right, one.corruptions, one.severities)
        second = cells(other.right, other.corruptions, other.severities)[:, :, order]
        found = [_mean_change("all", "all", first, second)]
        for k, severity in enumerate(severities):
            found.append(_mean_change("all", str(severity), first[:, k], second[:, k]))
        for k, name in enumerate(names):
            found.append(_mean_change(name, "all", first[k], second[k]))
        for i, name in enumerate(names):
            for k, severity in enumerate(severities):
                found.append(_mean_change(name, str(severity), first[i, k], second[i, k]))
        return found

    def numbers(self) -> dict[str, results.Number]:
        one, other = self.models
        n, counts = len(one.names), self.flips
        better = [c.name for c in self.classes if c.verdict == "better"]
        worse = [c.name for c in self.classes if c.verdict == "worse"]
        tests = f"exact test by class, p below {LEVEL} after Holm's correction for all classes"
        found = {
            "change of top-1": self.change.number(f"{other.name} minus {one.name}"),
            "first top-1": share(counts.first, n).number(one.name),
            "second top-1": share(counts.second, n).number(other.name),
            "fixed": share(counts.fixed, n).number(f"right in {other.name} only"),
            "broken": share(counts.broken, n).number(f"right in {one.name} only"),
            "p of the flips": results.Number(
                counts.p, "", "exact McNemar test of fixed against broken"
            ),
            "classes worse": results.Number(len(worse), "", ", ".join([tests, *worse[:3]])),
            "classes better": results.Number(len(better), "", ", ".join([tests, *better[:3]])),
        }
        for point in self.curves:
            if point.attack == SEARCH and point.eps:
                name = f"{NORM_NAMES[point.norm]} {eps_text(point.eps, point.norm)}"
                meaning = f"{point.first} and {point.second} of {point.n} are right, at most"
                found[f"change of robust accuracy {name}"] = point.change.number(meaning)
        for line in self.corruptions[:1]:
            meaning = f"{100 * line.first:.1f}% and {100 * line.second:.1f}%, mean of all cells"
            found["change under corruption"] = line.change.number(meaning)
        found |= self._calibration_numbers()
        for match in self.units:
            chance = "" if match.by_chance is None else f"; by chance {match.by_chance:.2f}"
            found[f"units matched in {match.name}"] = results.Number(
                match.median,
                "",
                f"median correlation of {len(match.pairs)} pairs over {match.pictures} "
                f"pictures{chance}",
            )
        return found

    def _calibration_numbers(self) -> dict[str, results.Number]:
        found = {}
        for word, model in zip(("first", "second"), self.models, strict=True):
            if model.calibration is not None:
                number = model.calibration.numbers()["calibration error"]
                found[f"{word} calibration error"] = replace(
                    number, meaning=f"{model.name}: {number.meaning}"
                )
        return found

    def plot(self) -> Figure:
        return figures.plot_classes(self.classes, (self.first.name, self.second.name))

    def write(self, folder: results.Folder) -> None:
        names = self.first.name, self.second.name
        folder.figure(
            "classes.svg",
            self.plot(),
            caption=f"Change of top-1 by class, {names[1]} minus {names[0]}, the largest loss "
            "first, with Newcombe's 95% interval for pairs. Filled: the exact McNemar test of the "
            f"class has p below {LEVEL} after Holm's correction for all classes.",
            alt="Dots of the change of each class around zero, with intervals",
        )
        if self.curves:
            folder.figure(
                "robustness.svg",
                figures.plot_curves(self.curves, names),
                caption="Above: accuracy of both models against eps, an upper bound, with 95% "
                "Wilson bands. Below: the second minus the first on the same pictures, with "
                "Newcombe's 95% interval for pairs.",
                alt="Two falling curves of accuracy against eps, and their difference",
            )
        if self.corruptions:
            folder.figure(
                "corruptions.svg",
                figures.plot_corruptions(self.corruptions, names),
                caption="Left: mean accuracy of both models at each severity. Right: the change "
                "under each corruption, mean over severities. Intervals: 95%, from pictures drawn "
                "again 1,000 times (bootstrap).",
                alt="Two falling curves against severity, and dots of the change by corruption",
            )
        calibrations = {m.name: m.calibration for m in self.models if m.calibration}
        if len(calibrations) == 2:
            folder.figure(
                "calibration.svg",
                figures.plot_calibration(calibrations),
                caption="How often predictions of a confidence are right, in 15 bins of equal "
                "width, with 95% Wilson intervals. On the diagonal the confidence is the accuracy.",
                alt="Accuracy against confidence of both models beside the diagonal",
            )
        for word, pictures in self.shown.items():
            if pictures:
                folder.figure(
                    f"{word}.svg",
                    figures.plot_pictures(pictures, self.first, self.second),
                    caption=f"Pictures that {names[1]} {word}, the surest first: the class, then "
                    f"the predictions of {names[0]} and of {names[1]}.",
                    alt=f"A grid of pictures whose prediction was {word}",
                )
        for match in self.units:
            folder.figure(
                f"units-{results.file_stem(match.name)}.svg",
                figures.plot_units(match, names),
                caption=f"Units of {match.name}. Left: correlation of each pair, sorted; gray: by "
                "chance. Right: correlation of all units, those of the second model in the order "
                "of their partners: the diagonal holds the pairs.",
                alt="A falling curve of correlations, and a matrix with a diagonal",
            )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "classes.csv",
            [
                "class",
                "pictures",
                "first",
                "second",
                "fixed",
                "broken",
                "change",
                "low",
                "high",
                "p",
                "p_holm",
                "verdict",
            ],
            [
                (
                    one.name,
                    one.flips.n,
                    one.flips.fixed,
                    one.flips.broken,
                    one.flips.first,
                    one.flips.second,
                    *_rounded(one.change),
                    one.flips.p,
                    one.corrected,
                    one.verdict,
                )
                for one in self.classes
            ],
            caption="Each class, the largest loss first: right pictures in both models, how many "
            "were fixed and broken, the change of top-1 with its 95% interval, the p of the exact "
            "McNemar test and the same after Holm's correction.",
        )
        yield results.Table(
            "pictures.csv",
            [
                "picture",
                "label",
                "first",
                "second",
                "confidence_first",
                "confidence_second",
                "change",
            ],
            self._picture_rows(),
            caption="Every picture: the predictions of both models; fixed and broken ones first.",
        )
        if self.curves:
            yield results.Table(
                "robustness.csv",
                [
                    "norm",
                    "eps",
                    "eps_text",
                    "attack",
                    "n",
                    "first",
                    "second",
                    "change",
                    "low",
                    "high",
                ],
                [
                    (
                        p.norm,
                        p.eps,
                        eps_text(p.eps, p.norm),
                        p.attack,
                        p.n,
                        p.first,
                        p.second,
                        *_rounded(p.change),
                    )
                    for p in self.curves
                ],
                caption="Right pictures of both models at each eps, an upper bound, and the "
                "change with its 95% interval.",
            )
        if self.corruptions:
            yield results.Table(
                "corruptions.csv",
                ["corruption", "severity", "first", "second", "change", "low", "high"],
                [
                    (c.name, c.severity, round(c.first, 5), round(c.second, 5), *_rounded(c.change))
                    for c in self.corruptions
                ],
                caption="Accuracy of both models under each corruption and severity, and the "
                "change with its 95% interval (bootstrap).",
            )
        for match in self.units:
            yield results.Table(
                f"units-{results.file_stem(match.name)}.csv",
                ("first", "second", "correlation"),
                [
                    (f"{match.layers[0]}:{i}", f"{match.layers[1]}:{j}", round(float(r), 5))
                    for (i, j), r in zip(match.pairs, match.values, strict=True)
                ],
                caption=f"Pairs of units of {match.name}, highest correlation first; units that "
                f"never vary are in no pair ({len(match.inactive[0])} and "
                f"{len(match.inactive[1])}).",
            )

    def _picture_rows(self) -> Iterator[tuple[object, ...]]:
        one, other = self.models
        order = {"broken": 0, "fixed": 1, "other": 2, "": 3}
        changes = [self._picture_change(row) for row in range(len(one.names))]
        for row in sorted(range(len(changes)), key=lambda row: (order[changes[row]], row)):
            sure = (
                "" if m.confidence is None else round(float(m.confidence[row]), 5)
                for m in self.models
            )
            predictions = one.predicted[row], other.predicted[row]
            yield one.names[row], one.classes[row], *predictions, *sure, changes[row]

    def _picture_change(self, row: int) -> str:
        """ "fixed", "broken", "other" where both are wrong in two ways, "" without a change."""
        one, other = self.models
        if bool(one.right[row]) != bool(other.right[row]):
            return "fixed" if other.right[row] else "broken"
        return "other" if one.predicted[row] != other.predicted[row] else ""


def _rounded(change: Estimate) -> tuple[float, ...]:
    return tuple(round(v or 0.0, 5) for v in (change.value, change.low, change.high))


def _same_order(first: tuple[str, ...], second: tuple[str, ...]) -> list[int] | None:
    """Where each picture of the first is in the second; None where they are others."""
    at = {name: row for row, name in enumerate(second)}
    return [at[name] for name in first] if set(first) == set(second) else None


def _mean_change(name: str, severity: str, first: Tensor, second: Tensor) -> CorruptionChange:
    """Of two (..., N) bool tables: their means and the change, drawn again over pictures."""
    n = first.shape[-1]
    one, other = (table.reshape(-1, n).double().mean(0) for table in (first, second))
    means = float(one.mean()), float(other.mean())
    if len(first.shape) == 1:
        change = paired_difference(first, second)
    else:
        low, high = percentiles(resampled_means((other - one)[:, None])[:, 0])
        change = Estimate(means[1] - means[0], low, high, n)
    return CorruptionChange(name, severity, *means, change)


def comparison_warnings(found: Comparison) -> list[str]:
    """What limits the comparison."""
    warnings, n = [], len(found.first.names)
    if n < _FEW:
        warnings.append(f"only {counted(n, 'picture')}: small changes cannot be told from chance")
    small = [c for c in found.classes if c.flips.n < 6]
    if small:
        warnings.append(
            f"{len(small)} of {len(found.classes)} classes have fewer than 6 pictures: no flip in "
            "them can be significant by itself"
        )
    if found.first.robustness and not found.curves:
        warnings.append("the models were attacked on different pictures: no curves are compared")
    for match in found.units:
        if match.by_chance is not None and match.by_chance > 0.5:
            warnings.append(
                f"{match.name}: few pictures, {match.pictures:,}, for "
                f"{counted(len(match.pairs), 'unit')}: pairs found by chance correlate by "
                f"{match.by_chance:.2f}"
            )
    same = [m.model.get("sha256") for m in (found.first, found.second) if m.model]
    if len(same) == 2 and same[0] == same[1]:
        warnings.append("both models have the same weights")
    return warnings
