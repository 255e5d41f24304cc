"""What `patch_activations` returns: the change of a logit by each position and unit of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from featviz import results
from featviz.ablation.patched_figures import draw_patched
from featviz.results import Number, significant
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PatchedLayer(NamedTuple):
    """Changes of the score of the base when parts of a layer have the source's values."""

    layer: str
    positions: Tensor | None
    """(H, W), (tokens,), or None for a vector: all units at one position"""
    units: Tensor
    """(C,): one unit at all positions"""
    whole: float
    """all units at all positions"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Patched(results.Result):
    """Activations of a source picture in the run of a base picture."""

    kind: ClassVar[str] = "patching"

    model_name: str
    names: tuple[str, str]
    """of the source and the base"""
    pictures: Tensor
    """(2, 3, H, W)"""
    logits: Tensor
    """(2, K)"""
    target: int
    against: int
    """the same as `target` where its logit alone is followed"""
    classes: tuple[str, ...]
    layers: tuple[PatchedLayer, ...]

    @property
    def score_name(self) -> str:
        """What is followed, in words."""
        target, against = self.classes[self.target], self.classes[self.against]
        return f"logit of {target}" + (f" less {against}" if self.target != self.against else "")

    @property
    def scores(self) -> tuple[float, float]:
        """Of the source and of the base."""
        found = self.logits[:, self.target].double()
        if self.against != self.target:
            found = found - self.logits[:, self.against]
        return float(found[0]), float(found[1])

    @property
    def title(self) -> str:
        return f"Activations of {self.names[0]} in the run of {self.names[1]} in {self.model_name}"

    def numbers(self) -> dict[str, Number]:
        source, base = self.scores
        found = {
            "score of the base": Number(significant(base, 5), "", f"{self.score_name}, unchanged"),
            "score of the source": Number(significant(source, 5), "", self.score_name),
        }
        for one in self.layers:
            found[f"{one.layer}, all"] = Number(
                significant(one.whole, 5), "", "change when the whole layer has the source's values"
            )
            if one.positions is not None:
                found[f"{one.layer}, a position"] = Number(
                    significant(one.positions.max(), 5),
                    "",
                    f"largest change by one of {one.positions.numel()} positions; all of them "
                    f"add up to {float(one.positions.sum()):.4g}",
                )
            best = int(one.units.argmax())
            found[f"{one.layer}, a unit"] = Number(
                significant(one.units[best], 5),
                "",
                f"largest change by one of {counted(len(one.units), 'unit')}, "
                f"{one.layer}:{best}; all of them add up to {float(one.units.sum()):.4g}",
            )
        return found

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "units.csv",
            ("unit", "change"),
            [
                (f"{one.layer}:{i}", significant(one.units[i]))
                for one in self.layers
                for i in one.units.argsort(descending=True).tolist()
            ],
            caption=f"Change of the score ({self.score_name}) when one unit has the source's "
            "values at all positions.",
        )
        rows = [
            (one.layer, *at, significant(value))
            for one in self.layers
            if one.positions is not None
            for at, value in _cells(one.positions)
        ]
        if rows:
            yield results.Table(
                "positions.csv",
                ("layer", "row", "column", "change"),
                rows,
                caption="The same when all units at one position have the source's values; of "
                "tokens the column is empty.",
            )

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "patched.svg",
            self.plot(),
            caption=f"Activations of {self.names[0]} are put into the run of {self.names[1]}, one "
            f"position at a time: red where the {self.score_name} rises, blue where it falls. "
            "Below: the units that change it most when put at all positions.",
            alt="Two pictures, and for each layer a map over the second with bars of units",
        )
        folder.arrays(
            "patched.npz",
            {
                f"{one.layer} {what}": values.numpy()
                for one in self.layers
                for what, values in (("positions", one.positions), ("units", one.units))
                if values is not None
            },
            caption="Changes of the score by position and by unit.",
        )

    def plot(self) -> Figure:
        pair = list(zip(self.names, self.pictures, self.scores, strict=True))
        return draw_patched(pair, self.score_name, self.layers)


def _cells(positions: Tensor) -> Iterator[tuple[tuple[int | str, int | str], Tensor]]:
    if positions.dim() == 1:
        for i, value in enumerate(positions):
            yield (i, ""), value
        return
    for y, row in enumerate(positions):
        for x, value in enumerate(row):
            yield (y, x), value
