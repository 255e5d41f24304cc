"""Whatever a picture file may hold: the valid is shown right, the broken is named in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featviz.errors import BadPicture, UserError
from featviz.pictures import images
from featviz.pictures.decoding import decode
from featviz.pictures.preprocessing import Preprocessing


def photograph(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """A smooth colored picture that JPEG keeps well, different in all four corners."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turned_photographs_stand_upright(tmp_path: Path, orientation: int) -> None:
    upright = photograph()
    # What a camera stores, so that a viewer who obeys the tag sees it upright.
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", quality=98, subsampling=0, exif=exif)
    found = images.read_image(tmp_path / "a.jpg")
    assert found.shape == (3, 40, 60)
    assert float((found - tensor(upright)).abs().mean()) < 0.01


def test_cmyk_jpeg_has_its_colors(tmp_path: Path) -> None:
    wanted = photograph()
    wanted.convert("CMYK").save(tmp_path / "a.jpg", quality=98, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    found = images.read_image(tmp_path / "a.jpg")
    assert float((found - tensor(wanted)).abs().mean()) < 0.01


def test_palette_png_with_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.putpixel((2, 0), 2)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 128]))
    found = images.read_image(tmp_path / "a.png")
    assert found[:, 0, 0].tolist() == [1, 0, 0]
    assert found[:, 0, 1].tolist() == [1, 1, 1]  # wholly transparent
    # Half of blue on white.
    assert found[:, 0, 2].tolist() == pytest.approx([127 / 255, 127 / 255, 1], abs=1.5 / 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_mixes_with_white(tmp_path: Path, mode: str) -> None:
    color = (40, 40, 40, 51) if mode == "RGBA" else (40, 51)
    Image.new(mode, (3, 3), color).save(tmp_path / "a.png")
    expected = (40 * 51 + 255 * (255 - 51)) / 255 / 255
    found = images.read_image(tmp_path / "a.png")
    assert torch.allclose(found, torch.full((3, 3, 3), expected), atol=1.5 / 255)


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = images.read_image(tmp_path / "a.png")
    assert found.shape == (3, 1, 4)
    # 65,535 is 255 times 257.
    assert (found[0, 0] * 255).round().tolist() == [0, 1, 128, 255]
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_has_three_equal_channels(tmp_path: Path, mode: str) -> None:
    photograph().convert("L").convert(mode).save(tmp_path / "a.png")
    found = images.read_image(tmp_path / "a.png")
    expected = np.array(photograph().convert("L").convert(mode).convert("L")) / 255
    assert all(np.allclose(channel.numpy(), expected, atol=1e-6) for channel in found)


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "a.png")
    found = images.read_picture(tmp_path / "a.png", Preprocessing.of(64))
    assert found.shape == (3, 64, 64)
    assert torch.allclose(found, torch.tensor([10, 20, 30])[:, None, None] / 255)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_thin_strip_becomes_a_square(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 100, 0))
    assert images.fit(image, Preprocessing.of(224, resize=256)).size == (224, 224)


@pytest.mark.slow
def test_a_picture_of_108_million_pixels_is_read(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_000), 128).save(tmp_path / "a.png", compress_level=1)
    found = images.read_picture(tmp_path / "a.png", Preprocessing.of(224, resize=256))
    assert torch.allclose(found, torch.full((3, 224, 224), 128 / 255))


def test_text_named_jpg_is_called_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("dear diary")
    with pytest.raises(BadPicture, match=r"a\.jpg is not a picture that can be read"):
        images.read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_cut_short_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    photograph(200, 200).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadPicture, match=r"cannot be decoded .*; the file is damaged or cut short"):
        images.read_image(path)


def test_an_absent_picture_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadPicture, match="no such file"):
        images.read_image(tmp_path / "a.jpg")
    with pytest.raises(BadPicture, match="is a folder, a picture file is needed"):
        images.read_image(tmp_path)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (20_000, 8_940), (13_400, 13_300)])
def test_decompression_bombs_are_refused_by_their_header(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(BadPicture, match="has more than 178 million pixels and is refused"):
        images.read_image(tmp_path / "bomb.png")


def exif_of(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF with tags (number, type, four bytes), as no library would write it."""
    head = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries))
    return head + b"".join(struct.pack(">HHI", *e[:2], 1) + e[2] for e in entries) + bytes(4)


@pytest.mark.parametrize(
    "odd",
    [
        (0x0128, 4, b"\xff\xff\xff\xff"),  # a number too large for its tag: struct.error in pillow
        (0x8825, 9, b"\xff\xff\xff\xff"),  # an offset of -1
        (0x829A, 5, b"\xff\xff\xff\xff"),  # behind the end of the file
    ],
)
def test_an_odd_exif_value_does_not_matter(odd: tuple[int, int, bytes]) -> None:
    buffer = io.BytesIO()
    exif = exif_of((0x0112, 3, b"\0\6\0\0"), odd)
    photograph(60, 40).save(buffer, "JPEG", exif=exif)
    found = images.read_image(io.BytesIO(buffer.getvalue()))
    assert found.shape == (3, 60, 40)  # turned, as tag 0x0112 says


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("decoder", ["exact", "fast (pillow)"])
def test_damage_raises_nothing_but_bad_picture(kind: str, decoder: str) -> None:
    buffer = io.BytesIO()
    exif = exif_of((0x0112, 3, b"\0\6\0\0")) if kind in {"JPEG", "PNG", "WEBP"} else b""
    photograph().save(buffer, format=kind, **({"exif": exif} if exif else {}))
    whole = buffer.getvalue()
    rng = np.random.default_rng(7)
    for _ in range(40):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for at in rng.integers(0, min(len(damaged), 400), size=3):
            damaged[at] = rng.integers(256)
        try:
            found = decode(bytes(damaged), Preprocessing.of(8), decoder=decoder)
        except BadPicture:
            continue
        assert found.pixels.shape == (3, 8, 8)


@pytest.mark.parametrize(
    "error",
    [
        struct.error("short"),
        zlib.error("stream"),
        TypeError("None"),
        KeyError("tag"),
        MemoryError(),
        RecursionError("deep"),
        OverflowError("large"),
        UserWarning("odd"),
        AssertionError("two\nlines"),
    ],
)
def test_whatever_pillow_raises_names_the_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph().save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", lambda self: (_ for _ in ()).throw(error))
    with pytest.raises(BadPicture, match=r"^\S*a\.png cannot be decoded \(.+\)") as seen:
        images.read_image(tmp_path / "a.png")
    assert "\n" not in str(seen.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b"\n<?xml version='1.0'?>\n<svg width='3'/>", "an SVG drawing"),
        (b"\xef\xbb\xbf<svg/>", "an SVG drawing"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        (b"", "it is empty"),
        (b"\0" * 100, "it is empty"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for source in (tmp_path / "a.jpg", io.BytesIO(content)):
        with pytest.raises(BadPicture, match=what):
            images.read_image(source)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_is_the_picture(kind: str) -> None:
    frames = [Image.new("RGB", (5, 5), color) for color in ("#c80000", "#0000c8")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    found = images.read_image(io.BytesIO(buffer.getvalue()))
    assert torch.allclose(found[:, 2, 2], torch.tensor([200.0, 0, 0]) / 255, atol=0.03)


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (90, 90), (257, 256), (1000, 40)])
@pytest.mark.parametrize(("resize", "crop"), [(64, 64), (256, 224), (40, 33)])
def test_square_equals_resizing_and_then_cropping(
    size: tuple[int, int], resize: int, crop: int
) -> None:
    image = photograph(*size)
    width, height = size
    short = min(size)
    wide, high = (resize if side == short else int(resize * side / short) for side in size)
    whole = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in whole.size)
    expected = whole.crop((left, top, left + crop, top + crop))
    found = images.fit(image, Preprocessing.of(crop, resize=resize))
    # Two rounds of rounding in the one, one in the other.
    difference = np.abs(np.array(found).astype(int) - np.array(expected).astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.02
    assert (width, height) == image.size


def test_a_crop_larger_than_the_resized_picture_is_refused() -> None:
    with pytest.raises(UserError, match="cannot crop 65 pixels from a picture resized to 64"):
        Preprocessing.of(65, resize=64)
