"""How strong each corruption is at each severity, for pictures of 224 and of 64 pixels.

Numbers of the scripts that made ImageNet-C (224) and Tiny ImageNet-C (64). A side in between or
beyond takes the table whose side is nearer (by ratio) and scales what is a length in pixels; what
is a share, a level of brightness or a quality stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
"""the 4 that the benchmark keeps for tuning, and does not count"""
SEVERITIES = (1, 2, 3, 4, 5)


def _numbers(*values: float) -> tuple[Setting, ...]:
    return tuple((value,) for value in values)


# Comments name the constants in their order. Lengths are in pixels of the table's own side.
_AT_224: dict[str, tuple[Setting, ...]] = {
    "gaussian_noise": _numbers(0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation
    "shot_noise": _numbers(60, 25, 12, 5, 3),  # photons at full brightness
    "impulse_noise": _numbers(0.03, 0.06, 0.09, 0.17, 0.27),  # share of values
    "speckle_noise": _numbers(0.15, 0.2, 0.35, 0.45, 0.6),  # standard deviation per brightness
    "gaussian_blur": _numbers(1, 2, 3, 4, 6),  # sigma
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),  # radius, edge's sigma
    # sigma, farthest jump, rounds
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),  # radius, sigma
    # farthest zoom, step
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    # mean, deviation, size of flakes, threshold, streak's radius, its sigma, share of the picture
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),  # picture, ice
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),  # amount, decay of detail
    "brightness": _numbers(0.1, 0.2, 0.3, 0.4, 0.5),  # added
    "contrast": _numbers(0.4, 0.3, 0.2, 0.1, 0.05),  # factor
    # amplitude, sigma, shift of the corners. The benchmark says 244 and means 224.
    "elastic_transform": (
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    "pixelate": _numbers(0.6, 0.5, 0.4, 0.3, 0.25),  # side of the small picture
    "jpeg_compression": _numbers(25, 18, 15, 10, 7),  # quality
    # mean, deviation, sigma, threshold, strength; then 1 for mud, 0 for water
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),  # factor, added
}

_AT_64: dict[str, tuple[Setting, ...]] = {
    "gaussian_noise": _numbers(0.04, 0.08, 0.12, 0.15, 0.18),
    "shot_noise": _numbers(250, 100, 50, 30, 15),
    "impulse_noise": _numbers(0.01, 0.02, 0.05, 0.08, 0.14),
    "speckle_noise": _numbers(0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": _numbers(0.5, 0.75, 1, 1.25, 1.5),
    "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "frost": ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    "brightness": _numbers(0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _numbers(0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (
        (0, 0, 5.12),
        (3.2, 19.2, 3.84),
        (6.4, 5.12, 3.84),
        (6.4, 1.92, 1.92),
        (10.24, 1.92, 1.28),
    ),
    "pixelate": _numbers(0.9, 0.8, 0.7, 0.6, 0.5),
    "jpeg_compression": _numbers(65, 58, 50, 40, 25),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, 0),
        (0.65, 0.1, 0.8, 0.7, 0.6, 0),
        (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1),
        (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
}

PUBLISHED = {224: _AT_224, 64: _AT_64}
"""side in pixels -> corruption -> its constants at severities 1 to 5"""

_SCALED: dict[str, Callable[[Setting, float], Setting]] = {
    "gaussian_blur": lambda c, k: (c[0] * k,),
    "defocus_blur": lambda c, k: (c[0] * k, c[1]),
    "glass_blur": lambda c, k: (c[0] * k, max(1, round(c[1] * k)), c[2]),
    "motion_blur": lambda c, k: (max(1, round(c[0] * k)), c[1] * k),
    "snow": lambda c, k: (
        *c[:2],
        max(1.0, c[2] * k),
        c[3],
        max(1, round(c[4] * k)),
        c[5] * k,
        c[6],
    ),
    "elastic_transform": lambda c, k: (c[0] * k, c[1] * k, c[2] * k),
    "pixelate": lambda c, k: (min(1.0, c[0] / k),),  # blocks keep their share of the picture
    "spatter": lambda c, k: (*c[:2], c[2] * k, *c[3:]),
}


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
    constants = PUBLISHED[base][name][severity - 1]
    scale = _SCALED.get(name)
    if base == side or scale is None:
        return constants
    return scale(constants, side / base)


def zoom_factors(farthest: float, step: float) -> tuple[float, ...]:
    """The zooms of zoom_blur: 1, 1 + step ... as numpy counts them, rounding errors included."""
    return tuple(float(factor) for factor in np.arange(1, farthest, step))
