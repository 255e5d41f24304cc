"""How strong each corruption is at each severity, for pictures of 224 and of 64 pixels.

The numbers of the scripts that made ImageNet-C (224) and Tiny ImageNet-C (64) are in
constants.toml. Another side takes the table whose side is nearer (by ratio) and scales what is a
length in pixels; a share, a level of brightness or a quality stays as it is.
"""

from __future__ import annotations

import math
import tomllib
from itertools import zip_longest
from pathlib import Path

import numpy as np

from featviz.errors import UserError, nearest

Setting = tuple[float, ...]

FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for family in FAMILIES.values() for name in family)
"""the benchmark's 15"""
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""the 4 that the benchmark keeps for validation"""
SEVERITIES = (1, 2, 3, 4, 5)


with Path(__file__).with_suffix(".toml").open("rb") as _file:
    _TABLES = tomllib.load(_file)


def _published(side: int) -> dict[str, tuple[Setting, ...]]:
    return {
        name: tuple(tuple(v) if isinstance(v, list) else (v,) for v in severities)
        for name, severities in _TABLES[f"side-{side}"].items()
    }


PUBLISHED = {side: _published(side) for side in (224, 64)}
"""side in pixels -> corruption -> its constants at severities 1 to 5"""
ALEXNET_ERRORS: dict[str, tuple[float, ...]] = {
    name: tuple(errors) for name, errors in _TABLES["alexnet-errors"].items()
}
"""corruption -> AlexNet's published share of wrong predictions at severities 1 to 5"""


def family(name: str) -> str:
    """noise, blur, weather, digital, or extra."""
    return next((kind for kind, names in FAMILIES.items() if name in names), "extra")


def words(name: str) -> str:
    """A corruption's name for people: "JPEG compression" of jpeg_compression."""
    return name.replace("_", " ").replace("jpeg", "JPEG")


def settings(name: str, severity: int, side: int) -> Setting:
    """The constants of a corruption for pictures of `side` pixels. Raises UserError."""
    known = (*CORRUPTIONS, *EXTRA)
    if name not in known:
        raise UserError(f"unknown corruption {name!r}{nearest(name, known)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity is {severity!r}; the corruptions have severities 1 to 5")
    base = min(PUBLISHED, key=lambda known_side: abs(math.log(side / known_side)))
    constants, scale = PUBLISHED[base][name][severity - 1], side / base
    if scale == 1:
        return constants
    kinds = _TABLES["scaling"].get(name, ())
    return tuple(_scaled(*pair, scale) for pair in zip_longest(constants, kinds))


def _scaled(value: float, kind: str | None, scale: float) -> float:
    """A constant at another side; kind: see constants.toml."""
    if kind == "share":
        return min(1.0, value / scale)
    if kind == "pixels":
        return max(1, round(value * scale))
    return {"length": value * scale, "size": max(1.0, value * scale)}.get(kind or "", value)


def zoom_factors(farthest: float, step: float) -> tuple[float, ...]:
    """The zooms of zoom_blur: 1, 1 + step ... as numpy counts them, rounding errors included."""
    return tuple(float(factor) for factor in np.arange(1, farthest, step))
