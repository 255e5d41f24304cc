"""Named places in a model, units in them, and taps that read them.

A layer is an alias ("conv5", the paper's name) or a module path ("features.10"); a unit is written
"conv5:12", a class also "logits:tabby", a neuron "conv5:12@6,6" (row, column).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from featviz.errors import UserError, nearest
from featviz.models.receptive_field import ReceptiveField

if TYPE_CHECKING:
    from featviz.models.load import Model


@dataclass(frozen=True)
class Layer:
    """A named place in a model."""

    name: str
    """the alias if it has one, else the path"""
    path: str
    kind: str
    """the module's class: "Conv2d", "ReLU" ..."""
    shape: tuple[int, ...]
    """of the activation of one picture: (C, H, W), (C,) or (tokens, C)"""
    channels_last: bool
    """the module itself gives (H, W, C); featviz turns it round"""
    calls: int
    parameters: int
    macs: int
    receptive_field: ReceptiveField | None
    whole: bool
    """each unit sees the whole picture"""

    @property
    def units(self) -> int:
        """How many units: channels, components or classes."""
        return self.shape[-1] if len(self.shape) == 2 else self.shape[0]

    @property
    def spatial(self) -> bool:
        """Whether it is a map (C, H, W) with more than one position."""
        return len(self.shape) == 3 and self.shape[1] * self.shape[2] > 1


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

    Raises UserError for an unknown layer or class and for an index or position out of range.
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
    """The index of a unit given as a number or, in the layer of logits, as a class."""
    digits = str(text).strip()
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
    """Units of one layer: "all", "3,12", "0-15", class names, or a sequence of these."""
    place = model.layer(layer)
    items = split_units(text) if isinstance(text, str) else [str(t) for t in text]
    found: list[Unit] = []
    for item in (i.strip() for i in items):
        span = re.fullmatch(r"(\d+)\s*-\s*(\d+)", item)
        if item == "all":
            found += [Unit(place.name, i) for i in range(place.units)]
        elif span:
            low, high = (find_unit(model, place, s) for s in span.groups())
            found += [Unit(place.name, i) for i in range(low, high + 1)]
        elif item:
            found.append(parse_unit(model, f"{place.name}:{item}"))
    if not found:
        raise UserError(f"no units of {place.name} were named; give numbers, a range or all")
    return list(dict.fromkeys(found))


def split_units(text: str) -> list[str]:
    """ "3, 12@6,6" as ["3", "12@6,6"]: the comma of a position parts no units."""
    return [item.strip() for item in re.findall(r"[^,@]+(?:@\s*\d+,\s*\d+|@[^,]*)?", text)]


class _Reached(Exception):
    """All tapped layers have run; the rest of the forward pass is not needed."""


@contextmanager
def tap(model: Model, layers: Sequence[str], *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Within the block each forward pass of the model fills the yielded dict, name to activation.

    Activations keep their graph, so gradients flow. What a tap yields is never changed by a later
    in-place operation (the rest of the net works on a copy). Hooks are removed at the end, also
    after an error. With `stop`, a pass ends (with an exception that `activations` catches) as soon
    as the last of the layers has run.
    """
    taken: dict[str, Tensor] = {}
    pending: dict[str, int] = {}
    places = {name: model.layer(name) for name in layers}

    def reset(module: nn.Module, inputs: Any) -> None:
        taken.clear()
        pending.update({name: place.calls for name, place in places.items()})

    def take(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            pending[name] -= 1
            if pending[name] > 0:
                return None
            value = _first_tensor(output)
            taken[name] = value.permute(0, 3, 1, 2) if places[name].channels_last else value
            if stop and all(count <= 0 for count in pending.values()):
                raise _Reached
            # Later in-place operations (ReLU(inplace=True)) must not reach what was taken.
            return output.clone() if isinstance(output, Tensor) else None

        return hook

    modules = dict(model.net.named_modules())
    handles = [model.net.register_forward_pre_hook(reset)]
    handles += [modules[p.path].register_forward_hook(take(n)) for n, p in places.items()]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    return next(v for v in values if isinstance(v, Tensor))


def activations(
    model: Model,
    pictures: Tensor,
    layers: Sequence[str],
    *,
    forward: Callable[[Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """The activations of pictures (N, 3, H, W) at the named layers, name to (N, ...) tensor.

    The pass stops at the deepest of them. Gradients flow to the pictures if they require them.

    forward: what runs the model's modules, if not the model itself (`precision.lowered`)

    Raises UserError for an unknown layer.
    """
    with tap(model, layers, stop=True) as taken, suppress(_Reached):
        (forward or model)(pictures)
    return dict(taken)


def unknown_layer(model: Model, name: str) -> UserError:
    """The error for a layer that the model does not have."""
    hint = nearest(name, [*model.aliases, *model.layers])
    return UserError(f"{model.name} has no layer {name!r}{hint} (featviz layers lists them)")
