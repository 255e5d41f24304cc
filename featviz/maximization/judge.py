"""Numbers beside a maximised picture, so that nobody has to trust the picture alone.

clean score        of the picture as it is saved (8 bits), without transforms, in float32
held-out score     mean over fixed shifts of 4 to 6 pixels behind a 3x3 mean, which the ascent has
                   not seen: how much of the score is more than a pixel pattern
slope              of log amplitude against log frequency; photographs have about -1.2
high share         share of the spectrum's energy above 1/4 cycle a pixel; photographs about 8%
lattice            energy at the multiples of 1/stride cycle a pixel (the first strided layer's)
                   over that of their neighbourhood, median; 1 is no lattice
of natural         clean score over the highest that given photographs reach

The spectra are of brightness and colour together, under a Hann window, the mean taken away.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.models.layers import Layer, activations

if TYPE_CHECKING:
    from featviz.datasets import Pictures
    from featviz.maximization.objectives import Objective
    from featviz.models.load import Model

HELD_OUT_SHIFTS = ((-6, 0), (6, 0), (0, -6), (0, 6), (-4, 4), (4, -4))
"""(down, right) in pixels"""


def held_out(score: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """The mean score (N,) over the held-out shifts, each behind a 3x3 mean."""
    total = pictures.new_zeros(len(pictures))
    for down, right in HELD_OUT_SHIFTS:
        total += score(soften(shifted(pictures, down, right)))
    return total / len(HELD_OUT_SHIFTS)


def shifted(pictures: Tensor, down: int, right: int) -> Tensor:
    """Pictures (N, 3, H, W) moved by whole pixels, reflected at the border they leave.

    Shifts of a picture smaller than they are stop at its last pixel.
    """
    height, width = pictures.shape[-2:]
    rows = _reflect(torch.arange(height) - down, height)
    columns = _reflect(torch.arange(width) - right, width)
    return pictures[..., rows.to(pictures.device), :][..., columns.to(pictures.device)]


def _reflect(index: Tensor, size: int) -> Tensor:
    if size == 1:
        return torch.zeros_like(index)
    period = 2 * (size - 1)
    index = index.abs() % period
    return torch.minimum(index, period - index)


def soften(pictures: Tensor) -> Tensor:
    """The mean of each pixel's 3x3 neighbourhood, edge pixels repeated."""
    wide = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    rows = (wide[..., :-2] + wide[..., 1:-1]).add_(wide[..., 2:])
    return (rows[..., :-2, :] + rows[..., 1:-1, :]).add_(rows[..., 2:, :]).mul_(1 / 9)


def spectrum(pictures: Tensor) -> Tensor:
    """Energy at each frequency of pictures (N, 3, H, W), colours summed: (N, H, W)."""
    height, width = pictures.shape[-2:]
    window = torch.hann_window(height, periodic=False, dtype=torch.float64)[:, None]
    window = window * torch.hann_window(width, periodic=False, dtype=torch.float64)
    x = pictures.detach().cpu().double()
    x = (x - x.mean((-2, -1), keepdim=True)) * window
    energy: Tensor = torch.fft.fft2(x).abs().square()
    return energy.sum(1)


def frequencies(height: int, width: int) -> Tensor:
    """The distance of each coefficient from the mean, in cycles a pixel, (H, W)."""
    y = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    x = torch.fft.fftfreq(width, dtype=torch.float64)[None, :]
    return torch.hypot(y, x)


def slope(pictures: Tensor) -> Tensor:
    """The exponent s of amplitude ~ f^s, (N,), fitted from 2 periods a side to 1/2 cycle."""
    height, width = pictures.shape[-2:]
    f = frequencies(height, width)
    rings = torch.logspace(
        torch.log10(torch.tensor(2 / min(height, width))).item(), -0.30103, 13, dtype=torch.float64
    )
    energy = spectrum(pictures)
    points, values = [], []
    for low, high in itertools.pairwise(rings):
        ring = (f >= low) & (f < high)
        if ring.any():
            points.append(f[ring].log().mean())
            values.append(energy[:, ring].mean(1).clamp(min=1e-30).log() / 2)
    if len(points) < 3:
        return torch.full((len(pictures),), float("nan"))
    x = torch.stack(points)
    y = torch.stack(values, 1)
    x = x - x.mean()
    return ((y * x).sum(1) / x.square().sum()).float()


def high_share(pictures: Tensor, above: float = 0.25) -> Tensor:
    """The share of energy above `above` cycles a pixel, (N,) in [0, 1]; 0 for a plain picture."""
    energy = spectrum(pictures)
    f = frequencies(*pictures.shape[-2:])
    total = energy[:, f > 0].sum(1).clamp(min=1e-30)
    return (energy[:, f > above].sum(1) / total).float()


def lattice(pictures: Tensor, period: int) -> Tensor:
    """Energy at the multiples of 1/period over that of their neighbourhood, (N,), median.

    NaN where the picture is too small to tell a peak from its neighbours.
    """
    height, width = pictures.shape[-2:]
    if period < 2 or min(height, width) < 8 * period:
        return torch.full((len(pictures),), float("nan"))
    energy = spectrum(pictures)
    ratios = []
    for i in range(period):
        for j in range(period):
            if i == j == 0:
                continue
            y, x = round(i * height / period), round(j * width / period)
            near = _patch(energy, y, x, 1)  # the Hann window spreads a peak over 3
            around = (_patch(energy, y, x, 3) * 49 - near * 9) / 40
            ratios.append(near / around.clamp(min=1e-30))
    return torch.stack(ratios, 1).median(1).values.float()


def _patch(energy: Tensor, y: int, x: int, reach: int) -> Tensor:
    """The mean energy within `reach` coefficients of (y, x), round the edges, (N,)."""
    steps = torch.arange(-reach, reach + 1)
    rows, columns = (y + steps) % energy.shape[1], (x + steps) % energy.shape[2]
    return energy[:, rows][:, :, columns].mean((1, 2))


def first_stride(model: Model) -> int:
    """The stride of the first layer that has one: the period of the lattice to look for."""
    fields = (layer.receptive_field for layer in model.layers.values())
    strides = [max(field.stride) for field in fields if field is not None]
    return min((stride for stride in strides if stride > 1), default=1)


def natural_best(
    model: Model, layer: Layer, units: Sequence[int], goal: Objective, pictures: Pictures | Tensor
) -> Tensor:
    """The highest score of each unit on given pictures, (N,): what the world offers it.

    The maps are read as the objective reads them: its mean over the whole map, or for objectives
    that look at the middle only, their mean over so many positions anywhere in the map.
    """
    best = torch.full((len(units),), float("-inf"))
    for batch in _batches(model, pictures):
        values = activations(model, batch.to(model.device), [layer.name])[layer.name].float().cpu()
        if values.dim() == 3:  # tokens
            values = values.mean(1)
        if values.dim() == 4:
            values = values[:, list(units)]
            if goal.width is None:
                values = values.mean((2, 3))
            else:
                width = min(goal.width, *values.shape[2:])
                values = F.avg_pool2d(values, width, 1).amax((2, 3))
        else:
            values = values[:, list(units)]
        best = torch.maximum(best, values.amax(0))
    return best


def _batches(model: Model, pictures: Pictures | Tensor) -> Iterator[Tensor]:
    if isinstance(pictures, Tensor):
        yield from pictures.split(32)
        return
    from featviz.datasets import batches

    for batch in batches(pictures, resize=model.resize, crop=model.input_size, batch_size=32):
        yield batch.images
