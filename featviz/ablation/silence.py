"""What is silenced: `Silenced` takes activations to activations without some units or directions.

Silencing puts other values in place of those of units, or of the activations' coordinates along
directions: zero, their mean over the data set, or those of another picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.models.model import Layer, Model
from featviz.models.rest import Recorded, channel_axis
from featviz.models.units import Unit, parse_units
from featviz.wording import counted

How = Literal["zero", "mean", "resample"]
"""what takes the place of a silenced value"""

IN_WORDS = {"zero": "set to 0", "mean": "set to their mean", "resample": "of another picture"}


@dataclass(frozen=True)
class Silenced:
    """Units of a layer, or a space of directions, that are silenced together."""

    name: str
    """"conv5:12", "conv5:3+12", "conv5: direction 0" """
    units: tuple[Unit, ...] = ()
    basis: Tensor | None = None
    """(r, C) orthonormal rows; None for units"""

    def __call__(self, values: Tensor, other: Tensor) -> Tensor:
        """Activations with those of `other` in their place.

        Args:
            values: (N, C, H, W), (N, C) or (N, tokens, C).
            other: What can be expanded to that shape.
        """
        other, axis = other.expand_as(values), channel_axis(values)
        if self.basis is not None:
            basis = self.basis.to(values)
            difference = (other - values).movedim(axis, -1)
            return values + (difference @ basis.T @ basis).movedim(-1, axis)
        changed = values.clone()
        whole = [unit.index for unit in self.units if unit.position is None]
        if whole:
            at = torch.tensor(whole, device=values.device)
            changed.index_copy_(axis, at, other.index_select(axis, at))
        for unit in self.units:
            if unit.position is not None:
                y, x = unit.position
                changed[:, unit.index, y, x] = other[:, unit.index, y, x]
        return changed

    def run(self, recorded: Recorded, other: Tensor) -> Tensor:
        """The output of a recorded pass with those of `other` in their place."""
        if len(self.units) == 1 and self.units[0].position is None:
            unit, axis = self.units[0].index, channel_axis(recorded.values)
            return recorded.run_unit(unit, other.expand_as(recorded.values).select(axis, unit))
        return recorded.run(self(recorded.values, other))


def all_silenced(
    model: Model,
    layer: Layer,
    units: str | Sequence[int | str] | None,
    directions: object,
    *,
    together: bool,
) -> list[Silenced]:
    """What is silenced in each run: one by one, or all together.

    Args:
        model: The model.
        layer: Of the units.
        units: As `parse_units` takes them; None for directions, or all units.
        directions: (k, C), or what has such `directions`.
        together: All at once.

    Raises:
        UserError: Both are given, a unit is unknown, or directions do not fit the layer.
    """
    if directions is None:
        found = parse_units(model, layer.name, "all" if units is None else units)
        if together:
            return [Silenced(_joined(layer.name, found), tuple(found))]
        return [Silenced(str(unit), (unit,)) for unit in found]
    if units is not None:
        raise UserError("units and directions are both given; silence one or the other")
    rows = as_directions(directions, layer)
    if together:
        return [Silenced(f"{layer.name}: {counted(len(rows), 'direction')}", basis=_basis(rows))]
    names = getattr(directions, "names", None)
    names = names or [f"{layer.name}: direction {i}" for i in range(len(rows))]
    return [Silenced(name, basis=_basis(row[None])) for name, row in zip(names, rows, strict=True)]


def as_directions(directions: object, layer: Layer) -> Tensor:
    """(k, C) float64 of a tensor, an array, or what has `directions`. Raises UserError."""
    rows = torch.as_tensor(getattr(directions, "directions", directions)).detach().cpu().double()
    rows = rows[None] if rows.dim() == 1 else rows
    if rows.dim() != 2 or rows.shape[1] != layer.units or len(rows) == 0:
        raise UserError(
            f"directions of shape {tuple(rows.shape)} do not fit {layer.name}; give (k, "
            f"{layer.units}), a row for each direction"
        )
    if not bool((rows.isfinite().all(1) & (rows.norm(dim=1) > 0)).all()):
        raise UserError(
            "a direction is zero or not finite, so that it points nowhere; leave it out"
        )
    return rows


def _basis(rows: Tensor) -> Tensor:
    """(r, C) orthonormal rows that span what the given rows span."""
    _, sizes, right = torch.linalg.svd(rows / rows.norm(dim=1, keepdim=True), full_matrices=False)
    basis: Tensor = right[sizes > 1e-10 * sizes[0]]
    return basis


def _joined(layer: str, units: Sequence[Unit]) -> str:
    """ "conv5:3+12+40 and 5 more" """
    shown = "+".join(str(unit).removeprefix(f"{layer}:") for unit in units[:4])
    more = f" and {len(units) - 4} more" if len(units) > 4 else ""
    return f"{layer}:{shown}{more}"


def controls(silenced: Sequence[Silenced], layer: Layer, count: int, seed: int) -> list[Silenced]:
    """Random sets of as many other units of the layer, or of as many random directions.

    None where all units are silenced one by one, which are each other's control, and where the
    layer has no other units.
    """
    generator = torch.Generator().manual_seed(seed)
    first = silenced[0]
    if first.basis is not None:
        drawn = torch.randn(count, len(first.basis), layer.units, generator=generator).double()
        return [Silenced("random directions", basis=_basis(rows)) for rows in drawn]
    taken = {unit.index for one in silenced for unit in one.units}
    others = torch.tensor([i for i in range(layer.units) if i not in taken])
    if len(others) < len(first.units):
        return []
    sets = []
    for _ in range(count):
        order = others[torch.randperm(len(others), generator=generator)].tolist()
        chosen = [replace(unit, index=i) for unit, i in zip(first.units, order, strict=False)]
        sets.append(Silenced("random units", tuple(chosen)))
    return list({one.units: one for one in sets}.values())
