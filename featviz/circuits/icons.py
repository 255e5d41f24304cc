"""Small pictures of units, to stand beside their names in the figures of a circuit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from featviz.circuits.contributions import linear_layer
from featviz.maps.top_patches import top_patches
from featviz.maximization.maximize import maximize
from featviz.pictures import images

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.models.model import Model
    from featviz.types import Progress

Icons = Literal["none", "patches", "maximize"]
IN_WORDS = {
    "none": "",
    "patches": "the patch of the pictures that activates the input most",
    "maximize": "the input's maximized picture",
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
    units: Sequence[str],
    data: Pictures,
    icons: Icons,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """A picture (3, h, w) in [0, 1] of each unit by name; channels of the input have none.

    Units of the first layer are shown by their kernels.
    """
    by_layer: dict[str, dict[int, str]] = {}
    for unit in units if icons != "none" else ():
        layer, _, index = first_named(unit).rpartition(":")
        if layer != "input":
            by_layer.setdefault(layer, {})[int(index)] = unit
    found: dict[str, Tensor] = {}
    for layer, named in by_layer.items():
        indices = sorted(named)
        kernels = kernel_pictures(model, layer, indices)
        if kernels is not None:
            made = kernels
        elif icons == "patches":
            patches = top_patches(model, data, layer, units=indices, k=1, progress=progress)
            made = patches.patches[:, 0].float() / 255
        else:
            made = maximize(
                model, layer, units=indices, steps=_STEPS, seed=seed, progress=progress
            ).images
        found |= {named[i]: images.visible(one) for i, one in zip(indices, made, strict=True)}
    return found


def kernel_pictures(model: Model, layer: str, units: Sequence[int]) -> Tensor | None:
    """The kernels (U, 3, k, k) of a convolution over the model's picture; None of other layers."""
    linear = linear_layer(model, layer)
    if linear.sources or not isinstance(linear.module, nn.Conv2d) or linear.channels != 3:
        return None
    kernels = torch.stack([linear.weights(unit) for unit in units]).cpu()
    return images.around_gray(kernels.flip(1) if model.preprocessing.blue_first else kernels)
