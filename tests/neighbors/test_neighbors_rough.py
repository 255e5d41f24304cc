"""Candidates proposed in fewer bits: the same neighbors, and bounds that hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.nearest import nearest
from torch import Tensor

import featviz.neighbors.exact as module
from featviz.neighbors import products
from featviz.neighbors.exact import Index, build_index
from featviz.neighbors.products import (
    BFLOAT16_ERROR,
    Halves,
    in_bfloat16,
    rough_kind,
    rough_products,
)

KINDS = (torch.float16, torch.bfloat16)


def spread_lengths(generator: torch.Generator) -> Tensor:
    """Rows from tiny to as long as float16 can hold, and one without a direction."""
    rows = torch.randn(400, 48, generator=generator).relu()
    rows *= torch.logspace(-3, 4, 400)[torch.randperm(400, generator=generator), None]
    rows[7] = 0
    return rows.half().float()


def with_twins(generator: torch.Generator) -> Tensor:
    """Each row forty times, so that no number of candidates decides."""
    return torch.randn(8, 16, generator=generator).half().float().repeat(40, 1)


def dense(generator: torch.Generator) -> Tensor:
    """Rows in all but the same direction: their cosines differ by less than bfloat16 rounds."""
    return (1 + 1e-2 * torch.rand(300, 32, generator=generator)).half().float()


@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made", [spread_lengths, with_twins, dense])
def test_neighbors_are_those_of_float64(
    kind: torch.dtype,
    made: Callable[[torch.Generator], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    generator: torch.Generator,
) -> None:
    monkeypatch.setattr(module, "rough_kind", lambda *_: kind)
    monkeypatch.setattr(module, "_BLOCK", 100)
    base = made(generator)
    queries = torch.cat([base[:18], torch.randn(3, base.shape[1], generator=generator)])
    exclude = [*range(18), -1, -1, -1]
    distances, rows = nearest(base, queries, 6, "cosine", exclude)
    index = build_index(base)
    size = 1 if kind == torch.float16 else 21
    for start in range(0, 21, size):
        part = slice(start, start + size)
        found, at = index.search(queries[part], 6, exclude=exclude[part])
        torch.testing.assert_close(found, distances[part], rtol=0, atol=1e-9)
        assert torch.equal(at, rows[part])


def test_a_space_that_bfloat16_cannot_decide_is_left_to_float32(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    asked: list[torch.dtype | None] = []
    original = Index._candidates

    def noted(self: Index, *given: object) -> object:
        asked.append(given[3])  # type: ignore[arg-type]
        return original(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "rough_kind", lambda *_: torch.bfloat16)
    monkeypatch.setattr(Index, "_candidates", noted)
    base = dense(generator)
    index = build_index(base)
    first = index.search(base[:20], 3)
    assert asked[0] == torch.bfloat16
    assert asked[1] is None
    asked.clear()
    again = index.search(base[:20], 3)
    assert set(asked) == {None}
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_products_are_timed_once_for_batches_of_many_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rough_kind(100, True)
    monkeypatch.setattr(products, "_seconds", None)
    for queries in (16, 101, 1024):
        rough_kind(queries, False)


@pytest.mark.numeric
def test_cosines_in_fewer_bits_are_within_their_bounds(generator: torch.Generator) -> None:
    base, queries = spread_lengths(generator)[8:], torch.randn(30, 48, generator=generator)
    unit, asked = (torch.nn.functional.normalize(x, dim=1) for x in (base, queries))
    exact = torch.nn.functional.normalize(queries.double(), dim=1) @ (
        torch.nn.functional.normalize(base.double(), dim=1).T
    )
    (rows, by_row), (xq, by_query) = in_bfloat16(unit), in_bfloat16(asked)
    moved = by_query[:, None] + (1 + 2.0**-8) * by_row[None]
    wrong = (rough_products(xq, rows).double() - exact).abs()
    assert (wrong <= moved + BFLOAT16_ERROR + module._COSINE_ERROR).all()
    assert (wrong > 0.1 * moved).any()  # the bound is no larger than it has to be
    how = Halves.of(base.double().norm(dim=1).numpy(), 48)
    for number, query in enumerate(asked):
        products = rough_products((query[None] * how.scale).half(), base.half())[0]
        wrong = (products.double() / how.lengths.double() - exact[number]).abs()
        assert (wrong <= how.lost + module._COSINE_ERROR).all()
