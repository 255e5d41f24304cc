"""Layouts, grids and the quality of maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from featviz.atlas.cells import cell_means, medoids, whiten
from featviz.atlas.grid import Cell, Grid, assign, cut
from featviz.atlas.layout import (
    START_SPREAD,
    LayoutSettings,
    lay_out,
    principal_components,
    to_unit_square,
)
from featviz.atlas.metrics import class_accuracy, is_among, map_quality, trustworthiness
from featviz.errors import UserError
from featviz.neighbors.exact import build_index

QUICK = (150, 250)


def clusters(
    generator: torch.Generator, count: int = 6, size: int = 20, spread: float = 0.05
) -> tuple[Tensor, list[str]]:
    """Rows around `count` orthogonal directions of a space of 40 dimensions, in mixed order."""
    centers = torch.eye(count, 40).repeat_interleave(size, 0)
    rows = centers + spread * torch.randn(len(centers), 40, generator=generator)
    order = torch.randperm(len(rows), generator=generator)
    return rows[order], [str(int(row) // size) for row in order]


# ---- layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["openTSNE", "scikit-learn"])
def test_clusters_are_kept_apart_and_noise_makes_none(
    method: str, generator: torch.Generator
) -> None:
    rows, labels = clusters(generator)
    layout = lay_out(rows, LayoutSettings(10, QUICK, method=method))
    found = map_quality(build_index(rows), layout.xy, labels=labels)
    assert found.class_map is not None
    assert found.class_map > 0.98
    noise = torch.randn(120, 40, generator=generator)
    layout = lay_out(noise, LayoutSettings(10, QUICK, method=method))
    found = map_quality(build_index(noise), layout.xy, labels=labels)
    assert found.class_map is not None
    assert found.class_map < 0.4


def test_a_flat_space_keeps_its_neighbors(generator: torch.Generator) -> None:
    plane = torch.rand(150, 2, generator=generator) @ torch.randn(2, 30, generator=generator)
    index = build_index(plane, metric="l2")
    layout = lay_out(index, LayoutSettings(15))
    found = map_quality(index, layout.xy)
    assert found.recall > 0.75
    assert found.trustworthiness > 0.97


def test_the_same_seed_gives_the_same_bytes(generator: torch.Generator) -> None:
    rows, _ = clusters(generator)
    state = torch.get_rng_state(), np.random.get_state(legacy=False)
    maps = [lay_out(rows, LayoutSettings(10, QUICK), seed=5) for _ in range(2)]
    assert maps[0].xy.numpy().tobytes() == maps[1].xy.numpy().tobytes()
    assert maps[0].divergence == maps[1].divergence
    assert torch.equal(torch.get_rng_state(), state[0])
    assert str(np.random.get_state(legacy=False)) == str(state[1])


def test_the_map_lies_in_the_unit_square_undistorted(generator: torch.Generator) -> None:
    wide = torch.rand(50, 2, generator=generator) * torch.tensor([8.0, 2.0]) + 3
    xy = to_unit_square(wide)
    assert xy.min() >= 0
    assert xy.max() <= 1
    width, height = (wide.max(0).values - wide.min(0).values).tolist()
    extent = (xy.max(0).values - xy.min(0).values).tolist()
    assert extent[0] == pytest.approx(1)
    assert extent[1] == pytest.approx(height / width)
    assert ((xy.max(0).values + xy.min(0).values) / 2).tolist() == pytest.approx([0.5, 0.5])


def test_principal_components_are_scikit_learns_up_to_sign(generator: torch.Generator) -> None:
    from sklearn.decomposition import PCA

    rows = torch.randn(60, 12, generator=generator) * torch.arange(12, 0, -1)
    ours = principal_components(rows).numpy()
    theirs = PCA(2, svd_solver="full").fit_transform(rows.double().numpy())
    # ours stops after seven rounds of power iteration
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-4)
    # the sign is settled: each axis points where its largest entry is
    assert (ours[np.abs(ours).argmax(0), [0, 1]] > 0).all()
    np.testing.assert_allclose(np.abs(principal_components(-rows).numpy()), np.abs(ours), atol=1e-4)


@pytest.mark.parametrize("count", [2, 3, 7, 8, 9, 20])
def test_few_pictures_have_a_map_too(count: int, generator: torch.Generator) -> None:
    rows = torch.rand(count, 5, generator=generator)
    layout = lay_out(rows, LayoutSettings(steps=(20, 20)))
    assert layout.xy.shape == (count, 2)
    assert torch.isfinite(layout.xy).all()
    assert layout.perplexity <= max(1, (count - 1) / 3)
    assert (layout.divergence is None) == (count < 8)


def test_equal_pictures_do_no_harm() -> None:
    layout = lay_out(torch.ones(12, 5), LayoutSettings(steps=(20, 20)))
    assert torch.isfinite(layout.xy).all()


def test_progress_reports_steps(generator: torch.Generator) -> None:
    reports: list[tuple[int, int, str]] = []
    lay_out(
        torch.rand(30, 4, generator=generator),
        LayoutSettings(steps=(20, 30)),
        progress=lambda *now: reports.append(now),
    )
    steps = [done for done, total, text in reports if text == "laying out"]
    assert steps == [10, 20, 30, 40, 50]
    assert START_SPREAD == 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lay_out(torch.ones(1, 3)), "at least 2 pictures"),
        (lambda: lay_out(torch.ones(9, 3), LayoutSettings(perplexity=0)), "perplexity is 0"),
        (
            lambda: lay_out(torch.ones(9, 3), LayoutSettings(method="umap")),
            "unknown layout method 'umap'",
        ),
        (lambda: cut(torch.ones(1, 2), 0), "grid of 0"),
    ],
)
def test_mistakes_are_errors_of_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


# ---- grid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 8])
def test_every_picture_is_in_exactly_one_square(side: int, generator: torch.Generator) -> None:
    xy = torch.rand(200, 2, generator=generator)
    grid = cut(xy, side)
    members = [row for cell in grid.cells for row in cell.members]
    assert sorted(members) == list(range(200))
    for cell in grid.cells:
        assert list(cell.members) == sorted(cell.members)
        for row in cell.members:
            x, y = xy[row].tolist()
            assert cell.column / side <= x <= (cell.column + 1) / side
            assert cell.row / side <= y <= (cell.row + 1) / side
    places = [(cell.row, cell.column) for cell in grid.cells]
    assert places == sorted(set(places))


def test_points_on_borders_belong_to_one_square() -> None:
    grid = cut(torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0], [0.5, 0.5]]), 2)
    assert grid.cells == (Cell(0, 0, (0,)), Cell(0, 1, (1,)), Cell(1, 1, (2, 3)))


def test_the_mosaic_is_the_best_of_all(generator: torch.Generator) -> None:
    xy = torch.rand(6, 2, generator=generator).double()
    places, columns, rows = assign(xy)
    assert (columns, rows) == (3, 2)
    low, high = xy.min(0).values, xy.max(0).values
    # stretched so that the outermost points are in the outermost places
    points = (xy - (low + high) / 2) / (high - low) * torch.tensor([2.0, 1.0]) + torch.tensor(
        [1.5, 1.0]
    )
    centers = [(c + 0.5, r + 0.5) for r in range(2) for c in range(3)]

    def cost(order: tuple[int, ...]) -> float:
        return sum(
            (float(points[i, 0]) - centers[j][0]) ** 2 + (float(points[i, 1]) - centers[j][1]) ** 2
            for i, j in enumerate(order)
        )

    best = min(itertools.permutations(range(6)), key=cost)
    assert [(c, r) for c, r in places.tolist()] == [(j % 3, j // 3) for j in best]


@pytest.mark.parametrize("room", [1.0, 2.8])
def test_every_picture_has_a_place_of_its_own(room: float, generator: torch.Generator) -> None:
    xy = torch.rand(50, 2, generator=generator)
    places, columns, rows = assign(xy, room=room)
    assert columns * rows >= 50 * room
    assert len({tuple(place) for place in places.tolist()}) == 50
    assert places.min() >= 0
    assert (places < torch.tensor([columns, rows])).all()


def test_points_on_a_lattice_stay_where_they_are() -> None:
    places = torch.tensor([[x, y] for y in range(4) for x in range(4)])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    found, _, _ = assign(places[order].float() / 3)
    assert torch.equal(found, places[order])
    # a map of no extent, or of one dimension, is no error
    assert len({tuple(p) for p in assign(torch.ones(7, 2))[0].tolist()}) == 7


def test_the_icon_of_a_square_is_its_medoid(generator: torch.Generator) -> None:
    rows = torch.rand(30, 6, generator=generator)
    unit = rows / rows.norm(dim=1, keepdim=True)
    grid = Grid(1, (Cell(0, 0, (1, 4, 9, 16, 25)), Cell(0, 1, (2, 3)), Cell(1, 1, (7,))))
    chosen, _ = medoids(unit, grid)
    first = [1, 4, 9, 16, 25]
    far = {i: sum(1 - float(unit[i] @ unit[j]) for j in first) for i in first}
    assert chosen == (min(first, key=far.__getitem__), 2, 7)
    torch.testing.assert_close(cell_means(rows, grid)[1], (rows[2] + rows[3]) / 2)


@pytest.mark.parametrize("count", [5, 60])
def test_whitening_is_the_ridge_inverse(count: int, generator: torch.Generator) -> None:
    data = torch.randn(count, 12, generator=generator).double()
    wanted = torch.randn(3, 12, generator=generator).double()
    moment = data.T @ data / count
    ridge = 0.5 * moment.trace() / 12
    expected = wanted @ torch.linalg.inv(moment + ridge * torch.eye(12).double())
    expected /= expected.norm(dim=1, keepdim=True)
    found = whiten(wanted.float(), data.float(), ridge=0.5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


# ---- metrics --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 7])
def test_trustworthiness_is_scikit_learns(k: int, generator: torch.Generator) -> None:
    from sklearn.manifold import trustworthiness as oracle

    space = torch.randn(60, 9, generator=generator).double()
    for shown in (space[:, :2], torch.randn(60, 2, generator=generator).double()):
        expected = oracle(space.numpy(), shown.numpy(), n_neighbors=k)
        assert trustworthiness(space, shown, k) == pytest.approx(expected, abs=1e-12)


def test_a_map_that_is_the_space_loses_nothing(generator: torch.Generator) -> None:
    xy = torch.rand(90, 2, generator=generator)
    found = map_quality(build_index(xy, metric="l2"), xy * 3 + 1)
    assert found.recall == 1
    assert found.trustworthiness == 1
    assert found.continuity == 1
    assert found.kept.all()


def test_a_random_map_keeps_what_chance_keeps(generator: torch.Generator) -> None:
    rows = torch.randn(400, 20, generator=generator)
    found = map_quality(build_index(rows), torch.rand(400, 2, generator=generator))
    # 4000 neighbors, each kept with probability 10/399: standard deviation .0025
    assert found.recall == pytest.approx(10 / 399, abs=0.0075)
    assert found.recall_chance == pytest.approx(10 / 399)
    assert found.trustworthiness == pytest.approx(0.5, abs=0.05)


def test_tearing_and_gluing_have_different_numbers() -> None:
    # a circle flattened on a line: neighbors on the map are intruders, none was torn away
    angle = torch.arange(100).double() * 2 * torch.pi / 100
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    squashed = torch.stack([angle.cos(), torch.zeros(100).double()], 1)
    cut_open = torch.stack([angle, torch.zeros(100).double()], 1)
    assert trustworthiness(squashed, circle, 5) > trustworthiness(circle, squashed, 5) + 0.2
    assert trustworthiness(circle, cut_open, 5) > 0.998
    assert trustworthiness(cut_open, circle, 5) < trustworthiness(circle, cut_open, 5)


def test_recall_by_hand() -> None:
    kept = is_among(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 9, 1], [7, 8, 9]]))
    assert kept.tolist() == [[True, False, True], [False, False, False]]


def test_the_class_vote_by_hand() -> None:
    labels = ["a", "a", "b", "b", "c", ""]
    neighbors = torch.tensor([[1, 2, 3], [0, 2, 4], [3, 0, 1], [0, 2, 4], [0, 1, 2], [0, 1, 2]])
    # row 0: a against b b, lost; row 1: a b c, the nearest wins; row 2: b against a a, lost;
    # row 3: a b c, the nearest is a, lost; c is alone and the last has no class
    assert class_accuracy(neighbors, labels) == pytest.approx(1 / 4)
    assert class_accuracy(neighbors, ["", "", "", "", "", ""]) is None
