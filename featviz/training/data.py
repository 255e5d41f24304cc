"""Pictures of class folders as training reads them: 8-bit squares, random crops, flips, colors.

Pictures stay 8-bit until they are a batch, on the card if there is one. What changes a picture is
drawn for that picture alone (`augment`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.data.datasets import Pictures, Skipped, evenly, in_order
from featviz.data.from_python import Data, as_pictures
from featviz.errors import UserError, check_fields
from featviz.pictures.decoding import prepared
from featviz.pictures.preprocessing import Preprocessing
from featviz.torchrun import here
from featviz.types import Progress, Share

MEMORY_LIMIT = 4 << 30
"""Decoded pictures are kept in memory up to this many bytes, above it they are read each epoch."""
DRAWS = 9
"""random numbers that change a picture"""
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Augmentation:
    """How a training picture is changed at random, each picture independently.

    Attributes:
        area: Share of the picture's area that the crop keeps, smallest and largest.
        aspect: The crop's sides are in a ratio between e^-aspect and e^aspect.
        brightness: Values are multiplied by 1 - brightness to 1 + brightness.
        flip: Mirror every second picture.
        color: Colors are shifted along their principal axes (`color_axes`), by the axis's variance
            times a normal number of this standard deviation; 0.1 in Krizhevsky et al. 2012.
        whole_pixels: Crops have the net's own size and are not resized; they lie anywhere in the
            picture, and `area` and `aspect` are not used.
    """

    area: tuple[Share, Share] = (0.5, 1.0)
    aspect: Annotated[float, Bounds(0, 2)] = 0.15
    brightness: Share = 0.2
    flip: bool = True
    color: Share = 0.0
    whole_pixels: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.area[0] > self.area[1]:
            raise UserError(f"area is {self.area}; the smaller share comes first")


@dataclass
class Examples:
    """Pictures of class folders with their labels, 8-bit, in memory or read when needed."""

    pictures: Pictures
    labels: Tensor
    """(N,) int64: index of the picture's folder in `classes`"""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    """how pictures are resized and cropped, to squares"""
    decoded: Tensor | None
    """(N, 3, S, S) uint8, or None where that would exceed the memory limit"""
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Side of the squares, in pixels."""
        return self.preprocessing.size[0]

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(uint8 pictures (B, 3, S, S), their rows); what cannot be read is left out and listed."""
        if self.decoded is not None:
            return self.decoded[rows], rows
        decoded, good, bad = _decode(self.pictures, rows.tolist(), self.preprocessing)
        known = {s.row for s in self.skipped}
        self.skipped += [s for s in bad if s.row not in known]
        return decoded, torch.tensor(good)


def read_examples(
    data: Data,
    size: int,
    *,
    resize: int | None = None,
    classes: Sequence[str] | None = None,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> Examples:
    """Pictures of class folders, shorter side to `resize`, then a center crop of `size`.

    Args:
        data: What `as_pictures` takes, with classes: class folders, a Dataset ...
        size: Side of the squares, in pixels.
        resize: Of the shorter side before the crop. Default: `size`.
        classes: The folders in label order. Default: those that occur, sorted.
        memory_limit: Bytes; larger data is read from disk in every epoch. Default: 4 GB, shared by
            the processes that torchrun has started on this machine.
        progress: Called with (pictures read, all pictures, text).

    Returns:
        The pictures; broken ones are left out and listed in `skipped`.

    Raises:
        UserError: There are no class folders, or a folder is none of `classes`.
    """
    pictures = as_pictures(data)
    names = tuple(classes) if classes is not None else pictures.classes
    unknown = [c for c in dict.fromkeys(pictures.folders) if c not in set(names)]
    if unknown or not names:
        raise UserError(
            f"{pictures.root} has pictures outside the known classes ({unknown[0] or '.'!r}); "
            "training needs one folder a class, the same ones in --data and --validation"
            if unknown
            else f"{pictures.root} has no class folders; put the pictures of a class in one folder"
        )
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([index[c] for c in pictures.folders])
    preprocessing = Preprocessing.of(size, resize=resize)
    limit = MEMORY_LIMIT // here() if memory_limit is None else memory_limit
    if len(pictures) * 3 * size * size > limit:
        return Examples(pictures, labels, names, preprocessing, None)
    decoded, rows, skipped = _decode(pictures, range(len(pictures)), preprocessing, progress)
    if not rows:
        raise UserError(
            f"no picture of {pictures.root} could be read; the first: {skipped[0].reason}"
        )
    kept = pictures.select(rows) if skipped else pictures
    return Examples(kept, labels[rows], names, preprocessing, decoded, skipped)


def _decode(
    pictures: Pictures,
    rows: Sequence[int],
    preprocessing: Preprocessing,
    progress: Progress | None = None,
) -> tuple[Tensor, list[int], list[Skipped]]:
    """Pictures (n, 3, S, S) uint8, their rows, and those that cannot be read."""

    def read(row: int) -> Tensor:
        if pictures.files:
            return pictures.prepare(row, preprocessing).pixels
        return prepared(pictures.open(row), preprocessing).pixels

    decoded = torch.empty(len(rows), 3, *preprocessing.size, dtype=torch.uint8)
    good: list[int] = []
    bad: list[Skipped] = []
    for done, (row, found) in enumerate(in_order(read, rows, workers=_THREADS), start=1):
        if isinstance(found, Tensor):
            decoded[len(good)] = found
            good.append(row)
        else:
            bad.append(Skipped(row, pictures.paths[row], str(found)))
        if progress and (done % 1024 == 0 or done == len(rows)):
            progress(done, len(rows), "reading pictures")
    return decoded[: len(good)], good, bad


def color_axes(examples: Examples, count: int = 1000) -> Tensor:
    """(3, 3): the principal axes of the pixels' colors in [0, 1], each as long as its variance.

    Of `count` pictures, evenly spread over the examples.
    """
    rows = torch.tensor(evenly(len(examples), count))
    sums = torch.zeros(4, 4, dtype=torch.double)  # of products of (1, red, green, blue)
    for some in rows.split(100):
        colors = examples.take(some)[0].movedim(1, 0).flatten(1).double() / 255  # (3, pixels)
        colors = torch.cat([torch.ones_like(colors[:1]), colors])
        sums += colors @ colors.T
    mean = sums[0, 1:] / sums[0, 0]
    variances, axes = torch.linalg.eigh(sums[1:, 1:] / sums[0, 0] - mean[:, None] * mean)
    largest = axes.abs().argmax(0)
    signs = axes[largest, torch.arange(3)].sign()  # an axis has no sign of its own
    found: Tensor = (axes * signs * variances).T.float()
    return found


def augment(
    pictures: Tensor,
    size: int,
    settings: Augmentation,
    draws: Tensor,
    axes: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Pictures cropped, mirrored and recolored at random: (B, 3, size, size) float32 in [0, 1].

    Values outside [0, 1] are clipped.

    Args:
        pictures: (B, 3, H, W) uint8.
        size: Side of the result, in pixels.
        settings: Ranges of the changes.
        draws: (B, DRAWS) uniform in [0, 1): area, aspect, left, top, flip, gain and, for `color`,
            three shifts of each picture.
        axes: (3, 3) from `color_axes`, for `color`.
        dtype: Of the resampling. In bfloat16, which holds the 256 values of a pixel, it takes half
            the time; it suits a net whose first layer reads the result in bfloat16.
    """
    u = draws.to(pictures.device)
    if settings.whole_pixels:
        x = _cropped(pictures, size, settings, u)
    else:
        x = _resampled(pictures, size, settings, u, dtype).float()
    gain = (1 + settings.brightness * (2 * u[:, 5] - 1)) / 255
    x *= gain[:, None, None, None]
    if settings.color and axes is not None:
        normal = torch.erfinv((2 * u[:, 6:9] - 1).clamp(-1 + 1e-6)) * 2**0.5  # (B, 3)
        x += (settings.color * normal @ axes)[:, :, None, None]
    return x.clamp_(0.0, 1.0)


def _cropped(pictures: Tensor, size: int, settings: Augmentation, u: Tensor) -> Tensor:
    """Crops of (size, size) at whole pixels, some of them mirrored."""
    height, width = pictures.shape[-2:]
    places = torch.arange(size, device=u.device)
    across = torch.where((u[:, 4] < 0.5)[:, None], places.flip(0), places)  # (B, size)
    across = across if settings.flip else places.expand(len(u), size)
    left = (u[:, 2] * (width - size + 1)).long()
    top = (u[:, 3] * (height - size + 1)).long()
    rows = top[:, None, None] + places[:, None]  # (B, size, 1)
    columns = (left[:, None] + across)[:, None]  # (B, 1, size)
    which = torch.arange(len(u), device=u.device)[:, None, None]
    return pictures.movedim(1, 3)[which, rows, columns].movedim(3, 1).float()


def _resampled(
    pictures: Tensor, size: int, settings: Augmentation, u: Tensor, dtype: torch.dtype
) -> Tensor:
    """Crops of any size resized to (size, size), some of them mirrored.

    Crop and flip are separable, so a picture X becomes R X C^T with its own row and column matrices
    R (size, H) and C (size, W). Their weights are a triangle, as wide as the reduction: bilinear,
    antialiased where the crop is made smaller.
    """
    height, width = pictures.shape[-2:]
    low, high = settings.area
    side = (low + (high - low) * u[:, 0]).sqrt()
    stretch = torch.exp(settings.aspect * (u[:, 1] - 0.5))
    wide = (side * stretch).clamp(max=1.0) * width
    tall = (side / stretch).clamp(max=1.0) * height
    left, top = u[:, 2] * (width - wide), u[:, 3] * (height - tall)
    columns = _resampling(left, wide, width, size)  # (B, size, W)
    if settings.flip:
        columns = torch.where((u[:, 4] < 0.5)[:, None, None], columns.flip(1), columns)
    rows = _resampling(top, tall, height, size)  # (B, size, H)
    across = columns.transpose(1, 2)[:, None].to(dtype)
    x = torch.matmul(pictures.to(dtype), across)  # (B, 3, H, size)
    return torch.matmul(rows[:, None].to(dtype), x)


def _resampling(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """(B, size, pixels): weights that resample [start, start + length) to `size` values."""
    step = length / size
    places = torch.arange(size, device=start.device) + 0.5
    centers = start[:, None] + places * step[:, None]  # (B, size), in pixels
    pixel = torch.arange(pixels, device=start.device) + 0.5
    away = (centers[:, :, None] - pixel).abs() / step.clamp(min=1.0)[:, None, None]
    weights = (1 - away).clamp_(min=0)
    return weights / weights.sum(2, keepdim=True)
