"""What `activation_grid` returns: icons of positions, maps of concepts, attributions to logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from featviz import results
from featviz.concepts.grid_figures import (
    draw_attribution,
    draw_concept_maps,
    draw_dictionary,
    draw_grid,
)
from featviz.concepts.grid_measured import MeasuredGrid
from featviz.results import significant
from featviz.statistics import rank_correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class ActivationGrid(MeasuredGrid, results.Result):
    """A picture as a layer has it, in words, tables and figures."""

    kind: ClassVar[str] = "grid"

    @property
    def title(self) -> str:
        return f"{self.name} in {self.layer} of {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        what = "this picture's activations (sum of squares)"
        found = {
            "explained": results.Number(
                significant(self.explained, 4),
                "fraction",
                f"of {what} by {len(self.concepts)} {self.noun}",
            )
        }
        by = self.attribution
        if by is None:
            return found
        best = int(by.concepts[0].argmax())
        agreement = rank_correlation(by.concepts[0], by.removal[0])
        return found | {
            "logit": results.Number(
                significant(by.logits[0], 4), "", f"of {self.classes[by.targets[0]]}"
            ),
            "attributed": results.Number(
                significant(by.total[0], 4), "", "of it, gradient x activation of the layer"
            ),
            "first": results.Number(
                self.concepts[best],
                "",
                f"adds most to it, {float(by.concepts[0, best]):+.3g}; "
                f"{float(by.removal[0, best]):+.3g} by removal",
            ),
            "agreement": results.Number(
                None if agreement is None else round(agreement, 4),
                "",
                f"rank correlation of gradient and removal over the {self.noun}",
            ),
            "completeness": results.Number(
                significant(by.error, 2),
                "",
                "largest relative gap between gradient x activation and the sum of its parts",
            ),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "grid.png",
            self.plot(),
            caption=f"{self.name}, and what {self.layer} has of it: at each position a picture "
            "optimized so that the activations point as they do there. Large where they are "
            "strong.",
            alt="The picture beside a grid of synthetic pictures, one a position",
        )
        folder.figure(
            "concepts.png",
            draw_concept_maps(self),
            caption=f"Where the {self.noun} are in the picture (faded elsewhere), each with the "
            "picture that maximizes it, and what it adds to the logits.",
            alt=f"Maps of {self.noun} over the picture",
            units=[name for name in (self.concepts[i] for i in self.shown) if ":" in name],
        )
        units = {f"{self.layer}:{unit}" for spot in self.spots for unit, _ in spot.units}
        folder.figure(
            "dictionary.png",
            draw_dictionary(self),
            caption=f"The strongest positions of {self.layer}: the part of the picture, and the "
            "units of the largest values, as their maximized pictures.",
            alt="Positions of the picture, each with maximized pictures of its strongest units",
            units=sorted(units),
        )
        if self.attribution is not None:
            folder.figure(
                "attribution.svg",
                draw_attribution(self),
                caption="Gradient x activation of the logits: above by position (red raises), "
                f"below by {self.noun}; with the rest, which they do not explain, they add up to "
                "the total.",
                alt="Maps of attribution to the largest logits and a matrix of concepts by logits",
                units=[f"logits:{index}" for index in self.attribution.targets],
            )
        arrays = {"strength": self.strength, "maps": self.maps}
        if self.attribution is not None:
            arrays |= {"positions": self.attribution.positions}
        folder.arrays(
            "grid.npz",
            {name: values.numpy() for name, values in arrays.items()},
            caption="Lengths of the activations (h, w), codes (k, h, w), attribution (L, h, w).",
        )

    def tables(self) -> Iterator[results.Table]:
        by = self.attribution
        if by is not None:
            values = torch.cat([by.concepts, by.rest[:, None], by.total[:, None]], 1)
            removed = torch.cat([by.removal, torch.full((len(values), 2), torch.nan)], 1)
            yield results.Table(
                "attribution.csv",
                ("unit", "class", "name", "gradient", "removal"),
                [
                    (
                        f"logits:{index}",
                        self.classes[index],
                        name,
                        significant(values[row, j]),
                        significant(removed[row, j]),
                    )
                    for row, index in enumerate(by.targets)
                    for j, name in enumerate((*self.concepts, "rest", "total"))
                ],
                caption=f"What each of the {self.noun} adds to each logit: gradient x activation "
                "(with the rest they add up to the total), and by removal.",
            )
        yield results.Table(
            "dictionary.csv",
            ("unit", "y", "x", "value"),
            [
                (f"{self.layer}:{unit}", spot.y, spot.x, significant(value))
                for spot in self.spots
                for unit, value in spot.units
            ],
            caption="The units of the largest values at the strongest positions.",
        )

    def plot(self) -> Figure:
        return draw_grid(self)
