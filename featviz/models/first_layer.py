"""The convolution that reads the picture itself, and the layers behind it with the same channels.

ReLUs, pools and normalization between it and the next convolution change values but not the meaning
of a channel: unit 12 of pool1 belongs to kernel 12.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from featviz.models.linear_operations import computing
from featviz.models.model import Layer, Model

KEEPERS = (
    nn.ReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LocalResponseNorm,
    nn.Dropout,
    nn.BatchNorm2d,
    nn.Identity,
)
"""Modules whose channels mean what those of their input meant."""


def leaves(model: Model) -> list[tuple[str, nn.Module]]:
    """The modules without children, by layer name, in the order of the forward pass."""
    pairs = [(la.name, model.net.get_submodule(la.path)) for la in model.layers.values()]
    return [(name, m) for name, m in pairs if is_parametrized(m) or not list(m.children())]


def first_convolution(model: Model) -> str | None:
    """The layer name of the first convolution, or None where there is none."""
    return next((name for name, m in leaves(model) if isinstance(m, nn.Conv2d)), None)


def input_strides(model: Model, layer: Layer | None = None) -> tuple[int, ...]:
    """The steps in which a model reads its input, up to a layer, in pixels: 4, 8, 16 of an AlexNet.

    These are the strides (above 1) that its layers have, in ascending order.
    """
    layers = list(model.layers.values())
    if layer is not None:
        layers = layers[: [one.name for one in layers].index(layer.name) + 1]
    fields = (one.receptive_field for one in layers)
    strides = {max(field.stride) for field in fields if field is not None}
    return tuple(sorted(stride for stride in strides if stride > 1))


def first_stride(model: Model) -> int:
    """The step in which a model reads its input: 4 pixels for an AlexNet, 1 where there is none."""
    return next(iter(input_strides(model)), 1)


def first_kernels(model: Model) -> Tensor | None:
    """Its weights (N, C, k, k) for the picture's channels; None if it reads something else."""
    name = first_convolution(model)
    if name is None:
        return None
    convolution = computing(model, model.layer(name))
    if convolution.weight.shape[1] != model.preprocessing.channels:
        return None
    weights = convolution.weight.detach().cpu().float()
    return (weights.flip(1) if model.preprocessing.blue_first else weights).clone()


def carried_kernels(model: Model, layer: str, *, into: bool = False) -> Tensor | None:
    """`first_kernels` if the output channels of `layer` are theirs, else None.

    Args:
        model: the model.
        layer: name of the layer.
        into: whether its input channels are meant instead.
    """
    passed = leaves(model)
    names = [name for name, _ in passed]
    if layer not in names:
        return None
    modules = [m for _, m in passed[: names.index(layer) + (0 if into else 1)]]
    if not modules or not isinstance(modules[0], nn.Conv2d):
        return None
    return first_kernels(model) if all(isinstance(m, KEEPERS) for m in modules[1:]) else None
