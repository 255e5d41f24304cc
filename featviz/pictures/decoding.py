"""From a picture's file to the 8-bit pixels that a model takes: the one function that decodes.

Pillow is the reference. `decode` with decoder "exact" gives pillow's pixels; where
simplejpeg (extra `jpeg`) is installed it does the work for those kinds of JPEG on which it has just
shown, in this process, that its pixels are pillow's. "fast" decodes a JPEG at a fraction of its
size where a model needs no more; that changes the pixels a little, so it is an option.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

DECODERS = ("exact", "fast")


class Prepared(NamedTuple):
    """A picture at a model's size."""

    pixels: Tensor
    """(C, H, W) uint8, or float in [0, 1] for pictures that are not 8 bits"""
    size: tuple[int, int]
    """width and height that it had"""


def resolve(decoder: str) -> str:
    """The decoder as it is recorded: "exact", or "fast" with the library that does it.

    Raises UserError for an unknown one.
    """
    if decoder not in DECODERS:
        raise UserError(f"unknown decoder {decoder!r}; take {' or '.join(DECODERS)}")
    if decoder == "exact":
        return decoder
    return "fast (simplejpeg)" if has_simplejpeg() else "fast (pillow)"


def decode(
    content: bytes, preprocessing: Preprocessing, *, decoder: str = "exact", name: str = ""
) -> Prepared:
    """The picture in a file's bytes, resized and center-cropped.

    Args:
        content: The file.
        preprocessing: Size and channels.
        decoder: As `resolve` names it.
        name: For messages.

    Raises:
        BadPicture: The content is no picture.
        UserError: The decoder's library is missing, or files have no such channels.
    """
    if decoder == "fast (simplejpeg)" and not has_simplejpeg():
        raise UserError(
            "this store was begun with simplejpeg, which is not installed here: "
            "pip install 'featviz[jpeg]'"
        )
    channels = images.file_channels(preprocessing)
    kind, found = _kind(content) if channels == 3 else None, None
    if decoder == "exact":
        if kind in _trusted():
            found = _by_simplejpeg(content, preprocessing)
    elif kind is not None and decoder == "fast (simplejpeg)":
        found = _by_simplejpeg(content, preprocessing, fast=True)
    elif kind is not None:
        found = _drafted(content, preprocessing)
    if found is not None:
        return found
    # Pillow decides what can be read: it is tried on all that another decoder refuses.
    opened = images.open_image(io.BytesIO(content), channels=channels, name=name)
    return prepared(opened, preprocessing)


def prepared(image: Image.Image, preprocessing: Preprocessing) -> Prepared:
    """A pillow image of the model's channels at the model's size."""
    pixels = np.asarray(images.fit(image, preprocessing))
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., : preprocessing.channels]
    return Prepared(torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")), image.size)


def as_batch(pixels: Sequence[Tensor], device: torch.device | None = None) -> Tensor:
    """Pictures of one kind (`Prepared.pixels`) as (N, C, H, W) float32 in [0, 1], on a device.

    They go to a card as the bytes they are, without waiting for it.
    """
    stacked = torch.stack(list(pixels))
    if device is not None and device.type == "cuda":
        stacked = stacked.pin_memory().to(device, non_blocking=True)
    if stacked.dtype != torch.uint8:
        return stacked
    # Divided by a tensor: by a number, CUDA multiplies with its rounded inverse.
    return stacked.float().div_(torch.full((), 255.0, device=stacked.device))


def has_simplejpeg() -> bool:
    """Whether simplejpeg is installed, without importing it."""
    return importlib.util.find_spec("simplejpeg") is not None


def _by_simplejpeg(
    content: bytes, preprocessing: Preprocessing, *, fast: bool = False
) -> Prepared | None:
    """By simplejpeg; fast: at the smallest scale of the cosine transform that is large enough."""
    import simplejpeg
    from PIL import Image

    least = _least_sides(preprocessing)
    options = {"min_height": least[0], "min_width": least[1], "min_factor": 1}
    options |= {"fastdct": True, "fastupsample": True}
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        # Strict: what it merely warns of (a file cut short) is left to pillow.
        pixels = simplejpeg.decode_jpeg(content, "RGBX", **(options if fast else {}))
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        return None
    # Four bytes a pixel are what pillow works with, so it need not copy them.
    side = (pixels.shape[1], pixels.shape[0])
    image = Image.frombuffer("RGBX", side, pixels, "raw", "RGBX", 0, 1)
    return prepared(image, preprocessing)._replace(size=(width, height))


def _least_sides(preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width that a picture needs so that it is not enlarged."""
    resize = preprocessing.resize
    return (max(resize, *preprocessing.size),) * 2 if isinstance(resize, int) else resize


def _drafted(content: bytes, preprocessing: Preprocessing) -> Prepared | None:
    """The same by pillow's draft mode."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(content)) as image:
            size = image.size
            image.draft("RGB", _least_sides(preprocessing)[::-1])
            image.load()
            return prepared(image, preprocessing)._replace(size=size)
    except Exception:  # noqa: BLE001  not understood: left to pillow's usual way
        return None


def _kind(content: bytes) -> tuple[int, bool] | None:
    """(subsampling, progressive) of an upright JPEG in three colors; None for all others."""
    from PIL.JpegImagePlugin import JpegImageFile, get_sampling

    if not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        with images.quiet(), JpegImageFile(io.BytesIO(content)) as image:
            plain = image.mode == "RGB" and image.info.get("adobe_transform") != 0
            upright = image.getexif().get(images.ORIENTATION, 1) == 1
            if not plain or not upright or image.width * image.height > images.MAX_PIXELS:
                return None
            return get_sampling(image), "progressive" in image.info
    except Exception:  # noqa: BLE001  not understood: left to pillow's usual way
        return None


@cache
def _trusted() -> frozenset[tuple[int, bool]]:
    """The kinds of JPEG on which simplejpeg gives pillow's pixels, tried on noise of odd sizes."""
    if not has_simplejpeg():
        return frozenset()
    import simplejpeg
    from PIL import Image

    noise = np.random.default_rng(0)
    good = set()
    for code, progressive in itertools.product((0, 1, 2), (False, True)):
        same = True
        for height, width, quality in ((37, 51, 75), (64, 48, 92), (1, 17, 50), (130, 99, 30)):
            picture = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            # A ramp beside the noise: smooth places take other paths in the decoder.
            picture[:, width // 2 :] = np.arange(height)[:, None, None] % 256
            file = io.BytesIO()
            Image.fromarray(picture).save(
                file, "JPEG", quality=quality, subsampling=code, progressive=progressive
            )
            with Image.open(file) as image:
                expected = np.asarray(image.convert("RGB"))
            same &= np.array_equal(simplejpeg.decode_jpeg(file.getvalue(), "RGB"), expected)
        if same:
            good.add((code, progressive))
    return frozenset(good)
