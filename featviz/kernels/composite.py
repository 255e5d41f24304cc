"""Kernels of deeper convolutions in the picture's pixels.

Comes in: a model and a convolution. Goes out: its linear composites, the weights of a unit in the
picture if every layer below were linear (as in Erhan et al. 2009, "Visualizing higher-layer
features of a deep network", section 2.2); and for a second convolution mosaics of first-layer
kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featviz.errors import UserError
from featviz.models.first_layer import carried_kernels
from featviz.models.layers import activations
from featviz.models.linear_net import LinearNet
from featviz.models.linear_operations import computing
from featviz.models.model import Layer, Model
from featviz.pictures.images import three_channels
from featviz.types import Progress


def composite_kernels(
    model: Model, layer: str, units: Sequence[int], *, progress: Progress | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Kernels of any convolution in the picture's red, green and blue.

    The gradient of the unit to the normalized picture in the net made linear: ReLUs and response
    normalization pass everything, max pools take the center of their window. Exact where all the
    layers below are linear, so for a first convolution it gives its weights.

    Args:
        model: the model.
        layer: a convolution.
        units: which of its units.
        progress: called with units done and all units.

    Returns:
        (N, 3, S, S), and what is left out, in words.

    Raises:
        UserError: for a layer whose receptive field is not known.
    """
    place = model.layer(layer)
    field = place.receptive_field
    if field is None:
        raise UserError(f"{layer} has no receptive field, so no kernel in the picture's pixels")
    # Padding must not cut the kernel: positions are taken well inside a picture that is large
    # enough.
    spans = (2 * (size + stride) for size, stride in zip(field.size, field.stride, strict=True))
    height, width = map(max, model.input_size, spans)
    per_batch = max(1, min(32, 6_000_000 // (height * width)))
    channels = model.preprocessing.channels
    parts = []
    with LinearNet() as linear:
        for start in range(0, len(units), per_batch):
            some = list(units[start : start + per_batch])
            if progress:
                progress(start, len(units), f"kernels of {layer}")
            pictures = torch.zeros(len(some), channels, height, width, device=model.device)
            pictures.requires_grad_(True)
            with torch.enable_grad():
                maps = activations(model, pictures, [layer])[layer]
                y, x = maps.shape[2] // 2, maps.shape[3] // 2
                chosen = maps[torch.arange(len(some)), some, y, x].sum()
                (gradient,) = torch.autograd.grad(chosen, pictures)
            top, left, bottom, right = field.box(y, x)
            # By the chain rule, from pictures in [0, 1] to the normalized input.
            parts.append((gradient * model.std)[..., top:bottom, left:right].detach().cpu())
    kernels = torch.cat(parts)
    used = kernels.abs().amax((0, 1))  # windows of pools extend beyond their centers
    rows, columns = used.amax(1).nonzero()[:, 0], used.amax(0).nonzero()[:, 0]
    if len(rows):
        kernels = kernels[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return kernels.contiguous(), (*linear.ignored, "biases")


def kernel_mosaics(model: Model, place: Layer, units: Sequence[int]) -> Tensor | None:
    """(N, 3, H, W) in [0, 1]: which first kernel excites a unit of the second convolution where.

    None unless only ReLUs, pools and normalization are between the picture's own convolution and
    this one, so that channels keep their meaning.
    """
    first = carried_kernels(model, place.name, into=True)
    if first is None:
        return None
    first = three_channels(first)
    convolution = computing(model, place)
    assert isinstance(convolution, nn.Conv2d)
    w = convolution.weight.detach().cpu().float()[list(units)]  # (N, C / groups, k, k)
    per_group = convolution.out_channels // convolution.groups
    inputs = torch.tensor(units)[:, None] // per_group * w.shape[1] + torch.arange(w.shape[1])
    strength = w * first.flatten(1).norm(dim=1)[inputs][..., None, None]
    best, which = strength.max(1)  # (N, k, k)
    best = best.clamp(min=0) / best.amax((1, 2), keepdim=True).clamp(min=1e-30)
    kernel = inputs.gather(1, which.flatten(1)).view_as(which)
    shapes = first / first.abs().amax((1, 2, 3), keepdim=True)
    tiles = shapes[kernel] * best[..., None, None, None]  # (N, k, k, 3, h, w)
    whole = tiles.permute(0, 3, 1, 4, 2, 5)
    _, _, rows, height, columns, width = whole.shape
    mosaics: Tensor = 0.5 + 0.5 * whole.reshape(len(w), 3, rows * height, columns * width)
    return mosaics
