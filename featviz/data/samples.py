"""The bundled sample pictures: drawn pictures of 17 kinds, and crops of two photographs.

`sample_pictures()` is an ordinary data set. The kinds have names of Tiny ImageNet's classes, so
alexnet-mini can classify them; "checks", "dots" and "stripes" are plain patterns, for which the
activations of first-layer kernels can be foreseen. `recipes/draw_samples.py` draws the pictures.
"""

from __future__ import annotations

import importlib.resources
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from featviz.arguments import Bounds
from featviz.data.datasets import Pictures
from featviz.errors import public
from featviz.pictures.images import open_image

if TYPE_CHECKING:
    from PIL import Image

DRAWN = (
    "basketball",
    "beacon",
    "candle",
    "checks",
    "dots",
    "goldfish",
    "jellyfish",
    "ladybug",
    "lemon",
    "mushroom",
    "orange",
    "pizza",
    "school bus",
    "spider web",
    "stripes",
    "teapot",
    "umbrella",
)
"""kinds of drawn pictures; each is one sheet of files"""
PHOTOGRAPHS = ("china", "flower")
PER_KIND, SIDE, COLUMNS = 16, 160, 4
"""drawn pictures of a kind, pixels a side, and how many are side by side in a sheet"""
_ASSETS = Path(str(importlib.resources.files("featviz"))) / "assets"


@dataclass(frozen=True, repr=False)
class SamplePictures(Pictures):
    """Pictures that are cut from the bundled files when they are opened."""

    def open(self, row: int) -> Image.Image:
        """Sample `row` as an RGB pillow image."""
        kind, _, number = self.paths[row].partition("/")
        return (_crop if kind in PHOTOGRAPHS else _drawn)(kind, int(number))


@public
def sample_pictures(per_kind: Annotated[int, Bounds(1, PER_KIND)] = PER_KIND) -> SamplePictures:
    """The bundled data set, in class folders.

    Args:
        per_kind: pictures of each kind, at most 16.

    Raises:
        UserError: for more than there are, or none.
    """
    pairs = [(f"{k}/{i:02d}", k) for k in (*DRAWN, *PHOTOGRAPHS) for i in range(per_kind)]
    paths, folders = zip(*pairs, strict=True)
    return SamplePictures(root=Path("featviz-samples"), paths=paths, folders=folders)


def photograph_path(name: str) -> Path:
    """The file of a bundled photograph: "china" or "flower"."""
    return _ASSETS / "pictures" / f"{name}.jpg"


@cache  # 19 files, 26 MB together
def _open(path: Path) -> Image.Image:
    return open_image(path)


def _drawn(kind: str, number: int) -> Image.Image:
    left, top = number % COLUMNS * SIDE, number // COLUMNS * SIDE
    sheet = _open(_ASSETS / "samples" / f"{kind}.jpg")
    return sheet.crop((left, top, left + SIDE, top + SIDE))


def _crop(name: str, number: int) -> Image.Image:
    """Number 0 is the center, the others are squares of 45 to 100% of the height, some mirrored."""
    from PIL import Image

    whole = _open(photograph_path(name))
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    side = whole.height if number == 0 else round(whole.height * rng.uniform(0.45, 1.0))
    slack_x, slack_y = whole.width - side, whole.height - side
    left = slack_x // 2 if number == 0 else round(slack_x * rng.uniform())
    top = slack_y // 2 if number == 0 else round(slack_y * rng.uniform())
    crop = whole.crop((left, top, left + side, top + side))
    if number and rng.uniform() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop
