"""One resolution of an atlas as plain data: cells, their statistics, their icons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featviz.atlas.cells import medoids
from featviz.atlas.grid import Grid, top_classes

if TYPE_CHECKING:
    from torch import Tensor

    from featviz.neighbors.exact import Index

Weighted = tuple[tuple[str, float], ...]
"""names with a number each, largest first"""


@dataclass(frozen=True)
class CellMatch:
    """How well pictures match their cells: means over the cells, one picture a cell."""

    cosine: float
    """between a picture's activation and its cell's mean"""
    centered: float
    """the same after the mean of the data is subtracted from both; 0: nothing else in common"""
    own: float
    """fraction whose nearest cell mean, by the centered cosine, is that of their own cell"""
    near: float
    """fraction whose nearest cell mean is that of their own cell or of one of the 8 around it"""


@dataclass(frozen=True)
class SyntheticIcons:
    """Pictures optimized for the cells of a grid, and how well they match."""

    images: Tensor
    """(cells, 3, S, S) in [0, 1]"""
    cosines: Tensor
    """(cells,) between the activation of the saved picture and the cell's mean"""
    nearest: Tensor | None = None
    """(cells,) int64: the cell whose mean is nearest to the icon's activation"""
    match: CellMatch | None = None
    shuffled: CellMatch | None = None
    """the mean over all ways to give each icon to another cell: the chance level"""
    samples: CellMatch | None = None
    """the same numbers for the sample pictures, which contribute to their cells' means"""


@dataclass(frozen=True)
class Level:
    """One resolution of an atlas: its cells and an icon for each."""

    grid: Grid
    samples: tuple[int, ...]
    """the row whose picture is the cell's sample icon: its medoid"""
    cosines: Tensor
    """(cells,) float64: mean cosine of a cell's members to their mean; 1: all alike"""
    classes: tuple[Weighted, ...]
    """for each cell its largest classes with their fractions of the cell; empty where the data has
    no classes"""
    effects: tuple[Weighted, ...] | None = None
    """for each cell the classes whose logits its mean raises most above the mean logit, to first
    order (`featviz.atlas.effects`); None without the model"""
    synthetic: SyntheticIcons | None = None


def make_level(index: Index, grid: Grid, classes: Sequence[str]) -> Level:
    """The cells of a grid with their statistics; `classes` has the name of each row's class."""
    samples, cosines = medoids(index, grid)
    return Level(grid, samples, cosines, top_classes(classes, grid))


def weighted_text(pairs: Sequence[tuple[str, float]], form: str = "+.2f") -> str:
    """ "tabby +3.10; lynx +2.00" """
    return "; ".join(f"{name} {value:{form}}" for name, value in pairs)
