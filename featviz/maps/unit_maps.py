"""The maps of a layer's units for one picture, and their place on it.

Comes in: a model, one picture, a layer. Goes out: `UnitMaps`, plain data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from featviz.data.datasets import Pictures
from featviz.data.from_python import Data
from featviz.data.labeled import read_batch
from featviz.errors import UserError
from featviz.models.first_layer import carried_kernels
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.receptive_field import ReceptiveField
from featviz.models.units import parse_units
from featviz.pictures import images


@dataclass(frozen=True, kw_only=True, repr=False)
class UnitMaps:
    """Activations of some units of one layer for one picture."""

    model_name: str
    layer: str
    picture: Tensor
    """(3, H, W) in [0, 1]"""
    units: tuple[int, ...]
    """which units, strongest first unless they were chosen"""
    maps: Tensor
    """(U, h, w)"""
    field: ReceptiveField | None
    """None where it is not known: maps are then stretched over the picture"""
    chosen: bool
    """the units were given; else they are the strongest ones"""
    kernels: Tensor | None
    """(U, 3, k, k) in [0, 1]: first-layer kernels, where the channels are still theirs"""

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """(row, column) of each unit's strongest position."""
        width = self.maps.shape[2]
        return tuple(divmod(int(i), width) for i in self.maps.flatten(1).argmax(1))

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the color scale of all maps: symmetric about 0 if a value is below it."""
        low, high = float(self.maps.min()), float(self.maps.max())
        largest = max(abs(low), abs(high)) or 1.0
        return (-largest, largest) if low < 0 else (0.0, high or 1.0)

    def overlay(self, row: int) -> Tensor:
        """(3, H, W): the picture in color where unit `row` is active, dark where it is not.

        Full color at the unit's largest activation, none at 0 and below, by the square root in
        between. Each pixel takes the position whose receptive field has the nearest center.
        """
        height, width = self.picture.shape[-2:]
        strength = self.maps[row].clamp(min=0)
        strength = (strength / strength.max().clamp(min=1e-30)).sqrt()
        weight = _at_pixels(strength, self.field, height, width)
        dark = 0.3 * self.picture.mean(0, keepdim=True) + 0.08
        return weight * self.picture + (1 - weight) * dark

    def box(self, row: int) -> images.Box | None:
        """Receptive field of the strongest position of unit `row`, not cut at the border."""
        return None if self.field is None else self.field.box(*self.positions[row])


def measure_maps(
    model: Model,
    picture: Tensor,
    layer: str,
    *,
    units: str | Sequence[int | str] | None = None,
    count: int = 12,
) -> UnitMaps:
    """Maps of chosen units, or of the `count` units with the largest activations.

    Args:
        model: the model.
        picture: (3, H, W) in [0, 1].
        layer: one with maps.
        units: as in `parse_units`; None: the strongest ones.
        count: how many then.

    Raises:
        UserError: for an unknown layer or unit and for a layer without positions.
    """
    place = model.layer(layer)
    if not place.spatial:
        with_maps = [la.name for la in model.layers.values() if la.spatial and la.path]
        raise UserError(
            f"{place.name} has no map of positions; take one of {', '.join(with_maps[:8])}"
        )
    with torch.inference_mode():
        maps = activations(model, picture[None].to(model.device), [place.name])[place.name]
    maps = maps[0].cpu().float()
    if units is None:
        strongest = maps.flatten(1).amax(1).argsort(descending=True, stable=True)
        rows = strongest[:count].tolist()
    else:
        rows = [u.index for u in parse_units(model, place.name, units)]
    kernels = carried_kernels(model, place.name)
    return UnitMaps(
        model_name=model.name,
        layer=place.name,
        picture=picture,
        units=tuple(rows),
        maps=maps[rows].clone(),
        field=place.receptive_field,
        chosen=units is not None,
        kernels=None if kernels is None else images.signed(kernels[rows]),
    )


def open_picture(model: Model, picture: Data) -> Tensor:
    """One picture (C, H, W) on the CPU: a float tensor as it is, all else as the model takes it.

    Raises:
        UserError: for what is not one picture.
        BadPicture: for a file that cannot be read.
    """
    if isinstance(picture, str | Path):
        return images.read_picture(picture, model.preprocessing)
    batch = read_batch(model, picture).pictures
    if len(batch) != 1:
        raise UserError(f"one picture is needed, got {len(batch)}")
    return batch[0].cpu().float()


def picture_source(picture: Data) -> str:
    """Where a picture is from, for result.json."""
    if isinstance(picture, Tensor):
        return f"tensor {tuple(picture.shape)}"
    if isinstance(picture, Pictures):
        return f"{', '.join(picture.paths)} of {picture.name}"
    return str(picture) if isinstance(picture, str | Path) else type(picture).__name__


def _at_pixels(values: Tensor, field: ReceptiveField | None, height: int, width: int) -> Tensor:
    """(height, width) from a map (h, w): each pixel takes the position with the nearest center."""
    axes, inside = [], []
    for axis, (pixels, positions) in enumerate(zip((height, width), values.shape, strict=True)):
        middles = torch.arange(pixels) + 0.5
        if field is None:
            index = (middles * positions / pixels).long()
        else:
            first = field.offset[axis] + field.size[axis] / 2
            # Not round(), which gives ties to even positions and so cells of unequal widths.
            index = ((middles - first) / field.stride[axis] + 0.5).floor().long()
        axes.append(index.clamp(0, positions - 1))
        inside.append((index >= 0) & (index < positions))
    at_pixels = values[axes[0][:, None], axes[1]]
    return at_pixels * (inside[0][:, None] & inside[1])
