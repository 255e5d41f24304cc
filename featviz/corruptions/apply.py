"""`corrupt`: one corruption at one severity, on a batch of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from featviz import images
from featviz.arguments import Bounds
from featviz.attacks import projections
from featviz.corruptions import blur, digital, draws, noise, weather
from featviz.corruptions.constants import settings
from featviz.errors import UserError, public
from featviz.types import Seed

_SMALLEST = 8  # pixels; below, kernels and flakes are larger than the picture
_SAVED_QUALITY = 85

_BY_NAME: Mapping[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian,
    "shot_noise": noise.shot,
    "impulse_noise": noise.impulse,
    "defocus_blur": blur.defocus,
    "glass_blur": blur.glass,
    "motion_blur": blur.motion,
    "zoom_blur": blur.zoom,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg,
    "speckle_noise": noise.speckle,
    "gaussian_blur": blur.gaussian,
    "spatter": weather.spatter,
    "saturate": digital.saturate,
}


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise UserError unless pictures (C, H, W) are such as the corruptions are defined for."""
    if len(shape) == 3 and (shape[0] != 3 or shape[1] != shape[2] or shape[2] < _SMALLEST):
        raise UserError(
            f"corruptions take square RGB pictures of {_SMALLEST} pixels or more, not of "
            f"{shape[0]} channels and {shape[1]} x {shape[2]} pixels"
        )


@public
def corrupt(
    pictures: Tensor,
    name: str,
    severity: Annotated[int, Bounds(0, 5)],
    *,
    seed: Seed = 0,
    keys: Sequence[int] | None = None,
    jpeg: bool = False,
) -> Tensor:
    """The pictures under one corruption of ImageNet-C, (N, 3, S, S) in [0, 1].

    At 224 and 64 pixels the constants are those of ImageNet-C and Tiny ImageNet-C; at other sides
    see `settings`. Frost uses drawn ice in place of the benchmark's photographs.

    Args:
        pictures: (N, 3, S, S) float, square, in [0, 1].
        name: One of `CORRUPTIONS` or `EXTRA`.
        severity: 1 to 5, or 0 for the pictures as they are.
        seed: Of noise, flakes, angles; the same at all severities.
        keys: One integer per picture, which seeds its random numbers. Default: made from the
            picture's own values, so that its order and its batch do not matter.
        jpeg: Finally cut to 8 bits and save as JPEG of quality 85, as the published pictures were.

    Raises:
        UserError: The name, the severity or the shape is not valid.
    """
    check_shape(tuple(pictures.shape[1:]))
    plain = pictures = images.check_pictures(pictures, empty=True)
    side = pictures.shape[-1]
    if keys is not None and len(keys) != len(pictures):
        raise UserError(f"{len(keys)} keys for {len(pictures)} pictures; give one a picture")
    constants = settings(name, severity or 1, side)
    with torch.inference_mode(False), torch.no_grad():
        if len(plain) and severity:
            if keys is None:
                keys = [projections.picture_key(picture, seed) for picture in plain]
            else:
                keys = [_mixed(key, seed) for key in keys]
            plain = _BY_NAME[name](plain, draws.streams(keys, name), *constants)
        if jpeg and len(plain):
            # The benchmark truncates to 8 bits; rounding errors must not change a whole level.
            whole = torch.floor(plain * 255 + 1e-3) / 255
            plain = images.through_jpeg(whole, _SAVED_QUALITY)
        return plain


def _mixed(key: int, seed: int) -> int:
    return projections.generator(key, seed).initial_seed()
