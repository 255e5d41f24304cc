"""What each input channel of a convolution or linear layer adds to a unit, at every position.

A unit of a linear operation is the sum of its inputs' products and a bias. Kept apart by input
channel, the sums are the contributions; with the bias they give the unit's value exactly, whatever
lies before the layer (ReLU, pooling, normalization), since the layer's own input is read.

Channels are named by the units that they come from, which are found on the graph of a pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz.errors import UserError
from featviz.models.frozen import evaluating
from featviz.models.linear_operations import computing
from featviz.models.receptive_field import hookable, tensors_of

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
    window: tuple[int, int] = (1, 1)
    """of a flattened map: its height and width"""
    between: tuple[str, ...] = ()
    """what lies between the sources and the layer, in words"""

    @property
    def units(self) -> int:
        return len(self.module.weight)

    def output(self, x: Tensor) -> Tensor:
        """(N, units, H, W), or (N, units, 1, 1) of a linear layer."""
        if isinstance(self.module, nn.Linear):
            flat: Tensor = self.module(x.flatten(1))
            return flat[..., None, None]
        made: Tensor = self.module(x)
        return made

    def weights(self, unit: int) -> Tensor:
        """(channels, kh, kw) of one unit, 0 where it has no connection (other groups)."""
        weight = self.module.weight.detach()
        if isinstance(self.module, nn.Linear):
            return weight[unit].view(self.channels, *self.window)
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
        group, kernel = self._group(unit), self.module.weight[unit][:, None]
        own = self._convolved(x[:, group], kernel, len(kernel))
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

    def channel(self, layer: str, unit: int) -> int:
        """The channel to which a unit of one of the sources leads."""
        return next(s.first for s in self.sources if s.layer == layer) + unit

    def weights_from(self, channel: int) -> Tensor:
        """(units, kh, kw): of every unit on one channel, 0 where they are not connected."""
        weight = self.module.weight.detach()
        if isinstance(self.module, nn.Linear):
            return weight.view(len(weight), self.channels, *self.window)[:, channel]
        first, last, own = self._fed(channel)
        full = weight.new_zeros(len(weight), *weight.shape[2:])
        full[first:last] = weight[first:last, own]
        return full

    def contributions_from(self, x: Tensor, channel: int) -> Tensor:
        """(N, units, H, W), or (N, units, 1, 1): what one channel adds to every unit.

        Args:
            x: the layer's input, as the layer takes it.
            channel: which.
        """
        if isinstance(self.module, nn.Linear):
            weight = self.weights_from(channel).flatten(1)
            own = x.flatten(1).view(len(x), self.channels, -1)[:, channel]
            return (own @ weight.T)[..., None, None]
        first, last, own_channel = self._fed(channel)
        kernel = self.module.weight[first:last, own_channel, None]
        found = self._convolved(x[:, channel : channel + 1], kernel, 1)
        full = found.new_zeros(len(x), self.module.out_channels, *found.shape[2:])
        full[:, first:last] = found
        return full

    def _fed(self, channel: int) -> tuple[int, int, int]:
        """First and last of the units in a channel's group, and its place in their kernels."""
        assert isinstance(self.module, nn.Conv2d)
        outputs = self.module.out_channels // self.module.groups
        group, own = divmod(channel, self.module.in_channels // self.module.groups)
        return group * outputs, (group + 1) * outputs, own

    def _convolved(self, x: Tensor, kernel: Tensor, groups: int) -> Tensor:
        """With the geometry of the layer."""
        module = self.module
        assert isinstance(module, nn.Conv2d)
        padding: Any = module.padding
        if module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = 0
        return F.conv2d(
            x,
            kernel,
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            groups=groups,
        )


def linear_layer(model: Model, layer: str) -> Linear:
    """The convolution or linear layer of that name; see `Wiring.linear`."""
    return Wiring(model).linear(layer)


class Wiring:
    """From which layers each layer of a model takes its channels, as one pass shows it."""

    def __init__(self, model: Model):
        self.model = model
        self._modules = hookable(model.net)
        self._ends: dict[Any, str] = {}
        """node of autograd's graph -> the convolution or linear layer that it ends"""
        self._nodes: dict[str, Any] = {}
        """layer -> the node that made its input, or of other layers their output"""
        self._record()

    def _record(self) -> None:
        handles = []
        for layer in self.model.layers.values():
            module = self._modules[layer.path]
            linear, runs = isinstance(module, nn.Conv2d | nn.Linear), [0]

            def begin(_: Any, *values: Any, place: Any = (layer, runs)) -> None:
                entered, count = place
                count[0] += 1
                if count[0] == entered.call and (tensors := tensors_of(values)):
                    self._nodes[entered.name] = tensors[0].grad_fn

            def end(_: Any, inputs: Any, output: Any, name: str = layer.name) -> None:
                if isinstance(output, Tensor) and output.grad_fn is not None:
                    self._ends.setdefault(output.grad_fn, name)

            if linear:
                handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
                handles.append(module.register_forward_hook(end))
            else:
                leave = lambda _, inputs, output, begin=begin: begin(_, output)  # noqa: E731
                handles.append(module.register_forward_hook(leave))
        try:
            with torch.enable_grad(), evaluating(self.model.net):
                self.model.net(self.model.normalize(self.model.blank().requires_grad_(True)))
        finally:
            for handle in handles:
                handle.remove()

    def linear(self, layer: str) -> Linear:
        """The convolution or linear layer of that name, or the one whose units a layer passes on.

        ReLUs, pools, normalizations and blocks that end in one: the values before are followed.

        Raises:
            UserError: for a layer of another kind, of tokens, or behind attention.
        """
        place = self.model.layer(layer)
        if len(place.shape) == 2:
            raise UserError(
                f"{layer} is a layer of tokens: contributions are followed through convolutions "
                "and linear layers without attention"
            )
        module = self._modules[place.path]
        sources, between, flattened = self._before(place)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            if [(0, place.units)] == [(s.first, s.count) for s in sources]:
                return self.linear(sources[0].layer)
            names = " or ".join([s.layer for s in sources][:3]) or "another"
            raise UserError(
                f"{layer} is a {place.kind}: contributions are followed through convolutions and "
                f"linear layers; take {names}"
            )
        computed = computing(self.model, place)
        channels, window = getattr(computed, "in_channels", 0), (1, 1)
        if isinstance(computed, nn.Linear) and len(place.shape) == 3:
            computed = _as_convolution(computed)
            channels = computed.in_channels
        elif isinstance(computed, nn.Linear):
            channels, window = computed.in_features, (1, 1)
            if flattened and flattened[0] * flattened[1] * flattened[2] == channels:
                channels, window = flattened[0], flattened[1:]
        return Linear(place.name, computed, sources, channels, window, between)

    def unit(self, layer: str, index: int) -> str:
        """A unit's name; of the layer that makes the logits "logits:5"."""
        return f"{'logits' if layer == self._classes else layer}:{index}"

    @cached_property
    def _classes(self) -> str | None:
        """The layer that makes the logits."""
        try:
            return None if self.model.headless else self.linear("logits").layer
        except UserError:
            return None

    @property
    def layers(self) -> tuple[str, ...]:
        """The convolutions and linear layers that can be followed."""
        return tuple(dict.fromkeys(self._ends.values()))

    def consumers(self, layer: str) -> list[Linear]:
        """The convolutions and linear layers that take the units of a layer."""
        found = []
        for name in self.layers:
            with suppress(UserError):
                if any(s.layer == layer for s in self._before(self.model.layer(name))[0]):
                    found.append(self.linear(name))
        return found

    def _before(self, place: Layer) -> tuple[tuple[Source, ...], tuple[str, ...], Any]:
        """Sources of a layer's channels, what lies between, the (C, H, W) that was flattened."""
        walk = _Walk(self.model, self._ends)
        found = tuple(dict.fromkeys(walk.back(self._nodes.get(place.name), 0)))
        counts = {s.count for s in found}
        flattened = walk.flattened if walk.flattened and walk.flattened[0] in counts else None
        return found, tuple(reversed(walk.between)), flattened


_OPERATIONS = {
    "Relu": "ReLU",
    "MaxPool": "max pool",
    "AdaptiveMaxPool": "max pool",
    "Div": "response normalization",
    "NativeBatchNorm": "batch normalization",
    "CudnnBatchNorm": "batch normalization",
    "NativeLayerNorm": "layer normalization",
    "AvgPool": "average pool",
    "AdaptiveAvgPool": "average pool",
    "MkldnnAdaptiveAvgPool": "average pool",
    "Mean": "average pool",
    "Hardtanh": "ReLU6",
    "Silu": "SiLU",
    "Hardswish": "hard swish",
    "Gelu": "GELU",
    "Mul": "product",
    "Add": "sum",
    "Cat": "concatenation",
}
"""names of autograd's nodes, in words"""


class _Walk:
    """Back along the graph from a node to the nearest convolutions and linear layers."""

    def __init__(self, model: Model, ends: dict[Any, str]):
        self.model, self.ends = model, ends
        self.between: dict[str, None] = {}
        self.flattened: tuple[int, int, int] | None = None

    def back(self, node: Any, first: int) -> list[Source]:
        while node is not None:
            if node in self.ends:
                name = self.ends[node]
                return [Source(name, first, self.model.layer(name).units)]
            kind = node.name().partition("Backward")[0]
            if "Attention" in kind or kind in {"Bmm", "Softmax"}:
                raise UserError(
                    "attention lies before this layer, which mixes positions by the picture "
                    "itself: contributions are followed through convolutions and linear layers; "
                    "take a layer before the first attention"
                )
            if word := _OPERATIONS.get(re.split(r"\d", kind)[0]):
                self.between[word] = None
            sizes: Sequence[int] = getattr(node, "_saved_self_sym_sizes", ())
            if self.flattened is None and len(sizes) == 4 and "View" in kind:
                self.flattened = (int(sizes[1]), int(sizes[2]), int(sizes[3]))
            before = [following for following, _ in node.next_functions if following is not None]
            if kind == "Cat":
                found: list[Source] = []
                at = first
                for branch in before:
                    parts = self.back(branch, at)
                    found += parts
                    at = max((s.first + s.count for s in parts), default=at)
                return found
            if kind == "Add":
                return [s for branch in before for s in self.back(branch, first)]
            node = _larger(node, before) if kind == "Mul" else before[0] if before else None
        return []


def _larger(node: Any, before: Sequence[Any]) -> Any:
    """Of the factors of a product the map, not what gates it."""
    one, other = node._saved_self, node._saved_other
    if len(before) < 2 or one is None or other is None:
        return before[0] if before else None
    return before[0] if one.numel() >= other.numel() else before[1]


def _as_convolution(linear: nn.Linear) -> nn.Conv2d:
    """The same at every position of a map."""
    with torch.device("meta"):
        made = nn.Conv2d(linear.in_features, linear.out_features, 1)
    made.weight = nn.Parameter(linear.weight.detach()[:, :, None, None], requires_grad=False)
    bias = linear.bias
    made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return made
