"""From free parameters to pictures: pixels, or Fourier coefficients, in decorrelated colours.

A parametrisation is a small frozen dataclass with four functions:

    start(generators)    (N, ...)      free parameters of N pictures, each from its own generator
    picture(parameters)  (N, 3, H, W)  what they show, in [0, 1]
    fit(pictures)        (N, ...)      parameters that show the given pictures
    detail(share)        (...)         which parameters may move when a share of the detail may

Gradient ascent takes equal steps in all parameters, so the parametrisation decides what is cheap.
Photographs have amplitudes that fall as 1/f and colours that vary mostly in brightness; scaling
Fourier coefficients by 1/f^decay and colours by the root of their covariance makes a step in each
parameter as likely as photographs have it (Olah, Mordvintsev and Schubert 2017, "Feature
Visualization", Distill, "Preconditioning and parameterization").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Generator, Tensor

# A root of the covariance of ImageNet's colours, one axis a column: brightness, blue against
# yellow, green against magenta. Divided by the length of the longest column.
_ROOT = torch.tensor(
    [[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], dtype=torch.float64
)
COLOURS = (_ROOT / _ROOT.norm(dim=0).max()).float()
"""(3, 3): red, green and blue of each decorrelated axis"""
DECORRELATED = torch.linalg.inv(_ROOT / _ROOT.norm(dim=0).max()).float()
"""(3, 3): the inverse of COLOURS"""

# Pictures to be fitted are kept this far from black and white, where the logit is infinite;
# a quarter of a step of 8 bits, so that nothing is lost in a saved picture.
_MARGIN = 1 / 1024


class Parametrization(Protocol):
    """What `maximize` needs of a parametrisation."""

    def start(self, generators: Sequence[Generator]) -> Tensor: ...

    def picture(self, parameters: Tensor) -> Tensor: ...

    def fit(self, pictures: Tensor) -> Tensor: ...

    def detail(self, share: float) -> Tensor: ...


def to_rgb(axes: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] from unbounded values on the three decorrelated axes."""
    m = COLOURS.tolist()
    one, two, three = axes.unbind(1)
    # Written out: a matrix product would round by the number of pictures in the batch.
    red, green, blue = (one * m[c][0] + two * m[c][1] + three * m[c][2] for c in range(3))
    return torch.stack([red, green, blue], 1).sigmoid()


def from_rgb(pictures: Tensor) -> Tensor:
    """The inverse of `to_rgb`; values nearer than 1/1024 to black or white are brought in."""
    x = torch.logit(pictures.clamp(_MARGIN, 1 - _MARGIN))
    return torch.einsum("ac,nchw->nahw", DECORRELATED.to(x.device, x.dtype), x)


@dataclass(frozen=True)
class Pixels:
    """Every pixel of every decorrelated axis is a parameter, (N, 3, H, W)."""

    height: int
    width: int
    spread: float = 0.01
    """standard deviation of the start, in logits"""

    def start(self, generators: Sequence[Generator]) -> Tensor:
        shape = (3, self.height, self.width)
        return self.spread * torch.stack([torch.randn(shape, generator=g) for g in generators])

    def picture(self, parameters: Tensor) -> Tensor:
        return to_rgb(parameters)

    def fit(self, pictures: Tensor) -> Tensor:
        _check_size(pictures, self.height, self.width)
        return from_rgb(pictures)

    def detail(self, share: float) -> Tensor:
        return torch.ones(())  # pixels are neither coarse nor fine


@dataclass(frozen=True)
class Fourier:
    """Real and imaginary parts of each axis' coefficients, (N, 3, H, W // 2 + 1, 2).

    decay: amplitudes are scaled by 1/f^decay; 1 is a photograph's fall, more makes pictures softer
    spread: standard deviation of the start's coefficients

    The transform is orthonormal, the lowest frequency counts as one period in the longer side, and
    the whole is divided by 4, as in Lucid (param/spatial.py). Odd sizes are exact.
    """

    height: int
    width: int
    decay: float = 1.0
    spread: float = 0.01

    def scale(self) -> Tensor:
        """The factor of each coefficient, (H, W // 2 + 1)."""
        return _scale(self.height, self.width, self.decay)

    def start(self, generators: Sequence[Generator]) -> Tensor:
        shape = (3, self.height, self.width // 2 + 1, 2)
        return self.spread * torch.stack([torch.randn(shape, generator=g) for g in generators])

    def picture(self, parameters: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(parameters) * self.scale().to(parameters.device)
        axes = torch.fft.irfft2(spectrum, s=(self.height, self.width), norm="ortho")
        return to_rgb(axes)

    def fit(self, pictures: Tensor) -> Tensor:
        _check_size(pictures, self.height, self.width)
        spectrum = torch.fft.rfft2(from_rgb(pictures), norm="ortho")
        return torch.view_as_real(spectrum / self.scale().to(pictures.device))

    def detail(self, share: float) -> Tensor:
        """1 up to a frequency that grows from 4 periods a side to the finest, else 0."""
        lowest = 4 / max(self.height, self.width)
        highest = lowest * (0.75 / lowest) ** share
        moving: Tensor = _frequencies(self.height, self.width) <= highest
        return moving.float()[:, :, None]


@lru_cache(maxsize=32)
def _frequencies(height: int, width: int) -> Tensor:
    """Of each coefficient, in cycles a pixel, float64, (H, W // 2 + 1)."""
    y = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    x = torch.fft.rfftfreq(width, dtype=torch.float64)[None, :]
    return torch.hypot(y, x)


@lru_cache(maxsize=32)
def _scale(height: int, width: int, decay: float) -> Tensor:
    lowest = 1 / max(height, width)
    return (_frequencies(height, width).clamp(min=lowest) ** -decay / 4).float()


def _check_size(pictures: Tensor, height: int, width: int) -> None:
    if tuple(pictures.shape[1:]) != (3, height, width):
        raise ValueError(
            f"pictures of shape {tuple(pictures.shape)}, not (N, 3, {height}, {width})"
        )
