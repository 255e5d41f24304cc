"""`corrupt`: one corruption at one severity, on a batch of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import projections
from featviz.corruptions import blur, digital, draws, noise, weather
from featviz.corruptions.constants import settings
from featviz.errors import UserError, public
from featviz.pictures import images
from featviz.types import Seed
from featviz.wording import not_one_each

_SMALLEST = 8  # pixels; below, kernels and flakes are larger than the picture
_OF_COLOR = ("snow", "frost", "brightness", "jpeg_compression", "spatter", "saturate")
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


def check_shape(shape: tuple[int, ...], names: Iterable[str], *, jpeg: bool = False) -> None:
    """Raise UserError unless the corruptions are defined for pictures (C, H, W).

    All are for gray and RGB pictures; those of color, and files of JPEG, for no other channels.
    """
    if len(shape) != 3:
        return
    channels, height, width = shape
    if min(height, width) < _SMALLEST:
        raise UserError(
            f"corruptions take pictures of {_SMALLEST} pixels or more, not of {height} x {width}"
        )
    if channels in {1, 3}:
        return
    for name in names:
        if name in _OF_COLOR:
            raise UserError(
                f"{name} takes gray or RGB pictures, not of {channels} channels; leave it out"
            )
    if jpeg:
        raise UserError(f"a JPEG has 1 or 3 channels, not {channels}; give jpeg=False (--no-jpeg)")


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
    """The pictures under one corruption of ImageNet-C, (N, C, H, W) in [0, 1].

    At 224 and 64 pixels the constants are those of ImageNet-C and Tiny ImageNet-C; at other sides
    see `settings`; of pictures that are not square the shorter side counts. Frost uses drawn ice in
    place of the benchmark's photographs.

    Noise, blur, fog, contrast, elastic_transform and pixelate take any channels. The others are
    defined for RGB: a gray picture goes through them as three equal channels, and comes back as the
    gray of their outcome.

    Args:
        pictures: (N, C, H, W) float in [0, 1], of 8 pixels a side or more.
        name: One of `CORRUPTIONS` or `EXTRA`.
        severity: 1 to 5, or 0 for the pictures as they are.
        seed: Of noise, flakes, angles; the same at all severities.
        keys: One integer per picture, which seeds its random numbers. Default: made from the
            picture's own values, so that its order and its batch do not matter.
        jpeg: Finally cut to 8 bits and save as JPEG of quality 85, as the published pictures were;
            of gray and RGB pictures.

    Raises:
        UserError: The name, the severity or the shape is not valid.
    """
    check_shape(tuple(pictures.shape[1:]), [name] if severity else [], jpeg=jpeg)
    plain = pictures = images.check_pictures(pictures, channels=None, empty=True)
    if keys is not None and len(keys) != len(pictures):
        raise UserError(not_one_each(len(keys), "key", len(pictures)))
    constants = settings(name, severity or 1, min(pictures.shape[-2:]))
    with torch.inference_mode(False), torch.no_grad():
        if len(plain) and severity:
            if keys is None:
                keys = [projections.picture_key(picture, seed) for picture in plain]
            else:
                keys = [_mixed(key, seed) for key in keys]
            gray = plain.shape[1] == 1 and name in _OF_COLOR
            given = plain.expand(-1, 3, -1, -1) if gray else plain
            plain = _BY_NAME[name](given, draws.streams(keys, name), *constants)
            plain = _gray(plain) if gray else plain
        if jpeg and len(plain):
            # The benchmark truncates to 8 bits; rounding errors must not change a whole level.
            whole = torch.floor(plain * 255 + 1e-3) / 255
            plain = images.through_jpeg(whole, _SAVED_QUALITY)
        return plain


def _gray(pictures: Tensor) -> Tensor:
    """(N, 1, H, W) of pictures (N, 3, H, W)."""
    shares = pictures.new_tensor(weather.GRAY).view(1, 3, 1, 1)
    return (shares * pictures).sum(1, keepdim=True).clamp(0, 1)


def _mixed(key: int, seed: int) -> int:
    return projections.generator(key, seed).initial_seed()
