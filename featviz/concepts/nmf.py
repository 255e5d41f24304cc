"""Non-negative matrix factorization of many rows: X ~ codes @ directions, both >= 0.

Hierarchical alternating least squares over chunks of rows: the codes of a chunk take one pass of
coordinate descent, its share in `codes^T codes` and `codes^T X` is renewed, and with these sums the
directions take one pass. No step raises the squared error over all rows, and the directions move a
hundred times in one pass over 100,000 rows. The start is that of Boutsidis & Gallopoulos 2008
(NNDSVDa), or random rows.

    Cichocki & Phan, "Fast local algorithms for large scale nonnegative matrix and tensor
        factorizations", 2009
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from featviz.concepts.dictionary import descend
from featviz.concepts.moments import Moments

Start = Literal["svd", "rows"]

_CHUNK = 1024
_TOLERANCE = 1e-4
"""least share of the error by which a pass must lower it"""
_VISITS, _PASSES = 600_000, (3, 100)
"""rows that all passes together visit at most, but within these numbers of passes"""
_STARTERS = 20_000
"""rows from whose singular vectors it starts"""


def factorize(
    rows: Tensor,
    count: int,
    seed: int,
    *,
    start: Start = "svd",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Directions (count, C) >= 0, not scaled, of rows (N, C) >= 0; `seed` mixes the rows."""
    generator = torch.Generator().manual_seed(seed)
    chunks = rows[torch.randperm(len(rows), generator=generator)].split(_CHUNK)
    some = torch.cat(chunks[: _STARTERS // _CHUNK + 1])
    directions = _svd_start(some, count) if start == "svd" else _row_start(some, count)
    codes: list[Tensor | None] = [None] * len(chunks)
    inner, outer = torch.zeros(count, count), torch.zeros_like(directions)
    whole = sum(float(chunk.double().square().sum()) for chunk in chunks)
    last, most = whole, min(max(_VISITS // len(rows), _PASSES[0]), _PASSES[1])
    for done in range(most):
        for i, chunk in enumerate(chunks):
            code = codes[i]
            if code is None:
                code = chunk.new_zeros(count, len(chunk))
            else:
                inner -= code @ code.T
                outer -= code @ chunk
            gram, wanted = directions @ directions.T, directions @ chunk.T
            for _ in range(5 if codes[i] is None else 1):
                descend(code, wanted, gram)
            codes[i] = code
            inner += code @ code.T
            outer += code @ chunk
            descend(directions, outer, inner)
        error = whole - float((outer * directions).sum()) * 2
        error += float((inner * (directions @ directions.T)).sum())
        if progress:
            progress(done + 1, most)
        if last - error < _TOLERANCE * error:
            break
        last = error
    return directions


def _row_start(rows: Tensor, count: int) -> Tensor:
    """The first rows; a little of the mean keeps every unit within reach."""
    return rows[:count] + 0.01 * rows.mean()


def _svd_start(rows: Tensor, count: int) -> Tensor:
    """The larger part, positive or negative, of each singular vector; the mean in place of 0."""
    vectors = Moments.of([rows]).singular_vectors(count).float()
    along = rows @ vectors.T
    positive = along.clamp(min=0).norm(dim=0), vectors.clamp(min=0)
    negative = along.clamp(max=0).norm(dim=0), -vectors.clamp(max=0)
    larger = positive[0] * positive[1].norm(dim=1) >= negative[0] * negative[1].norm(dim=1)
    parts = torch.where(larger[:, None], positive[1], negative[1])
    length = torch.where(larger, positive[0], negative[0])
    parts *= (length / parts.norm(dim=1).clamp(min=1e-30)).sqrt()[:, None]
    return torch.where(parts > 0, parts, rows.mean())
