"""Numbers of a map: against scikit-learn, scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featviz.atlas.graph import build_graph
from featviz.atlas.metrics import (
    compare_maps,
    distance_correlation,
    map_neighbors,
    map_quality,
    procrustes,
    trustworthiness,
)
from featviz.errors import UserError
from featviz.neighbors.exact import build_index


def test_trustworthiness_of_some_rows_is_their_share(generator: torch.Generator) -> None:
    """The mean over parts of the rows is the whole, and the whole is scikit-learn's."""
    from sklearn.manifold import trustworthiness as oracle

    space = torch.randn(300, 9, generator=generator).double()
    shown = space[:, :2] + 0.5 * torch.randn(300, 2, generator=generator).double()
    parts = [trustworthiness(space, shown, 15, rows=rows) for rows in torch.randperm(300).split(60)]
    whole = oracle(space.numpy(), shown.numpy(), n_neighbors=15)
    assert sum(parts) / 5 == pytest.approx(whole, abs=1e-12)
    assert max(parts) - min(parts) > 1e-4


def test_equal_distances_rank_by_row() -> None:
    space = torch.tensor([[0.0], [1.0], [1.0], [1.0], [9.0]]).double()
    # on the map row 0 is next to row 3, which in the space is its third nearest by the tie's rule
    shown = torch.tensor([[0.0], [5.0], [6.0], [0.1], [9.0]]).double()
    found = trustworthiness(space, shown, 1, rows=torch.tensor([0]))
    assert found == pytest.approx(1 - (3 - 1) * 2 / (1 * 1 * (10 - 3 - 1)))


def test_map_neighbors_is_a_stable_sort(generator: torch.Generator) -> None:
    xy = torch.rand(120, 2, generator=generator)
    squares = torch.cdist(xy.double(), xy.double())
    squares.fill_diagonal_(math.inf)
    assert torch.equal(map_neighbors(xy, 7), squares.sort(dim=1, stable=True).indices[:, :7])
    same = torch.zeros(30, 2)
    found = map_neighbors(same, 4)
    assert not (found == torch.arange(30)[:, None]).any()


def test_recall_at_fifty_asks_for_fifty(generator: torch.Generator) -> None:
    rows = torch.randn(400, 20, generator=generator)
    index = build_index(rows)
    found = map_quality(index, torch.rand(400, 2, generator=generator))
    # 20,000 neighbors, each kept with probability 50/399
    assert found.recall_wide == pytest.approx(50 / 399, abs=0.01)
    assert map_quality(index, rows[:, :2], graph=build_graph(index, 12)).recall_wide is None
    few = map_quality(build_index(rows[:20]), rows[:20, :2])
    assert few.recall_wide is None


def test_a_given_graph_changes_nothing(generator: torch.Generator) -> None:
    rows = torch.randn(200, 30, generator=generator)
    index, xy = build_index(rows), torch.rand(200, 2, generator=generator)
    one = map_quality(index, xy)
    two = map_quality(index, xy, graph=build_graph(index, 90))
    assert torch.equal(one.kept, two.kept)
    assert (one.recall, one.recall_wide, one.trustworthiness, one.continuity, one.correlation) == (
        two.recall,
        two.recall_wide,
        two.trustworthiness,
        two.continuity,
        two.correlation,
    )


def test_the_correlation_of_distances(generator: torch.Generator) -> None:
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    xy = torch.rand(150, 2, generator=generator)
    flat = build_index(xy, metric="l2")
    assert distance_correlation(flat, xy * 7 - 2) == pytest.approx(1, abs=1e-9)
    rows = torch.randn(150, 8, generator=generator)
    found = distance_correlation(build_index(rows, metric="l2"), rows[:, :2], pairs=40_000)
    true = spearmanr(pdist(rows.numpy()), pdist(rows[:, :2].numpy())).statistic
    assert found == pytest.approx(true, abs=0.02)
    found = distance_correlation(build_index(rows), xy)
    assert found is not None
    assert abs(found) < 0.06
    assert distance_correlation(build_index(torch.ones(9, 3)), xy[:9]) is None


def test_procrustes_takes_motion_away_and_nothing_else(generator: torch.Generator) -> None:
    from scipy.spatial import procrustes as oracle

    a = torch.rand(80, 2, generator=generator).double()
    turn = torch.tensor([[math.cos(1), math.sin(1)], [math.sin(1), -math.cos(1)]]).double()
    distance, laid = procrustes(a, 3 * a @ turn + 5)
    assert distance == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(laid, a)
    b = a + 0.2 * torch.randn(80, 2, generator=generator).double()
    assert procrustes(a, b)[0] == pytest.approx(oracle(a.numpy(), b.numpy())[2], abs=1e-12)
    assert procrustes(a, torch.rand(80, 2, generator=generator))[0] > 0.9
    assert procrustes(torch.ones(4, 2), torch.ones(4, 2))[0] == 0


def test_maps_of_several_seeds_are_compared_two_by_two(generator: torch.Generator) -> None:
    a = torch.rand(200, 2, generator=generator)
    same = compare_maps([a, a.flip(1), 2 * a])
    assert same.procrustes == pytest.approx(0, abs=1e-12)
    assert same.overlap == 1
    other = torch.rand(200, 2, generator=generator)
    mixed = compare_maps([a, a, other])
    chance = compare_maps([a, other])
    assert chance.overlap == pytest.approx(10 / 199, abs=0.03)
    assert mixed.overlap == pytest.approx((1 + 2 * chance.overlap) / 3)
    with pytest.raises(UserError, match="1 map cannot be compared"):
        compare_maps([a])


def test_seeds_shake_the_start_and_nothing_else(generator: torch.Generator) -> None:
    from featviz.atlas.layout import LayoutSettings, lay_out

    rows = torch.eye(5, 20).repeat_interleave(16, 0)
    rows = rows + 0.1 * torch.randn(80, 20, generator=generator)
    maps = [lay_out(rows, LayoutSettings(8, (20, 60)), seed=seed).xy for seed in (0, 0, 1)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    # five clusters stay five clusters
    found = np.array(
        [
            [
                set(row.tolist()) <= set(range(16 * (i // 16), 16 * (i // 16) + 16))
                for i, row in enumerate(map_neighbors(xy, 5))
            ]
            for xy in maps
        ]
    )
    assert found.mean() > 0.9
