"""From a picture's file to a model's square of 8-bit pixels: the one function that decodes.

Pillow is the reference. `decode_square` with decoder "exact" gives pillow's pixels; where
simplejpeg (extra `jpeg`) is installed it does the work for those kinds of JPEG on which it has just
shown, in this process, that its pixels are pillow's. "fast" decodes a JPEG at a fraction of its
size where a model needs no more; that changes the pixels a little, so it is an option.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz import images
from featviz.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

DECODERS = ("exact", "fast")
_ORIENTATION = 0x0112  # the EXIF tag that says how a picture is turned


class Prepared(NamedTuple):
    """A picture at a model's size."""

    pixels: Tensor
    """(3, S, S) uint8, or float in [0, 1] for pictures that are not 8 bits"""
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


def decode_square(
    content: bytes, resize: int, crop: int | None = None, *, decoder: str = "exact", name: str = ""
) -> Prepared:
    """The picture in a file's bytes: shorter side to `resize`, then a center crop.

    Args:
        content: The file.
        resize: Of the shorter side, in pixels.
        crop: Side of the crop. Default: `resize`.
        decoder: As `resolve` names it.
        name: For messages.

    Raises:
        BadPicture: The content is no picture.
        UserError: The decoder's library is missing.
    """
    if content.startswith(b"\xff\xd8\xff"):
        if decoder == "exact":
            found = _exact(content, resize, crop)
        elif decoder == "fast (simplejpeg)":
            found = _scaled(content, resize, crop)
        else:
            found = _drafted(content, resize, crop)
        if found is not None:
            return found
    # Pillow decides what can be read: it is tried on all that another decoder refuses.
    return prepared(images.open_rgb(io.BytesIO(content), name=name), resize, crop)


def prepared(image: Image.Image, resize: int, crop: int | None = None) -> Prepared:
    """A pillow RGB image at a model's size."""
    small = images.square(image, resize, crop)
    return Prepared(_planes(np.asarray(small)), image.size)


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3 or more) as (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1)))


def as_batch(pixels: Sequence[Tensor], device: torch.device | None = None) -> Tensor:
    """Pictures of one kind (`Prepared.pixels`) as (N, 3, S, S) float32 in [0, 1]."""
    stacked = torch.stack(list(pixels)).to(device or "cpu")
    return stacked if stacked.dtype != torch.uint8 else stacked.float().div_(255)


def has_simplejpeg() -> bool:
    """Whether simplejpeg is installed, without importing it."""
    return importlib.util.find_spec("simplejpeg") is not None


def _exact(content: bytes, resize: int, crop: int | None) -> Prepared | None:
    """By simplejpeg, if its pixels are pillow's; None leaves it to pillow."""
    kind = _kind(content)
    if kind is None or kind not in _trusted():
        return None
    return _by_simplejpeg(content, resize, crop)


def _scaled(content: bytes, resize: int, crop: int | None) -> Prepared | None:
    """At the smallest scale of the cosine transform that is large enough."""
    if not has_simplejpeg():
        raise UserError(
            "this store was begun with simplejpeg, which is not installed here: "
            "pip install 'featviz[jpeg]'"
        )
    kind = _kind(content)
    if kind is None:
        return None
    return _by_simplejpeg(
        content,
        resize,
        crop,
        min_height=resize,
        min_width=resize,
        min_factor=1,
        fastdct=True,
        fastupsample=True,
    )


def _drafted(content: bytes, resize: int, crop: int | None) -> Prepared | None:
    """The same by pillow's draft mode."""
    from PIL import Image

    kind = _kind_by_pillow(content)
    if kind is None:
        return None
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            if size[0] * size[1] > images.MAX_PIXELS:
                return None
            image.draft("RGB", (resize, resize))
            image.load()
            return Prepared(prepared(image, resize, crop).pixels, size)
    except (OSError, SyntaxError, ValueError):
        return None


def _by_simplejpeg(
    content: bytes, resize: int, crop: int | None, **options: Any
) -> Prepared | None:
    import simplejpeg
    from PIL import Image

    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    if height * width > images.MAX_PIXELS:
        return None
    try:
        # Strict: what it merely warns of (a file cut short) is left to pillow.
        pixels = simplejpeg.decode_jpeg(content, "RGBX", **options)
    except ValueError:
        return None
    # Four bytes a pixel are what pillow works with, so it need not copy them.
    side = (pixels.shape[1], pixels.shape[0])
    image = Image.frombuffer("RGBX", side, pixels, "raw", "RGBX", 0, 1)
    small = images.square(image, resize, crop)
    return Prepared(_planes(np.asarray(small)), (width, height))


def _kind(content: bytes) -> tuple[str, bool] | None:
    """(subsampling, progressive) of an upright three-color JPEG; None for all others."""
    import simplejpeg

    try:
        height, width, colors, subsampling = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    if colors != "YCbCr" or not height or not width or _turned(content):
        return None
    return subsampling, _progressive(content)


def _kind_by_pillow(content: bytes) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.mode if image.mode == "RGB" and not _turned(content) else None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        return None


def _turned(content: bytes) -> bool:
    """Whether EXIF says that the picture is to be turned or mirrored."""
    if b"Exif\0\0" not in content:
        return False
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return int(image.getexif().get(_ORIENTATION, 1)) != 1
    except (OSError, SyntaxError, ValueError, TypeError):
        return True  # not understood: left to pillow


def _progressive(content: bytes) -> bool:
    """Whether the frame's header is that of a progressive JPEG."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            return marker not in {0xC0, 0xC1}
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return True


@cache
def _trusted() -> frozenset[tuple[str, bool]]:
    """The kinds of JPEG on which simplejpeg gives pillow's pixels, tried on noise of odd sizes."""
    if not has_simplejpeg():
        return frozenset()
    import simplejpeg
    from PIL import Image

    noise = np.random.default_rng(0)
    good = set()
    for name, code in (("444", 0), ("422", 1), ("420", 2)):
        for progressive in (False, True):
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
                good.add((name, progressive))
    return frozenset(good)
