"""Products of queries with rows, by the way that is the fastest on this processor.

Ways are timed for a few milliseconds when one is first needed. Beside float32 there are rougher
ones: bfloat16, on processors with instructions for it, and for one query, where reading the rows
takes the time, float16. How far their cosines can be wrong is known, so that they propose
candidates for an exact search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.models.precision import has_bfloat16

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Way = Callable[[Tensor, Tensor], Tensor]

_FEW = 16
"""queries that are multiplied as vectors"""
_WORTHWHILE = 0.75
"""of float32's time that a rougher product may take; more does not pay for its candidates"""
_CACHED, _UNCACHED = 2048, 16_384
"""rows of 1,024 numbers with which products are timed"""
_LARGEST = 2.0**15
"""no product in float16 is larger"""
BFLOAT16_ERROR, _HALF_ERROR = 1.01 * 2.0**-8, 1.01 * 2.0**-11
"""what rounding changes at most in bfloat16 and float16, relative to the number"""
_STEEPEST = 2.0**10
"""queries of length 1 are multiplied by no more for it"""


def products(queries: Tensor, rows: Tensor) -> Tensor:
    """(Q, N) inner products of queries (Q, dim) and rows (N, dim), in float32."""
    return _product(rows.device.type, _sample(len(queries)))[0](queries, rows)


def rough_kind(queries: int, halves: bool) -> torch.dtype | None:
    """The type of fewer bits in which a CPU multiplies so many queries faster, if there is one.

    float16 is for one query alone, and for rows that are in it already (`halves`).
    """
    if queries == 1:
        return torch.float16 if halves and _pays(1, torch.float16) else None
    return torch.bfloat16 if _pays(_sample(queries), torch.bfloat16) else None


@cache
def _pays(sample: int, kind: torch.dtype) -> bool:
    if kind == torch.bfloat16 and not has_bfloat16(torch.device("cpu")):
        return False
    (seconds,) = _seconds([rough_products], sample, kind)
    return seconds < _WORTHWHILE * _product("cpu", sample)[1]


def rough_products(queries: Tensor, rows: Tensor) -> Tensor:
    """(Q, N) of float16 or bfloat16, summed in float32 and rounded once."""
    return (rows @ queries[0])[None] if rows.dtype == torch.float16 else queries @ rows.T


@dataclass(frozen=True)
class Halves:
    """How a query of length 1 is multiplied with rows in float16."""

    scale: float
    """of the query: no product is too large then"""
    lengths: Tensor
    """(N,) of the rows, times the scale: products over them are cosines"""
    lost: float
    """how much a cosine can be wrong"""

    @classmethod
    def of(cls, norms: NDArray[np.float64], dim: int) -> Halves:
        """For rows of such lengths, (N,)."""
        scale = 2.0 ** math.floor(math.log2(_LARGEST / max(norms.max(initial=0), 1.0)))
        scale = min(scale, _STEEPEST)
        some = norms[norms > 0]
        # by rounding query and product, and by their numbers below the normal ones
        subnormal = 2.0**-25 / scale * (math.sqrt(dim) + 1 / some.min(initial=np.inf))
        lengths = torch.from_numpy(scale * np.where(norms > 0, norms, 1)).float()
        return cls(scale, lengths, 2 * _HALF_ERROR + subnormal)


def in_bfloat16(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (N, dim) in bfloat16, and how far each has moved, (N,)."""
    rough = unit.bfloat16()
    return rough, torch.linalg.vector_norm(rough.float() - unit, dim=1)


def _sample(queries: int) -> int:
    """The number of queries with which products of so many are timed."""
    return 1 if queries == 1 else 4 if queries < _FEW else 64


def _by_mkl(queries: Tensor, rows: Tensor) -> Tensor:
    return queries @ rows.T


def _by_onednn(queries: Tensor, rows: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(queries, rows, None, "none", [], "")
    return product


def _by_numpy(queries: Tensor, rows: Tensor) -> Tensor:
    return torch.from_numpy(np.vecdot(rows.numpy(), queries.numpy()[:, None]))


@cache
def _product(device: str, sample: int) -> tuple[_Way, float]:
    """The fastest way here to multiply queries (Q, dim) by rows (N, dim) transposed, in float32.

    And its seconds, where there was a choice.
    """
    ways: list[_Way] = [_by_mkl]
    if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways.append(_by_onednn)
    if device == "cpu" and sample == 1:
        ways.append(_by_numpy)
    if device != "cpu":
        return _by_mkl, math.inf
    seconds = _seconds(ways, sample, torch.float32)
    best = int(np.argmin(seconds))
    return ways[best], seconds[best]


def _seconds(ways: list[_Way], sample: int, kind: torch.dtype) -> list[float]:
    """The shortest time of each way in six rounds.

    One query takes as long as its rows take to be read, as a rule from memory: so many are taken
    that they do not stay in a cache.
    """
    queries = torch.ones(sample, 1024, dtype=kind)
    rows = torch.ones(_UNCACHED if sample == 1 else _CACHED, 1024, dtype=kind)
    seconds = [math.inf] * len(ways)
    for _ in range(6):
        for i, way in enumerate(ways):
            started = time.thread_time()  # without the times when other processes had the core
            way(queries, rows)
            seconds[i] = min(seconds[i], time.thread_time() - started)
    return seconds
