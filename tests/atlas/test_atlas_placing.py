"""New rows on an existing map."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from featviz.atlas.layout import Layout, LayoutSettings, lay_out
from featviz.atlas.metrics import map_neighbors
from featviz.atlas.placing import place_rows
from featviz.errors import UserError
from featviz.neighbors.exact import Index, build_index

Made = tuple[Index, Layout, Tensor]


def clusters(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows round eight directions, and which each belongs to."""
    home = torch.arange(count) % 8
    return torch.eye(8, 30)[home] + 0.1 * torch.randn(count, 30, generator=generator), home


@pytest.fixture(scope="module")
def made() -> Made:
    rows, home = clusters(320, torch.Generator().manual_seed(4))
    index = build_index(rows)
    return index, lay_out(index, LayoutSettings(15, (50, 200))), home


def test_new_rows_are_placed_on_their_clusters(made: Made, generator: torch.Generator) -> None:
    index, layout, home = made
    new, theirs = clusters(64, generator)
    found = place_rows(layout, index, new)
    nearest = torch.cdist(found, layout.xy).argmin(1)
    assert float((home[nearest] == theirs).double().mean()) > 0.98
    # and rows of another space have no cluster
    lost = place_rows(layout, index, torch.randn(64, 30, generator=generator))
    nearest = torch.cdist(lost, layout.xy).argmin(1)
    assert float((home[nearest] == theirs).double().mean()) < 0.5


def test_the_position_of_a_row_does_not_depend_on_the_others(
    made: Made, generator: torch.Generator
) -> None:
    index, layout, _ = made
    new, _ = clusters(6, generator)
    together = place_rows(layout, index, new)
    alone = torch.cat([place_rows(layout, index, row[None]) for row in new])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)
    turned = place_rows(layout, index, new.flip(0)).flip(0)
    torch.testing.assert_close(turned, together, rtol=0, atol=1e-6)


def test_rows_of_the_map_are_placed_by_their_own_neighbors(made: Made) -> None:
    index, layout, _ = made
    some = torch.arange(0, 320, 5)
    found = place_rows(layout, index, index.take(some.numpy()), exclude=some)
    _, near = index.search(index.take(some.numpy()), 25, exclude=some)
    to_own = (found[:, None] - layout.xy[near]).norm(dim=2).median(1).values
    to_any = torch.cdist(found, layout.xy).median(1).values
    assert float((to_own / to_any).median()) < 0.2
    # nearly where t-SNE itself put them: within the reach of their 25 nearest on the map
    reach = (layout.xy[map_neighbors(layout.xy, 25)[some, -1]] - layout.xy[some]).norm(dim=1)
    moved = (found - layout.xy[some]).norm(dim=1)
    assert float((moved < reach).double().mean()) > 0.8


def test_a_descent_lowers_the_divergence_of_each_point(
    made: Made, generator: torch.Generator
) -> None:
    from featviz.atlas.affinities import conditional

    index, layout, _ = made
    new, _ = clusters(40, generator)
    distances, rows = index.search(new, 25)
    p = conditional(2 * distances, 5.0)

    def divergences(xy: Tensor) -> Tensor:
        low, high = layout.raw.min(0).values, layout.raw.max(0).values
        y = (xy.double() - 0.5) * (high - low).max() + (low + high) / 2
        kernel = 1 / (1 + torch.cdist(y, layout.raw).square())
        q = kernel.gather(1, rows) / kernel.sum(1, keepdim=True)
        return -(1.5 * p * q.log()).sum(1)

    before = divergences(place_rows(layout, index, new, steps=0))
    after = divergences(place_rows(layout, index, new))
    assert float(after.mean()) < float(before.mean())


def test_the_map_and_the_caller_stay_as_they_were(made: Made, generator: torch.Generator) -> None:
    index, layout, _ = made
    new, _ = clusters(5, generator)
    kept, raw = new.clone(), layout.raw.clone()
    first = place_rows(layout, index, new)
    assert torch.equal(new, kept)
    assert torch.equal(layout.raw, raw)
    assert torch.equal(place_rows(layout, index, new), first)
    assert place_rows(layout, index, new[:0]).shape == (0, 2)


def test_a_map_of_few_rows_takes_new_ones_too() -> None:
    rows = torch.eye(5)
    index = build_index(rows)
    layout = lay_out(index)
    found = place_rows(layout, index, rows[:2], k=1)
    torch.testing.assert_close(found, layout.xy[:2], rtol=0, atol=1e-6)


def test_mistakes_are_errors(made: Made) -> None:
    index, layout, _ = made
    with pytest.raises(UserError, match="a map of 320 rows and an index of 7"):
        place_rows(layout, build_index(torch.rand(7, 30)), torch.rand(2, 30))
    with pytest.raises(UserError, match="vectors are"):
        place_rows(layout, index, torch.rand(2, 31))
