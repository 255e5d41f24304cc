"""What devices and files do to pictures: little contrast, distortion, large pixels, compression.

Pictures (N, C, H, W) in [0, 1] come in; the same shape goes out, in [0, 1].
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from featviz.corruptions import draws
from featviz.corruptions.blur import smooth
from featviz.corruptions.draws import Streams
from featviz.pictures import images
from featviz.pictures.resampling import bilinear, pixel_grid


def contrast(pictures: Tensor, streams: Streams, factor: float) -> Tensor:
    """Every channel is drawn towards its mean."""
    means = pictures.mean((2, 3), keepdim=True)
    return ((pictures - means) * factor + means).clamp(0, 1)


def elastic(
    pictures: Tensor, streams: Streams, amplitude: float, sigma: float, shift: float
) -> Tensor:
    """Three points of the picture move at random, and then every pixel with its neighbours.

    Amplitude, sigma and shift are in pixels. First an affine map that takes the corners of a
    triangle to places up to `shift` away, then a smooth random displacement.
    """
    height, width = pictures.shape[-2:]
    moves = draws.uniform(streams, (3, 2), -shift, shift)
    middle, arm = torch.tensor([width // 2, height // 2]), float(min(height, width) // 3)
    triangle = middle + arm * torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64)
    # dst = A src + b through three points; looked up the other way round.
    corners = torch.cat([triangle, torch.ones(3, 1, dtype=torch.float64)], 1)
    back = torch.linalg.solve(
        torch.cat([triangle + moves, torch.ones(len(moves), 3, 1, dtype=torch.float64)], 2),
        corners.expand(len(moves), 3, 3),
    )[:, :, :2].to(pictures.device)  # (N, 3, 2): rows x, y, 1; columns x, y
    y, x = pixel_grid(height, width, pictures.device)
    at = torch.stack([x, y, torch.ones_like(x)], -1) @ back[:, None]  # (N, H, W, 2)
    turned = bilinear(pictures, at[..., 1], at[..., 0], border="reflect101")
    field = draws.uniform(streams, (2, height, width), -1, 1)
    if amplitude:
        field = amplitude * smooth(field, sigma, truncate=3.0, border="reflect")
    else:
        field.zero_()
    field = field.to(pictures.device)
    return bilinear(turned, y + field[:, 1], x + field[:, 0], border="reflect").clamp(0, 1)


def pixelate(pictures: Tensor, streams: Streams, share: float) -> Tensor:
    """Shrunk to a share of its sides and enlarged again, by pillow's box filter."""
    height, width = pictures.shape[-2:]
    small, box = (max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX
    blocks = []
    for plane in pictures.flatten(0, 1):
        image = images.to_pillow(plane[None]).resize(small, box).resize((width, height), box)
        blocks.append(images.from_pillow(image))
    return (torch.stack(blocks).double().mul(255).round() / 255).to(pictures).view_as(pictures)


def jpeg(pictures: Tensor, streams: Streams, quality: float) -> Tensor:
    """Saved as a JPEG and read again."""
    return images.through_jpeg(pictures, int(quality))


def saturate(pictures: Tensor, streams: Streams, factor: float, added: float) -> Tensor:
    """The saturation of hue, saturation and value changes; gray counts as red of saturation 0."""
    value = pictures.amax(1, keepdim=True)
    spread = value - pictures.amin(1, keepdim=True)
    old = spread / value.clamp(min=1e-12)
    new = (old * factor + added).clamp(0, 1)
    ratio = new / old.clamp(min=1e-12)
    colored = value - (value - pictures) * ratio
    red = torch.cat([value, value * (1 - new), value * (1 - new)], 1)
    return torch.where(spread > 0, colored, red).clamp(0, 1)
