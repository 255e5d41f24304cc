"""The panel: the numbers beside each maximized picture, and its flags, as plain data.

`measure` makes it, `metrics` says what each number means, `flags` when a reason is given, `figures`
draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from featviz.maximization.evaluation.flags import NATURAL_SLOPE, Flag
from featviz.maximization.evaluation.natural_path import NaturalPath
from featviz.pictures.images import Box


@dataclass(frozen=True)
class TopPictures:
    """The pictures of a data set that activate a unit most, cut out where they do."""

    pictures: tuple[Tensor, ...]
    """(3, H, W) uint8 each, highest score first"""
    boxes: tuple[Box | None, ...]
    """what was scored, in pixels of the crop before it was shrunk; None: all of it"""
    sides: tuple[int, ...]
    """of the crop, before it was shrunk"""
    values: tuple[float, ...]
    """their scores"""


@dataclass(frozen=True)
class Panel:
    """What was measured of N pictures."""

    scores: Tensor
    """(N,): clean, of the 8-bit pictures"""
    numbers: dict[str, Tensor]
    """(N,) each, NaN where it could not be measured; see `metrics.METRICS`"""
    flags: tuple[tuple[Flag, ...], ...]
    """of each picture"""
    box: Box | None = None
    """what the objective reads of each picture, in its pixels; None: all of it"""
    top_pictures: tuple[TopPictures, ...] = ()
    """of each picture; empty without a data set"""
    path: NaturalPath | None = None
    natural_slope: tuple[float, float] = NATURAL_SLOPE
    """mean and standard deviation over the data set"""
    count: int = 0
    """pictures of the data set that were read"""
    units: int = 0
    """in the layer"""
    standardized: bool = False
    """whether ranks are of scores in standard deviations over the data set"""
    other: str = ""
    """name of the other model"""
    notes: tuple[str, ...] = ()
    """what could not be measured, and why"""
