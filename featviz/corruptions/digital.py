"""What devices and files do to pictures: little contrast, distortion, large pixels, compression.

Pictures (N, 3, S, S) in [0, 1] come in; the same shape goes out, in [0, 1].
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from featviz import images
from featviz.corruptions import draws
from featviz.corruptions.blur import smooth
from featviz.corruptions.draws import Streams
from featviz.resampling import bilinear, pixel_grid

_WEIGHT_BITS = 22  # of pillow's weights


def contrast(pictures: Tensor, streams: Streams, factor: float) -> Tensor:
    """Every channel is drawn towards its mean."""
    means = torch.stack([picture.mean((1, 2), keepdim=True) for picture in pictures])
    return ((pictures - means) * factor + means).clamp(0, 1)


def elastic(
    pictures: Tensor, streams: Streams, amplitude: float, sigma: float, shift: float
) -> Tensor:
    """Three points of the picture move at random, and then every pixel with its neighbours.

    Amplitude, sigma and shift are in pixels. First an affine map that takes the corners of a
    triangle to places up to `shift` away, then a smooth random displacement.
    """
    side = pictures.shape[-1]
    like = torch.empty(0, dtype=torch.float64)
    moves = draws.uniform(streams, (3, 2), -shift, shift, like)
    middle, arm = float(side // 2), float(side // 3)
    triangle = torch.tensor(
        [[middle + arm, middle + arm], [middle + arm, middle - arm], [middle - arm, middle - arm]],
        dtype=torch.float64,
    )
    # dst = A src + b through three points; looked up the other way round.
    corners = torch.cat([triangle, torch.ones(3, 1, dtype=torch.float64)], 1)
    back = torch.linalg.solve(
        torch.cat([triangle + moves, torch.ones(len(moves), 3, 1, dtype=torch.float64)], 2),
        corners.expand(len(moves), 3, 3),
    )[:, :, :2].to(pictures.device)  # (N, 3, 2): rows x, y, 1; columns x, y
    y, x = pixel_grid(side, pictures.device)
    from_x = back[:, 0, 0, None, None] * x + back[:, 1, 0, None, None] * y
    from_y = back[:, 0, 1, None, None] * x + back[:, 1, 1, None, None] * y
    turned = bilinear(
        pictures,
        from_y + back[:, 2, 1, None, None],
        from_x + back[:, 2, 0, None, None],
        border="reflect101",
    )
    field = draws.uniform(streams, (2, side, side), -1, 1, like)
    if amplitude:
        field = amplitude * smooth(field, sigma, truncate=3.0, border="reflect")
    else:
        field = torch.zeros_like(field)
    field = field.to(pictures.device)
    return bilinear(turned, y + field[:, 1], x + field[:, 0], border="reflect").clamp(0, 1)


@lru_cache(maxsize=64)
def box_weights(size: int, wanted: int) -> Tensor:
    """(wanted, size) whole numbers in float64: how pillow's box filter weighs a line's pixels.

    A new pixel is the plain mean of the old ones whose centres it holds.
    """
    scale = size / wanted
    support = 0.5 * max(scale, 1.0)
    matrix = torch.zeros(wanted, size, dtype=torch.float64)
    for i in range(wanted):
        centre = (i + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(size, int(centre + support + 0.5))
        held = [j for j in range(first, last) if -0.5 < (j - centre + 0.5) / max(scale, 1.0) <= 0.5]
        matrix[i, held] = float(int(0.5 + 2**_WEIGHT_BITS / len(held)))
    return matrix


def _resized(levels: Tensor, wanted: int) -> Tensor:
    """Whole levels (C, H, W) float64 at another size, exactly as pillow's BOX rounds them."""
    weights = box_weights(levels.shape[-1], wanted).to(levels.device)
    half, one = 2 ** (_WEIGHT_BITS - 1), 2**_WEIGHT_BITS
    wide = torch.floor((levels @ weights.T + half) / one).clamp(0, 255)
    return torch.floor((weights @ wide + half) / one).clamp(0, 255)


def pixelate(pictures: Tensor, streams: Streams, share: float) -> Tensor:
    """Shrunk to a share of its side, and back."""
    side = pictures.shape[-1]
    small = max(1, int(side * share))
    levels = (pictures.double() * 255).round()
    blocks = [_resized(_resized(picture, small), side) for picture in levels]
    return (torch.stack(blocks) / 255).to(pictures.dtype)


def jpeg(pictures: Tensor, streams: Streams, quality: float) -> Tensor:
    """Saved as a JPEG and read again."""
    return images.through_jpeg(pictures, int(quality))


def saturate(pictures: Tensor, streams: Streams, factor: float, added: float) -> Tensor:
    """The saturation of hue, saturation and value changes; grey counts as a red of none."""
    value = pictures.amax(1, keepdim=True)
    spread = value - pictures.amin(1, keepdim=True)
    old = spread / value.clamp(min=1e-12)
    new = (old * factor + added).clamp(0, 1)
    ratio = new / old.clamp(min=1e-12)
    coloured = value - (value - pictures) * ratio
    red = torch.cat([value, value * (1 - new), value * (1 - new)], 1)
    return torch.where(spread > 0, coloured, red).clamp(0, 1)
