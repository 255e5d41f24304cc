"""The corruptions again, in float64 with numpy, scipy, colorsys and pillow: slow and plain.

A picture is (S, S, 3) in [0, 1]. Random numbers are arguments, so that both sides use the same.
"""

from __future__ import annotations

import colorsys
import heapq
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Array = NDArray[np.float64]


def gaussian_blur(x: Array, sigma: float) -> Array:
    out: Array = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)
    return out


def defocus(x: Array, radius: float, edge: float) -> Array:
    reach, soft = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    y, z = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (np.hypot(y, z) <= radius).astype(float)
    kernel /= kernel.sum()
    taps = np.array([math.exp(-(k * k) / (2 * edge * edge)) for k in range(-soft, soft + 1)])
    taps /= taps.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, taps, axis, mode="mirror")
    return np.stack(
        [ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)], -1
    ).clip(0, 1)


def glass(x: Array, sigma: float, jump: int, moves: list[NDArray[np.int64]]) -> Array:
    """`moves`: a (2, S, S) array a round. The exchange is written as in the benchmark."""
    side = len(x)
    small = (gaussian_blur(x, sigma).clip(0, 1) * 255).astype(np.uint8)
    for down, right in moves:
        for h in range(side - jump, jump, -1):
            for w in range(side - jump, jump, -1):
                i, j = h + down[h, w], w + right[h, w]
                small[h, w], small[i, j] = small[i, j], small[h, w]  # two views: no exchange
    return gaussian_blur(small / 255.0, sigma).clip(0, 1)


def streak(x: Array, radius: float, sigma: float, degrees: float) -> Array:
    """Pixel by pixel; any number of channels."""
    side, length = len(x), 2 * math.ceil(radius) + 1
    weights = [math.exp(-(i * i) / (2 * sigma * sigma)) for i in range(length)]
    turn = math.radians(degrees)
    out = np.zeros_like(x)
    for r in range(side):
        for c in range(side):
            for i, weight in enumerate(weights):
                row = r + math.ceil(i * math.sin(turn) - 0.5)
                column = c + math.ceil(i * math.cos(turn) - 0.5)
                out[r, c] += weight * x[min(max(row, 0), side - 1), min(max(column, 0), side - 1)]
    blurred: Array = np.rint((out / sum(weights)).clip(0, 1) * 255) / 255
    return blurred


def zoomed(x: Array, factor: float) -> Array:
    side = len(x)
    piece = math.ceil(side / factor)
    top = (side - piece) // 2
    large = ndimage.zoom(x[top : top + piece, top : top + piece], (factor, factor, 1), order=1)
    trim = (len(large) - side) // 2
    out: Array = large[trim : trim + side, trim : trim + side]
    return out


def zoom_blur(x: Array, factors: Array) -> Array:
    return ((x + sum(zoomed(x, f) for f in factors)) / (len(factors) + 1)).clip(0, 1)


def snow(
    x: Array,
    noise: Array,
    degrees: float,
    mean: float,
    deviation: float,
    size: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Array:
    flakes = zoomed((mean + deviation * noise)[..., None], size)
    flakes[flakes < threshold] = 0
    flakes = streak(np.floor(flakes.clip(0, 1) * 255) / 255, radius, sigma, degrees)
    grey = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    ground = share * x + (1 - share) * np.maximum(x, grey * 1.5 + 0.5)
    out: Array = (ground + flakes + np.rot90(flakes, 2)).clip(0, 1)
    return out


def plasma(draws: list[Array], size: int, decay: float) -> Array:
    """Point by point. `draws`: uniform in [-1, 1), three (n, n) arrays a level."""
    field = np.zeros((size, size))
    step, width, k = size, 100.0, 0
    while step >= 2:
        half = step // 2

        def at(row: int, column: int) -> float:
            return float(field[row % size, column % size])

        for kind in range(3):
            jitter = draws[k]
            k += 1
            for i in range(size // step):
                for j in range(size // step):
                    r, c = i * step, j * step
                    if kind == 0:
                        place = (r + half, c + half)
                        near = [at(r, c), at(r + step, c), at(r, c + step), at(r + step, c + step)]
                    elif kind == 1:
                        place = (r, c + half)
                        near = [
                            at(r, c),
                            at(r, c + step),
                            at(r + half, c + half),
                            at(r - half, c + half),
                        ]
                    else:
                        place = (r + half, c)
                        near = [
                            at(r, c),
                            at(r + step, c),
                            at(r + half, c + half),
                            at(r + half, c - half),
                        ]
                    field[place] = sum(near) / 4 + width * width * jitter[i, j]
        step, width = half, width / decay
    field -= field.min()
    out: Array = field / field.max()
    return out


def fog(x: Array, clouds: Array, amount: float) -> Array:
    brightest = x.max()
    side = len(x)
    out: Array = (
        (x + amount * clouds[:side, :side, None]) * brightest / (brightest + amount)
    ).clip(0, 1)
    return out


def brightness(x: Array, added: float) -> Array:
    def one(rgb: Array) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + added))

    return np.apply_along_axis(one, -1, x)


def saturate(x: Array, factor: float, added: float) -> Array:
    def one(rgb: Array) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor + added), value)

    return np.apply_along_axis(one, -1, x)


def contrast(x: Array, factor: float) -> Array:
    return np.stack(
        [(x[..., c] * factor + (1 - factor) * x[..., c].mean()).clip(0, 1) for c in range(3)], -1
    )


def elastic(x: Array, moves: Array, field: Array, amplitude: float, sigma: float) -> Array:
    """`moves`: (3, 2) of the triangle's corners, x then y; `field`: (2, S, S), x then y."""
    side = len(x)
    middle, arm = side // 2, side // 3
    corners = np.array(
        [[middle + arm, middle + arm], [middle + arm, middle - arm], [middle - arm, middle - arm]],
        dtype=float,
    )
    forward = np.linalg.solve(np.c_[corners, np.ones(3)], corners + moves).T  # 2 x 3
    linear = np.linalg.inv(forward[:, :2])
    y, z = np.mgrid[:side, :side].astype(float)
    sought = np.stack([z - forward[0, 2], y - forward[1, 2]])
    from_x, from_y = np.tensordot(linear, sought, 1)

    def looked_up(plane: Array, rows: Array, columns: Array, mode: str) -> Array:
        out: Array = ndimage.map_coordinates(plane, [rows, columns], order=1, mode=mode)
        return out

    turned = np.stack([looked_up(x[..., c], from_y, from_x, "mirror") for c in range(3)], -1)
    dx, dy = (
        amplitude * ndimage.gaussian_filter(f, sigma, mode="reflect", truncate=3.0) if sigma else 0
        for f in field
    )
    return np.stack(
        [looked_up(turned[..., c], y + dy, z + dx, "reflect") for c in range(3)], -1
    ).clip(0, 1)


def _pillow(x: Array) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


def pixelate(x: Array, share: float) -> Array:
    side = len(x)
    small = int(side * share)
    box = Image.Resampling.BOX
    return np.asarray(_pillow(x).resize((small, small), box).resize((side, side), box)) / 255.0


def jpeg(x: Array, quality: int) -> Array:
    buffer = io.BytesIO()
    _pillow(x).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)) / 255.0


def mud(
    x: Array,
    noise: Array,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
) -> Array:
    liquid = ndimage.gaussian_filter(mean + deviation * noise, sigma, mode="nearest")
    cover = ndimage.gaussian_filter((liquid > threshold) * 1.0, strength, mode="nearest")[..., None]
    cover[cover < 0.8] = 0
    out: Array = ((1 - cover) * x + cover * np.array([63, 42, 20]) / 255).clip(0, 1)
    return out


def water(
    x: Array,
    noise: Array,
    mean: float,
    deviation: float,
    sigma: float,
    threshold: float,
    strength: float,
) -> Array:
    liquid = ndimage.gaussian_filter(mean + deviation * noise, sigma, mode="nearest")
    liquid[liquid < threshold] = 0
    levels = np.floor(liquid * 255)
    near = chamfer(canny(levels, 50, 150), 20.0)
    near = np.floor(ndimage.uniform_filter(near, 3, mode="mirror") + 1e-9)
    even = equalized(near.astype(int))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=float)
    lit = ndimage.correlate(even, emboss, mode="mirror").clip(0, 255)
    shine = levels * np.rint(ndimage.uniform_filter(lit, 3, mode="mirror"))
    shine = shine / shine.max()
    out: Array = (x + strength * shine[..., None] * np.array([175, 238, 238]) / 255).clip(0, 1)
    return out


def canny(levels: Array, low: float, high: float) -> NDArray[np.bool_]:
    """Sobel, thinned across the gradient, weak ridges kept where a strong one touches them."""
    down = ndimage.sobel(levels, 0, mode="nearest")
    right = ndimage.sobel(levels, 1, mode="nearest")
    size = np.pad(np.abs(down) + np.abs(right), 1)
    height, width = levels.shape
    weak = np.zeros(levels.shape, dtype=bool)
    strong = np.zeros(levels.shape, dtype=bool)
    for r in range(height):
        for c in range(width):
            here = size[r + 1, c + 1]
            if here <= low:
                continue
            slope = math.degrees(math.atan2(abs(down[r, c]), abs(right[r, c])))
            if slope < 22.5:
                ridge = here > size[r + 1, c] and here >= size[r + 1, c + 2]
            elif slope > 67.5:
                ridge = here > size[r, c + 1] and here >= size[r + 2, c + 1]
            elif down[r, c] * right[r, c] >= 0:
                ridge = here > size[r, c] and here > size[r + 2, c + 2]
            else:
                ridge = here > size[r, c + 2] and here > size[r + 2, c]
            weak[r, c], strong[r, c] = ridge, ridge and here > high
    parts, _ = ndimage.label(weak, np.ones((3, 3)))
    kept = np.unique(parts[strong])
    return np.isin(parts, kept[kept > 0])


def chamfer(rim: NDArray[np.bool_], most: float) -> Array:
    """Shortest paths by Dijkstra over king's and knight's moves."""
    height, width = rim.shape
    distance = np.full(rim.shape, most)
    heap = [(0.0, int(r), int(c)) for r, c in np.argwhere(rim)]
    for _, r, c in heap:
        distance[r, c] = 0
    heapq.heapify(heap)
    while heap:
        so_far, r, c = heapq.heappop(heap)
        if so_far > distance[r, c]:
            continue
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                length = {1: 1.0, 2: 1.4, 5: 2.1969}.get(dy * dy + dx * dx)
                y, x = r + dy, c + dx
                if length is None or not (0 <= y < height and 0 <= x < width):
                    continue
                if so_far + length < distance[y, x]:
                    distance[y, x] = so_far + length
                    heapq.heappush(heap, (so_far + length, y, x))
    return distance


def equalized(levels: NDArray[np.int64]) -> Array:
    """Each level becomes 255 times the share of pixels up to it, those of the lowest aside."""
    lowest = levels.min()
    others = np.sort(levels[levels > lowest])
    if not len(others):
        return levels.astype(float)
    below = np.searchsorted(others, levels, side="right")
    return np.rint(255 * below / len(others))
