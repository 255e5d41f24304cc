"""Small pictures of units, to stand beside their names in the figures of a circuit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featviz.circuits.contributions import linear_layer
from featviz.maps.top_patches import cut_patches
from featviz.maximization.maximize import maximize
from featviz.models.layers import activations
from featviz.pictures import images
from featviz.top_scores import ImageCache, scan

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.models.model import Model
    from featviz.types import Progress

Icons = Literal["none", "patches", "maximize"]
IN_WORDS = {
    "none": "",
    "patches": "the patch of the pictures that activates a unit most",
    "maximize": "a unit's maximized picture",
}
_STEPS = 64  # of a maximized picture: a first look


def input_colors(model: Model) -> tuple[str, ...]:
    """Names of the channels that the first layer takes."""
    how = model.preprocessing
    names = {1: ("gray",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
    found = names.get(how.channels, tuple(f"channel {i}" for i in range(how.channels)))
    return found[::-1] if how.blue_first else found


def first_named(unit: str) -> str:
    """Of units that a residual sum adds ("conv3:7 + conv1:7") the first."""
    return unit.split(" + ", maxsplit=1)[0]


def unit_pictures(
    model: Model,
    units: Mapping[str, Sequence[int]],
    data: Pictures,
    icons: Icons,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Pictures (U, 3, h, w) in [0, 1] of units by layer; of a first layer their kernels."""
    kernels = {layer: kernel_pictures(model, layer, which) for layer, which in units.items()}
    found = {layer: made for layer, made in kernels.items() if made is not None}
    others = {layer: which for layer, which in units.items() if layer not in found}
    if icons == "patches" and others:
        found |= _patches(model, others, data, progress)
    elif icons == "maximize":
        for layer, which in others.items():
            made = maximize(model, layer, units=which, steps=_STEPS, seed=seed, progress=progress)
            found[layer] = made.images
    return {layer: torch.stack(list(map(images.visible, made))) for layer, made in found.items()}


def _patches(
    model: Model, units: Mapping[str, Sequence[int]], data: Pictures, progress: Progress | None
) -> dict[str, Tensor]:
    """The patch of the pictures that activates each unit most, in one pass for all layers."""

    def score(batch: Tensor) -> Tensor:
        values = activations(model, batch.to(model.device), list(units))
        maps = [values[layer][:, list(which)] for layer, which in units.items()]
        maps = [one if one.dim() == 4 else one[:, :, None, None] for one in maps]
        height, width = (max(one.shape[axis] for one in maps) for axis in (2, 3))
        # Smaller maps get a border that is never the largest.
        return torch.cat(
            [
                F.pad(one, (0, width - one.shape[3], 0, height - one.shape[2]), value=-1e30)
                for one in maps
            ],
            dim=1,
        )

    cache = ImageCache(model, data)
    top = scan(cache, score, k=1, batch_size=16, progress=progress, text="pictures of units")
    found, first = {}, 0
    for layer, which in units.items():
        own = slice(first, first + len(which))
        part = replace(
            top, values=top.values[own], rows=top.rows[own], positions=top.positions[own]
        )
        _, patches, _ = cut_patches(cache, data, model.layer(layer), part)
        found[layer] = patches[:, 0].float() / 255
        first += len(which)
    return found


def kernel_pictures(model: Model, layer: str, units: Sequence[int]) -> Tensor | None:
    """The kernels (U, 3, k, k) of a convolution over the model's picture; None of other layers."""
    linear = linear_layer(model, layer)
    if linear.sources or not isinstance(linear.module, nn.Conv2d) or linear.channels != 3:
        return None
    kernels = torch.stack([linear.weights(unit) for unit in units]).float().cpu()
    return images.around_gray(kernels.flip(1) if model.preprocessing.blue_first else kernels)
