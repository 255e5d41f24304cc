"""What is kept of a layer's activations for a picture: the map, its mean, its maximum, positions.

Comes in: activations (N, C, H, W), (N, C) or (N, tokens, C). Goes out: rows (N * rows a picture,
numbers of a row), picture by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from featviz.embedding.positions import draw_positions, draw_several, inner_positions
from featviz.errors import UserError
from featviz.models.model import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

How = Literal["mean", "max", "map", "random", "all"]


@dataclass(frozen=True)
class Reduction:
    """How activations become rows; "random" is `count` positions of each map, "all" every one."""

    how: How = "mean"
    count: int = 1
    seed: int = 0

    @property
    def of_positions(self) -> bool:
        """Whether a row is one position of a map."""
        return self.how in {"random", "all"}

    def check(self, places: Sequence[Layer]) -> None:
        """Raise UserError for layers that have no such positions."""
        if not self.of_positions:
            return
        names = ", ".join(place.name for place in places)
        if not any(place.spatial for place in places):
            raise UserError(
                f"{names} has no map to take positions from; name a convolutional layer, or leave "
                "--position and --positions out"
            )
        for place in places:
            if len(place.shape) == 2:
                raise UserError(
                    f"{place.name} has tokens, not rows and columns, so no random position; "
                    "leave --position and --positions out to average them"
                )
            if self.how == "random" and self.count > 1 and place.spatial:
                inner = inner_positions(*place.shape[1:])
                if self.count > inner:
                    raise UserError(
                        f"{place.name} has {inner} positions inside its border, fewer than "
                        f"{self.count}; take fewer, or all"
                    )

    def rows(self, place: Layer) -> int:
        """Rows of a picture."""
        if not self.of_positions or not place.spatial:
            return 1
        return self.count if self.how == "random" else place.shape[1] * place.shape[2]

    def dim(self, place: Layer) -> int:
        """Numbers of a row."""
        return int(np.prod(place.shape)) if self.how == "map" else place.units

    def positions(
        self, place: Layer, pictures: Sequence[int] | NDArray[np.int64]
    ) -> NDArray[np.int32] | None:
        """Row and column of each row of these pictures, (n * rows, 2); None without positions."""
        if not self.of_positions or not place.spatial:
            return None
        _, height, width = place.shape
        if self.how == "all":
            every = np.indices((height, width), dtype=np.int32).reshape(2, -1).T
            return np.tile(every, (len(pictures), 1))
        if self.count == 1:
            return draw_positions(self.seed, pictures, height, width)
        return draw_several(self.seed, pictures, height, width, self.count).reshape(-1, 2)

    def __call__(self, values: Tensor, place: Layer, pictures: Sequence[int]) -> Tensor:
        """Rows (n * rows, dim) of the activations of pictures, given by their numbers."""
        at = self.positions(place, pictures)
        if at is not None:
            where = torch.from_numpy(at).long().to(values.device)
            which = torch.arange(len(values), device=values.device)
            which = which.repeat_interleave(self.rows(place))
            return values[which, :, where[:, 0], where[:, 1]]
        if self.how == "map":
            return values.flatten(1)
        if self.how == "max" and values.dim() > 2:
            return values.amax(_positions_of(values, place))
        return pool(values, place)


def pool(values: Tensor, place: Layer) -> Tensor:
    """Activations (N, C), (N, C, H, W) or (N, tokens, C) as (N, C): means over positions."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return values.mean(_positions_of(values, place)) if values.dim() > 2 else values


def _positions_of(values: Tensor, place: Layer) -> tuple[int, ...]:
    """The axes of the positions."""
    if values.dim() == 4:
        return (2, 3)
    return (1 if values.shape[2] == place.units else 2,)
