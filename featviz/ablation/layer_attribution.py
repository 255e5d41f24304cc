"""What `attribute_layer` returns: maps of a layer, and how well they foresee silencing units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.ablation.layer_attribution_figures import draw_layer_attribution
from featviz.models.rest import channel_axis
from featviz.results import Number, significant
from featviz.statistics import DRAWS, percentiles, rank_correlation
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = {"integrated": "integrated gradients", "gradient": "gradient times activation"}
SHOWN = 4
"""pictures in the figure"""
_LISTED = 50
"""units of each picture in the table"""


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerAttribution(results.Result):
    """What the units and positions of a layer add to a target, on N pictures."""

    kind: ClassVar[str] = "layer-attribution"

    model_name: str
    layer: str
    names: tuple[str, ...]
    """of the pictures"""
    pictures: Tensor
    """(N, 3, H, W)"""
    targets: tuple[str, ...]
    """of each picture: a class by name, or a unit"""
    maps: Mapping[str, Tensor]
    """each method's attributions, of the layer's shape: (N, C, H, W), (N, C) or (N, tokens, C)"""
    removed: Tensor
    """(N, C) change of the target when a unit is set to 0"""
    scores: Tensor
    """(N,) value of the target"""
    zero_scores: Tensor
    """(N,) its value when the whole layer is 0"""

    @property
    def title(self) -> str:
        one = self.targets[0] if len(set(self.targets)) == 1 else "predictions"
        return f"Attribution of {one} to {self.layer} of {self.model_name}"

    def by_unit(self, method: str) -> Tensor:
        """(N, C): channel attribution, the sum over positions."""
        values = self.maps[method]
        rows = values.movedim(channel_axis(values), 1)
        return rows.flatten(2).sum(2) if rows.dim() > 2 else rows

    def by_position(self, method: str) -> Tensor | None:
        """(N, H, W) or (N, tokens): spatial attribution, the sum over units; None of a vector."""
        values = self.maps[method]
        return values.sum(channel_axis(values)) if values.dim() > 2 else None

    @property
    def completeness_error(self) -> Tensor:
        """(N,): integrated attributions less what they must add up to, as a share of it."""
        whole = self.scores - self.zero_scores
        found = self.maps["integrated"].double().flatten(1).sum(1)
        return (found - whole).abs() / whole.abs().clamp(min=1e-12)

    @cached_property
    def agreement(self) -> dict[str, Number]:
        """Rank correlation of channel attribution and the loss by silencing, for each method."""
        found = {}
        units = self.removed.shape[1]
        assert self.origin.seed is not None
        random = torch.Generator().manual_seed(self.origin.seed)
        drawn = torch.randint(units, (DRAWS // 5, units), generator=random)
        for method, name in METHODS.items():
            value = self._correlation(method, torch.arange(units))
            resampled = [self._correlation(method, rows) for rows in drawn]
            some = torch.tensor([one for one in resampled if one is not None])
            low, high = percentiles(some) if value is not None and len(some) else (None, None)
            found[f"rank correlation, {method}"] = Number(
                value if value is None else round(value, 4),
                "",
                f"of {name} with the loss by silencing each of {units} units; mean over "
                f"{counted(len(self.names), 'picture')}, interval over resampled units",
                low,
                high,
                units,
            )
        return found

    def _correlation(self, method: str, units: Tensor) -> float | None:
        pairs = zip(self.by_unit(method)[:, units], -self.removed[:, units], strict=True)
        found = [one for pair in pairs if (one := rank_correlation(*pair)) is not None]
        return sum(found) / len(found) if found else None

    def numbers(self) -> dict[str, Number]:
        worst = float(self.completeness_error.max())
        return self.agreement | {
            "completeness error": Number(
                significant(worst, 3),
                "fraction",
                "of integrated gradients, the largest of all pictures",
            )
        }

    def tables(self) -> Iterator[results.Table]:
        by_method = {method: self.by_unit(method) for method in METHODS}
        order = by_method["integrated"].abs().argsort(dim=1, descending=True, stable=True)
        yield results.Table(
            "units.csv",
            ("unit", "of", "target", *METHODS, "removed"),
            [
                (
                    *(f"{self.layer}:{i}", name, target),
                    *(significant(values[row, i]) for values in by_method.values()),
                    significant(self.removed[row, i]),
                )
                for row, (name, target) in enumerate(zip(self.names, self.targets, strict=True))
                for i in order[row, :_LISTED].tolist()
            ],
            caption="What each unit adds to the target on a picture, by both methods (sums over "
            f"positions), and the change of the target when it is set to 0; the {_LISTED} "
            "strongest of each picture.",
        )

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "attribution.svg",
            self.plot(),
            caption="Each row a picture: integrated gradients by position over it (red raises the "
            "target), by unit, and by unit against the loss when the unit is silenced (on the "
            "dotted line both are equal).",
            alt="Pictures with maps, bars of units and scatter plots",
        )
        folder.arrays(
            "attribution.npz",
            {**{name: values.numpy() for name, values in self.maps.items()}}
            | {"removed": self.removed.numpy(), "score": self.scores.numpy()},
            caption="Attributions of both methods in the shape of the layer, and the change of the "
            "target when each unit is set to 0.",
        )

    def plot(self) -> Figure:
        found = zip(self.pictures, self.targets, self.scores.tolist(), strict=True)
        return draw_layer_attribution(
            self.layer,
            list(found)[:SHOWN],
            self.by_position("integrated"),
            self.by_unit("integrated"),
            -self.removed,
        )
