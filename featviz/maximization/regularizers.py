"""What the gradient of a score is made into before it reaches the optimizer.

With g the gradient with respect to the picture x, (3, H, W), the direction is

    g / sqrt((1 - a) mean(e) + a W e)  -  dR/dx,     e = mean of g^2 over the three colors
    R(x) = r/2 |x - B x|^2 + c/2 |x - 1/2|^2 + s/2 |x - gray(x)|^2

W is a local mean over `window` pixels to each side (two box means, reflected at the border), B the
mean of 3x3 pixels, gray(x) the mean over the colors. With a = `local_normalization` near 1 the
surroundings of an object are drawn as strongly as its middle. As the normalized gradient has mean
square 1 at every layer of every model, r = `roughness_weight`, c = `contrast_weight` and
s = `saturation_weight` have the same effect everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from featviz.maximization.settings import Settings
from featviz.pictures.images import mean_3x3


def shaped_gradient(gradient: Tensor, pictures: Tensor, settings: Settings) -> Tensor:
    """The direction (N, 3, H, W) in which to change pictures, from the gradient of their scores."""
    energy = gradient.square().mean(1)  # (N, H, W)
    strength = energy.mean((1, 2), keepdim=True)
    share = settings.local_normalization
    if share:
        strength = (1 - share) * strength + share * local_mean(energy, settings.window)
    direction = gradient * strength.clamp(min=1e-30).rsqrt()[:, None]
    if settings.roughness_weight:
        rough = pictures - mean_3x3(pictures)
        direction.sub_(rough.sub_(mean_3x3(rough)), alpha=settings.roughness_weight)
    contrast, saturation = settings.contrast_weight, settings.saturation_weight
    if contrast or saturation:
        direction.sub_(pictures, alpha=contrast + saturation).add_(contrast / 2)
    if saturation:
        direction.add_(pictures.mean(1, keepdim=True), alpha=saturation)
    return direction


def local_mean(values: Tensor, window: int) -> Tensor:
    """Two box means of (N, H, W) over `window` pixels to each side, reflected at the borders."""
    rows = _two_boxes(values.shape[-2], window, values.dtype, values.device)
    columns = _two_boxes(values.shape[-1], window, values.dtype, values.device)
    return rows @ values @ columns.T


@lru_cache(maxsize=32)
def _two_boxes(size: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix (size, size) of two box means along one side."""
    reach = min(max(1, window), size - 1)
    box = torch.zeros(size, size, dtype=torch.float64)
    for offset in range(-reach, reach + 1):
        at = (torch.arange(size) + offset).abs()
        at = torch.minimum(at, 2 * (size - 1) - at)
        box[torch.arange(size), at] += 1 / (2 * reach + 1)
    with torch.inference_mode(False):
        return (box @ box).to(device, dtype)
