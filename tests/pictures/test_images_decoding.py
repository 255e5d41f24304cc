"""Decoders: pillow's pixels whoever makes them, and a fast one that has to be asked for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featviz.errors import BadPicture, UserError
from featviz.pictures import decoding, images
from featviz.pictures.decoding import as_batch, decode, resolve
from featviz.pictures.preprocessing import Preprocessing

needs_simplejpeg = pytest.mark.skipif(
    not decoding.has_simplejpeg(), reason="simplejpeg is not installed"
)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something smooth with edges and noise, as photographs have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(12 * x * y)], -1)
    waves[height // 3 : height // 2] *= -1
    noisy = 127 + 90 * waves + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


SMALL = Preprocessing.of(32, resize=36)
USUAL = Preprocessing.of(224, resize=256)


def reference(content: bytes, preprocessing: Preprocessing) -> torch.Tensor:
    """Pillow alone, step by step."""
    return images.from_pillow(images.fit(images.open_image(io.BytesIO(content)), preprocessing))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "usual": lambda: saved(photograph(93, 121), quality=90),
    "no subsampling": lambda: saved(photograph(93, 121), quality=95, subsampling=0),
    "half width": lambda: saved(photograph(93, 121), subsampling=1),
    "progressive": lambda: saved(photograph(101, 77), progressive=True),
    "restart markers": lambda: saved(photograph(93, 121), restart_marker_blocks=2),
    "gray": lambda: saved(photograph(93, 121).convert("L")),
    "four inks": lambda: saved(photograph(93, 121).convert("CMYK")),
    "turned": lambda: saved(photograph(93, 121), exif=_exif(6)),
    "mirrored": lambda: saved(photograph(93, 121), exif=_exif(2)),
    "upright by EXIF": lambda: saved(photograph(93, 121), exif=_exif(1)),
    "png": lambda: saved(photograph(93, 121), "PNG"),
    "webp": lambda: saved(photograph(93, 121), "WEBP"),
    "a strip": lambda: saved(photograph(40, 600)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [SMALL, Preprocessing.of(48)], ids=["cropped", "whole"])
def test_exact_pixels_are_pillows(name: str, how: Preprocessing) -> None:
    content = FILES[name]()
    found = decode(content, how)
    assert torch.equal(as_batch([found.pixels])[0], reference(content, how))
    assert found.size == images.open_image(io.BytesIO(content)).size


@needs_simplejpeg
def test_simplejpeg_does_the_usual_kinds_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding._trusted()  # the libraries of this machine agree on something
    done: list[bytes] = []
    original = decoding._by_simplejpeg

    def counted(content: bytes, *arguments: Any, **options: Any) -> Any:
        done.append(content)
        return original(content, *arguments, **options)

    monkeypatch.setattr(decoding, "_by_simplejpeg", counted)
    for name, make in FILES.items():
        content = make()
        before = len(done)
        decode(content, SMALL)
        usual = name in {
            "usual",
            "no subsampling",
            "half width",
            "progressive",
            "restart markers",
            "upright by EXIF",
            "a strip",
        }
        assert len(done) - before == usual, name


@needs_simplejpeg
def test_a_library_with_other_pixels_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    original = simplejpeg.decode_jpeg

    def other(content: bytes, *arguments: Any, **options: Any) -> Any:
        found = original(content, *arguments, **options).copy()
        found[0, 0, 0] ^= 1
        return found

    decoding._trusted.cache_clear()
    try:
        with monkeypatch.context() as context:
            context.setattr(simplejpeg, "decode_jpeg", other)
            assert decoding._trusted() == frozenset()
            content = FILES["usual"]()
            found = decode(content, SMALL)
            assert torch.equal(as_batch([found.pixels])[0], reference(content, SMALL))
    finally:
        decoding._trusted.cache_clear()


def test_without_simplejpeg_all_goes_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "has_simplejpeg", lambda: False)
    decoding._trusted.cache_clear()
    try:
        content = FILES["usual"]()
        found = decode(content, SMALL)
        assert torch.equal(as_batch([found.pixels])[0], reference(content, SMALL))
        assert resolve("fast") == "fast (pillow)"
        with pytest.raises(UserError, match="begun with simplejpeg"):
            decode(content, SMALL, decoder="fast (simplejpeg)")
    finally:
        decoding._trusted.cache_clear()


@pytest.mark.parametrize("library", ["pillow", pytest.param("simplejpeg", marks=needs_simplejpeg)])
def test_fast_is_near_and_the_size_is_the_files(library: str) -> None:
    content = saved(photograph(480, 640), quality=92)
    fast = decode(content, Preprocessing.of(64), decoder=f"fast ({library})")
    exact = decode(content, Preprocessing.of(64))
    assert fast.size == exact.size == (640, 480)
    assert fast.pixels.shape == exact.pixels.shape
    away = (fast.pixels.float() - exact.pixels.float()).abs()
    assert 0 < away.mean() < 4  # levels of 255
    # What is no upright JPEG in three colors is decoded exactly.
    for name in ("turned", "gray", "png", "four inks"):
        other = FILES[name]()
        one = decode(other, SMALL, decoder=f"fast ({library})")
        assert torch.equal(one.pixels, decode(other, SMALL).pixels), name


@pytest.mark.parametrize("decoder", ["exact", "fast"])
@pytest.mark.parametrize("damage", ["cut short", "no picture", "empty", "first bytes only"])
def test_what_pillow_cannot_read_no_decoder_reads(decoder: str, damage: str) -> None:
    whole = saved(photograph(93, 121))
    content = {
        "cut short": whole[: len(whole) // 2],
        "no picture": b"\xff\xd8\xff but words",
        "empty": b"",
        "first bytes only": whole[:30],
    }[damage]
    with pytest.raises(BadPicture, match=r"x\.jpg"):
        decode(content, SMALL, decoder=resolve(decoder), name="x.jpg")


def test_an_unknown_decoder_is_refused() -> None:
    with pytest.raises(UserError, match="unknown decoder 'quick'; take exact or fast"):
        resolve("quick")


def test_photographs_are_the_same_pixels(shared_data: Path) -> None:
    files = sorted((shared_data / "imagenet_val").rglob("*.[jJ]*"))[:40]
    assert files
    for file in files:
        content = file.read_bytes()
        found = decode(content, USUAL)
        assert torch.equal(as_batch([found.pixels])[0], reference(content, USUAL)), file
