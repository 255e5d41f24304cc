"""Noise: of the sensor, of single photons, of dead pixels, of coherent light.

Pictures (N, C, H, W) in [0, 1] come in, and one random stream a picture; the same shape goes out,
clipped to [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from featviz.corruptions import draws
from featviz.corruptions.draws import Streams


def gaussian(pictures: Tensor, streams: Streams, deviation: float) -> Tensor:
    """Every value moves by its own normal deviate."""
    return (pictures + deviation * draws.normal(streams, pictures.shape[1:], pictures)).clamp(0, 1)


def shot(pictures: Tensor, streams: Streams, photons: float) -> Tensor:
    """Every value is counted in photons, `photons` of them at full brightness (Poisson)."""
    rates = (photons * pictures.detach()).cpu().double()
    counts = [torch.poisson(rate, generator=g) for rate, g in zip(rates, streams, strict=True)]
    return (torch.stack(counts) / photons).clamp(0, 1).to(pictures.device, pictures.dtype)


def impulse(pictures: Tensor, streams: Streams, share: float) -> Tensor:
    """A share of the values (not of the pixels) becomes 0 or 1, with equal chances."""
    shape = pictures.shape[1:]
    dead = draws.uniform(streams, shape, 0, 1, pictures) <= share
    white = draws.uniform(streams, shape, 0, 1, pictures) <= 0.5
    return torch.where(dead, white.to(pictures.dtype), pictures)


def speckle(pictures: Tensor, streams: Streams, deviation: float) -> Tensor:
    """Normal noise in proportion to the brightness."""
    grains = deviation * draws.normal(streams, pictures.shape[1:], pictures)
    return (pictures + pictures * grains).clamp(0, 1)
