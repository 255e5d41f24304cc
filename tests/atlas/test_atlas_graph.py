"""The graph of neighbors against exact search."""

from __future__ import annotations

import pytest
import torch

from featviz.atlas import graph as graphs
from featviz.atlas.graph import build_graph, neighbors_wanted
from featviz.errors import UserError
from featviz.neighbors.exact import Metric, build_index


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("shortcut", [False, True])
def test_the_graph_is_exact_searchs(
    metric: Metric, shortcut: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (torch.randn(700, 300, generator=generator) + 0.3).relu()
    rows[5] = 0  # a picture without any activation
    index = build_index(rows, metric=metric)
    if shortcut:
        monkeypatch.setattr(graphs, "_WHOLE", 100)
        monkeypatch.setattr(graphs, "RECALL", 0.5)
    found = build_graph(index, 30)
    distances, near = index.search(rows, 30, exclude=range(700))
    agree = found.rows == near
    torch.testing.assert_close(
        found.distances[agree], distances.float()[agree], rtol=1e-5, atol=3e-6
    )
    same = float((found.rows[:, :, None] == near[:, None]).any(2).double().mean())
    if shortcut:
        assert same > 0.99
        assert found.recall == pytest.approx(same, abs=0.01)
    else:
        assert same > 0.9999  # float32 may swap two rows at the end of the list
        assert found.recall == 1


def test_a_shortcut_that_misses_too_much_is_not_taken(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_WHOLE", 100)
    monkeypatch.setattr(graphs, "_AXES", 2)
    rows = torch.randn(400, 50, generator=generator)
    index = build_index(rows)
    found = build_graph(index, 10)
    _, near = index.search(rows, 10, exclude=range(400))
    assert float((found.rows == near).double().mean()) > 0.99  # but for what float32 confuses
    assert torch.equal(found.rows.sort(1).values, near.sort(1).values)
    assert found.recall == 1


def test_a_quick_graph_says_what_it_misses(generator: torch.Generator) -> None:
    rows = torch.randn(600, 200, generator=generator)
    index = build_index(rows)
    found = build_graph(index, 10, quick=True)
    _, near = index.search(rows, 10, exclude=range(600))
    same = float((found.rows[:, :, None] == near[:, None]).any(2).double().mean())
    assert 0.1 < same < 0.9
    assert found.recall == pytest.approx(same, abs=0.05)
    flat = torch.randn(300, 5, generator=generator) @ torch.randn(5, 200, generator=generator)
    assert build_graph(build_index(flat), 10, quick=True).recall > 0.99


def test_equal_rows_come_in_their_order() -> None:
    index = build_index(torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 3))
    found = build_graph(index, 4)
    assert found.rows[:4].tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 4]]
    assert found.rows[5].tolist() == [4, 6, 0, 1]


def test_no_row_is_its_own_neighbor_and_lengths_are_euclidean(
    generator: torch.Generator,
) -> None:
    rows = torch.randn(90, 12, generator=generator)
    found = build_graph(build_index(rows), 200)
    assert found.k == 89
    assert not (found.rows == torch.arange(90)[:, None]).any()
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    expected = torch.cdist(unit, unit).gather(1, found.rows)
    torch.testing.assert_close(found.lengths, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.nearest(7).rows, found.rows[:, :7])


def test_how_many_neighbors_and_what_is_refused() -> None:
    assert neighbors_wanted(1000) == 90
    assert neighbors_wanted(1000, 5) == 50
    assert neighbors_wanted(20) == 19
    with pytest.raises(UserError, match="at least 2 rows, there are 1"):
        build_graph(build_index(torch.ones(1, 3)), 5)
    with pytest.raises(UserError, match="has not 9"):
        build_graph(build_index(torch.rand(6, 3)), 5).nearest(9)
