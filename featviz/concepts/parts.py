"""What each concept adds to the activations of a picture: its codes times its direction.

Activations of one picture, (C,), (C, H, W) or (tokens, C), are rows (P, C), one a position. A part
is code * direction at every position; the activations less all parts are the residual (the mean of
a dictionary, and what it does not explain).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from featviz.models.model import Layer


class Encoder(Protocol):
    """A dictionary: directions (k, C), and the codes (N, k) of rows (N, C)."""

    @property
    def directions(self) -> Tensor:
        """(k, C)."""

    def encode(self, rows: Tensor) -> Tensor:
        """(N, k) of rows (N, C)."""


def rows_of(values: Tensor, place: Layer) -> Tensor:
    """Activations (N, ...) of a layer as (N, P, C): a row a position."""
    if values.dim() == 4:
        return values.flatten(2).transpose(1, 2)
    if values.dim() == 3 and values.shape[2] != place.units:
        return values.transpose(1, 2)
    return values if values.dim() == 3 else values[:, None]


def like_layer(rows: Tensor, values: Tensor, place: Layer) -> Tensor:
    """Rows (M, P, C) in the shape of activations `values` (1, ...) of a layer: (M, ...)."""
    if values.dim() == 4:
        return rows.transpose(1, 2).reshape(-1, *values.shape[1:])
    if values.dim() == 3 and values.shape[2] != place.units:
        return rows.transpose(1, 2)
    return rows if values.dim() == 3 else rows[:, 0]


def parts_of(codes: Tensor, directions: Tensor) -> Tensor:
    """(k, P, C): what each concept adds to rows, for codes (P, k) and directions (k, C)."""
    return codes.T[:, :, None] * directions[:, None, :]


def code_maps(values: Tensor, place: Layer, encoder: Encoder) -> Tensor:
    """Codes (N, k, h, w) of activations; one position for vectors, a column of them for tokens."""
    rows = rows_of(values, place)
    codes: Tensor = encoder.encode(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
    height, width = values.shape[2:] if values.dim() == 4 else (rows.shape[1], 1)
    maps: Tensor = codes.transpose(1, 2).reshape(len(values), -1, height, width)
    return maps
