"""Units by name: "conv5:12", a class also as "logits:tabby", a neuron as "conv5:12@6,6".

A neuron's position is (row, column) in the layer's map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from featviz.errors import UserError
from featviz.indices import all_items, one_item
from featviz.models.model import Layer, Model


@dataclass(frozen=True)
class Unit:
    """One unit of a layer, or one neuron when it has a position."""

    layer: str
    index: int
    position: tuple[int, int] | None = None
    """(row, column) in the layer's map"""

    def __str__(self) -> str:
        place = f"@{self.position[0]},{self.position[1]}" if self.position else ""
        return f"{self.layer}:{self.index}{place}"


_UNIT = re.compile(r"(?P<index>.+?)(?:@(?P<y>\d+),(?P<x>\d+))?")


def parse_unit(model: Model, text: str) -> Unit:
    """The unit that "conv5:12", "logits:tabby" or "conv5:12@6,6" names.

    Raises:
        UserError: for an unknown layer or class and for an index or position out of range.
    """
    name, colon, rest = text.partition(":")
    layer = model.layer(name)
    if not colon or not rest:
        raise UserError(f"{text!r} names no unit; write {name}:0 to {name}:{layer.units - 1}")
    match = _UNIT.fullmatch(rest)
    assert match is not None
    unit = find_unit(model, layer, match["index"])
    if match["y"] is None:
        return Unit(layer.name, unit)
    if not layer.spatial:
        raise UserError(f"{text!r} has a position, but {layer.name} has no map of positions")
    y, x = int(match["y"]), int(match["x"])
    height, width = layer.shape[1:]
    if y >= height or x >= width:
        raise UserError(f"{text!r}: {layer.name} has {height} x {width} positions, counted from 0")
    return Unit(layer.name, unit, (y, x))


def find_unit(model: Model, layer: Layer, text: str | int) -> int:
    """The index of a unit given as a number or, in the layer of logits, as a class.

    Raises:
        UserError: for an unknown class and for an index out of range.
    """
    digits = str(one_item(text, f"unit of {layer.name}")).strip()
    if re.fullmatch(r"-?\d+", digits):
        index = int(digits)
        if not 0 <= index < layer.units:
            raise UserError(
                f"unit {index} is out of range: {layer.name} has units 0 to {layer.units - 1}"
            )
        return index
    if layer.name != "logits":
        raise UserError(
            f"{text!r} is no unit of {layer.name}; give a number (0 to {layer.units - 1})"
        )
    return model.class_index(digits)


def parse_units(model: Model, layer: str, text: str | Sequence[int | str]) -> list[Unit]:
    """Units of one layer, each once, in the given order.

    Args:
        model: the model.
        layer: alias or module path.
        text: "all", "3,12", "0-15", class names, a number, or a sequence, array or tensor of these.

    Raises:
        UserError: for an unknown layer or unit, and if no unit is named.
    """
    place = model.layer(layer)
    if isinstance(text, str):
        items = split_units(text)
    else:
        items = [str(item).strip() for item in all_items(text, f"unit of {place.name}")]
    units: list[Unit] = []
    for item in items:
        span = re.fullmatch(r"(\d+)\s*-\s*(\d+)", item)
        if item == "all":
            units += [Unit(place.name, i) for i in range(place.units)]
        elif span:
            low, high = (find_unit(model, place, s) for s in span.groups())
            units += [Unit(place.name, i) for i in range(low, high + 1)]
        elif item:
            units.append(parse_unit(model, f"{place.name}:{item}"))
    if not units:
        raise UserError(f"no units of {place.name} were named; give numbers, a range or all")
    return list(dict.fromkeys(units))


def split_units(text: str) -> list[str]:
    """ "3, 12@6,6" as ["3", "12@6,6"]: the comma of a position separates no units."""
    return [item.strip() for item in re.findall(r"[^,@]+(?:@\s*\d+,\s*\d+|@[^,]*)?", text)]


def unit_name(model: Model, unit: Unit) -> str:
    """A unit for titles and captions: "conv5:12", for a class its name."""
    if unit.layer == "logits" and unit.index < len(model.classes):
        return model.class_name(unit.index)
    return str(unit)
