"""Random changes of a picture while it is optimized, drawn for each picture on its own.

What survives small shifts, turns and changes of size is what the unit looks for; what does not is
a trick of the pixel grid. Shifts over at least one stride of the layer also wash out the lattice
that strided convolutions and pools print on a gradient.

Comes in: pictures (N, 3, H, W) and draws (N, 5). Goes out: pictures of the same size, or of the
`size` that was asked for. Jitter, crop, turn, scale and shift are one affine map, sampled once,
bilinearly; blur and noise come after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from featviz.errors import UserError

_BORDERS = ("reflect", "gray")


@dataclass(frozen=True)
class Crop:
    """A square window on the picture that is enlarged to the whole, as MACO sees its pictures.

    first, last: mean side of the window, as a share of the picture, at the first and the last step
    spread: standard deviation of the side, which is kept within 0.05 and 1
    middle: standard deviation of the window's center, as a share of the picture
    inside: whether the window is kept within the picture
    """

    first: float = 0.5
    last: float = 0.05
    spread: float = 0.05
    middle: float = 0.15
    inside: bool = False


@dataclass(frozen=True)
class Transforms:
    """How a picture may be changed; zero leaves that change out.

    shift: pixels to each side, uniform and not rounded to whole pixels
    rotate: degrees to each side, uniform; or several angles to choose from
    scale: natural logarithm of the largest enlargement, uniform from -scale to scale; or several
        factors to choose from
    noise: standard deviation of Gaussian noise that is added last, in [0, 1] units
    jitter: shifts before the turn and the scale: pixels to each side of each, uniform, summed
    crop: a window that is enlarged to the whole picture, before anything else
    uniform: half the width of uniform noise that is added to the Gaussian
    blur: largest standard deviation, in pixels, of a Gaussian blur; uniform from 0
    border: what lies outside the picture: "reflect", itself in a mirror, or "gray", a plain 0.5
    size: height and width of what the model sees; default: the picture's own
    exact: whether a gradient is carried back by the transpose of the sampling, or, in half the
        time, by the inverse move, sampled bilinearly as well. On smooth pictures the two agree;
        the inverse leaves out what a mirrored border would add. Crops are always exact
    """

    shift: float = 0.0
    rotate: float | tuple[float, ...] = 0.0
    scale: float | tuple[float, ...] = 0.0
    noise: float = 0.0
    jitter: tuple[float, ...] = ()
    crop: Crop | None = None
    uniform: float = 0.0
    blur: float = 0.0
    border: str = "reflect"
    size: tuple[int, int] | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.border not in _BORDERS:
            raise UserError(f"unknown border {self.border!r}; take {' or '.join(_BORDERS)}")

    @property
    def still(self) -> bool:
        """Whether the geometry is left alone."""
        moving = self.shift or self.rotate or self.scale or any(self.jitter)
        return not moving and self.crop is None and self.size is None

    @property
    def noisy(self) -> bool:
        """Whether there is noise to draw."""
        return bool(self.noise or self.uniform)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """`count` changes (count, 5), from the first step to the last.

        Shift down and right (pixels of the picture; for a crop shares of it), angle (radians), log
        scale, and standard deviation of the blur (pixels).
        """
        reach = torch.tensor([self.shift, self.shift, 1.0, 1.0, self.blur])
        moves = (2 * torch.rand(count, 5, generator=generator) - 1) * reach
        moves[:, 4] = (moves[:, 4] + self.blur) / 2
        moves[:, 2] = _spread(moves[:, 2], self.rotate).deg2rad()
        moves[:, 3] = (
            _spread(moves[:, 3], self.scale).log()
            if isinstance(self.scale, tuple)
            else moves[:, 3] * self.scale
        )
        before = torch.zeros(count, 2)
        for width in self.jitter:
            before += width * (2 * torch.rand(count, 2, generator=generator) - 1)
        if self.jitter:
            moves[:, :2] += _turned(before, moves[:, 2], moves[:, 3])
        if self.crop is not None:
            moves = self._cropped(moves, generator)
        return moves

    def _cropped(self, moves: Tensor, generator: Generator) -> Tensor:
        """`moves` of what a window shows; its place is a share, until a picture's size is known."""
        assert self.crop is not None
        if self.shift or self.jitter or self.rotate:
            raise UserError("a crop moves the picture already; leave out shift, jitter and rotate")
        normal = torch.randn(len(moves), 3, generator=generator)
        progress = torch.linspace(0, 1, len(moves)) if len(moves) > 1 else torch.zeros(1)
        side = self.crop.first + (self.crop.last - self.crop.first) * progress
        side = (side + self.crop.spread * normal[:, 2]).clamp(0.05, 1)
        middle = self.crop.middle * normal[:, :2]  # from the picture's center
        if self.crop.inside:
            room = ((1 - side) / 2)[:, None]
            middle = torch.minimum(torch.maximum(middle, -room), room)
        log_scale = moves[:, 3] - side.log()
        shift = -middle * log_scale.exp()[:, None]
        return torch.cat([shift, moves[:, 2:3], log_scale[:, None], moves[:, 4:]], 1)

    def draw_noise(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """Noise of the given shape, to be added to what `apply` gives."""
        drawn = torch.empty(shape).normal_(0, self.noise, generator=generator)
        if self.uniform:
            reach = self.uniform
            drawn += torch.empty(shape).uniform_(-reach, reach, generator=generator)
        return drawn

    def noise_of(
        self, pictures: Tensor, views: int, generators: Sequence[Generator]
    ) -> list[Tensor]:
        """What `views` adds, (V * N, 3, H, W), if anything; a picture's from its own generator."""
        if not self.noisy:
            return []
        shape = (views, pictures.shape[1], *(self.size or pictures.shape[-2:]))
        noise = [self.draw_noise(shape, generator) for generator in generators]
        return [sent(torch.stack(noise, 1).flatten(0, 1), pictures.device).to(pictures.dtype)]

    def views(self, pictures: Tensor, moves: Tensor, *noise: Tensor) -> Tensor:
        """Several views of each picture, (V * N, 3, H, W): all pictures once, then once more ...

        moves: (N, V, 5); noise: that of `noise_of`
        """
        seen = torch.cat([self.apply(pictures, one) for one in moves.unbind(1)])
        return seen + noise[0] if noise else seen

    def apply(self, pictures: Tensor, moves: Tensor) -> Tensor:
        """Change each picture by its own row of `moves` (N, 5); noise is not part of this."""
        if not self.still:
            if self.crop is not None:  # from shares to pixels
                height, width = pictures.shape[-2:]
                shift = [moves[:, :1] * height, moves[:, 1:2] * width]
                moves = torch.cat([*shift, moves[:, 2:]], 1)
            exact = self.exact or self.crop is not None or self.size is not None
            pictures = move(pictures, moves[:, :4], border=self.border, size=self.size, exact=exact)
        return blurred(pictures, moves[:, 4], self.blur) if self.blur else pictures


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting until they are there."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _spread(unit: Tensor, reach: float | tuple[float, ...]) -> Tensor:
    """Uniform numbers from -1 to 1 as numbers up to `reach`, or as one of several choices."""
    if not isinstance(reach, tuple):
        return unit * reach
    choice = ((unit + 1) / 2 * len(reach)).long().clamp(0, len(reach) - 1)
    return torch.tensor(reach)[choice]


def _turned(shifts: Tensor, angle: Tensor, log_scale: Tensor) -> Tensor:
    """Where shifts (N, 2), down and right, come to lie after a clockwise turn and a scale."""
    down, right = shifts.unbind(1)
    cos, sin = angle.cos() * log_scale.exp(), angle.sin() * log_scale.exp()
    return torch.stack([cos * down + sin * right, cos * right - sin * down], 1)


def move(
    pictures: Tensor,
    moves: Tensor,
    *,
    border: str = "reflect",
    size: tuple[int, int] | None = None,
    exact: bool = True,
) -> Tensor:
    """Turn, scale and shift pictures (N, 3, H, W) about their center by `moves` (N, 4).

    A positive shift moves the content down and right, a positive angle turns it clockwise, a
    positive log scale enlarges it, in this order: turn and scale first, then the shift. `border`
    says what is seen outside. With `size` the result is (N, C, *size), and the whole picture
    fills it before it is moved. For `exact` see `Transforms`.
    """
    moves = moves.to(pictures.device, pictures.dtype)
    tall, wide = size if size is not None else (pictures.shape[-2], pictures.shape[-1])
    mode = _REFLECTED if border == "reflect" else _NOTHING
    gray = 0.5 if border == "gray" else 0.0  # what lies outside is 0, so gray has to be
    x = pictures - gray if gray else pictures
    if exact:
        seen = torch.grid_sampler_2d(x, _sources(x, moves, tall, wide), 0, mode, False)
    else:
        seen = _Moved.apply(x, moves, mode, tall, wide)
    return seen + gray if gray else seen


# How grid_sampler_2d calls what it does outside of a picture.
_NOTHING, _REFLECTED = 0, 2


class _Moved(torch.autograd.Function):
    """A move whose gradient is carried back by the inverse move."""

    @staticmethod
    def forward(
        ctx: Any, pictures: Tensor, moves: Tensor, mode: int, tall: int, wide: int
    ) -> Tensor:
        ctx.save_for_backward(moves)
        ctx.size = pictures.shape[-2:]
        return torch.grid_sampler_2d(
            pictures, _sources(pictures, moves, tall, wide), 0, mode, False
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (moves,) = ctx.saved_tensors
        height, width = ctx.size
        down, right, angle, log_scale = moves.unbind(1)
        shifts = -_turned(torch.stack([down, right], 1), -angle, -log_scale)
        back = torch.stack([shifts[:, 0], shifts[:, 1], -angle, -log_scale], 1)
        slope = torch.grid_sampler_2d(
            gradient, _sources(gradient, back, height, width), 0, _NOTHING, False
        )
        # An enlarged pixel is seen by so many more.
        return slope * (2 * log_scale).exp().view(-1, 1, 1, 1), None, None, None, None


def _sources(pictures: Tensor, moves: Tensor, tall: int, wide: int) -> Tensor:
    """Where each pixel of moved pictures comes from, (N, tall, wide, 2): right, down.

    In grid_sample's units, where the picture spans [-1, 1].
    """
    height, width = pictures.shape[-2:]
    down, right, angle, log_scale = moves.unbind(1)
    # In pixels from the center: first undo the shift, then the turn and the scale.
    y = _centered(tall, height, pictures.dtype, pictures.device) - down[:, None]  # (N, tall)
    x = _centered(wide, width, pictures.dtype, pictures.device) - right[:, None]  # (N, wide)
    cos, sin = angle.cos() * (-log_scale).exp(), angle.sin() * (-log_scale).exp()
    cos, sin = cos[:, None], sin[:, None]
    # Right and down as real and imaginary part, so that both are written in one pass.
    by_column = torch.complex(cos * x * (2 / width), -sin * x * (2 / height))
    by_row = torch.complex(sin * y * (2 / width), cos * y * (2 / height))
    return torch.view_as_real(by_column[:, None] + by_row[:, :, None])


@lru_cache(maxsize=64)
def _centered(count: int, span: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`count` pixels that share `span` pixels, as distances from the center, (1, count)."""
    with torch.inference_mode(False):
        at = torch.arange(count, dtype=dtype, device=device) - (count - 1) / 2
        return (at * (span / count))[None]


def blurred(pictures: Tensor, sigmas: Tensor, most: float) -> Tensor:
    """Pictures (N, 3, H, W), each under a Gaussian of its own sigma (N,) in pixels, reflected.

    The kernel reaches over 3 times the `most` that a sigma may be; a sigma of 0 changes nothing.
    """
    reach = min(max(1, math.ceil(3 * most)), min(pictures.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
    sigmas = sigmas.to(pictures.device, pictures.dtype)[:, None].clamp(min=1e-3)
    weights = (-0.5 * (at / sigmas) ** 2).exp()
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]
    for axis in (-1, -2):
        edges = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        wide, side = F.pad(pictures, edges, mode="reflect"), pictures.shape[axis]
        # Summed tap by tap: a convolution may round by the number of pictures.
        taps = [wide.narrow(axis, i, side) * weights[:, i] for i in range(len(at))]
        pictures = taps[0]
        for tap in taps[1:]:
            pictures = pictures + tap
    return pictures
