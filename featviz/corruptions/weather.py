"""Weather: snow, ice on the lens, fog, too much light; and drops and mud on the lens.

Pictures (N, 3, H, W) in [0, 1] come in, and one random stream a picture; the same shape goes out,
clipped to [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from featviz.corruptions import draws
from featviz.corruptions.blur import smooth, streaked
from featviz.corruptions.draws import Streams
from featviz.corruptions.frost import ice
from featviz.pictures.resampling import magnified

Plane = NDArray[np.float64]
"""(H, W)"""

GRAY = (0.299, 0.587, 0.114)
"""shares of red, green and blue in the gray of a color"""
_WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
_MUD = (63 / 255, 42 / 255, 20 / 255)
_BOX = np.ones((3, 3))
_EMBOSS = np.array([(-2, -1, 0), (-1, 1, 1), (0, 1, 2)], np.float64)
_SOBEL = np.array([(-1, -2, -1), (0, 0, 0), (1, 2, 1)], np.float64)
_KNIGHT = 2.1969
_MOVES = np.array(
    [
        (0, _KNIGHT, 0, _KNIGHT, 0),
        (_KNIGHT, 1.4, 1, 1.4, _KNIGHT),
        (0, 1, 0, 1, 0),
        (_KNIGHT, 1.4, 1, 1.4, _KNIGHT),
        (0, _KNIGHT, 0, _KNIGHT, 0),
    ]
)
"""length of each move to a pixel nearby; 0 where there is none"""


def snow(
    pictures: Tensor,
    streams: Streams,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """Flakes that fall in streaks, over a picture turned pale.

    The flakes are noise above a threshold, zoomed to their size and streaked downwards; they are
    laid over the picture as they are and once more upside down.
    """
    flakes = mean + deviation * draws.normal(streams, (1, *pictures.shape[-2:]), pictures)
    flakes = magnified(flakes, size)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    angles = draws.uniform(streams, (), -135, -45)
    flakes = streaked(torch.floor(flakes * 255) / 255, radius, sigma, angles)
    weights = pictures.new_tensor(GRAY).view(1, 3, 1, 1)
    gray = (weights * pictures).sum(1, keepdim=True)
    pale = torch.maximum(pictures, 1.5 * gray + 0.5)
    ground = share * pictures + (1 - share) * pale
    return (ground + flakes + flakes.flip(2, 3)).clamp(0, 1)


def frost(pictures: Tensor, streams: Streams, picture_share: float, ice_share: float) -> Tensor:
    """The picture, dimmed, under a piece of ice cut at random from one of five plates."""
    layer = ice(streams, *pictures.shape[-2:]).to(pictures)
    return (picture_share * pictures + ice_share * layer).clamp(0, 1)


def fog(pictures: Tensor, streams: Streams, amount: float, decay: float) -> Tensor:
    """Clouds laid over the picture, dimmed so that its brightest value stays in range."""
    height, width = pictures.shape[-2:]
    brightest = pictures.amax((1, 2, 3), keepdim=True)
    clouds = plasma(streams, max(height, width), decay)[:, None, :height, :width].to(pictures)
    return ((pictures + amount * clouds) * brightest / (brightest + amount)).clamp(0, 1)


def plasma(streams: Streams, side: int, decay: float) -> Tensor:
    """Cloud maps (N, side, side) float64, from a map of 0 to 1 whose side is a power of two.

    Diamond and square in turn, on a torus: the middle of each square, then of each diamond,
    is the mean of its four neighbors plus a uniform deviate. Its size falls by decay squared at
    each halving (amplitude and range both fall by decay in the benchmark's script).
    """
    size = 1 << (side - 1).bit_length()
    clouds = torch.zeros(len(streams), size, size, dtype=torch.float64)
    step, width = size, 100.0
    while step >= 2:
        half, count = step // 2, size // step
        bound = width * width

        def jitter(cells: int = count, most: float = bound) -> Tensor:
            return draws.uniform(streams, (cells, cells), -most, most)

        corner = clouds[:, ::step, ::step]
        below, beside = corner.roll(-1, 1), corner.roll(-1, 2)
        middle = (corner + below + beside + below.roll(-1, 2)) / 4 + jitter()
        clouds[:, half::step, half::step] = middle
        clouds[:, ::step, half::step] = (
            middle + middle.roll(1, 1) + corner + beside
        ) / 4 + jitter()
        clouds[:, half::step, ::step] = (middle + middle.roll(1, 2) + corner + below) / 4 + jitter()
        step, width = half, width / decay
    clouds -= clouds.amin((1, 2), keepdim=True)
    clouds /= clouds.amax((1, 2), keepdim=True)
    return clouds[:, :side, :side]


def brightness(pictures: Tensor, streams: Streams, added: float) -> Tensor:
    """The value of hue, saturation and value goes up; hue and saturation stay."""
    value = pictures.amax(1, keepdim=True)
    bright = (value + added).clamp(0, 1)
    scaled = pictures * (bright / value.clamp(min=1e-12))
    return torch.where(value > 0, scaled, bright.expand_as(pictures)).clamp(0, 1)


def spatter(
    pictures: Tensor,
    streams: Streams,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: float,
) -> Tensor:
    """Drops of water, or of mud, on the lens."""
    liquid = mean + deviation * draws.normal(streams, (1, *pictures.shape[-2:]), pictures)
    liquid = smooth(liquid, sigma)
    liquid = torch.where(liquid < threshold, 0, liquid)
    if mud:
        cover = smooth((liquid > threshold).to(pictures.dtype), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        color = pictures.new_tensor(_MUD).view(1, 3, 1, 1)
        return (pictures * (1 - cover) + cover * color).clamp(0, 1)
    drops = [torch.from_numpy(_drops(layer[0].double().cpu().numpy())) for layer in liquid]
    color = pictures.new_tensor(_WATER).view(1, 3, 1, 1)
    return (pictures + strength * torch.stack(drops)[:, None].to(pictures) * color).clamp(0, 1)


def _drops(liquid: Plane) -> Plane:
    """How much water shines at each place, (H, W) in [0, 1].

    Drops are lit from one side: the distance from their rims, equalized, is embossed.
    """
    levels = np.floor(liquid * 255) % 256
    near = np.floor(_correlate(rim_distance(edges(levels, 50, 150), most=20.0), _BOX) / 9)
    lit = _correlate(equalized(near), _EMBOSS).clip(0, 255)
    shine: Plane = levels * np.rint(_correlate(lit, _BOX) / 9)
    shine /= max(shine.max(), 1e-300)
    return shine


def _correlate(plane: Plane, kernel: Plane, border: str = "mirror") -> Plane:
    found: Plane = ndimage.correlate(plane, kernel, mode=border)
    return found


def edges(levels: Plane, low: float, high: float) -> NDArray[np.bool_]:
    """Canny's edges of (H, W) levels 0 to 255: ridges of the Sobel gradient (its L1 norm).

    A ridge is kept where it exceeds `high`, or `low` in touch with a kept one.
    """
    down = _correlate(levels, _SOBEL, "nearest")
    right = _correlate(levels, _SOBEL.T, "nearest")
    size = abs(down) + abs(right)
    padded = np.pad(size, 1)

    def beside(dy: int, dx: int) -> Plane:
        height, width = size.shape
        return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    ridge = np.select(
        [
            abs(down) < math.tan(math.pi / 8) * abs(right),
            abs(down) > math.tan(3 * math.pi / 8) * abs(right),
            down * right >= 0,  # the gradient points down and to the right, or the opposite way
        ],
        [
            (size > beside(0, -1)) & (size >= beside(0, 1)),
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            (size > beside(-1, -1)) & (size > beside(1, 1)),
        ],
        (size > beside(-1, 1)) & (size > beside(1, -1)),
    )
    found: NDArray[np.bool_] = ndimage.binary_propagation(
        ridge & (size > high), np.ones((3, 3)), mask=ridge & (size > low)
    )
    return found


def rim_distance(rim: NDArray[np.bool_], most: float) -> Plane:
    """Distance of each pixel to the nearest one of `rim` (H, W), `most` where it is farther.

    Along king's and knight's moves of length 1, 1.4 and 2.1969, as OpenCV measures it: within a
    few percent of the Euclidean distance.
    """
    distance = np.where(rim, 0.0, most)
    while True:
        moved = ndimage.grey_erosion(
            distance, footprint=_MOVES > 0, structure=-_MOVES, mode="constant", cval=most
        )
        shorter = np.minimum(distance, moved)
        if (shorter == distance).all():
            return distance
        distance = shorter


def equalized(levels: Plane) -> Plane:
    """Levels 0 to 255 spread so that all occur about equally often."""
    rows = levels.astype(np.int64)
    counts = np.bincount(rows.ravel(), minlength=256)
    lowest = np.flatnonzero(counts)[0]
    others = levels.size - counts[lowest]
    if others == 0:
        return levels
    table = np.rint((counts.cumsum() - counts[lowest]) * 255 / others).clip(0, 255)
    table[lowest] = 0
    found: Plane = table[rows]
    return found
