"""One picture of any kind that a program has: a tensor, an array, a pillow image, a path, bytes.

Comes in: the picture. Goes out: a float tensor (C, H, W) in [0, 1], or a pillow image where it is
one; `fitted` makes of either what a model takes. Values that are not 8 bits are not rounded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.pictures import decoding, images
from featviz.pictures.decoding import Prepared
from featviz.pictures.preprocessing import Preprocessing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

CHANNELS = tuple(images.MODES)
"""by which the channels of a picture are recognized in its shape"""


class Denormalize(NamedTuple):
    """The inverse of a normalization."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: tuple[Sequence[float], Sequence[float]] | None) -> Denormalize | None:
        if values is None:
            return None
        try:
            mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in values)
        except (TypeError, ValueError):
            mean, std = torch.empty(0), torch.empty(1)
        if mean.shape != std.shape or not bool((std > 0).all()):
            raise UserError(
                f"denormalize {values!r}: give (mean, std), each with one value a channel, std "
                "above 0"
            )
        return cls(mean, std)

    def __call__(self, picture: Tensor, name: str) -> Tensor:
        if len(picture) != len(self.mean):
            raise UserError(
                f"{name} has {len(picture)} channels, denormalize has values for {len(self.mean)}"
            )
        plain = picture.double() * self.std + self.mean
        # What was 8 bits before the normalization is so again, without its rounding.
        whole = (plain * 255).round()
        if bool(((plain * 255 - whole).abs() < 1e-3).all()):
            return whole.float().div_(255)
        return plain.float()


def read_value(value: Any, name: str, undo: Denormalize | None) -> Tensor | Image.Image:
    """A picture as a float tensor (C, H, W) in [0, 1] or a pillow image. Raises UserError."""
    from PIL import Image

    if isinstance(value, str | Path):
        return images.open_image(value)
    if isinstance(value, bytes):
        return images.open_image(io.BytesIO(value), name=name)
    if isinstance(value, Image.Image) and value.mode != "F":
        return value
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    if not isinstance(value, Tensor | np.ndarray):
        raise UserError(
            f"{name} is {type(value).__name__}, no picture; give tensors, arrays, pillow images or "
            "paths"
        )
    found = _unit_range(_channels_first(value, name), name)
    if undo is not None:
        found = undo(found, name)
    low, high = float(found.min()), float(found.max())
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise UserError(f"{name} {_outside(low, high)}")
    return found


def _outside(low: float, high: float) -> str:
    if math.isnan(low):
        return "has NaN among its values; mend them, or leave the picture out"
    reach = f"has values from {low:.3g} to {high:.3g}, pictures lie in [0, 1]"
    if low >= 0 and 1 < high <= 255:
        return f"{reach}; divide by 255, or give uint8"
    return (
        f"{reach}; if it was normalized, give the data without that, or "
        "featviz.as_pictures(data, denormalize=(mean, std))"
    )


def _channels_first(value: Tensor | NDArray[Any], name: str) -> Tensor:
    """(C, H, W) of any tensor or array of a picture. Raises UserError."""
    shape = tuple(value.shape)
    if isinstance(value, Tensor):
        found = value.detach().cpu()
    else:
        if value.dtype == np.uint16:
            value = value.astype(np.float64) / 65535
        found = torch.from_numpy(np.array(value, order="C"))
        if found.dim() == 3 and (shape[-1] in CHANNELS or shape[0] not in CHANNELS):
            found = found.permute(2, 0, 1)
    if found.dim() == 2:
        found = found[None]
    if found.dim() != 3 or not found.numel():
        raise UserError(f"{name} has shape {shape}; a picture has (C, H, W), an array (H, W, C)")
    if isinstance(value, Tensor) and shape[0] not in CHANNELS and shape[-1] in CHANNELS:
        raise UserError(f"{name} has shape {shape}; tensors are (C, H, W): permute(2, 0, 1)")
    return found


def _unit_range(found: Tensor, name: str) -> Tensor:
    """Integers scaled to [0, 1], floats as float32. Raises UserError."""
    if found.dtype == torch.uint8:
        return found.float().div_(255)
    if found.dtype == torch.bool or found.is_floating_point():
        return found.float()
    raise UserError(
        f"{name} has values of type {str(found.dtype).removeprefix('torch.')}; give uint8 (0 to "
        "255) or floats in [0, 1]"
    )


def eight_bits(picture: Tensor) -> Image.Image | None:
    """A float picture as the pillow image that it came from; None if it is not 8 bits."""
    whole = images.to_uint8(picture)
    if len(picture) not in images.MODES or not torch.equal(whole.float().div_(255), picture):
        return None
    return images.to_pillow(picture)


def fitted(picture: Tensor | Image.Image, preprocessing: Preprocessing, name: str) -> Prepared:
    """A picture as a model takes it, and how large it was. Raises UserError."""
    from PIL import ImageOps

    wanted = preprocessing.channels
    if isinstance(picture, Tensor):
        size = (picture.shape[2], picture.shape[1])
        if picture.shape == (wanted, *preprocessing.size):
            return Prepared(picture, size)
        image = eight_bits(picture) if wanted in images.MODES else None
        if image is None:
            return Prepared(_resized(_with_channels(picture, wanted, name), preprocessing), size)
        picture = image
    upright = ImageOps.exif_transpose(picture)
    image = images.converted(upright, images.file_channels(preprocessing))
    return decoding.prepared(image, preprocessing)


def _with_channels(picture: Tensor, wanted: int, name: str) -> Tensor:
    """As `images.converted`, for floats. Raises UserError."""
    count = len(picture)
    if count == wanted:
        return picture
    if count in images.MODES and wanted in {1, 3}:
        rgb = images.visible(picture)
        # The weights of pillow's "L": ITU-R 601-2.
        weights = rgb.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        return rgb if wanted == 3 else (rgb * weights).sum(0, keepdim=True)
    raise UserError(
        f"{name} has {count} channels, the model takes {wanted}; give pictures of the model's "
        "channels"
    )


def _resized(picture: Tensor, preprocessing: Preprocessing) -> Tensor:
    """As `images.fit`, for floats, without rounding to 8 bits."""
    from PIL import Image

    if picture.shape[1:] == preprocessing.size:
        return picture
    fitted = [images.fit(Image.fromarray(channel.numpy()), preprocessing) for channel in picture]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in fitted])).clamp_(0, 1)


def value_bytes(picture: Tensor | Image.Image) -> bytes:
    """The values of a picture."""
    return picture.numpy().tobytes() if isinstance(picture, Tensor) else picture.tobytes()
