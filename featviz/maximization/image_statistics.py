"""What photographs have in common: how their colors go together, how strong each frequency is.

    measured = measure_statistics(featviz.open_pictures("photographs"))
    measured.save("mine.safetensors")
    MACO(224, 224, spectrum=measured.spectrum)
    Fourier(224, 224, colors=measured.colors)

Comes in: any pictures, which are streamed. Goes out: `Statistics`, a file of some 30 kB. Those of
Tiny ImageNet's training pictures are bundled (`bundled`, made by recipes/measure_statistics.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.data.from_python import Data
from featviz.data.labeled import opened
from featviz.errors import UserError, public
from featviz.maximization.colors import LUCID, Colors, from_root
from featviz.maximization.parametrizations import frequencies
from featviz.models.weights_file import write_tensors
from featviz.pictures.images import check_pictures
from featviz.pictures.preprocessing import Preprocessing
from featviz.types import Progress, Side

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures

BUNDLED = Path(__file__).parents[1] / "assets" / "photographs.safetensors"

# Spectra are measured with pictures kept this far from black and white: a few blown-out pixels
# would otherwise count more than the rest.
_MARGIN = 1 / 64


class Spectrum:
    """The mean amplitude of each frequency of each decorrelated axis, for a canvas of any size.

    amplitudes: (3, H, W // 2 + 1) of orthonormal transforms of H x W pictures
    width: W, which the number of coefficients leaves open
    colors: which colors the axes are

    Amplitudes are kept as multiples of 1/f, which is smooth enough to be interpolated.
    """

    def __init__(self, name: str, amplitudes: Tensor, width: int, colors: Colors = LUCID):
        if amplitudes.dim() != 3 or amplitudes.shape[::2] != (3, width // 2 + 1):
            raise ValueError(
                f"amplitudes of shape {tuple(amplitudes.shape)}, not (3, H, {width // 2 + 1})"
            )
        self.name, self.colors = name, colors
        self.amplitudes = amplitudes.detach().float()
        self.height, self.width = amplitudes.shape[1], width
        self._kept: dict[tuple[int, int, torch.device], Tensor] = {}

    def at(self, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
        """The amplitudes of an orthonormal transform of a height x width canvas, (3, H, W//2+1).

        A frequency in cycles a pixel keeps its strength; those too low to have been measured
        follow 1/f from the lowest that were. On its own canvas a spectrum is given back as it is.
        """
        key = (height, width, torch.device(device))
        if key not in self._kept:
            with torch.inference_mode(False):
                self._kept[key] = self._resized(height, width).to(device)
        return self._kept[key]

    def _resized(self, height: int, width: int) -> Tensor:
        if (height, width) == (self.height, self.width):
            return self.amplitudes
        flat = self.amplitudes.double() * frequencies(self.height, self.width)
        # At frequency 0 this says nothing: its neighbors do.
        flat[:, 0, 0] = (flat[:, 1 % self.height, 0] + flat[:, 0, min(1, flat.shape[2] - 1)]) / 2
        y = torch.fft.fftfreq(height, dtype=torch.float64)
        x = torch.fft.rfftfreq(width, dtype=torch.float64)
        rows = _between(flat, y * self.height, 1, round_=True)
        found = _between(rows, x * self.width, 2, round_=False)
        amplitudes = found / frequencies(height, width).clamp(min=1e-9)
        scale = (height * width / self.height / self.width) ** 0.5
        amplitudes[:, 0, 0] = self.amplitudes[:, 0, 0].double() * scale  # the mean stays the mean
        return amplitudes.float()


def _between(values: Tensor, at: Tensor, dim: int, *, round_: bool) -> Tensor:
    """Values (3, H, W) at fractional places along a dimension; round its ends if it is periodic."""
    count = values.shape[dim]
    low = at.floor()
    share = at - low
    shape = [1, 1, 1]
    shape[dim] = len(at)
    share, ends = share.view(shape), (low.long(), low.long() + 1)
    one, two = (end % count if round_ else end.clamp(max=count - 1) for end in ends)
    return values.index_select(dim, one) * (1 - share) + values.index_select(dim, two) * share


@dataclass(frozen=True)
class Statistics:
    """Colors, and the spectrum of pictures in these colors."""

    colors: Colors
    spectrum: Spectrum

    def save(self, path: str | Path) -> None:
        """Write both as a safetensors file; amplitudes with 16 bits."""
        tensors = {
            "colors": torch.tensor(self.colors.matrix, dtype=torch.float64),
            "amplitudes": self.spectrum.amplitudes.half(),
        }
        facts = {"name": self.spectrum.name, "width": str(self.spectrum.width)}
        write_tensors(tensors, path, facts)


def load_statistics(path: str | Path) -> Statistics:
    """What `Statistics.save` wrote. Raises UserError for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            matrix, amplitudes = file.get_tensor("colors"), file.get_tensor("amplitudes")
            name, width = meta["name"], int(meta["width"])
        _check_arrays(matrix, amplitudes, width)
        rows = tuple((row[0], row[1], row[2]) for row in matrix.tolist())
        colors = Colors(name, rows)
        return Statistics(colors, Spectrum(name, amplitudes, width, colors))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; measure_statistics makes one") from None
    except (SafetensorError, OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} holds no statistics of photographs ({error}); measure_statistics makes them"
        ) from None


def _check_arrays(matrix: Tensor, amplitudes: Tensor, width: int) -> None:
    """Raise ValueError for arrays that are no colors and no spectrum of pictures so wide."""
    if matrix.shape != (3, 3) or not torch.isfinite(matrix.double()).all():
        raise ValueError(f"its colors are no 3 x 3 finite numbers but {tuple(matrix.shape)}")
    if torch.linalg.matrix_rank(matrix.double()) < 3:
        raise ValueError("its colors are fewer than three")
    shape = tuple(amplitudes.shape)
    if len(shape) != 3 or shape[0] != 3 or not 2 <= width <= 2**16:
        raise ValueError(f"its amplitudes have shape {shape} at a width of {width}")
    if shape[2] != width // 2 + 1 or not shape[1]:
        raise ValueError(f"its amplitudes have {shape[2]} columns at a width of {width}")
    if not torch.isfinite(amplitudes.double()).all() or bool((amplitudes < 0).any()):
        raise ValueError("its amplitudes are not finite, or negative")


@lru_cache(maxsize=1)
def bundled() -> Statistics:
    """Of the training pictures of Tiny ImageNet, 64 pixels a side, in their own colors."""
    return load_statistics(BUNDLED)


@public
def measure_statistics(
    pictures: Data,
    *,
    size: Side = 64,
    colors: Colors | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Colors and spectrum of pictures, which are read twice, a batch at a time.

    Args:
        pictures: What `as_pictures` takes; a float tensor (N, 3, H, W) keeps its size.
        size: Side to which pictures of a data set are resized, in pixels.
        colors: Measure only the spectrum, on these axes.
        name: For results and captions; default: the data's name and the number of pictures.

    Returns:
        The axes of color and the amplitude of each frequency on them.

    Raises:
        UserError: There are too few pictures, or too few colors in them.
    """
    pictures = opened(pictures)
    colors = colors or measure_colors(pictures, size=size, progress=progress)
    spectrum = measure_spectrum(pictures, size=size, colors=colors, progress=progress)
    if name is not None:
        colors, spectrum.colors = replace(colors, name=name), replace(colors, name=name)
        spectrum.name = name
    return Statistics(colors, spectrum)


def measure_colors(
    pictures: Pictures | Tensor, *, size: int = 64, progress: Progress | None = None
) -> Colors:
    """The decorrelated axes of pictures: the root of the covariance of red, green and blue.

    The first axis is the strongest, with length 1. Raises UserError if the pictures have fewer than
    three colors (such as gray ones): three axes cannot be told apart.
    """
    count, total, products = 0, torch.zeros(3).double(), torch.zeros(3, 3).double()
    for batch in _stream(pictures, size, progress, "measuring colors"):
        pixels = batch.double().transpose(0, 1).flatten(1)  # (3, pixels)
        count += pixels.shape[1]
        total += pixels.sum(1)
        products += pixels @ pixels.T
    mean = total / count
    strengths, axes = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    if strengths[0] < 1e-6 * strengths[2] or strengths[2] <= 1e-12:
        raise UserError(
            "the pictures have fewer than three independent colors, so no axes can be measured; "
            "give pictures in color"
        )
    root = (axes * strengths.sqrt()).flip(1)
    # Towards red: a sign that does not hang on the solver.
    root = root * torch.where(root[0] < 0, -1.0, 1.0)
    return from_root(_name(pictures), root)


def measure_spectrum(
    pictures: Pictures | Tensor,
    *,
    size: int = 64,
    colors: Colors = LUCID,
    edges: bool = False,
    progress: Progress | None = None,
) -> Spectrum:
    """The mean amplitude of each frequency of pictures, on decorrelated axes.

    edges: whether to count the jump from each border to the opposite one, as a plain transform
        does, which takes a picture for a tile. It is no part of the picture, and looks like woven
        cloth in whatever is made from the spectrum; only with it the amplitudes are a picture's own
    """
    count, total, width = 0, torch.zeros(()), 0
    for batch in _stream(pictures, size, progress, "measuring frequencies"):
        width = batch.shape[-1]
        axes = colors.from_rgb(batch, margin=_MARGIN)
        waves = torch.fft.rfft2(axes, norm="ortho")
        if not edges:
            waves = waves - seam(axes)
        total = total + waves.abs().double().sum(0)
        count += len(batch)
    return Spectrum(_name(pictures), total / max(1, count), width, colors)


def seam(values: Tensor) -> Tensor:
    """The part of values (N, C, H, W) that only joins opposite borders, as orthonormal waves.

    Its Laplacian, round the edges, is the jump over the border, and 0 within; the rest of the
    picture is periodic. Moisan 2011, "Periodic plus smooth image decomposition", equation 12.
    """
    height, width = values.shape[-2:]
    jump = torch.zeros_like(values)
    down, right = values[..., 0, :] - values[..., -1, :], values[..., 0] - values[..., -1]
    jump[..., 0, :] -= down
    jump[..., -1, :] += down
    jump[..., 0] -= right
    jump[..., -1] += right
    y = torch.fft.fftfreq(height, dtype=torch.float64)[:, None] * 2 * torch.pi
    x = torch.fft.rfftfreq(width, dtype=torch.float64)[None, :] * 2 * torch.pi
    laplacian = (2 * y.cos() + 2 * x.cos() - 4).to(values.device, values.dtype)
    laplacian[0, 0] = 1
    waves: Tensor = torch.fft.rfft2(jump, norm="ortho") / laplacian
    waves[..., 0, 0] = 0
    return waves


def _name(pictures: Pictures | Tensor) -> str:
    return "measured" if isinstance(pictures, Tensor) else f"{pictures.name} ({len(pictures)})"


def _stream(
    pictures: Pictures | Tensor, size: int, progress: Progress | None, text: str
) -> Iterator[Tensor]:
    if isinstance(pictures, Tensor):
        yield from check_pictures(pictures).split(64)
        return
    from featviz.data.datasets import batches

    done = 0
    for batch in batches(pictures, Preprocessing.of(size)):
        yield batch.images
        done += len(batch.rows)
        if progress is not None:
            progress(done, len(pictures), text)
