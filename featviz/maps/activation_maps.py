"""Activation maps of a layer's units for one picture, shown on it.

Comes in: a model, one picture, a layer. Goes out: `ActivationMaps`, with the shaded picture, the
map and the strongest patch of each unit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from featviz import results
from featviz.data.from_python import Data
from featviz.errors import public
from featviz.maps import activation_maps_figures as figures
from featviz.maps.unit_maps import UnitMaps, measure_maps, open_picture, picture_source
from featviz.models.model import Model
from featviz.types import Count
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class ActivationMaps(UnitMaps, results.Result):
    """The maps of some units of one layer for one picture."""

    kind: ClassVar[str] = "maps"

    @property
    def title(self) -> str:
        return f"Maps of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        largest = self.maps.flatten(1).amax(1)
        best = int(largest.argmax())
        height, width = self.maps.shape[1:]
        y, x = self.positions[best]
        numbers = {
            "maps": results.Number(len(self.units), "", f"of {height} x {width} positions"),
            "largest": results.Number(
                float(largest[best]),
                "",
                f"{self.layer}:{self.units[best]} at row, column {y}, {x}",
            ),
            "above zero": results.Number(
                float((self.maps > 0).float().mean()), "fraction", "of the positions shown"
            ),
        }
        if self.field is not None:
            size = "x".join(map(str, self.field.size))
            step = self.field.stride[0]
            meaning = f"pixels, one every {step} pixels"
            numbers["receptive field"] = results.Number(size, "", meaning)
        return numbers

    def write(self, folder: results.Folder) -> None:
        low, high = self.limits
        scale = f"All maps share the colors from {low:.3g} to {high:.3g}."
        choice = "" if self.chosen else "Shown are the units with the largest activations."
        folder.figure(
            "maps.svg",
            self.plot(),
            caption=f"{self.layer} of {self.model_name}. Above, the picture in color where a unit "
            "is active: by the square root, full at the unit's own largest value; the box is the "
            f"receptive field of its strongest position. Below, its map. {scale} {choice}".rstrip(),
            alt=f"Maps of {counted(len(self.units), 'unit')} of {self.layer} beside the picture",
        )
        folder.figure(
            "picture.png",
            self.picture,
            caption="The picture as the model gets it.",
            alt="The picture",
        )
        for row, unit in enumerate(self.units):
            name = f"{self.layer}:{unit}"
            y, x = self.positions[row]
            value = float(self.maps[row].max())
            folder.figure(
                f"units/{results.file_stem(name)}.png",
                figures.unit_picture(self, row),
                caption=f"{name}: the picture in color where it is active, its map "
                f"({scale[9:-1]}), and the pixels of the strongest position (row {y}, column {x}: "
                f"{value:.3g}).",
                alt=f"Map of {name} on the picture, strongest at row {y}, column {x}",
                units=[name],
                pixelated=True,
            )
        folder.arrays(
            "maps.npz",
            {"maps": self.maps.numpy(), "units": torch.tensor(self.units).numpy()},
            caption="maps (U, h, w) and their units.",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "maps.csv",
            ("unit", "largest", "mean", "above_zero", "y", "x", "top", "left", "bottom", "right"),
            [
                (
                    unit,
                    results.significant(m.max()),
                    results.significant(m.mean()),
                    round(float((m > 0).float().mean()), 4),
                    *self.positions[i],
                    *(self.box(i) or ("",) * 4),
                )
                for i, (unit, m) in enumerate(zip(self.units, self.maps, strict=True))
            ],
            caption="Each unit's strongest position and its receptive field (half open, not cut "
            "at the border).",
        )

    def plot(self) -> Figure:
        """The picture, and for each unit the shaded picture above its map."""
        return figures.overview(self, self.title)


@public
def activation_maps(
    model: Model,
    picture: Data,
    layer: str,
    *,
    units: str | Sequence[int | str] | None = None,
    count: Count = 12,
) -> ActivationMaps:
    """Maps of a layer's units for one picture, shown on it.

    Args:
        model: the model.
        picture: A float tensor (C, H, W) in [0, 1], which keeps its size, or one picture of any
            kind that `as_pictures` takes.
        layer: one with maps, as "conv1".
        units: "0-7", "3,12" or a sequence; default: the units with the largest activations.
        count: how many these are.

    Returns:
        The maps, with their strongest positions and receptive fields.

    Raises:
        UserError: for an unknown layer or unit, for a layer without positions (fc6, logits), and
            for what is not one picture.

    Example:
        featviz.activation_maps(model, "zebra.jpg", "conv1").save("run/maps-conv1")
    """
    started = time.perf_counter()
    shown = open_picture(model, picture)
    maps = measure_maps(model, shown, layer, units=units, count=count)
    unknown = (
        f"the receptive field of {maps.layer} is not known: its maps are stretched over the "
        "picture, and no box is drawn"
    )
    parameters = {"picture": picture_source(picture), "layer": maps.layer, "units": maps.units}
    return ActivationMaps(
        **vars(maps),
        origin=results.origin(model, started=started, parameters=parameters),
        warnings=() if maps.field else (unknown,),
    )
