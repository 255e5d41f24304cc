"""Colours for classes on a map: `class_colours(xy, classes)`.

Twelve colours that people with any common kind of colour vision can tell apart (six hues of Okabe
and Ito 2008, "Color Universal Design", each in a lighter and a darker tone, none of them near white
or black so that they show on light and dark ground). There are more classes than colours, so
classes that are near each other on the map get colours that differ most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOURS = (
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
NEAR = 6
"""classes around one that should have other colours"""


def class_colours(xy: NDArray[np.float64], classes: NDArray[np.int64], count: int) -> list[int]:
    """For each of `count` classes the place of its colour in COLOURS.

    xy: (N, 2) positions on the map
    classes: (N,) the class of each, 0 to count - 1

    The largest class chooses first. Each takes the colour that is farthest, in Lab, from those of
    the classes with the nearest medians that have one; of equal ones the least used.
    """
    middles = _medians(xy, classes, count)
    sizes = np.bincount(classes, minlength=count)
    far = _differences()
    used = np.zeros(len(COLOURS))
    chosen = np.full(count, -1)
    for number in np.lexsort((np.arange(count), -sizes)):
        done = np.flatnonzero(chosen >= 0)
        gap = np.hypot(*(middles[done] - middles[number]).T)
        beside = chosen[done[np.argsort(gap, kind="stable")[:NEAR]]]
        clear = far[:, beside].min(1) if beside.size else np.zeros(len(COLOURS))
        # Half a unit of Lab for each use: differences that nobody sees do not wear out a colour.
        chosen[number] = int(np.argmax(np.minimum(clear, 45) - 0.5 * used))
        used[chosen[number]] += 1
    return [int(place) for place in chosen]


def _medians(
    xy: NDArray[np.float64], classes: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    order = np.argsort(classes, kind="stable")
    parts = np.split(xy[order], np.cumsum(np.bincount(classes, minlength=count))[:-1])
    return np.array([np.median(part, axis=0) if len(part) else (0.0, 0.0) for part in parts])


def _differences() -> NDArray[np.float64]:
    """Distances in CIE Lab between the colours."""
    hexes = [[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS]
    rgb = np.array(hexes)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    gaps: NDArray[np.float64] = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return gaps
