"""Random positions of a map for each picture, as activation atlases take them.

The position follows from the seed and the picture's row in its data set and from nothing else, so
it is the same whichever machine reads the picture, in whatever batch, first or after a restart. The
numbers are SplitMix64's (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators"), whose i-th output is a function of seed and i.

Carter et al. 2019 ("Activation Atlas", Distill) leave the border out, since padding shows there.
Here that is the first and last row and column of every map that has more than two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(seed: int, index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Outputs number `index`, counted from 0, of the generator that starts at `seed`."""
    with np.errstate(over="ignore"):  # it counts modulo 2^64
        z = np.uint64(seed % 2**64) + (index + np.uint64(1)) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw_positions(
    seed: int, rows: Sequence[int] | NDArray[np.int64], height: int, width: int
) -> NDArray[np.int32]:
    """A position (row, column) of a map of height x width for each picture, (N, 2).

    rows: of the data set. Pictures get the same relative place in the maps of every layer
    """
    # One seed's numbers must not be another's, shifted: the seed itself is mixed first.
    start = int(splitmix64(seed, np.zeros(1, np.uint64))[0])
    row = np.asarray(rows, dtype=np.uint64)
    counted: NDArray[np.uint64] = np.stack([row, row], axis=1) * np.uint64(2)
    counted[:, 1] += np.uint64(1)
    share = (splitmix64(start, counted) >> np.uint64(11)) * 2.0**-53  # in [0, 1)
    size = np.array([height, width])
    edge = (size > 2).astype(np.int64)
    return (edge + np.floor(share * (size - 2 * edge))).astype(np.int32)


def inner_positions(height: int, width: int) -> int:
    """How many positions of a map are drawn from."""
    rows, columns = (side - 2 * (side > 2) for side in (height, width))
    return rows * columns


def draw_several(
    seed: int, rows: Sequence[int] | NDArray[np.int64], height: int, width: int, count: int
) -> NDArray[np.int32]:
    """`count` different positions of a map for each picture, (N, count, 2).

    Each position gets a number from seed and picture, and those of the smallest are taken; so the
    first k of them are the same for any `count`.
    """
    inner = inner_positions(height, width)
    start = int(splitmix64(seed, np.ones(1, np.uint64))[0])
    picture = np.asarray(rows, dtype=np.int64)[:, None]
    numbers = splitmix64(start, (picture * inner + np.arange(inner)).astype(np.uint64))
    taken = np.argsort(numbers, axis=1, kind="stable")[:, :count]
    edge = np.array([int(height > 2), int(width > 2)])
    at = np.stack(np.divmod(taken, width - 2 * edge[1]), axis=-1) + edge
    found: NDArray[np.int32] = at.astype(np.int32)
    return found
