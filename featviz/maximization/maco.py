"""MACO: a picture with the amplitudes of photographs, of which only the phases are free.

The phases of a picture's Fourier coefficients encode where things are, the amplitudes how strong
each frequency is. Photographs are much alike in the latter, so they are kept, and a step can add
neither fine patterns nor contrast. Fel et al. 2023, "Unlocking feature visualization for deep
networks with magnitude constrained optimization".

The pictures are meant to be seen through random windows (`transforms.Crop`), and shown with the
transparency that the ascent adds up (`Settings.transparency`); `presets` has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from featviz.maximization import image_statistics
from featviz.maximization.image_statistics import Spectrum
from featviz.maximization.parametrizations import below, check_size, normal


@dataclass(frozen=True)
class MACO:
    """Phases of each axis' coefficients, (N, 3, H, W // 2 + 1), in radians.

    spectrum: whose amplitudes are kept; default: the bundled one
    contrast: factor of these amplitudes; 1 is as strong as in the pictures that were measured,
        their black and white included
    standardized: as published. Phases are brought to mean 0 and deviation 1, the values on the
        axes too, so neither brightness nor contrast can be had, and phases crowd round 0. Else
        phases are taken as they are, and amplitudes as they were measured

    What fits: a picture's phases. With its own spectrum, at contrast 1, it is met exactly; else it
    keeps its places and edges, not its contrasts. Standardised, a given picture is only a start:
    phases with a deviation of 1 cannot be those of a photograph, which has pi / sqrt(3).
    """

    height: int
    width: int
    spectrum: Spectrum = field(default_factory=lambda: image_statistics.bundled().spectrum)
    contrast: float = 1.0
    standardized: bool = False

    def start(self, generators: Sequence[Generator]) -> Tensor:
        """Normal phases where they are standardized, as published; else any phase alike."""
        shape = (3, self.height, self.width // 2 + 1)
        if self.standardized:
            return normal(shape, generators)
        return torch.stack([2 * torch.pi * torch.rand(shape, generator=g) for g in generators])

    def picture(self, parameters: Tensor) -> Tensor:
        return self.spectrum.colors.to_rgb(self._axes(parameters))

    def _axes(self, parameters: Tensor) -> Tensor:
        amplitudes = self.spectrum.at(self.height, self.width, parameters.device)
        phases = _standard(parameters) if self.standardized else parameters
        waves = torch.polar(amplitudes.to(phases.dtype).expand_as(phases), phases)
        axes = torch.fft.irfft2(waves, s=(self.height, self.width), norm="ortho")
        return _standard(axes) if self.standardized else self.contrast * axes

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        axes = self.spectrum.colors.from_rgb(pictures)
        phases: Tensor = torch.fft.rfft2(axes, norm="ortho").angle()
        return phases

    def detail(self, share: float) -> Tensor:
        """As of `Fourier`."""
        return below(share, self.height, self.width)


def _standard(values: Tensor) -> Tensor:
    """Of each picture, mean 0 and standard deviation 1."""
    deviation, mean = torch.std_mean(values, (1, 2, 3), correction=0, keepdim=True)
    standard: Tensor = (values - mean) / (deviation + 1e-6)
    return standard


def faded(pictures: Tensor, transparency: Tensor, *, clear: float = 0.8) -> Tensor:
    """Pictures (N, 3, H, W) on white, each pixel as opaque as it mattered.

    transparency: (N, H, W), the sum over the steps of |d score / d pixel|
    clear: share of a picture's pixels below the value from which a pixel is quite opaque, as Fel
        et al. plot them (horama, plots.py)
    """
    weights = transparency.to(pictures.device, pictures.dtype)
    top = weights.flatten(1).quantile(clear, dim=1).view(-1, 1, 1).clamp(min=1e-30)
    opaque = (weights / top).clamp(0, 1)[:, None]
    return opaque * pictures + (1 - opaque)
