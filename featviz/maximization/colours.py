"""Decorrelated colours: three unbounded axes that a step may change alike, and [0, 1] beyond them.

Red, green and blue of photographs rise and fall together. A root of their covariance turns equal
steps along three axes (brightness first) into steps as likely as photographs have them; a sigmoid
keeps the result within [0, 1]. Olah, Mordvintsev and Schubert 2017, "Feature Visualization"
(Distill), "Preconditioning and parameterization".

`LUCID` is the matrix that everybody uses, of ImageNet; `natural.measure_colours` makes one from any
pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Pictures to be fitted are kept this far from black and white, where the logit is infinite;
# a quarter of a step of 8 bits, so that nothing is lost in a saved picture.
MARGIN = 1 / 1024


@dataclass(frozen=True)
class Colours:
    """Which red, green and blue each decorrelated axis stands for.

    matrix: rows red, green, blue; one axis a column, the longest column of length 1
    """

    name: str
    matrix: tuple[tuple[float, float, float], ...]

    @cached_property
    def inverse(self) -> tuple[tuple[float, float, float], ...]:
        """Rows the axes, columns red, green and blue."""
        rows = torch.linalg.inv(torch.tensor(self.matrix, dtype=torch.float64)).tolist()
        return tuple((row[0], row[1], row[2]) for row in rows)

    def to_rgb(self, axes: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] from unbounded values on the three axes."""
        shown: Tensor = _ToRGB.apply(axes, self.matrix)
        return shown

    def from_rgb(self, pictures: Tensor) -> Tensor:
        """The inverse of `to_rgb`; values within 1/1024 of black or white are brought in."""
        x = torch.logit(pictures.clamp(MARGIN, 1 - MARGIN))
        return mixed(x, self.inverse)


class _ToRGB(torch.autograd.Function):
    """`mixed` and a sigmoid in one, so that nothing but the result is kept."""

    @staticmethod
    def forward(ctx: Any, axes: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
        out = torch.empty_like(axes, memory_format=torch.contiguous_format)
        k = four_a_thread(out)
        for rows, axis in zip(pieces(out, k), pieces(axes, k), strict=True):
            show(axis, matrix, rows)
        ctx.save_for_backward(out)
        ctx.matrix = matrix
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (shown,) = ctx.saved_tensors
        out, k = torch.empty_like(shown), four_a_thread(shown)
        parts = zip(pieces(out, k), pieces(gradient, k), pieces(shown, k), strict=True)
        for rows, slope, colours in parts:
            unshow(slope, colours, ctx.matrix, rows)
        return out, None


def show(axes: Tensor, matrix: tuple[tuple[float, ...], ...], out: Tensor) -> Tensor:
    """Pictures of values on the axes (N, 3, H, W), written to `out`; no gradients."""
    return mixed(axes, matrix, out=out).sigmoid_()


def unshow(
    gradient: Tensor,
    shown: Tensor,
    matrix: tuple[tuple[float, ...], ...],
    out: Tensor | None = None,
) -> Tensor:
    """The gradient on the axes of a gradient on what `show` gave."""
    slope = torch.ops.aten.sigmoid_backward(gradient, shown)
    return mixed(slope, tuple(zip(*matrix, strict=True)), out=out)


def mixed(
    values: Tensor, matrix: tuple[tuple[float, ...], ...], *, out: Tensor | None = None
) -> Tensor:
    """matrix @ values over the three channels of (N, 3, H, W).

    One picture after the other, or plane by plane where pictures do not begin at round addresses:
    one product of matrices for all would round by their number.
    """
    out = torch.empty_like(values) if out is None else out
    plain = values.is_contiguous() and out.is_contiguous()
    if plain and values.device.type == "cpu" and values[0, 0].numel() % 16 == 0:
        weights = _weights(matrix, values.dtype)
        for result, picture in zip(out.flatten(2), values.flatten(2), strict=True):
            torch.mm(weights, picture, out=result)
        return out
    for channel, row in enumerate(matrix):
        plane = out[:, channel]
        torch.mul(values[:, 0], row[0], out=plane)
        for axis in (1, 2):
            if row[axis]:
                plane.add_(values[:, axis], alpha=row[axis])
    return out


@lru_cache(maxsize=32)
def _weights(matrix: tuple[tuple[float, ...], ...], dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(matrix, dtype=dtype)


def pieces(values: Tensor, at_a_time: int = 1) -> tuple[Tensor, ...]:
    """What to work on at a time: one picture, or so many, on the CPU; the whole batch elsewhere.

    One picture stays in the CPU's cache, and kernels that treat the ends of an array in another
    way than its middle find these ends at the same pixels, whatever the batch.
    """
    return values.split(at_a_time) if values.device.type == "cpu" else (values,)


def four_a_thread(*values: Tensor) -> int:
    """How many pictures at a time give each thread four, without a change of any bit.

    That many where each picture is a whole number of the kernels' vectors, else 1.
    """
    if any(of[0].numel() % 64 for of in values if len(of)):
        return 1
    return 4 * torch.get_num_threads()


def piecewise(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """function(values), one of the `pieces` at a time."""
    parts = [function(piece) for piece in pieces(values)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def from_root(name: str, root: Tensor) -> Colours:
    """Colours from a root of a covariance (3, 3), one axis a column."""
    scaled = root.double() / root.double().norm(dim=0).max()
    return Colours(name, tuple((row[0], row[1], row[2]) for row in scaled.tolist()))


LUCID = from_root(
    "lucid", torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
)
"""of ImageNet; brightness, blue against yellow, green against magenta (Lucid, param/color.py)"""
