"""The graph of neighbors against exact search."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from featviz.atlas import graph as graphs
from featviz.atlas.graph import build_graph, neighbors_wanted
from featviz.atlas.groups import find_groups
from featviz.checkpoints import open_checkpoint
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


def test_groups_are_a_partition_and_the_nearest_hold_neighbors(
    generator: torch.Generator,
) -> None:
    rows = torch.randn(1000, 70, generator=generator).repeat_interleave(3, 0)
    groups = find_groups(rows, 50)
    assert torch.cat(groups.members).sort().values.tolist() == list(range(3000))
    sizes = [len(members) for members in groups.members]
    assert 1 <= min(sizes) <= max(sizes) <= 100
    asked = torch.arange(100)
    near = build_index(rows, metric="l2").search(rows[asked], 9, exclude=asked)[1]
    own = {row: i for i, members in enumerate(groups.members) for row in members.tolist()}
    order = groups.nearest(rows[asked], len(sizes)).tolist()
    ranks = [order[row].index(own[other]) for row in range(100) for other in near[row].tolist()]
    for share in (0.5, 0.9, 1.0):
        count = groups.holding(rows[asked], near, share, 1)
        held = [sum(rank < some for rank in ranks) / len(ranks) for some in (count - 1, count)]
        assert held[0] < share <= held[1]
    fewest = groups.holding(rows[asked], near, 0.1, 2900)
    assert sum(sorted(sizes)[:fewest]) >= 2900 > sum(sorted(sizes)[: fewest - 1])


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_search_in_groups_finds_the_best_of_their_rows(
    share: float, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_SCORES", 20_000)
    rows = torch.randn(700, 8, generator=generator)
    bias = rows.square().sum(1) / 2
    groups = find_groups(rows, 40)
    probes = math.ceil(share * len(groups.members))
    some = torch.randperm(700, generator=generator)[:300]
    near, scores = graphs._Grouped(rows, bias, groups, probes)(some, 12)
    score = rows[some] @ rows.T - bias
    score[torch.arange(300), some] = -torch.inf
    for row, named in enumerate(groups.nearest(rows[some], probes)):
        outside = torch.ones(700, dtype=torch.bool)
        outside[torch.cat([groups.members[number] for number in named.tolist()])] = False
        score[row, outside] = -torch.inf
    best, true = score.topk(12, dim=1)
    torch.testing.assert_close(scores, best, atol=1e-5, rtol=1e-5)
    assert float((near == true).double().mean()) > 0.999


def test_a_stopped_graph_goes_on_and_is_the_same(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"_WHOLE": 100, "_AXES": 30, "_PIECE": 1, "_PART": 256}.items():
        monkeypatch.setattr(graphs, name, value)
    hidden = torch.randn(1000, 8, generator=generator)
    index = build_index((hidden @ torch.randn(8, 40, generator=generator)).relu())
    whole = build_graph(index, 8)

    def stop(done: int, total: int, text: str) -> None:
        if done > total / 3:
            raise RuntimeError(text)

    with (
        pytest.raises(RuntimeError, match="finding neighbors"),
        open_checkpoint(tmp_path / "graph", {}) as kept,
    ):
        build_graph(index, 8, stop, kept=kept)
    pieces = {file: file.stat().st_mtime_ns for file in (tmp_path / "graph").glob("*.npz")}
    assert pieces
    with open_checkpoint(tmp_path / "graph", {}) as kept:
        resumed = build_graph(index, 8, kept=kept)
    assert torch.equal(resumed.rows, whole.rows)
    assert torch.equal(resumed.distances, whole.distances)
    assert whole.recall > 0.99
    assert all(file.stat().st_mtime_ns == time for file, time in pieces.items())
