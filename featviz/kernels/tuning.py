"""Numbers that tell edges, color blobs and noise apart, from a kernel's Fourier amplitudes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.pictures.images import three_channels

NOISE_SPREAD = 0.75
"""`spread` of white noise in three colors: E[P]^2 / E[P^2] of a sum of three exponentials."""
NOISY = 0.65  # of that; the kernels of a trained AlexNet reach .44, white noise begins at .85
FAINT = 0.25  # of the median norm
COLORED = 0.5  # chromatic share of the energy
ORIENTED = 0.3  # coherence

GROUPS = ("light and dark, oriented", "light and dark, no direction", "colored", "faint or noisy")


@dataclass(frozen=True)
class KernelNumbers:
    """Numbers from the Fourier amplitudes and colors of kernels, one value a kernel, shape (N,)."""

    norm: Tensor
    """L2 norm of the weights"""
    colorfulness: Tensor
    """share of the energy outside the gray direction: 0 gray, 1 pure color contrast"""
    hue: Tensor
    """degrees, of the strongest colored weight: 0 red, 120 green, 240 blue"""
    orientation: Tensor
    """degrees of the stripes, 0 to 180: 0 horizontal, 90 vertical, 45 up to the right"""
    coherence: Tensor
    """share of the energy at that orientation: 0 none (a round blob), 1 all"""
    frequency: Tensor
    """cycles a pixel at the largest amplitude, the constant part left out"""
    spread: Tensor
    """share of the Fourier coefficients that carry the energy, relative to white noise (1)"""

    @property
    def faint(self) -> Tensor:
        """(N,) bool: norm below a quarter of the median."""
        return self.norm < FAINT * self.norm.median()

    @property
    def noisy(self) -> Tensor:
        """(N,) bool: nearly as rough as white noise."""
        return self.spread > NOISY

    @property
    def group(self) -> Tensor:
        """(N,) index into GROUPS."""
        light = torch.where(self.coherence >= ORIENTED, 0, 1)
        group = torch.where(self.colorfulness > COLORED, 2, light)
        return torch.where(self.faint | self.noisy, 3, group)


def measure_kernels(kernels: Tensor) -> KernelNumbers:
    """Norm, color, orientation, frequency and roughness of kernels (N, C, k, k).

    Of other channels than red, green and blue the color is 0.

    Orientation is half the angle of the sum of P exp(2i theta) over the power spectrum P, which
    kernels cut off by their border disturb less than second moments; coherence is that sum's
    length over the sum of P. Spread is the participation ratio (sum P)^2 / sum P^2 of the k * k
    Fourier coefficients, divided by k * k and by what white noise gives.
    """
    w = kernels.detach().cpu().double()
    height, width = w.shape[-2:]
    energy = w.square().sum((1, 2, 3))
    safe = energy.clamp(min=1e-300)
    chroma = w - w.mean(1, keepdim=True) if w.shape[1] == 3 else torch.zeros_like(w[:, :1])

    side = 1 << max(6, (2 * max(height, width) - 1).bit_length())
    fine = torch.fft.fft2(w, s=(side, side)).abs().square().sum(1)
    fx = torch.fft.fftfreq(side, dtype=torch.float64)
    fy = -fx[:, None]  # rows run downwards, angles upwards
    radius = (fx.square() + fy.square()).sqrt()
    fine = fine * (radius >= 0.5 / max(height, width))  # half a wave or less has no direction
    angle = torch.atan2(fy.expand(side, side), fx.expand(side, side))
    double = (fine * torch.exp(2j * angle)).sum((1, 2))
    wave = 0.5 * double.angle().rad2deg()
    peak = radius.flatten()[fine.flatten(1).argmax(1)]
    return KernelNumbers(
        norm=energy.sqrt(),
        colorfulness=chroma.square().sum((1, 2, 3)) / safe,
        hue=_hue(chroma),
        orientation=(wave + 90) % 180,
        coherence=double.abs() / fine.sum((1, 2)).clamp(min=1e-300),
        frequency=peak,
        spread=roughness(w),
    )


def roughness(kernels: Tensor) -> Tensor:
    """(N,) `spread` of kernels (N, C, k, k) by itself."""
    power = torch.fft.fft2(kernels.detach().cpu().double()).abs().square().sum(1)  # (N, k, k)
    waves = power.sum((1, 2)).square() / power.square().sum((1, 2)).clamp(min=1e-300)
    share: Tensor = waves / power[0].numel() / NOISE_SPREAD
    return share


def _hue(chroma: Tensor) -> Tensor:
    """Degrees of the color of the strongest colored pixel of each kernel (N, 3, k, k)."""
    flat = three_channels(chroma).flatten(2)  # (N, 3, k*k)
    strongest = flat.square().sum(1).argmax(1)
    r, g, b = flat[torch.arange(len(flat)), :, strongest].unbind(1)
    return torch.atan2(math.sqrt(3) * (g - b), 2 * r - g - b).rad2deg() % 360
