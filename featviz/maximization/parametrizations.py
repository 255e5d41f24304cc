"""From free parameters to pictures: Fourier coefficients, pixels or a pyramid of them.

A parametrization is a small frozen dataclass with four functions:

    start(generators)    (N, ...)      free parameters of N pictures, each from its own generator
    picture(parameters)  (N, 3, H, W)  what they show, in [0, 1]
    fit(pictures)        (N, ...)      parameters that show the given pictures
    detail(share)        (...) bool    which parameters may move when a share of the detail may

Gradient ascent takes equal steps in all parameters, so the parametrization decides which pictures
are near. Photographs have amplitudes that fall as 1/f and colors that vary mostly in brightness;
scaling Fourier coefficients by 1/f^decay and colors by the root of their covariance makes a step in
each parameter as likely as photographs have it (Olah, Mordvintsev and Schubert 2017, "Feature
Visualization", Distill, "Preconditioning and parameterization").

Here are `Fourier`, `Pixels`, `RawPixels` and `LaplacianPyramid`; `maco.MACO` and `cppn.CPPN` have
modules of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from featviz.maximization.colors import LUCID, Colors


class Parametrization(Protocol):
    """What the loop needs of a parametrization."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    def start(self, generators: Sequence[Generator]) -> Tensor: ...

    def picture(self, parameters: Tensor) -> Tensor: ...

    def fit(self, pictures: Tensor) -> Tensor: ...

    def detail(self, share: float) -> Tensor: ...


@dataclass(frozen=True)
class Pixels:
    """Every pixel of every decorrelated axis is a parameter, (N, 3, H, W).

    spread: standard deviation of the start, in logits
    """

    height: int
    width: int
    spread: float = 0.01
    colors: Colors = LUCID

    def start(self, generators: Sequence[Generator]) -> Tensor:
        return self.spread * normal((3, self.height, self.width), generators)

    def picture(self, parameters: Tensor) -> Tensor:
        return self.colors.to_rgb(parameters)

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        return self.colors.from_rgb(pictures)

    def detail(self, share: float) -> Tensor:
        return torch.ones((), dtype=torch.bool)  # pixels are neither coarse nor fine


@dataclass(frozen=True)
class RawPixels:
    """The pixel values themselves, (N, 3, H, W), cut off at 0 and 1 and with no prior at all.

    mean: the color of the start
    spread: standard deviation of the start round it; as Yosinski et al. 2015 start

    The gradient passes the cut as if it were not there, so that a pixel can come back; an optimizer
    that clips (`optimizers.PlainAscent`) never meets it.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    spread: float = 10 / 255

    def start(self, generators: Sequence[Generator]) -> Tensor:
        noise = self.spread * normal((3, self.height, self.width), generators)
        return (noise + torch.tensor(self.mean).view(3, 1, 1)).clamp(0, 1)

    def picture(self, parameters: Tensor) -> Tensor:
        return parameters + (parameters.clamp(0, 1) - parameters).detach()

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        return pictures.clone()

    def detail(self, share: float) -> Tensor:
        return torch.ones((), dtype=torch.bool)


@dataclass(frozen=True)
class Fourier:
    """Real and imaginary parts of each axis' coefficients, (N, 3, H, W // 2 + 1, 2).

    decay: amplitudes are scaled by 1/f^decay; 1 as in photographs, more makes pictures softer
    spread: standard deviation of the start's coefficients

    The transform is orthonormal, the lowest frequency counts as one period in the longer side, and
    the whole is divided by 4, as in Lucid (param/spatial.py). Odd sizes are exact.
    """

    height: int
    width: int
    decay: float = 1.0
    spread: float = 0.01
    colors: Colors = LUCID

    def scale(self) -> Tensor:
        """The factor of each coefficient, (H, W // 2 + 1)."""
        return _scale(self.height, self.width, self.decay)

    def start(self, generators: Sequence[Generator]) -> Tensor:
        return self.spread * normal((3, self.height, self.width // 2 + 1, 2), generators)

    def picture(self, parameters: Tensor) -> Tensor:
        scale = _scales(self.height, self.width, self.decay, parameters.dtype, parameters.device)
        spectrum = torch.view_as_complex(parameters * scale)
        size = (self.height, self.width)
        return self.colors.to_rgb(torch.fft.irfft2(spectrum, s=size, norm="ortho"))

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        axes = self.colors.from_rgb(pictures)
        spectrum = torch.view_as_real(torch.fft.rfft2(axes, norm="ortho"))
        return spectrum / self.scale().to(axes)[..., None]

    def detail(self, share: float) -> Tensor:
        """Frequencies up to one that grows from 4 periods a side to the finest."""
        return below(share, self.height, self.width)[:, :, None]


@dataclass(frozen=True)
class LaplacianPyramid:
    """Pixels at several scales, each enlarged and added to the next finer: (N, 3, P).

    levels: how many scales, each of half the side; more than there are have no effect
    spread: standard deviation of the start at each level, in logits

    A pixel of a coarse level moves many of the picture, so shapes come before grain (Lucid's
    lowres_tensor and laplacian_pyramid). P counts the pixels of all levels, the finest first.
    """

    height: int
    width: int
    levels: int = 5
    spread: float = 0.01
    colors: Colors = LUCID

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level, the finest first."""
        sizes = [(self.height, self.width)]
        while len(sizes) < self.levels and max(sizes[-1]) > 1:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return sizes

    def start(self, generators: Sequence[Generator]) -> Tensor:
        return self.spread * normal((3, sum(h * w for h, w in self.sizes)), generators)

    def picture(self, parameters: Tensor) -> Tensor:
        levels = parameters.split([h * w for h, w in self.sizes], dim=2)
        pixels = [level.unflatten(2, size) for level, size in zip(levels, self.sizes, strict=True)]
        total = pixels[-1]
        for level in reversed(pixels[:-1]):
            total = _enlarged(total, (level.shape[2], level.shape[3])) + level
        return self.colors.to_rgb(total)

    def fit(self, pictures: Tensor) -> Tensor:
        """The Laplacian pyramid of Burt and Adelson 1983: each level what coarser ones lack."""
        check_size(pictures, self.height, self.width)
        stages = [self.colors.from_rgb(pictures)]
        for size in self.sizes[1:]:
            stages.append(F.adaptive_avg_pool2d(stages[-1], size))
        levels = [
            fine - _enlarged(coarse, size)
            for (fine, coarse), size in zip(itertools.pairwise(stages), self.sizes, strict=False)
        ]
        return torch.cat([level.flatten(2) for level in [*levels, stages[-1]]], 2)

    def detail(self, share: float) -> Tensor:
        """The coarse levels, then the finer ones."""
        hidden = len(self.sizes) - round(1 + share * (len(self.sizes) - 1))
        counts = torch.tensor([h * w for h, w in self.sizes])
        return (torch.arange(len(counts)) >= hidden).repeat_interleave(counts)


def _enlarged(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False)


def normal(shape: tuple[int, ...], generators: Sequence[Generator]) -> Tensor:
    """Standard normal numbers (N, *shape), each row from its own generator."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


@lru_cache(maxsize=32)
def frequencies(height: int, width: int) -> Tensor:
    """Of each coefficient, in cycles a pixel, float64, (H, W // 2 + 1)."""
    y = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    x = torch.fft.rfftfreq(width, dtype=torch.float64)[None, :]
    return torch.hypot(y, x)


def below(share: float, height: int, width: int) -> Tensor:
    """Frequencies up to one that grows from 4 periods a side to the finest, (H, W // 2 + 1)."""
    lowest = 4 / max(height, width)
    moving: Tensor = frequencies(height, width) <= lowest * (0.75 / lowest) ** share
    return moving


@lru_cache(maxsize=32)
def _scale(height: int, width: int, decay: float) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve autograd later
        f = frequencies(height, width).clamp(min=1 / max(height, width))
        return (f**-decay / 4).float()


@lru_cache(maxsize=32)
def _scales(
    height: int, width: int, decay: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The scale of each real and imaginary part, (H, W // 2 + 1, 2), kept where it is needed."""
    with torch.inference_mode(False):
        return _scale(height, width, decay)[..., None].to(device, dtype).repeat(1, 1, 2)


@dataclass(frozen=True)
class OtherChannels:
    """Pictures of another number of channels than three: (N, k, ...) parameters of k RGB pictures.

    A gray picture is the mean of one RGB picture's channels; of others the channels are those of as
    many RGB pictures as are needed.
    """

    form: Parametrization
    channels: int

    @property
    def height(self) -> int:
        return self.form.height

    @property
    def width(self) -> int:
        return self.form.width

    @property
    def _count(self) -> int:
        return -(-self.channels // 3)

    def start(self, generators: Sequence[Generator]) -> Tensor:
        return torch.stack([self.form.start(generators) for _ in range(self._count)], 1)

    def picture(self, parameters: Tensor) -> Tensor:
        rgb = self.form.picture(parameters.flatten(0, 1))
        if self.channels == 1:
            return rgb.mean(1, keepdim=True)
        whole: Tensor = rgb.unflatten(0, (-1, self._count)).flatten(1, 2)
        return whole[:, : self.channels]

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width, self.channels)
        if self.channels == 1:
            return self.form.fit(pictures.expand(-1, 3, -1, -1))[:, None]
        rest = 3 * self._count - self.channels
        gray = pictures.new_full((len(pictures), rest, *pictures.shape[2:]), 0.5)
        whole = torch.cat([pictures, gray], 1).unflatten(1, (self._count, 3))
        fitted: Tensor = self.form.fit(whole.flatten(0, 1)).unflatten(0, (-1, self._count))
        return fitted

    def detail(self, share: float) -> Tensor:
        return self.form.detail(share)


def for_channels(form: Parametrization, channels: int) -> Parametrization:
    """A parametrization of RGB pictures as one of pictures with so many channels."""
    fits = channels == 3 or isinstance(form, OtherChannels)
    return form if fits else OtherChannels(form, channels)


def check_size(pictures: Tensor, height: int, width: int, channels: int = 3) -> None:
    """Raises ValueError unless pictures are (N, channels, height, width)."""
    if tuple(pictures.shape[1:]) != (channels, height, width):
        raise ValueError(
            f"pictures of shape {tuple(pictures.shape)}, not (N, {channels}, {height}, {width})"
        )
