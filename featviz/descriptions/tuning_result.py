"""Tuning curves of units, with the preferred value, bandwidth and selectivity of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from featviz import results
from featviz.descriptions.tuning_figures import draw_tuning
from featviz.descriptions.unit_svg import tuning_figure
from featviz.results import significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Peak(NamedTuple):
    """What a curve prefers; None where no stimulus exceeds plain gray."""

    preferred: float | None
    bandwidth: float | None
    """full width at half height, in the family's unit (frequency: octaves); None where the curve
    does not fall to half on both sides"""
    selectivity: float | None
    """1 - mean / maximum: 0 the same to all stimuli, toward 1 to one of them only"""


@dataclass(frozen=True)
class Family:
    """The curves of all units over one kind of stimuli."""

    name: str
    unit: str
    at: tuple[float, ...]
    """(K,) what was varied"""
    values: Tensor
    """(U, K) less the value on plain gray"""
    period: float | None = None
    """of what repeats: 180 degrees of orientation"""
    log: bool = False
    """whether steps are ratios"""

    def curve(self, row: int) -> list[float]:
        """(K,) a unit's curve: nothing below plain gray."""
        return [float(v) for v in self.values[row].clamp(min=0)]

    def peak(self, row: int) -> Peak:
        """Preferred value (by a parabola through the top), width at half height, selectivity."""
        r = self.curve(row)
        top = max(r)
        if top <= 1e-6:
            return Peak(None, None, None)
        x = [math.log2(v) for v in self.at] if self.log else list(self.at)
        i, n = r.index(top), len(r)
        selectivity = 1 - sum(r) / n / top
        inner = self.period is not None or 0 < i < n - 1
        place = x[i]
        if inner:
            step = x[1] - x[0]
            even = self.period is not None or math.isclose(x[i + 1] - x[i], x[i] - x[i - 1])
            before, after = r[i - 1], r[(i + 1) % n]
            bend = before - 2 * top + after
            if even and bend < 0:
                place += step * 0.5 * (before - after) / bend
        if self.period is not None:
            place %= self.period
        sides = [self._half(x, r, i, sign) for sign in (-1, 1)]
        known = [one for one in sides if one is not None]
        width = sum(known) if len(known) == 2 else None
        return Peak(2**place if self.log else place, width, selectivity)

    def _half(self, x: list[float], r: list[float], i: int, sign: int) -> float | None:
        """How far from the top the curve falls to half of it."""
        n, half, away = len(r), r[i] / 2, 0.0
        for k in range(1, n // 2 + 1 if self.period is not None else n):
            j, last = i + sign * k, i + sign * (k - 1)
            if self.period is None and not 0 <= j < n:
                return None
            step = x[1] - x[0] if self.period is not None else abs(x[j] - x[last])
            now, before = r[j % n], r[last % n]
            if now <= half:
                return away + step * (before - half) / (before - now)
            away += step
        return None


@dataclass(frozen=True, kw_only=True, repr=False)
class Tuning(results.Result):
    """How units depend on drawn stimuli."""

    kind: ClassVar[str] = "tuning"

    model_name: str
    layer: str
    units: tuple[str, ...]
    field: int
    """pixels of the side of the receptive field"""
    gray: Tensor
    """(U,) value on plain gray"""
    families: tuple[Family, ...]

    @property
    def title(self) -> str:
        return f"Tuning of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        found = {
            "units": results.Number(len(self.units)),
            "field": results.Number(self.field, "pixels", "side of the receptive field"),
        }
        for family in self.families:
            peaks = [family.peak(row) for row in range(len(self.units))]
            known = sorted(p.selectivity for p in peaks if p.selectivity is not None)
            if known:
                found[f"{family.name} selectivity"] = results.Number(
                    known[len(known) // 2],
                    "",
                    f"median of {len(known)} units that some stimulus excites: 0 the same to all, "
                    "toward 1 to one only",
                )
        return found

    def words(self, row: int) -> str:
        """What a unit prefers, in words."""
        said = []
        for family in self.families:
            peak = family.peak(row)
            if peak.preferred is not None:
                said.append(f"{family.name} {peak.preferred:.3g} {family.unit}")
        return ", ".join(said) or "nothing drawn excites it"

    def write(self, folder: results.Folder) -> None:
        how = "Value less that on plain gray, in proportion to the largest of the unit's curves."
        folder.figure(
            "tuning.svg",
            self.plot(),
            caption=f"Tuning curves of units of {self.layer}. {how}",
            alt=f"Tuning curves of {self.layer}",
        )
        for row, unit in enumerate(self.units):
            folder.figure(
                f"units/{results.file_stem(unit)}.svg",
                tuning_figure(self, row),
                caption=f"{unit}: drawn stimuli: {self.words(row)}. {how}",
                alt=f"Tuning curves of {unit}",
                units=[unit],
                detail=True,
            )

    def tables(self) -> Iterator[results.Table]:
        names = [
            column
            for f in self.families
            for column in (f.name, f"{f.name}_bandwidth", f"{f.name}_selectivity")
        ]
        yield results.Table(
            "tuning.csv",
            ("unit", *names),
            [
                (
                    unit,
                    *(
                        "" if value is None else significant(value, 4)
                        for family in self.families
                        for value in family.peak(row)
                    ),
                )
                for row, unit in enumerate(self.units)
            ],
            caption="What each unit prefers among drawn stimuli, full width at half height "
            "(frequency: octaves), and selectivity (0: the same to all, toward 1: to one only).",
        )
        yield results.Table(
            "curves.csv",
            ("unit", "family", "at", "value"),
            [
                (unit, family.name, significant(at), significant(family.values[row, i]))
                for row, unit in enumerate(self.units)
                for family in self.families
                for i, at in enumerate(family.at)
            ],
            caption="All curves: value less that on plain gray.",
        )

    def plot(self) -> Figure:
        return draw_tuning(self)
