"""One activation of a convolution worked out: patch times kernel, summed, plus the bias.

Comes in: a model, one picture, a unit and a position. Goes out: `PatchProducts`, plain data in
float64, with the activation that the model itself computes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featviz.errors import UserError, nearest
from featviz.models.first_layer import carried_kernels, leaves
from featviz.models.layers import activations
from featviz.models.linear_operations import computing
from featviz.models.model import Layer, Model
from featviz.models.receptive_field import tensors_of
from featviz.models.units import Unit, parse_unit
from featviz.pictures import images

COLORS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True, repr=False)
class PatchProducts:
    """Input patch, kernel and activation of one unit at one position."""

    model_name: str
    unit: Unit
    """with its position"""
    picture: Tensor
    """(3, H, W) in [0, 1]"""
    box: images.Box | None
    """receptive field of the position, not cut at the border; None where it is not known"""
    patch: Tensor
    """(C, k, k) float64: the convolution's input there; 0 where it is padded with zeros"""
    kernel: Tensor
    """(C, k, k) float64"""
    outside: Tensor
    """(k, k) bool: in the padding"""
    bias: float
    activation: float
    """the model's own value"""
    map: Tensor
    """(h, w): the unit at all positions of this picture"""
    look: Tensor | None
    """(3, k, k) in [0, 1]: the patch as a picture, padding as the mean color; first layer only"""
    channels: tuple[str, ...]
    """the input channels: "red", or a unit below such as "pool1:23" """
    below: Tensor | None
    """(C, 3, h, w) in [0, 1]: first-layer kernels whose channels these are, if they are"""

    @property
    def first(self) -> bool:
        """The convolution reads the picture itself: channels are red, green and blue."""
        return self.look is not None

    @property
    def product(self) -> Tensor:
        """(C, k, k): patch times kernel."""
        return self.patch * self.kernel

    @property
    def contributions(self) -> Tensor:
        """(C,): the sum of the products of each input channel."""
        return self.product.sum((1, 2))

    @property
    def positive(self) -> float:
        """Sum of the products above zero."""
        return float(self.product.clamp(min=0).sum())

    @property
    def negative(self) -> float:
        """Sum of the products below zero."""
        return float(self.product.clamp(max=0).sum())

    @property
    def total(self) -> float:
        """The sum of all products plus the bias, in float64."""
        return float(self.product.sum()) + self.bias

    @property
    def difference(self) -> float:
        """Between this sum and the model's activation, relative to the latter if it is above 1."""
        return abs(self.total - self.activation) / max(1.0, abs(self.activation))

    @property
    def likeness(self) -> float:
        """Cosine of the angle between patch and kernel."""
        length = float(self.patch.norm() * self.kernel.norm())
        return float(self.product.sum()) / length if length else 0.0

    @property
    def rank(self) -> int:
        """1 for the strongest position of this picture."""
        assert self.unit.position is not None
        return 1 + int((self.map > self.map[self.unit.position]).sum())


def measure_patch(
    model: Model, picture: Tensor, unit: str, position: tuple[int, int] | None = None
) -> PatchProducts:
    """The products of one unit at one position; see `featviz.patch_times_kernel`."""
    place = model.layer(unit.partition(":")[0])
    convolution = model.net.get_submodule(place.path)
    if not isinstance(convolution, nn.Conv2d):
        names = [name for name, module in leaves(model) if isinstance(module, nn.Conv2d)]
        hint = nearest(place.name, names) or f"; take one of {', '.join(names[:8])}"
        raise UserError(f"{place.name} is a {place.kind}, not a convolution{hint}")
    batch = picture[None].to(model.device)
    inputs, source, maps = _input_of(model, convolution, place, batch)
    convolution = computing(model, place)
    assert isinstance(convolution, nn.Conv2d)
    index, position = _locate(model, unit, position, maps)
    own_map = maps[index].cpu()

    patch, outside = _window(convolution, inputs, index, position)
    kernel = convolution.weight[index].detach().double().cpu()
    normal = model.normalize(batch)
    reads_picture = inputs.shape == normal.shape[1:] and torch.equal(inputs, normal[0])
    start = _first_channel(convolution, index)
    channels = tuple(f"{source}:{start + c}" for c in range(len(kernel)))
    look, below = None, None
    if reads_picture and len(kernel) == 3:
        if model.preprocessing.blue_first:
            patch, kernel = patch.flip(0), kernel.flip(0)
        channels = COLORS
        look = patch.float() * model.std.cpu() + model.mean.cpu()
    elif not reads_picture:
        kernels = carried_kernels(model, place.name, into=True)
        if kernels is not None:
            below = images.signed(kernels[start : start + len(kernel)])
    field = place.receptive_field
    return PatchProducts(
        model_name=model.name,
        unit=Unit(place.name, index, position),
        picture=picture,
        box=None if field is None else field.box(*position),
        patch=patch,
        kernel=kernel,
        outside=outside,
        bias=0.0 if convolution.bias is None else float(convolution.bias.detach()[index]),
        activation=float(own_map[position]),
        map=own_map,
        look=look,
        channels=channels,
        below=below,
    )


def _locate(
    model: Model, text: str, position: tuple[int, int] | None, maps: Tensor
) -> tuple[int, tuple[int, int]]:
    """Unit and position, checked against maps (C, h, w) of this picture; default: the largest."""
    name, at, place = text.partition("@")
    if ":" not in name and not at:
        name = f"{name}:{int(maps.flatten(1).amax(1).argmax())}"
    unit = parse_unit(model, name)
    if at:
        match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", place)
        if match is None:
            raise UserError(f"{text!r}: a position is written @row,column, as in conv1:12@20,30")
        position = (int(match[1]), int(match[2]))
    height, width = maps.shape[1:]
    if position is None:
        position = divmod(int(maps[unit.index].argmax()), width)
    if not (0 <= position[0] < height and 0 <= position[1] < width):
        raise UserError(
            f"position {position[0]},{position[1]} is off the map: {unit.layer} has "
            f"{height} x {width} positions for this picture, counted from 0"
        )
    return unit.index, position


def _input_of(
    model: Model, convolution: nn.Conv2d, place: Layer, batch: Tensor
) -> tuple[Tensor, str, Tensor]:
    """A convolution's input (C, H, W), the name of the layer that made it, and its output."""
    inputs: list[Tensor] = []
    made: dict[int, tuple[Tensor, str]] = {}  # tensors are kept, so that an id names one alone

    def take(module: nn.Module, arguments: Any, named: Any) -> None:
        inputs.append(tensors_of((arguments, named))[0])

    def note(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made[id(output)] = (output, name)

    modules = dict(model.net.named_modules())
    handles = [convolution.register_forward_pre_hook(take, with_kwargs=True)]
    handles += [
        modules[la.path].register_forward_hook(partial(note, la.name))
        for la in model.layers.values()
    ]
    try:
        with torch.inference_mode():
            maps = activations(model, batch, [place.name])[place.name][0].float()
    finally:
        for handle in handles:
            handle.remove()
    source = made.get(id(inputs[-1]), (None, "input"))[1]
    return inputs[-1][0].float(), source, maps


def _window(
    convolution: nn.Conv2d, inputs: Tensor, unit: int, position: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(C, k, k) float64, the input of a unit at one position, and which cells are padding."""
    pads = convolution._reversed_padding_repeated_twice  # left, right, top, bottom
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    start = _first_channel(convolution, unit)
    stop = start + convolution.in_channels // convolution.groups
    own = inputs[start:stop].double().cpu()
    padded = F.pad(own[None], pads, mode=mode)[0]
    inner = F.pad(torch.ones_like(own[:1]), pads)[0]
    index = [
        torch.arange(k) * d + p * s
        for k, d, s, p in zip(
            convolution.kernel_size, convolution.dilation, convolution.stride, position, strict=True
        )
    ]
    rows, columns = index[0][:, None], index[1]
    return padded[:, rows, columns].clone(), inner[rows, columns] == 0


def _first_channel(convolution: nn.Conv2d, unit: int) -> int:
    """The first input channel of the group that a unit belongs to."""
    group = unit // (convolution.out_channels // convolution.groups)
    return group * (convolution.in_channels // convolution.groups)
