"""What each input channel of a convolution or linear layer adds to a unit, at every position.

A unit of a linear operation is the sum of its inputs' products and a bias. Kept apart by input
channel, the sums are the contributions; with the bias they give the unit's value exactly, whatever
lies before the layer (ReLU, pooling, normalization), since the layer's own input is read.

Channels are named by the units that they come from, which are found on the graph of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz.errors import UserError
from featviz.models.frozen import evaluating
from featviz.models.layers import StopForward, tap
from featviz.models.linear_operations import computing
from featviz.models.receptive_field import hookable

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model


@dataclass(frozen=True)
class Source:
    """Where input channels come from: channel `first + i` is unit i of `layer`."""

    layer: str
    first: int
    count: int


@dataclass(frozen=True)
class Linear:
    """A unit's layer as a linear operation."""

    layer: str
    module: nn.Conv2d | nn.Linear
    sources: tuple[Source, ...]
    """in the order of the channels; several with the same `first` are added (a residual sum)"""
    channels: int
    """of the input; positions of a flattened map belong to their channel"""

    def weights(self, unit: int) -> Tensor:
        """(channels, kh, kw) of one unit, 0 where it has no connection (other groups)."""
        weight = self.module.weight.detach()
        if isinstance(self.module, nn.Linear):
            return weight[unit].view(self.channels, 1, -1)
        kernel = weight[unit]
        full = kernel.new_zeros(self.channels, *kernel.shape[1:])
        full[self._group(unit)] = kernel
        return full

    def _group(self, unit: int) -> slice:
        assert isinstance(self.module, nn.Conv2d)
        outputs = self.module.out_channels // self.module.groups
        inputs = self.module.in_channels // self.module.groups
        first = unit // outputs * inputs
        return slice(first, first + inputs)

    def bias(self, unit: int) -> float:
        return 0.0 if self.module.bias is None else float(self.module.bias.detach()[unit])

    def contributions(self, x: Tensor, unit: int) -> Tensor:
        """(N, channels, H, W), or (N, channels, 1, 1) of a linear layer.

        Args:
            x: the layer's input, as the layer takes it.
            unit: which.
        """
        if isinstance(self.module, nn.Linear):
            products = x.flatten(1) * self.module.weight[unit]
            return products.view(len(x), self.channels, -1).sum(2)[..., None, None]
        module, group = self.module, self._group(unit)
        padding: Any = module.padding
        if module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = 0
        kernel = module.weight[unit][:, None]
        own = F.conv2d(
            x[:, group],
            kernel,
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            groups=len(kernel),
        )
        if len(kernel) == self.channels:
            return own
        full = own.new_zeros(len(x), self.channels, *own.shape[2:])
        full[:, group] = own
        return full

    def name(self, channel: int) -> str:
        """The unit that a channel comes from, as "conv3:7"; several added ones with "+"."""
        found = [
            f"{s.layer}:{channel - s.first}"
            for s in self.sources
            if s.first <= channel < s.first + s.count
        ]
        return " + ".join(found) or f"input:{channel}"


def linear_layer(model: Model, layer: str) -> Linear:
    """The convolution or linear layer of that name, or the one right before a ReLU of that name.

    Raises:
        UserError: for a layer of another kind, of tokens, or behind attention.
    """
    place = model.layer(layer)
    if len(place.shape) == 2:
        raise UserError(
            f"{layer} is a layer of tokens: contributions are followed through convolutions and "
            "linear layers without attention"
        )
    modules = hookable(model.net)
    module = modules[place.path]
    if isinstance(module, nn.ReLU | nn.Identity | nn.Dropout):
        before = [s for s in _sources(model, place) if s.count == place.units and s.first == 0]
        if len(before) == 1:
            return linear_layer(model, before[0].layer)
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise UserError(
            f"{layer} is a {place.kind}: contributions are followed through convolutions and "
            "linear layers; take the one before it"
        )
    if isinstance(module, nn.Conv2d):
        channels = module.in_channels
    else:
        channels = _channels_before(model, place, module.in_features)
    return Linear(place.name, computing(model, place), tuple(_sources(model, place)), channels)


def _channels_before(model: Model, place: Layer, features: int) -> int:
    """Channels of the map that was flattened into the features; as many as features if none was."""
    for source in _sources(model, place):
        count = model.layer(source.layer).units
        if source.first == 0 and features % count == 0:
            return count
    return features


@contextmanager
def recorded(model: Model) -> Iterator[dict[Any, str]]:
    """Within the block a pass fills the dict: node of autograd's graph -> the layer it ends."""
    nodes: dict[Any, str] = {}
    modules = hookable(model.net)

    def keep(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            nodes.setdefault(output.grad_fn, name)

    handles = []
    for layer in model.layers.values():
        module = modules[layer.path]
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(
                module.register_forward_hook(
                    lambda _m, _i, output, name=layer.name: keep(name, output)
                )
            )
    try:
        yield nodes
    finally:
        for handle in handles:
            handle.remove()


def _sources(model: Model, place: Layer) -> list[Source]:
    """The layers whose units are the input channels of a layer, in the order of the channels."""
    pictures = model.blank().requires_grad_(True)
    with torch.enable_grad(), recorded(model) as nodes:
        with (
            tap(model, [place.name], entering=[place.name], stop=True) as taken,
            evaluating(model.net),
            suppress(StopForward),
        ):
            model(pictures)
        entered = taken[place.name]
        return list(dict.fromkeys(_walk(model, entered.grad_fn, nodes, 0)))


def _walk(model: Model, node: Any, nodes: dict[Any, str], first: int) -> list[Source]:
    """Back along the graph from a node to the nearest convolutions and linear layers."""
    while node is not None:
        if node in nodes:
            name = nodes[node]
            return [Source(name, first, model.layer(name).units)]
        kind = node.name()
        if "Attention" in kind or kind.startswith(("BmmBackward", "SoftmaxBackward")):
            raise UserError(
                "attention lies before this layer, which mixes positions by the picture itself: "
                "contributions are followed through convolutions and linear layers; take a layer "
                "before the first attention"
            )
        before = [following for following, _ in node.next_functions if following is not None]
        if kind.startswith("CatBackward"):
            found: list[Source] = []
            at = first
            for branch in before:
                parts = _walk(model, branch, nodes, at)
                found += parts
                at = max((s.first + s.count for s in parts), default=at)
            return found
        if kind.startswith("AddBackward"):
            return [s for branch in before for s in _walk(model, branch, nodes, first)]
        node = before[0] if before else None
    return []
