"""Pictures in and out of files: float32 RGB tensors in [0, 1], shape (3, H, W).

This is the one module that knows pillow. `open_rgb` copes with whatever a file may hold (EXIF
turning, CMYK, palettes, alpha, 16 bits, grey); all else starts from its result.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from featviz.errors import BadPicture, UserError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_000_000
"""Larger pictures are refused as decompression bombs (pillow's own hard limit is 178.9 million)."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})

# catch_warnings is not safe across threads, and pictures are opened by several.
_opening = threading.Lock()


def open_rgb(source: str | Path | BinaryIO, name: str | None = None) -> Image.Image:
    """The picture as an upright 8-bit RGB pillow image.

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits.

    Raises BadPicture if the file is absent, no picture, cut short or above MAX_PIXELS.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = name or str(source)
    try:
        with _opening, warnings.catch_warnings():
            # Large pictures and odd tags; what cannot be read raises all the same.
            warnings.simplefilter("ignore")
            opened = Image.open(source, formats=_formats(source))
        with opened:  # a refused picture's file must not stay open
            if opened.width * opened.height > MAX_PIXELS:
                raise BadPicture(_too_large(name, opened.width, opened.height))
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise BadPicture(f"{name}: no such file; check the path") from None
    except IsADirectoryError:
        raise BadPicture(f"{name} is a folder, a picture file is needed") from None
    except PermissionError:
        raise BadPicture(f"{name}: not allowed to read this file") from None
    except Image.DecompressionBombError:
        raise BadPicture(_too_large(name)) from None
    except UnidentifiedImageError:
        raise BadPicture(
            f"{name} is not a picture that can be read (whatever its name says)"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadPicture(
            f"{name} cannot be decoded ({error}); the file is damaged or cut short"
        ) from None


_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP", b"GIF8": "GIF"}


def _formats(source: str | Path | BinaryIO) -> list[str] | None:
    """What a file in memory can only be by its first bytes; pillow would try one after the other,
    which takes longer than decoding a small picture. None: try them all."""
    if not isinstance(source, io.BytesIO):
        return None
    with source.getbuffer() as content:
        start = bytes(content[:4])
    return next(([kind] for sign, kind in _SIGNATURES.items() if start.startswith(sign)), None)


def _too_large(name: str, width: int = 0, height: int = 0) -> str:
    size = f" ({width}x{height})" if width else ""
    limit = MAX_PIXELS // 1_000_000
    return f"{name}{size} has more than {limit} million pixels and is refused; shrink it first"


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode in {"I;16", "I;16B", "I;16L", "I;16N"}:
        return _grey16(np.asarray(image).astype(np.float64))
    if image.mode == "I":
        values = np.asarray(image)
        # Pillow gives some 16-bit PNGs as 32-bit integers; 8-bit ones never come this way.
        return _grey16(values.astype(np.float64))
    if image.mode == "F":
        raise ValueError("floating-point pictures have no fixed range")
    if "A" in image.getbands() or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey16(values: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.rint(values.clip(0, 65535) / 257).astype(np.uint8)).convert("RGB")


def read_image(source: str | Path | BinaryIO) -> Tensor:
    """The whole picture, (3, H, W) float32 in [0, 1]. Raises BadPicture."""
    return from_pillow(open_rgb(source))


def read_square(source: str | Path | BinaryIO, resize: int, crop: int | None = None) -> Tensor:
    """The picture as a model wants it: shorter side to `resize`, then the centre `crop`.

    Bilinear with antialiasing, as the standard evaluation preprocessing does it.
    Returns (3, crop, crop) float32 in [0, 1]. Raises BadPicture.
    """
    return from_pillow(square(open_rgb(source), resize, crop))


def square(image: Image.Image, resize: int, crop: int | None = None) -> Image.Image:
    """Shorter side to `resize` pixels, centre `crop` (default `resize`), in a single resampling.

    Equal to resizing the whole picture and cropping it afterwards, but never makes the whole
    enlarged picture: a strip of 1 x 20,000 pixels costs no more than a photograph.
    """
    from PIL import Image

    crop = crop or resize
    width, height = image.size
    short = min(width, height)
    box = []
    for side in (width, height):
        length = resize if side == short else int(resize * side / short)
        start = round((length - crop) / 2)
        box += [start * side / length, (start + crop) * side / length]
    left, right, top, bottom = box
    if left < 0 or top < 0 or right > width or bottom > height:
        raise UserError(f"cannot crop {crop} pixels from a picture resized to {resize}")
    return image.resize((crop, crop), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def from_pillow(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [0, 1] from a pillow RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)


def to_pillow(image: Tensor) -> Image.Image:
    """A pillow RGB image from (3, H, W) in [0, 1]; values are clipped and rounded to 8 bits."""
    from PIL import Image

    return Image.fromarray(to_uint8(image).permute(1, 2, 0).contiguous().numpy())


def to_uint8(images: Tensor) -> Tensor:
    """Values 0 to 255 as a PNG holds them, from floats in [0, 1] of any shape."""
    return images.detach().cpu().float().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def quantise(images: Tensor) -> Tensor:
    """What comes back when the pictures are saved with 8 bits and read again."""
    return to_uint8(images).to(images.device, torch.float32).div_(255)


def through_jpeg(images: Tensor, quality: int) -> Tensor:
    """What comes back when the pictures (N, 3, H, W) are saved as JPEG and read again.

    Pillow's own settings beside the quality (1 to 95), among them half the resolution for colour.
    """
    from PIL import Image

    read = []
    for image in images:
        buffer = io.BytesIO()
        to_pillow(image).save(buffer, format="JPEG", quality=quality)
        read.append(from_pillow(Image.open(buffer)))
    return torch.stack(read).to(images.device, images.dtype)


def write_png(image: Tensor, path: str | Path) -> None:
    """Save (3, H, W) in [0, 1] as a PNG, without loss beyond the rounding to 8 bits."""
    to_pillow(image).save(path, format="PNG", optimize=False)


def png_bytes(image: Tensor) -> bytes:
    """The PNG file of (3, H, W) in [0, 1]."""
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_film(frames: Sequence[Tensor], path: str | Path, seconds_per_frame: float = 0.12) -> None:
    """Save pictures of one size as an endless GIF; the last frame stands four times as long."""
    pages = [to_pillow(frame) for frame in frames]
    milliseconds = round(1000 * seconds_per_frame)
    durations = [milliseconds] * (len(pages) - 1) + [4 * milliseconds]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=durations, loop=0)


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Every pixel becomes a block of factor x factor: (..., H, W) to (..., fH, fW)."""
    return image.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def contact_sheet(
    images: Tensor, columns: int | None = None, *, gap: int = 2, background: float = 1.0
) -> Tensor:
    """Pictures side by side in reading order.

    images: (N, 3, H, W) in [0, 1]; columns: default makes the sheet about as wide as high;
    gap: pixels between and around pictures; background: grey value of the gaps.
    Returns (3, rows * (H + gap) + gap, columns * (W + gap) + gap).
    """
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = images.new_full(
        (channels, rows * (height + gap) + gap, columns * (width + gap) + gap), background
    )
    for i, image in enumerate(images):
        top = gap + (i // columns) * (height + gap)
        left = gap + (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def around_grey(values: Tensor, limit: Tensor | float | None = None) -> Tensor:
    """Signed values as pictures: 0 is grey (0.5), `limit` is 1 and -limit is 0.

    values: (..., 3, H, W); limit: default is the largest absolute value of each (3, H, W) alone,
    or one number for all. Returns the same shape, in [0, 1].
    """
    if limit is None:
        limit = values.abs().amax(dim=(-3, -2, -1), keepdim=True)
    scale = torch.as_tensor(limit, dtype=values.dtype, device=values.device)
    return (0.5 + 0.5 * values / scale.clamp(min=torch.finfo(values.dtype).tiny)).clamp(0, 1)


OUTSIDE = 0.82
"""Grey of what lies outside a picture, light enough not to be taken for part of it."""


def crop_box(picture: Tensor, box: tuple[int, int, int, int], grey: float = OUTSIDE) -> Tensor:
    """The pixels of (top, left, bottom, right) from (3, H, W), grey where it leaves the picture."""
    top, left, bottom, right = box
    _, height, width = picture.shape
    crop = picture.new_full((3, bottom - top, right - left), grey)
    t, le, b, r = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
    if t < b and le < r:
        crop[:, t - top : b - top, le - left : r - left] = picture[:, t:b, le:r]
    return crop
