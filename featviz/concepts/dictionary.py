"""A dictionary: k directions in the channels of a layer, and how rows are written in them.

In: rows (N, C) of a layer's activations, float. Out: codes (N, k), how much of each direction a row
has; `decode` gives back codes @ directions + mean. Every direction has Euclidean length 1, so a
code is in the unit of the activations and two codes can be compared. Writing draws no random
number, and no row changes the codes of another (but for the rounding and the tolerance of nmf).

    nmf     codes >= 0 of least squares (non-negative least squares, by coordinate descent)
    kmeans  of the nearest centroid only, the row's projection on its direction, 0 where negative
    pca     projections of row - mean
    ica     the independent components of row - mean; directions are columns of the mixing matrix
    topk    (row - mean) @ weight.T, the `active` largest of each row; all others are 0

A concept is named like a unit: "relu5/nmf32:3" is number 3 of the 32 of an NMF at relu5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from featviz.errors import UserError

Method = Literal["nmf", "kmeans", "pca", "ica", "topk"]
METHODS: tuple[Method, ...] = get_args(Method)
SIGNED = frozenset({"pca", "ica"})
"""methods whose codes may be negative, and whose directions have no sign of their own"""

_BLOCK = 8192
"""rows that are written at once"""
_SWEEPS, _TOLERANCE = 200, 1e-5
"""of coordinate descent: at most so many passes; the change, by the largest code, at its end"""


@dataclass(frozen=True)
class Dictionary:
    """Directions (k, C) of length 1, and what writing rows in them needs."""

    method: Method
    directions: Tensor
    """(k, C) float32"""
    mean: Tensor
    """(C,) float32: subtracted before, added after; zeros for nmf and kmeans"""
    encoder: Mapping[str, Tensor] = field(default_factory=dict)
    """kmeans: "norm" (k,), lengths of the centroids; ica and topk: "weight" (k, C)"""
    active: int | None = None
    """codes of a row that are not 0, of topk"""

    def __len__(self) -> int:
        return len(self.directions)

    def encode(self, rows: Tensor) -> Tensor:
        """Codes (N, k) float32 of rows (N, C), on their device.

        Raises:
            UserError: Rows of another number of channels.
        """
        channels = self.directions.shape[1]
        if rows.dim() != 2 or rows.shape[1] != channels:
            raise UserError(f"rows of shape {tuple(rows.shape)}: give (N, {channels})")
        moved = self._on(rows.device)
        blocks = [moved._encode(block.float()) for block in rows.split(_BLOCK)]
        return torch.cat(blocks) if blocks else rows.new_empty(0, len(self))

    def decode(self, codes: Tensor) -> Tensor:
        """Rows (N, C) of codes (N, k)."""
        moved = self._on(codes.device)
        return codes.float() @ moved.directions + moved.mean

    def _on(self, device: torch.device) -> Dictionary:
        if self.directions.device == device:
            return self
        encoder = {name: values.to(device) for name, values in self.encoder.items()}
        return Dictionary(
            self.method, self.directions.to(device), self.mean.to(device), encoder, self.active
        )

    def _encode(self, rows: Tensor) -> Tensor:
        if self.method == "nmf":
            return non_negative_codes(rows, self.directions)
        if self.method == "kmeans":
            norm = self.encoder["norm"]
            along = rows @ self.directions.T
            # The squared distance to each centroid, less that of the row to 0.
            nearest = (norm.square() - 2 * norm * along).argmin(1, keepdim=True)
            return torch.zeros_like(along).scatter(1, nearest, along.gather(1, nearest).relu())
        weight = self.encoder.get("weight", self.directions)
        codes = (rows - self.mean) @ weight.T
        return codes if self.active is None else keep_largest(codes, self.active)


def keep_largest(codes: Tensor, active: int) -> Tensor:
    """Codes (N, k) with all but the `active` largest of each row at 0."""
    found = codes.topk(active, dim=1)
    return torch.zeros_like(codes).scatter(1, found.indices, found.values)


def non_negative_codes(rows: Tensor, directions: Tensor) -> Tensor:
    """Codes (N, k) >= 0 that minimize |row - codes @ directions|^2."""
    gram, wanted = directions @ directions.T, directions @ rows.T
    codes = torch.zeros_like(wanted)
    for _ in range(_SWEEPS):
        before = codes.clone()
        descend(codes, wanted, gram)
        if float((codes - before).abs().max()) <= _TOLERANCE * float(codes.max()):
            break
    return codes.T.contiguous()


def descend(codes: Tensor, wanted: Tensor, gram: Tensor) -> None:
    """One pass of coordinate descent on codes (k, N) >= 0, in place.

    In turn each row of codes takes its best value with all others fixed; wanted is directions @
    data (k, N), gram is directions @ directions^T (k, k).
    """
    for j in range(len(codes)):
        codes[j] += (wanted[j] - gram[j] @ codes) / gram[j, j].clamp(min=1e-30)
        codes[j].clamp_(min=0)


@dataclass(frozen=True)
class ConceptName:
    """The parts of "relu5/nmf32:3"."""

    layer: str
    method: Method
    count: int
    index: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.method}{self.count}:{self.index}"


def parse_concept(text: str) -> ConceptName | None:
    """The parts of a concept's name; None for what is none, such as a unit's."""
    layer, _, rest = text.rpartition("/")
    kind, _, index = rest.partition(":")
    method = kind.rstrip("0123456789")
    count = kind.removeprefix(method)
    if not layer or method not in METHODS or not count or not index.isdecimal():
        return None
    return ConceptName(layer, method, int(count), int(index))
