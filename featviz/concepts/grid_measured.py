"""What is measured of one picture in a layer; no words, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from featviz.models.receptive_field import ReceptiveField


class Spot(NamedTuple):
    """A position with its units of the largest values."""

    y: int
    x: int
    units: tuple[tuple[int, float], ...]


class Attribution(NamedTuple):
    """Gradient x activation of L logits, divided by k concepts or by positions.

    The concepts and the rest add up to the total, and so do the positions.
    """

    targets: tuple[int, ...]
    """the classes"""
    logits: Tensor
    """(L,)"""
    concepts: Tensor
    """(L, k)"""
    rest: Tensor
    """(L,): of the activations that no concept explains"""
    removal: Tensor
    """(L, k): the logit less the logit without the concept"""
    positions: Tensor
    """(L, h, w)"""
    total: Tensor
    """(L,): gradient x activation of the layer"""

    @property
    def error(self) -> float:
        """The largest gap between the total and the sum of concepts and rest, by the total."""
        gap = (self.concepts.sum(1) + self.rest - self.total).abs()
        return float((gap / self.total.abs().clamp(min=1e-12)).max())


@dataclass(frozen=True, kw_only=True, repr=False)
class MeasuredGrid:
    """A picture as a layer has it."""

    model_name: str
    layer: str
    name: str
    """of the picture"""
    picture: Tensor
    """(C, H, W) in [0, 1]"""
    field: ReceptiveField | None
    """of the layer"""
    strength: Tensor
    """(h, w): length of the activations above zero at each position"""
    cells: Tensor
    """(n, m): numbers of the positions in the grid, y * w + x"""
    cell_icons: Tensor
    """(n, m, 3, S, S)"""
    concepts: tuple[str, ...]
    """names: "group 1", or "relu5/nmf32:3" """
    maps: Tensor
    """(k, h, w): their codes"""
    icons: Tensor
    """(k, 3, S, S): their maximized pictures"""
    explained: float
    """share of the picture's sum of squares that the concepts explain"""
    classes: tuple[str, ...]
    attribution: Attribution | None
    """None of a model without a head"""
    spots: tuple[Spot, ...]
    """the strongest positions, no two of them neighbors"""
    unit_icons: dict[int, Tensor]
    """maximized pictures of their units"""

    @property
    def shown(self) -> list[int]:
        """The concepts that figures show: the eight of the largest codes in this picture."""
        size = self.maps.flatten(1).norm(dim=1)
        order: list[int] = size.argsort(descending=True, stable=True)[:8].tolist()
        return order if len(size) > 8 else list(range(len(size)))

    @property
    def noun(self) -> str:
        """What the directions are called."""
        return "neuron groups" if self.concepts[0].startswith("group ") else "concepts"
