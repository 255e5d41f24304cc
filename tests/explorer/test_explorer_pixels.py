"""A picture's file becomes in the page what pillow makes of it: the same 8-bit pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser_driver import console_errors, open_browser
from engine_page import EnginePage
from own_models import layers
from PIL import Image
from torch import Tensor

import featviz
from featviz.data.datasets import batches
from featviz.models.model import Model
from featviz.pictures.images import from_pillow, to_pillow
from featviz.pictures.preprocessing import Preprocessing

pytestmark = pytest.mark.browser

SIZES = ((64, 64), (65, 63), (37, 301), (500, 375), (333, 501), (20, 90), (31, 29), (641, 97))
"""width and height"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnginePage]:
    model = featviz.wrap(layers(), input_size=64)
    with open_browser() as browser:
        yield EnginePage(browser, tmp_path_factory.mktemp("page") / "page.html", model)
        assert console_errors(browser) == []


def drawn(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """Coarse shapes, edges and fine detail."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + width * 1009 + height)
    coarse = torch.rand(1, channels, 4, 5, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")[0]
    edges = (smooth > 0.55).float()
    fine = torch.rand(channels, height, width, generator=generator)
    values = (0.5 * smooth + 0.35 * edges + 0.15 * fine).permute(1, 2, 0).mul(255)
    return Image.fromarray(values.to(torch.uint8).numpy().squeeze())


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def difference(page: EnginePage, content: bytes, how: Preprocessing) -> int:
    """The largest, of 255, between the page's pixels and pillow's."""
    expected = featviz.read_picture(io.BytesIO(content), how)
    return largest(pixels(page, content, how), expected)


def largest(one: Tensor, other: Tensor) -> int:
    return int((one - other).abs().max() * 255 + 0.5)


def in_two_passes(image: Image.Image, how: Preprocessing, *, down_first: bool) -> Tensor:
    """As `read_picture`, but first along one side, then along the other; pillow's own order depends
    on the shapes."""
    filter_ = Image.Resampling[how.interpolation.upper()]
    tall, wide = how.before_crop(image.height, image.width)
    between = (image.width, tall) if down_first else (wide, image.height)
    whole = image.resize(between, filter_).resize((wide, tall), filter_)
    left, top = round((wide - how.size[1]) / 2), round((tall - how.size[0]) / 2)
    return from_pillow(whole.crop((left, top, left + how.size[1], top + how.size[0])))


def pixels(page: EnginePage, content: bytes, how: Preprocessing) -> Tensor:
    settings = {
        name: getattr(how, name) for name in ("size", "resize", "channels", "interpolation")
    }
    code = "return pixelsOf(file(given[0], ''), given[1])"
    found = page.run(code, base64.b64encode(content).decode(), settings)
    assert isinstance(found, Tensor)
    return found.view(how.channels, *how.size)


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_png_files_of_any_size_give_pillows_pixels(page: EnginePage, filter_: str) -> None:
    hows = [
        Preprocessing.of(64, interpolation=filter_),
        Preprocessing.of(61, resize=70, interpolation=filter_),
        Preprocessing.of((48, 33), resize=(51, 40), interpolation=filter_),
        Preprocessing.of((40, 72), resize=60, interpolation=filter_),
    ]
    for i, size in enumerate(SIZES):
        for how in (hows[0], hows[1 + i % 3]):
            image = drawn(*size)
            content = saved(image, "PNG")
            if isinstance(how.resize, int):
                assert difference(page, content, how) == 0, (size, how)
                continue
            found = pixels(page, content, how)
            orders = [in_two_passes(image, how, down_first=first) for first in (True, False)]
            assert 0 in [largest(found, one) for one in orders], (size, how)
            assert difference(page, content, how) <= 2, (size, how)


def test_jpeg_files_gray_files_and_transparent_ones(page: EnginePage) -> None:
    how, gray = Preprocessing.of(64), Preprocessing.of(64, channels=1)
    for size in SIZES[:6]:
        for options in ({"quality": 95, "subsampling": 0}, {"quality": 80}, {"progressive": True}):
            assert difference(page, saved(drawn(*size), "JPEG", **options), how) <= 1, size
    for kind in ("PNG", "JPEG"):
        for channels in (1, 3):
            content = saved(drawn(91, 75, channels), kind)
            assert difference(page, content, how) <= 1
            assert difference(page, content, gray) <= 1
    assert difference(page, saved(drawn(91, 75, 4), "PNG"), how) <= 1
    turned = Image.Exif()
    turned[0x0112] = 6
    assert difference(page, saved(drawn(80, 60), "JPEG", exif=turned), how) <= 1


@pytest.mark.long
def test_photographs_of_200_sizes_get_the_class_that_pillows_pixels_get(
    tmp_path: Path, mini: Model
) -> None:
    shown = batches(featviz.sample_pictures(), Preprocessing.of(64), batch_size=200)
    pictures = next(iter(shown)).images
    generator = np.random.default_rng(0)
    same = 0
    with open_browser() as browser:
        page = EnginePage(browser, tmp_path / "page.html", mini)
        for i in range(200):
            image = to_pillow(pictures[i])
            width, height = (int(n) for n in generator.integers(40, 420, 2))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            content = saved(image, "JPEG" if i % 2 else "PNG")
            expected = featviz.read_picture(io.BytesIO(content), mini.preprocessing)
            with torch.no_grad():
                label = int(mini(expected[None]).argmax())
            code = "return engine.forward(await engine.inputOf(file(given[0], '')), {})"
            found = page.run(code, base64.b64encode(content).decode())
            same += int(found["logits"].argmax()) == label
    assert same == 200
