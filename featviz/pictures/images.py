"""Pictures in and out of files: float32 tensors in [0, 1], shape (C, H, W), most of them RGB.

`open_image` reads whatever a file may hold (EXIF orientation, CMYK, palettes, alpha, 16 bits, gray)
with pillow. `check_pictures` is the check of all functions that take pictures.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from featviz.errors import BadPicture, UserError, public
from featviz.pictures.preprocessing import Preprocessing, Size

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_000_000
"""Larger pictures are refused as decompression bombs (pillow's own hard limit is 178.9 million)."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""pillow's modes by the number of channels"""

_LARGEST_RESIZED = 64
"""times the pixels of the crop: a picture larger than that is not resized as a whole"""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"})
SUFFIXES |= {".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
"""endings of pictures, in lower case"""

_ROUNDING = 1e-6
"""by which pictures that were computed may miss [0, 1]; they are brought back"""

ORIENTATION = 0x0112
"""the EXIF tag that says how a picture is turned"""

# catch_warnings is not safe across threads, and pictures are opened by several.
_opening = threading.Lock()


def check_pictures(
    pictures: Tensor, *, channels: int | None = 3, single: bool = False, empty: bool = False
) -> Tensor:
    """Pictures as a batch (N, C, H, W): a contiguous copy without history.

    Args:
        pictures: (N, C, H, W), floats in [0, 1].
        channels: C; None takes any.
        single: take one picture (C, H, W) as a batch of one.
        empty: take a batch of none.

    Raises:
        UserError: for another shape or type, values outside [0, 1] or NaN, and for no pictures.
    """
    batch = pictures[None] if single and pictures.dim() == 3 else pictures
    fits = batch.dim() == 4 and channels in {None, batch.shape[1]} and min(batch.shape[1:]) > 0
    if not fits or not batch.is_floating_point():
        raise UserError(
            f"pictures must be floats of shape (N, {channels or 'C'}, H, W), "
            f"got {tuple(pictures.shape)} of {pictures.dtype}"
        )
    if not (len(batch) or empty):
        raise UserError("there are no pictures; give at least one")
    with torch.inference_mode(False):
        plain = batch.detach().clone(memory_format=torch.contiguous_format)
    outside = ~((plain >= -_ROUNDING) & (plain <= 1 + _ROUNDING))  # of NaN, too
    if bool(outside.any()):
        raise UserError(
            f"pictures must lie in [0, 1], these reach from {float(plain.min()):.3g} to "
            f"{float(plain.max()):.3g}; give them as read (the model normalizes them itself)"
        )
    return plain.clamp_(0, 1)


def open_image(
    source: str | Path | BinaryIO, *, channels: int = 3, name: str | None = None
) -> Image.Image:
    """The picture as an upright 8-bit pillow image: gray, RGB or RGBA.

    EXIF orientation is applied, transparency is composited on white (but for RGBA), 16-bit gray is
    scaled to 8 bits.

    Args:
        source: a file or its bytes as a stream.
        channels: 1, 3 or 4.
        name: for messages; default `source`.

    Raises:
        BadPicture: if the file is absent, no picture, cut short or above MAX_PIXELS.
    """
    from PIL import Image, UnidentifiedImageError

    name = name or str(source)
    try:
        with quiet():
            opened = Image.open(source, formats=_formats(source))
        with opened:  # a refused picture's file must not stay open
            if opened.width * opened.height > MAX_PIXELS:
                raise BadPicture(_too_large(name, opened.width, opened.height))
            return converted(_upright(opened), channels)
    except FileNotFoundError:
        raise BadPicture(f"{name}: no such file; check the path") from None
    except IsADirectoryError:
        raise BadPicture(f"{name} is a folder, a picture file is needed") from None
    except PermissionError:
        raise BadPicture(f"{name}: not allowed to read this file") from None
    except Image.DecompressionBombError:
        raise BadPicture(_too_large(name)) from None
    except UnidentifiedImageError:
        raise BadPicture(f"{name} is {_what_it_is(source)}") from None
    except BadPicture:
        raise
    except Exception as error:  # noqa: BLE001  damaged files lead pillow to any of them
        why = str(error) or type(error).__name__
        raise BadPicture(
            f"{name} cannot be decoded ({why}); the file is damaged or cut short"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without pillow's warnings (large pictures, odd tags): what cannot be read raises anyway."""
    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(opened: Image.Image) -> Image.Image:
    """A picture, decoded and turned as its EXIF says; no other tag matters."""
    from PIL import Image

    turn = Image.Transpose
    turns = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM}
    turns |= {5: turn.TRANSPOSE, 6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90}
    # Only TIFF warns here; waiting for each other would make the other kinds slow.
    with quiet() if opened.format == "TIFF" else contextlib.nullcontext():
        opened.load()
    with quiet():
        orientation: Any = opened.getexif().get(ORIENTATION)
    return opened.transpose(turns[orientation]) if orientation in turns else opened


_SIGNATURES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP", b"GIF8": "GIF"}
_RARER = ("TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF")


def _start(source: str | Path | BinaryIO) -> bytes:
    """The first bytes of a file."""
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            return file.read(_READ)
    source.seek(0)
    start = source.read(_READ)
    source.seek(0)
    return start


_READ = 512


def _formats(source: str | Path | BinaryIO) -> list[str]:
    """What a file can be by its first bytes. Pillow would try one after the other, which takes
    longer than decoding a small picture, and would start other programs for some."""
    from PIL import Image

    start = _start(source)
    for sign, kind in _SIGNATURES.items():
        if start.startswith(sign):
            return [kind]
    Image.init()
    return [kind for kind in _RARER if kind in Image.OPEN]


_OTHERS = (
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"8BPS", "a Photoshop file"),
    (b"version https://git-lfs", "a pointer of git-lfs (git lfs pull gets the file)"),
)
_BOXES = {b"avif": "an AVIF picture", b"heic": "a HEIC picture", b"mif1": "a HEIC picture"}


def _what_it_is(source: str | Path | BinaryIO) -> str:
    """What a file is that pillow cannot read, and what to do."""
    start = _start(source)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = next((what for sign, what in _OTHERS if start.startswith(sign)), "")
    if not start.strip(b"\0"):
        return "not a picture that can be read: it is empty"
    if start[4:8] == b"ftyp":
        found = _BOXES.get(start[8:12], "a film, or a picture in a film's format")
    elif text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        found = "an SVG drawing"
    elif text.startswith((b"<!doctype html", b"<html")):
        found = "a web page"
    if found:
        return f"{found}, not a picture that can be read; save it as PNG or JPEG"
    return "not a picture that can be read (whatever its suffix)"


def _too_large(name: str, width: int = 0, height: int = 0) -> str:
    size = f" ({width}x{height})" if width else ""
    limit = MAX_PIXELS // 1_000_000
    return f"{name}{size} has more than {limit} million pixels and is refused; shrink it first"


def converted(image: Image.Image, channels: int) -> Image.Image:
    """A pillow image as gray (1 channel), RGB (3) or RGBA (4) of 8 bits."""
    if channels == 4 and _has_alpha(image):
        return image.convert("RGBA")
    rgb = _to_rgb(image)
    return rgb if channels == 3 else rgb.convert(MODES[channels])


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    # Pillow gives some 16-bit PNGs as 32-bit integers ("I"), but never 8-bit ones.
    if image.mode in {"I", "I;16", "I;16B", "I;16L", "I;16N"}:
        gray = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        return Image.fromarray(np.rint(gray).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pictures have no fixed range")
    if _has_alpha(image):
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@public
def read_image(source: str | Path | BinaryIO) -> Tensor:
    """A whole picture.

    Args:
        source: a file or its bytes as a stream.

    Returns:
        (3, H, W) float32 in [0, 1].

    Raises:
        BadPicture: for a file that cannot be read as a picture.
    """
    return from_pillow(open_image(source))


@public
def read_picture(source: str | Path | BinaryIO, preprocessing: Preprocessing) -> Tensor:
    """A picture resized and center-cropped as a model takes it.

    Args:
        source: a file or its bytes as a stream.
        preprocessing: of the model (`model.preprocessing`), or `Preprocessing.of(64)`.

    Returns:
        (C, height, width) float32 in [0, 1]; the model itself normalizes it.

    Raises:
        BadPicture: for a file that cannot be read as a picture.
        UserError: for channels that no file has.

    Example:
        model = featviz.load("alexnet")
        picture = featviz.read_picture("cat.jpg", model.preprocessing)
    """
    channels = file_channels(preprocessing)
    return from_pillow(fit(open_image(source, channels=channels), preprocessing))


def file_channels(preprocessing: Preprocessing) -> int:
    """The channels in which files are read. Raises UserError where files have no such pictures."""
    if preprocessing.channels not in MODES:
        raise UserError(
            f"the model takes pictures of {preprocessing.channels} channels, and files are read as "
            "gray (1), RGB (3) or RGBA (4); give a tensor of pictures"
        )
    return preprocessing.channels


def fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """A pillow image resized and center-cropped, to the pixels of torchvision's transforms.

    A long and narrow picture, which would be very large before the crop, is resampled within the
    crop only: equal up to rounding, and to how the sharper filters overshoot.
    """
    from PIL import Image

    height, width = preprocessing.size
    tall, wide = preprocessing.before_crop(image.height, image.width)
    left, top = round((wide - width) / 2), round((tall - height) / 2)
    how = Image.Resampling[preprocessing.interpolation.upper()]
    if tall * wide <= _LARGEST_RESIZED * height * width:
        whole = image if image.size == (wide, tall) else image.resize((wide, tall), how)
        return whole.crop((left, top, left + width, top + height))
    x, y = image.width / wide, image.height / tall
    box = (left * x, top * y, (left + width) * x, (top + height) * y)
    return image.resize((width, height), how, box=box)


def from_pillow(image: Image.Image) -> Tensor:
    """(C, H, W) float32 in [0, 1] from a pillow image: gray, RGB or RGBA."""
    pixels = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255)


def to_pillow(image: Tensor) -> Image.Image:
    """A pillow image from (C, H, W) in [0, 1]; values are clipped and rounded to 8 bits.

    Gray, RGB or RGBA by its channels; of other counts the colors of `visible`.
    """
    from PIL import Image

    image = image if len(image) in MODES else visible(image)
    pixels = to_uint8(image).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)


def visible(pictures: Tensor) -> Tensor:
    """Pictures (..., C, H, W) of any number of channels as RGB (..., 3, H, W), for figures.

    One channel is shown gray, four are RGBA on white. Of other counts the first three are red,
    green and blue; of two channels blue is 0.
    """
    if pictures.shape[-3] != 4:
        return three_channels(pictures)
    alpha = pictures[..., 3:, :, :]
    return pictures[..., :3, :, :] * alpha + (1 - alpha)


def three_channels(values: Tensor) -> Tensor:
    """Values (..., C, H, W) as (..., 3, H, W): one channel three times, or the first three, with 0
    for the third of two."""
    count = values.shape[-3]
    if count == 3:
        return values
    if count == 1:
        return values.expand(*values.shape[:-3], 3, *values.shape[-2:])
    third = values.new_zeros(*values.shape[:-3], max(0, 3 - count), *values.shape[-2:])
    return torch.cat([values[..., :3, :, :], third], -3)


def to_uint8(images: Tensor) -> Tensor:
    """Values 0 to 255 as a PNG holds them, from floats in [0, 1] of any shape."""
    return images.detach().cpu().float().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def resize(pictures: Tensor, size: Size) -> Tensor:
    """Pictures (N, C, H, W), uint8 or floats in [0, 1], as floats of another size.

    Bilinear with antialiasing.
    """
    floats = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    size = (size, size) if isinstance(size, int) else size
    if pictures.shape[-2:] == size or not len(pictures):
        return floats
    parts = [
        torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)
        for part in floats.split(256)
    ]
    return torch.cat(parts).clamp(0, 1)


def mean_3x3(pictures: Tensor) -> Tensor:
    """The mean of each pixel's 3x3 neighborhood in (N, C, H, W), edge pixels repeated."""
    # Sums of slices: on the CPU many times as fast as a pool.
    wide = torch.nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    rows = (wide[..., :-2, :] + wide[..., 1:-1, :]).add_(wide[..., 2:, :])
    return (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).div_(9)


def quantize(images: Tensor) -> Tensor:
    """What comes back when the pictures are saved with 8 bits and read again."""
    return to_uint8(images).to(images.device, torch.float32).div_(255)


def through_jpeg(images: Tensor, quality: int) -> Tensor:
    """What comes back when the pictures (N, 3, H, W) are saved as JPEG and read again.

    Pillow's own settings beside the quality (1 to 95), among them half the resolution for color.
    """
    from PIL import Image

    read = []
    for image in images:
        buffer = io.BytesIO()
        to_pillow(image).save(buffer, format="JPEG", quality=quality)
        read.append(from_pillow(Image.open(buffer)))
    return torch.stack(read).to(images.device, images.dtype)


def write_png(image: Tensor, path: str | Path) -> None:
    """Save (C, H, W) in [0, 1] as a PNG, without loss beyond the rounding to 8 bits."""
    to_pillow(image).save(path, format="PNG", optimize=False)


def enlarge(image: Tensor, factor: int) -> Tensor:
    """Every pixel becomes a block of factor x factor: (..., H, W) to (..., fH, fW)."""
    return image.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def contact_sheet(
    images: Tensor, columns: int | None = None, *, gap: int = 2, background: float | None = 1.0
) -> Tensor:
    """Pictures side by side in reading order.

    Args:
        images: (N, 3, H, W) in [0, 1].
        columns: default: the sheet is about as wide as high.
        gap: pixels between and around pictures.
        background: gray value of the gaps, in [0, 1]; None: transparent, for a PNG.

    Returns:
        (3, rows * (H + gap) + gap, columns * (W + gap) + gap), or (4, ...) with transparent gaps.
    """
    images = visible(images)
    if background is None:
        images, background = torch.cat([images, torch.ones_like(images[:, :1])], 1), 0.0
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


def around_gray(values: Tensor, limit: Tensor | float | None = None) -> Tensor:
    """Signed values as pictures in [0, 1]: 0 is gray (0.5), `limit` is 1 and -limit is 0.

    Args:
        values: (..., 3, H, W).
        limit: default: the largest absolute value of each (3, H, W).

    Returns:
        The shape of `values`.
    """
    if limit is None:
        limit = values.abs().amax(dim=(-3, -2, -1), keepdim=True)
    scale = torch.as_tensor(limit, dtype=values.dtype, device=values.device)
    return (0.5 + 0.5 * values / scale.clamp(min=torch.finfo(values.dtype).tiny)).clamp(0, 1)


def signed(values: Tensor, limit: Tensor | float | None = None) -> Tensor:
    """Signed values (..., C, H, W) of any channels as RGB in [0, 1], see `around_gray`."""
    return around_gray(three_channels(values), limit)


OUTSIDE = 0.82
"""Gray value beyond a picture's border, lighter than most pictures."""

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, half open"""


def clip_box(box: Box, picture: Tensor) -> Box:
    """The part of a box that lies within a picture (..., H, W)."""
    height, width = picture.shape[-2:]
    top, left, bottom, right = box
    return max(top, 0), max(left, 0), min(bottom, height), min(right, width)


def crop_box(picture: Tensor, box: Box, gray: float = OUTSIDE) -> Tensor:
    """The pixels of a box from (C, H, W), gray beyond the picture's border."""
    top, left, bottom, right = box
    crop = picture.new_full((len(picture), bottom - top, right - left), gray)
    t, le, b, r = clip_box(box, picture)
    if t < b and le < r:
        crop[:, t - top : b - top, le - left : r - left] = picture[:, t:b, le:r]
    return crop
