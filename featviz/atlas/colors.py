"""Colors on maps: of classes, and of positions.

Differences of colors are taken in Oklab (Ottosson 2020), in which equal distances look about
equally different.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLORS = (
    "#e69f00",
    "#2f9bd8",
    "#00a078",
    "#d0b400",
    "#cc5a14",
    "#c9709f",
    "#a06c00",
    "#0f66a3",
    "#4cc9a4",
    "#8a7d1e",
    "#ef8a5a",
    "#8d4f7d",
)
"""Six hues of Okabe and Ito 2008 ("Color Universal Design"), each lighter and darker, which people
with any common kind of color vision can tell apart; none near white or black"""
_NEAR = 6
"""classes around one that should have other colors"""
_ENOUGH = 0.3
"""a difference beyond which larger ones do not matter"""
_USE = 0.003
"""by which each use of a color lowers its difference to others"""
_LIGHTNESS, _CHROMA = 0.72, 0.14
_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
"""cone responses of linear sRGB"""
_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
"""Oklab of their cube roots"""


def class_colors(xy: Floats, classes: NDArray[np.int64], count: int) -> list[int]:
    """For each class the index of its color in COLORS.

    There are more classes than colors, so classes that are near each other on the map get colors
    that differ most. The largest class chooses first; each takes the color that is farthest from
    those of the classes with the nearest medians that have one, of equal ones the least used.

    Args:
        xy: (N, 2) positions on the map.
        classes: (N,) the class of each, 0 to count - 1.
        count: How many classes there are.
    """
    from matplotlib.colors import to_rgb

    rgb = np.array([to_rgb(color) for color in COLORS])
    lab = np.cbrt(rgb**2.2 @ _LMS.T) @ _OKLAB.T
    far = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    members = [xy[classes == number] for number in range(count)]
    middles = np.array([np.median(part, 0) if len(part) else (0.0, 0.0) for part in members])
    used = np.zeros(len(COLORS))
    chosen = np.full(count, -1)
    for number in sorted(range(count), key=lambda number: (-len(members[number]), number)):
        done = np.flatnonzero(chosen >= 0)
        gap = np.hypot(*(middles[done] - middles[number]).T)
        beside = chosen[done[np.argsort(gap, kind="stable")[:_NEAR]]]
        clear = far[:, beside].min(1) if beside.size else np.zeros(len(COLORS))
        chosen[number] = int(np.argmax(np.minimum(clear, _ENOUGH) - _USE * used))
        used[chosen[number]] += 1
    return [int(index) for index in chosen]


def position_colors(xy: Floats) -> Floats:
    """A color (N, 3) for each position (N, 2): hue by direction from the middle, which is gray.

    All have the same lightness, so that no corner dominates.
    """
    moved = xy - xy.mean(0)
    ab = _CHROMA * moved / np.linalg.norm(moved, axis=1).max()
    lab = np.column_stack([np.full(len(ab), _LIGHTNESS), ab])
    linear = (lab @ np.linalg.inv(_OKLAB).T) ** 3 @ np.linalg.inv(_LMS).T
    rgb: Floats = np.clip(linear, 0, 1) ** (1 / 2.2)
    return rgb
