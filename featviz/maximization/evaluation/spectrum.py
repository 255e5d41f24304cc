"""Numbers of a picture's spectrum: its slope, the share of fine detail, and grids of the network.

slope        of log amplitude against log frequency; that of natural images is about -1 (Field
             1987, "Relations between the statistics of natural images and the response properties
             of cortical cells")
high share   share of the energy above 1/4 cycle a pixel
lattice      energy at the multiples of 1/period over that of their neighbors; 1 is no lattice. A
             network with an input stride of 4 pixels has gradients with that period, and a
             picture made from them may keep it (Odena, Dumoulin and Olah 2016, "Deconvolution and
             checkerboard artifacts", Distill)

Color channels are summed, under a Hann window, the mean subtracted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_RINGS = 12


def spectrum(pictures: Tensor) -> Tensor:
    """Energy at each frequency of pictures (N, 3, H, W), summed over channels: (N, H, W)."""
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


def slope(energy: Tensor) -> Tensor:
    """The exponent s of amplitude ~ f^s of spectra (N, H, W): (N,).

    A line through the mean energies of rings from 2 periods a side to 1/2 cycle a pixel, evenly
    spaced in log f. NaN where there are fewer than three rings, or no energy.
    """
    height, width = energy.shape[-2:]
    f = frequencies(height, width)
    low, high = math.log10(2 / min(height, width)), math.log10(0.5)
    rings = torch.logspace(low, high, _RINGS + 1, dtype=torch.float64)
    points, values = [], []
    for inner, outer in itertools.pairwise(rings):
        ring = (f >= inner) & (f < outer)
        if ring.any():
            points.append(f[ring].log().mean())
            values.append(energy[:, ring].mean(1).log() / 2)
    if len(points) < 3:
        return torch.full((len(energy),), math.nan)
    x = torch.stack(points)
    x = x - x.mean()
    y = torch.stack(values, 1)
    fitted = (y * x).sum(1) / x.square().sum()
    return torch.where(fitted.isfinite(), fitted, math.nan).float()


def high_share(energy: Tensor, above: float = 0.25) -> Tensor:
    """The share of energy above `above` cycles a pixel, (N,) in [0, 1]; 0 for a plain picture."""
    f = frequencies(*energy.shape[-2:])
    total = energy[:, f > 0].sum(1).clamp(min=1e-30)
    return (energy[:, f > above].sum(1) / total).float()


def lattice(energy: Tensor, period: int, within: Sequence[int] = ()) -> Tensor:
    """The relative energy of spectra (N, H, W) at the multiples of 1/period: (N,); 1 is no lattice.

    The mean, over the multiples in both directions, of the energy there over that of the
    coefficients around; on the axes, where photographs have streaks from vertical and horizontal
    edges, of the coefficients along the streak. Multiples of the frequencies of shorter periods
    `within` are left out.

    NaN where the picture is too small to tell a peak from its neighbors (under 7 periods a side).
    """
    height, width = energy.shape[-2:]
    if period < 2 or min(height, width) < 7 * period:
        return torch.full((len(energy),), math.nan)
    ratios = []
    for i, j in itertools.product(range(period), repeat=2):
        if any(i * q % period == 0 and j * q % period == 0 for q in (1, *within)):
            continue  # the mean itself, or a multiple of 1/q
        y, x = round(i * height / period), round(j * width / period)
        near = _mean(energy, y, x, 1, 1)  # the Hann window spreads a peak over 3
        if i == 0:
            around = (7 * _mean(energy, y, x, 1, 3) - 3 * near) / 4
        elif j == 0:
            around = (7 * _mean(energy, y, x, 3, 1) - 3 * near) / 4
        else:
            around = (49 * _mean(energy, y, x, 3, 3) - 9 * near) / 40
        ratios.append(near / around.clamp(min=1e-30))
    return torch.stack(ratios, 1).mean(1).float()


def _mean(energy: Tensor, y: int, x: int, down: int, right: int) -> Tensor:
    """The mean energy within some coefficients of (y, x), round the edges, (N,)."""
    rows = (y + torch.arange(-down, down + 1)) % energy.shape[1]
    columns = (x + torch.arange(-right, right + 1)) % energy.shape[2]
    return energy[:, rows][:, :, columns].mean((1, 2))


def lattices(pictures: Tensor, periods: Sequence[int]) -> dict[int, Tensor]:
    """`lattice` of pictures (N, 3, H, W) at each period, each without the shorter ones: (N,).

    before = lattices(peers, input_strides(model))
    after = lattices(ours, input_strides(model))
    """
    energy = spectrum(pictures)
    return {p: lattice(energy, p, [q for q in periods if q < p]) for p in periods}
