"""A network as a list of operations with their weights, and the same list run by torch.

Value 0 is the picture (C, H, W) in [0, 1]; operation i gives value i + 1. The normalization of the
picture is among the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.models.model import Layer


@dataclass(frozen=True)
class Operation:
    """One step of a program."""

    kind: str
    """a name in `RUN`"""
    inputs: tuple[int, ...]
    """indices of values"""
    shape: tuple[int, ...]
    """of its value, for one picture"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """numbers and lists: stride, padding ..."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """weight and bias, or scale and shift of each channel; float32"""


@dataclass(frozen=True)
class Program:
    """The operations of a model in the order of execution."""

    operations: tuple[Operation, ...]
    layers: Mapping[Layer, int]
    """which value is which layer's"""
    logits: int | None
    """the value that holds the logits; None for a trunk"""

    @property
    def last(self) -> int:
        """The logits, or the last layer's value where there are none."""
        return self.logits or max(self.layers.values())

    def run(self, pictures: Tensor, known: Sequence[Tensor] = ()) -> list[Tensor]:
        """All values for pictures (N, C, H, W) in [0, 1], as torch computes them.

        Args:
            pictures: (N, C, H, W).
            known: The first values, where they need not be computed.
        """
        values = [*known] or [pictures]
        with torch.no_grad():
            for one in self.operations[len(values) - 1 :]:
                inputs = [values[i] for i in one.inputs]
                values.append(RUN[one.kind](one, *inputs))
        return values


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (x.dim() - 2))


def _conv(one: Operation, x: Tensor) -> Tensor:
    s, w = one.settings, one.weights
    geometry = (s["stride"], s["padding"], s["dilation"], s["groups"])
    return F.conv2d(x, w["weight"], w.get("bias"), *geometry)


def _linear(one: Operation, x: Tensor) -> Tensor:
    return F.linear(x, one.weights["weight"], one.weights.get("bias"))


def _affine(one: Operation, x: Tensor) -> Tensor:
    return x * _channels(one.weights["scale"], x) + _channels(one.weights["shift"], x)


def _maxpool(one: Operation, x: Tensor) -> Tensor:
    s = one.settings
    tall, wide = one.shape[1:]
    geometry = (s["kernel"], s["stride"], s["padding"], s["dilation"])
    found = F.max_pool2d(x, *geometry, ceil_mode=True)
    return found[..., :tall, :wide]


def _avgpool(one: Operation, x: Tensor) -> Tensor:
    s = one.settings
    return F.avg_pool2d(
        x, s["kernel"], s["stride"], s["padding"], s["ceil"], s["padded"], s["divisor"] or None
    )


def _lrn(one: Operation, x: Tensor) -> Tensor:
    s = one.settings
    return F.local_response_norm(x, s["size"], s["alpha"], s["beta"], s["k"])


def _pad(one: Operation, x: Tensor) -> Tensor:
    return F.pad(x, one.settings["padding"], value=one.settings["value"])


UNARY: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "clamp": torch.clamp,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "log": torch.log,
}
"""functions of one value and the numbers in `settings["numbers"]`"""

RUN: dict[str, Callable[..., Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "adaptive": lambda one, x: F.adaptive_avg_pool2d(x, one.shape[1:]),
    "lrn": _lrn,
    "pad": _pad,
    "add": lambda one, x, y: x + y,
    "mul": lambda one, x, y: x * y,
    "concat": lambda one, *parts: torch.cat(parts, 1),
    "select": lambda one, x: x[:, one.settings["channels"]],
    "reshape": lambda one, x: x.reshape(-1, *one.shape),
    "softmax": lambda one, x: x.softmax(1),
    **{
        name: lambda one, x, f=function: f(x, *one.settings["numbers"])
        for name, function in UNARY.items()
    },
}
"""what each kind of operation computes"""


def largest_difference(values: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of two lists of values, relative to the largest size of each value."""
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(values, others, strict=True)
    )
