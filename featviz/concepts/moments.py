"""Mean and second moment of rows, from one pass, and the directions that follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of N rows (N, C), float64."""

    count: int
    total: Tensor
    """(C,), their sum"""
    square: Tensor
    """(C, C), rows^T rows"""
    lowest: float
    """the smallest value"""

    @classmethod
    def of(cls, blocks: Iterable[Tensor]) -> Moments:
        """Of the rows in one or more blocks."""
        count, lowest = 0, float("inf")
        total = square = torch.zeros(())
        for block in blocks:
            rows = block.double()
            count += len(rows)
            total = total + rows.sum(0)
            square = square + rows.T @ rows
            lowest = min(lowest, float(rows.min()))
        return cls(count, total, square, lowest)

    @property
    def mean(self) -> Tensor:
        """(C,)"""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C)"""
        return self.square / self.count - torch.outer(self.mean, self.mean)

    @cached_property
    def _of_square(self) -> tuple[Tensor, Tensor]:
        return eigenvectors(self.square)

    def singular_vectors(self, count: int) -> Tensor:
        """(count, C): the right singular vectors of the rows with the largest singular values."""
        return self._of_square[1][:count]

    @property
    def rank(self) -> int:
        """In how many directions the rows lie."""
        values = self._of_square[0]
        return int((values > 1e-10 * values[0].clamp(min=1e-300)).sum())


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (C,), the largest first, and eigenvectors (C, C) as rows, of fixed sign."""
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return values.flip(0), rows * largest.sign()
