"""From free parameters to pictures: waves, pixels or a pyramid of them, in decorrelated colours.

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

Here are `Fourier`, `Pixels`, `RawPixels` and `LaplacianPyramid`; `maco.MACO` and `cppn.CPPN` have
modules of their own. A picture has the same bits in a batch of any size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from featviz.maximization.colours import (
    LUCID,
    Colours,
    four_a_thread,
    pieces,
    piecewise,
    show,
    unshow,
)


class Parametrization(Protocol):
    """What `maximize` needs of a parametrisation."""

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
    colours: Colours = LUCID

    def start(self, generators: Sequence[Generator]) -> Tensor:
        return self.spread * normal((3, self.height, self.width), generators)

    def picture(self, parameters: Tensor) -> Tensor:
        return self.colours.to_rgb(parameters)

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        return self.colours.from_rgb(pictures)

    def detail(self, share: float) -> Tensor:
        return torch.ones(())  # pixels are neither coarse nor fine


@dataclass(frozen=True)
class RawPixels:
    """The pixel values themselves, (N, 3, H, W), cut off at 0 and 1 and with no prior at all.

    mean: the colour of the start
    spread: standard deviation of the start round it; as Yosinski et al. 2015 start

    The gradient passes the cut as if it were not there, so that a pixel can come back; a rule that
    clips (`rules.PlainAscent`) never meets it.
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
        return torch.ones(())


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
    colours: Colours = LUCID

    def scale(self) -> Tensor:
        """The factor of each coefficient, (H, W // 2 + 1)."""
        return _scale(self.height, self.width, self.decay)

    def start(self, generators: Sequence[Generator]) -> Tensor:
        return self.spread * normal((3, self.height, self.width // 2 + 1, 2), generators)

    def picture(self, parameters: Tensor) -> Tensor:
        shown: Tensor = _Waves.apply(parameters, self)
        return shown

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        axes = self.colours.from_rgb(pictures)
        scale = self.scale().to(axes.device, axes.dtype)[..., None]
        return piecewise(
            lambda x: torch.view_as_real(torch.fft.rfft2(x, norm="ortho")) / scale, axes
        )

    def detail(self, share: float) -> Tensor:
        """1 up to a frequency that grows from 4 periods a side to the finest, else 0."""
        lowest = 4 / max(self.height, self.width)
        highest = lowest * (0.75 / lowest) ** share
        moving: Tensor = frequencies(self.height, self.width) <= highest
        return moving.float()[:, :, None]


class _Waves(torch.autograd.Function):
    """Scale, inverse transform, colours: one picture at a time on the CPU, for its cache."""

    @staticmethod
    def forward(ctx: Any, parameters: Tensor, form: Fourier) -> Tensor:
        size, matrix = (form.height, form.width), form.colours.matrix
        scale = _both_parts(form, parameters.dtype, parameters.device, False)
        out = parameters.new_empty((len(parameters), 3, *size))
        k = four_a_thread(out, parameters)
        for rows, piece in zip(pieces(out, k), pieces(parameters, k), strict=True):
            spectrum = torch.view_as_complex(piece * scale)
            show(torch.fft.irfft2(spectrum, s=size, norm="ortho"), matrix, rows)
        ctx.save_for_backward(out)
        ctx.form = form
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (shown,), form = ctx.saved_tensors, ctx.form
        scale = _both_parts(form, gradient.dtype, gradient.device, True)
        out = gradient.new_empty((len(shown), 3, form.height, form.width // 2 + 1, 2))
        k = four_a_thread(out, shown)
        parts = zip(pieces(out, k), pieces(gradient, k), pieces(shown, k), strict=True)
        for rows, slope, colours in parts:
            axes = unshow(slope, colours, form.colours.matrix)
            torch.mul(torch.view_as_real(torch.fft.rfft2(axes, norm="ortho")), scale, out=rows)
        return out, None


@lru_cache(maxsize=32)
def _both_parts(form: Fourier, dtype: torch.dtype, device: torch.device, back: bool) -> Tensor:
    """The factor of each coefficient's real and imaginary part, (H, W // 2 + 1, 2).

    On the way `back` a coefficient that stands for its mirror image too counts twice.
    """
    with torch.inference_mode(False):
        scale = form.scale().to(device, dtype)
        if back:
            twice = torch.full_like(scale, 2)
            twice[:, 0] = 1
            if form.width % 2 == 0:
                twice[:, -1] = 1
            scale = scale * twice
        return scale[..., None].expand(-1, -1, 2).contiguous()


@dataclass(frozen=True)
class LaplacianPyramid:
    """Pixels at several scales, each enlarged and added to the next finer: (N, 3, P).

    levels: how many scales, each of half the side; as many as there are is no harm
    spread: standard deviation of the start at each level, in logits

    A pixel of a coarse level moves many of the picture, so shapes come before grain (Lucid's
    lowres_tensor and laplacian_pyramid). P counts the pixels of all levels, the finest first.
    """

    height: int
    width: int
    levels: int = 5
    spread: float = 0.01
    colours: Colours = LUCID

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
        return self.colours.to_rgb(piecewise(self._sum, parameters))

    def _sum(self, parameters: Tensor) -> Tensor:
        sizes = self.sizes
        levels = parameters.split([h * w for h, w in sizes], dim=2)
        total: Tensor | None = None
        for level, size in zip(reversed(levels), reversed(sizes), strict=True):
            pixels = level.unflatten(2, size)
            total = pixels if total is None else _enlarged(total, size) + pixels
        assert total is not None
        return total

    def fit(self, pictures: Tensor) -> Tensor:
        """The Laplacian pyramid of Burt and Adelson 1983: each level what coarser ones lack."""
        check_size(pictures, self.height, self.width)
        stages = [self.colours.from_rgb(pictures)]
        for size in self.sizes[1:]:
            stages.append(_each(F.adaptive_avg_pool2d, stages[-1], size))
        levels = [
            fine - _each(_enlarged, coarse, size)
            for (fine, coarse), size in zip(itertools.pairwise(stages), self.sizes, strict=False)
        ]
        return torch.cat([level.flatten(2) for level in [*levels, stages[-1]]], 2)

    def detail(self, share: float) -> Tensor:
        """1 for the coarse levels, 0 for those that may not move yet."""
        sizes = self.sizes
        moving = round(1 + share * (len(sizes) - 1))
        return torch.cat(
            [
                torch.full((h * w,), float(level >= len(sizes) - moving))
                for level, (h, w) in enumerate(sizes)
            ]
        )


def _each(
    resize: Callable[[Tensor, tuple[int, int]], Tensor], pixels: Tensor, size: tuple[int, int]
) -> Tensor:
    return piecewise(lambda x: resize(x, size), pixels)


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


@lru_cache(maxsize=32)
def _scale(height: int, width: int, decay: float) -> Tensor:
    lowest = 1 / max(height, width)
    return (frequencies(height, width).clamp(min=lowest) ** -decay / 4).float()


def check_size(pictures: Tensor, height: int, width: int) -> None:
    """Raises ValueError unless pictures are (N, 3, height, width)."""
    if tuple(pictures.shape[1:]) != (3, height, width):
        raise ValueError(
            f"pictures of shape {tuple(pictures.shape)}, not (N, 3, {height}, {width})"
        )
