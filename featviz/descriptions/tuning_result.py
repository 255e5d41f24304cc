"""Tuning curves of units, with the preferred value, bandwidth and selectivity of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.descriptions.tuning_curves import Family
from featviz.descriptions.tuning_figures import draw_tuning
from featviz.descriptions.unit_svg import tuning_figure
from featviz.results import significant
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
                    f"median of {counted(len(known), 'unit')} that some stimulus excites: 0 the "
                    "same to all, toward 1 to one only",
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
                tuning_figure(self.families, row),
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
        return draw_tuning(self.units, self.families)
