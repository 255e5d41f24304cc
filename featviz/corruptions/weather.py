"""Weather: snow, ice on the lens, fog, too much light; and drops and mud on the lens.

Pictures (N, 3, S, S) in [0, 1] come in, and one random stream a picture; the same shape goes out,
clipped to [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featviz.corruptions import draws
from featviz.corruptions.blur import smooth, streaked
from featviz.corruptions.draws import Streams
from featviz.corruptions.frost import ice
from featviz.resampling import fold, magnified

_GREY = (0.299, 0.587, 0.114)
_WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
_MUD = (63 / 255, 42 / 255, 20 / 255)


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
    side = pictures.shape[-1]
    flakes = mean + deviation * draws.normal(streams, (1, side, side), pictures)
    flakes = magnified(flakes, size)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(0, 1)
    angles = draws.uniform(streams, (), -135, -45, torch.empty(0, dtype=torch.float64))
    flakes = streaked(torch.floor(flakes * 255) / 255, radius, sigma, angles)
    weights = pictures.new_tensor(_GREY).view(1, 3, 1, 1)
    grey = (weights * pictures).sum(1, keepdim=True)
    pale = torch.maximum(pictures, 1.5 * grey + 0.5)
    ground = share * pictures + (1 - share) * pale
    return (ground + flakes + flakes.flip(2, 3)).clamp(0, 1)


def frost(pictures: Tensor, streams: Streams, picture_share: float, ice_share: float) -> Tensor:
    """The picture, dimmed, under a piece of ice cut at random from one of five plates."""
    layer = ice(streams, pictures.shape[-1]).to(pictures.device, pictures.dtype)
    return (picture_share * pictures + ice_share * layer).clamp(0, 1)


def fog(pictures: Tensor, streams: Streams, amount: float, decay: float) -> Tensor:
    """Clouds laid over the picture, dimmed so that its brightest value stays in range."""
    side = pictures.shape[-1]
    brightest = pictures.amax((1, 2, 3), keepdim=True)
    clouds = plasma(streams, side, decay).to(pictures.device, pictures.dtype)[:, None]
    return ((pictures + amount * clouds) * brightest / (brightest + amount)).clamp(0, 1)


def plasma(streams: Streams, side: int, decay: float) -> Tensor:
    """Cloud maps (N, side, side) float64, from a map of 0 to 1 whose side is a power of two.

    Diamond and square in turn, on a torus: the middle of each square, then of each diamond,
    is the mean of its four neighbours plus a uniform deviate. Its size falls by decay squared at
    each halving (amplitude and range both fall by decay in the benchmark's script).
    """
    size = 1 << (side - 1).bit_length()
    like = torch.empty(0, dtype=torch.float64)
    clouds = torch.zeros(len(streams), size, size, dtype=torch.float64)
    step, width = size, 100.0
    while step >= 2:
        half, count = step // 2, size // step
        bound = width * width

        def jitter(cells: int = count, most: float = bound) -> Tensor:
            return draws.uniform(streams, (cells, cells), -most, most, like)

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
    side = pictures.shape[-1]
    liquid = mean + deviation * draws.normal(streams, (1, side, side), pictures)
    liquid = smooth(liquid, sigma)
    liquid = torch.where(liquid < threshold, 0, liquid)
    if mud:
        cover = smooth((liquid > threshold).to(pictures.dtype), strength)
        cover = torch.where(cover < 0.8, 0, cover)
        colour = pictures.new_tensor(_MUD).view(1, 3, 1, 1)
        return (pictures * (1 - cover) + cover * colour).clamp(0, 1)
    drops = torch.stack([_drops(layer[0]) for layer in liquid.cpu().double()])[:, None]
    drops = drops.to(pictures.device, pictures.dtype)
    colour = pictures.new_tensor(_WATER).view(1, 3, 1, 1)
    return (pictures + strength * drops * colour).clamp(0, 1)


def _drops(liquid: Tensor) -> Tensor:
    """How much water shines at each place, (S, S) float64 in [0, 1].

    Drops are lit from one side: the distance from their rims, evened out, is embossed.
    """
    levels = (liquid * 255).floor().remainder(256)
    near = rim_distance(edges(levels, 50, 150), most=20.0)
    near = torch.floor(_box3(near))
    lit = correlate(equalized(near), ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))).clamp(0, 255)
    shine = levels * torch.round(_box3(lit))
    return shine / shine.max().clamp(min=1e-300)


def correlate(
    plane: Tensor, kernel: tuple[tuple[float, ...], ...], border: str = "reflect101"
) -> Tensor:
    """(H, W) under a 3 x 3 kernel."""
    height, width = plane.shape
    rows = fold(torch.arange(-1, height + 1), height, border)
    columns = fold(torch.arange(-1, width + 1), width, border)
    padded = plane[rows][:, columns]
    total = torch.zeros_like(plane)
    for dy, row in enumerate(kernel):
        for dx, weight in enumerate(row):
            if weight:
                total += weight * padded[dy : dy + height, dx : dx + width]
    return total


def _box3(plane: Tensor) -> Tensor:
    return correlate(plane, ((1, 1, 1),) * 3) / 9


def edges(levels: Tensor, low: float, high: float) -> Tensor:
    """Canny's edges of (H, W) levels 0 to 255, bool: ridges of the Sobel gradient (its L1 norm).

    A ridge is kept where it exceeds `high`, or `low` in touch with a kept one.
    """
    down = correlate(levels, ((-1, -2, -1), (0, 0, 0), (1, 2, 1)), "edge")
    right = correlate(levels, ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)), "edge")
    size = down.abs() + right.abs()
    height, width = size.shape
    padded = nn.functional.pad(size, (1, 1, 1, 1))

    def beside(dy: int, dx: int) -> Tensor:
        return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    flat, steep = math.tan(math.pi / 8), math.tan(3 * math.pi / 8)
    level = down.abs() < flat * right.abs()
    upright = down.abs() > steep * right.abs()
    falling = down * right >= 0  # the gradient points down and to the right, or the opposite way
    ridge = torch.where(
        level,
        (size > beside(0, -1)) & (size >= beside(0, 1)),
        torch.where(
            upright,
            (size > beside(-1, 0)) & (size >= beside(1, 0)),
            torch.where(
                falling,
                (size > beside(-1, -1)) & (size > beside(1, 1)),
                (size > beside(-1, 1)) & (size > beside(1, -1)),
            ),
        ),
    )
    weak, kept = ridge & (size > low), ridge & (size > high)
    while True:
        touched = nn.functional.max_pool2d(kept[None].float(), 3, 1, 1)[0] > 0
        grown = weak & touched
        if torch.equal(grown, kept):
            return kept
        kept = grown


def rim_distance(rim: Tensor, most: float) -> Tensor:
    """Distance of each pixel to the nearest one of `rim` (H, W bool), `most` where it is farther.

    Along king's and knight's moves of length 1, 1.4 and 2.1969, as OpenCV measures it: within a
    few percent of the Euclidean distance.
    """
    distance = torch.where(rim, 0.0, most).double()
    moves = [
        (dy, dx, {1: 1.0, 2: 1.4, 5: 2.1969}[dy * dy + dx * dx])
        for dy in range(-2, 3)
        for dx in range(-2, 3)
        if dy * dy + dx * dx in {1, 2, 5}
    ]
    height, width = rim.shape
    while True:
        padded = nn.functional.pad(distance, (2, 2, 2, 2), value=most)
        shorter = distance
        for dy, dx, length in moves:
            neighbour = padded[2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width]
            shorter = torch.minimum(shorter, neighbour + length)
        if torch.equal(shorter, distance):
            return distance
        distance = shorter


def equalized(levels: Tensor) -> Tensor:
    """Levels 0 to 255 spread so that all occur about equally often."""
    counts = torch.bincount(levels.flatten().long(), minlength=256)
    lowest = int(counts.nonzero()[0])
    others = levels.numel() - int(counts[lowest])
    if others == 0:
        return levels
    above = counts.cumsum(0) - counts[lowest]
    table = (above.double() * 255 / others).round().clamp(0, 255)
    table[lowest] = 0
    return table[levels.long()]
