"""Our t-SNE against all pairs in float64, scikit-learn's formulas and openTSNE's maps."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from featviz.atlas.affinities import Affinities, affinities, conditional
from featviz.atlas.graph import Graph, build_graph
from featviz.atlas.layout import Layout, LayoutSettings, lay_out
from featviz.atlas.metrics import map_quality
from featviz.atlas.tsne import (
    Attraction,
    Repulsion,
    all_pairs,
    divergence,
    optimize,
    similarities,
)
from featviz.checkpoints import open_checkpoint
from featviz.neighbors.exact import Index, build_index


def clusters(generator: torch.Generator, count: int = 400, dim: int = 30) -> Tensor:
    """Twenty overlapping clusters."""
    centers = torch.randn(20, dim, generator=generator)
    noise = 0.7 * torch.randn(count, dim, generator=generator)
    return centers[torch.arange(count) % 20] + noise


@pytest.fixture(scope="module")
def index() -> Index:
    return build_index(clusters(torch.Generator().manual_seed(0)), metric="l2")


@pytest.fixture(scope="module")
def graph(index: Index) -> Graph:
    return build_graph(index, 60)


@pytest.fixture(scope="module")
def layout(index: Index, graph: Graph) -> Layout:
    return lay_out(index, LayoutSettings(20), graph=graph)


def dense(pairs: Affinities) -> Tensor:
    p = torch.zeros(len(pairs), len(pairs), dtype=torch.float64)
    p[pairs.rows.long(), pairs.others.long()] = pairs.p
    return p


def true_divergence(p: Tensor, y: Tensor) -> Tensor:
    """sum p log(p / q) over all pairs, differentiable in y (N, 2)."""
    kernel = 1 / (1 + (y[:, None] - y[None]).square().sum(2))
    kernel = kernel * (1 - torch.eye(len(y), dtype=y.dtype))
    q = kernel / kernel.sum()
    some = p > 0
    return (p[some] * (p[some] / q[some]).log()).sum()


@pytest.mark.parametrize(
    ("extent", "error"),
    # float32's at the start, which is itself shaken by a tenth; then the grid's; at last that of
    # points so far apart that hardly anything repels
    [(0.001, 0.05), (3.0, 0.005), (40.0, 0.015), (150.0, 0.08)],
)
def test_the_force_is_the_gradient_over_all_pairs(
    extent: float, error: float, graph: Graph, generator: torch.Generator
) -> None:
    pairs = affinities(graph, 15)
    y = extent * (torch.rand(400, 2, generator=generator, dtype=torch.float64) - 0.5)
    y.requires_grad_(True)
    (expected,) = torch.autograd.grad(true_divergence(dense(pairs), y), y)
    single = y.detach().T.float().contiguous()
    away, z = Repulsion()(single)
    found = 4 * (Attraction(pairs, single.device)(single) - away / z).T.double()
    wrong = float((found - expected).norm() / expected.norm())
    assert wrong < error
    # forces on pairs are opposite, so their sum is nearly 0
    assert float(found.sum(0).norm()) < max(0.02, error) * float(found.norm(dim=1).sum())


def test_a_narrower_grid_comes_nearer_to_all_pairs(generator: torch.Generator) -> None:
    y = 60 * torch.rand(2, 500, generator=generator, dtype=torch.float64)
    y[:, :250] = 30 + torch.randn(2, 250, generator=generator, dtype=torch.float64)
    apart = y[:, :, None] - y[:, None, :]
    kernel = 1 / (1 + apart.square().sum(0))
    force, z = (apart * kernel.square()).sum(2), float(kernel.sum()) - 500
    errors = []
    for spacing in (0.2, 0.1, 0.05):
        found, total = Repulsion(spacing)(y)
        errors.append(float((found - force).norm() / force.norm()))
        assert float(total) == pytest.approx(z, rel=1e-5)
    assert all(after < before / 4 for before, after in itertools.pairwise(errors))
    assert errors[0] < 1e-3
    exact, total = all_pairs(y)
    torch.testing.assert_close(exact, force)
    assert float(total) == pytest.approx(z)


def test_a_point_does_not_repel_itself(generator: torch.Generator) -> None:
    alone = torch.rand(2, 1, generator=generator, dtype=torch.float64)
    force, z = Repulsion()(alone)
    assert float(force.abs().max()) < 1e-9
    assert abs(float(z)) < 1e-9
    pair = torch.tensor([[0.3, 900.3], [0.1, 0.2]], dtype=torch.float64)
    force, z = Repulsion()(pair)
    # two points too far apart to matter, on the widest grid
    assert float(force.abs().max()) < 1e-5


def test_the_potential_is_right_for_other_points_too(generator: torch.Generator) -> None:
    y = 20 * torch.rand(2, 300, generator=generator, dtype=torch.float64)
    other = 24 * torch.rand(2, 50, generator=generator, dtype=torch.float64) - 2
    phi, force = Repulsion(0.2).potential(y, 5).at(other)
    apart = other[:, :, None] - y[:, None, :]
    kernel = 1 / (1 + apart.square().sum(0))
    torch.testing.assert_close(phi, kernel.sum(1), rtol=1e-3, atol=1e-3)
    expected = (apart * kernel.square()).sum(2)
    assert float((force - expected).norm() / expected.norm()) < 3e-3


def test_affinities_are_scikit_learns(index: Index, graph: Graph) -> None:
    from scipy.sparse import csr_matrix
    from sklearn.manifold._t_sne import _joint_probabilities_nn

    count, k = graph.rows.shape
    squares = graph.lengths.square().numpy()
    bounds = np.arange(0, count * k + 1, k)
    theirs = _joint_probabilities_nn(
        csr_matrix((squares.ravel(), graph.rows.numpy().ravel(), bounds), shape=(count, count)),
        20.0,
        0,
    )
    found = dense(affinities(graph, 20))
    # they stop 1e-5 nats from the perplexity, and work in float32
    np.testing.assert_allclose(found.numpy(), theirs.toarray(), rtol=2e-3, atol=1e-9)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("perplexity", [2.0, 5.0, 19.5])
def test_every_row_has_the_perplexity(perplexity: float, generator: torch.Generator) -> None:
    squares = torch.rand(50, 40, generator=generator, dtype=torch.float64).sort(1).values
    squares[:10] *= 1e-9
    squares[10:20] *= 1e9
    p = conditional(squares, perplexity)
    entropy = -(p * p.clamp_min(1e-300).log()).sum(1)
    torch.testing.assert_close(
        entropy.exp(), torch.full((50,), perplexity).double(), rtol=1e-5, atol=0
    )
    # a row's p does not depend on the others
    alone = torch.cat([conditional(row[None], perplexity) for row in squares])
    torch.testing.assert_close(alone, p, rtol=1e-12, atol=0)


def test_neighbors_that_are_all_alike_have_equal_affinities() -> None:
    for value in (0.0, 2.5):
        p = conditional(torch.full((3, 8), value), 4)
        torch.testing.assert_close(p, torch.full((3, 8), 1 / 8).double())


@pytest.mark.parametrize("count", [400, 5000])
def test_the_divergence_is_the_sum_over_all_pairs(count: int, generator: torch.Generator) -> None:
    k = 12
    near = (torch.arange(count)[:, None] + torch.arange(1, k + 1)) % count
    far = torch.rand(count, k, generator=generator).sort(1).values
    pairs = affinities(Graph(near, far, "l2"), 4)
    y = 30 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    squares = (y[pairs.rows.long()] - y[pairs.others.long()]).square().sum(1)
    z = sum(float((1 / (1 + torch.cdist(part, y) ** 2)).sum()) for part in y.split(500)) - count
    expected = float((pairs.p * (pairs.p * (1 + squares) * z).log()).sum())
    # up to 4,000 points the sum is over all pairs, above it is a grid's
    assert divergence(pairs, y) == pytest.approx(expected, abs=1e-12 if count < 4000 else 1e-4)


def ring(count: int) -> Affinities:
    """Every row has the same affinity to two others on each side."""
    near = (torch.arange(count)[:, None] + torch.tensor([-1, 1, -2, 2])) % count
    return affinities(Graph(near, torch.ones(count, 4), "l2"), 4)


# 1 / mu of the two smallest eigenvalues but 0, twice each: 33 and 8
@pytest.mark.parametrize(("exaggeration", "opens"), [(25, True), (45, False)])
def test_a_map_opens_below_one_over_the_smallest_eigenvalue(
    exaggeration: float, opens: bool, generator: torch.Generator
) -> None:
    count = 40
    pairs = ring(count)
    p = dense(pairs)
    mu = torch.linalg.eigvalsh(count * (torch.diag(p.sum(1)) - p))
    angles = 2 * math.pi * torch.arange(count) / count
    known = 1 - (angles.cos() + (2 * angles).cos()) / 2
    torch.testing.assert_close(mu, known.sort().values.double(), atol=1e-6, rtol=0)
    assert opens == (exaggeration < count / (count - 1) / float(mu[1]))
    start = 1e-2 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    y = optimize(pairs, start, steps=(0, 600), exaggeration=exaggeration, learning_rate=count / 5)
    away = (y - y.mean(0)).norm(dim=1)
    if not opens:
        assert float(away.max()) < 1e-4
        return
    # only the two slowest waves grow: a circle
    assert float(away.min()) > 0.1
    assert float(away.std()) < 0.05 * float(away.mean())
    # neighbors are as much nearer than two rows at random as the exaggeration says
    w = 1 / (1 + torch.cdist(y, y).square())
    apart = 1 - (w.square().sum() - count) / (w.sum() - count)
    assert exaggeration * float((p * (1 - w)).sum()) == pytest.approx(float(apart), rel=0.03)
    assert similarities(y) == pytest.approx(float(w.sum()) - count)


def test_a_map_that_exaggeration_shrinks_has_a_warning(generator: torch.Generator) -> None:
    index = build_index(torch.randn(120, 60, generator=generator))
    plain, drawn = (
        lay_out(index, LayoutSettings(10, steps=(20, 300), exaggeration=value)) for value in (1, 8)
    )
    assert plain.places > 20
    assert plain.warnings == ()
    assert drawn.places == pytest.approx(1, abs=0.1)
    (text,) = drawn.warnings
    assert text.startswith("exaggeration 8 shrinks this map: its 120 rows are in about 1.0 places")
    assert "\n" not in text


@pytest.mark.slow
def test_our_maps_are_as_good_as_open_tsnes(layout: Layout, index: Index, graph: Graph) -> None:
    ours = layout
    theirs = lay_out(index, LayoutSettings(20, method="openTSNE"), graph=graph)
    assert ours.divergence is not None
    assert theirs.divergence is not None
    assert ours.divergence < theirs.divergence + 0.05
    found = [map_quality(index, one.xy, graph=graph).recall for one in (ours, theirs)]
    assert found[0] > found[1] - 0.03
    assert math.isfinite(ours.divergence)


@pytest.mark.slow
def test_a_descent_ends_where_the_true_divergence_is_flat(layout: Layout, graph: Graph) -> None:
    p = dense(affinities(graph, 20))
    y = layout.raw.clone().requires_grad_(True)
    value = true_divergence(p, y)
    (gradient,) = torch.autograd.grad(value, y)
    assert float(value.detach()) == pytest.approx(layout.divergence, abs=1e-9)
    # against the attraction alone, which the repulsion must balance
    pull = Attraction(affinities(graph, 20), y.device)(layout.raw.T.float().contiguous())
    assert float(gradient.norm()) < 0.1 * 4 * float(pull.norm())


def test_a_stopped_layout_goes_on_with_the_same_bytes(
    index: Index, graph: Graph, tmp_path: Path
) -> None:
    settings = LayoutSettings(steps=(20, 100))
    whole = lay_out(index, settings, graph=graph)

    def stop(done: int, total: int, text: str) -> None:
        if done == 70:
            raise RuntimeError(text)

    with (
        pytest.raises(RuntimeError, match="laying out"),
        open_checkpoint(tmp_path / "layout", {}) as kept,
    ):
        lay_out(index, settings, graph=graph, kept=kept, progress=stop)
    steps: list[int] = []
    with open_checkpoint(tmp_path / "layout", {}) as kept:
        resumed = lay_out(
            index, settings, graph=graph, kept=kept, progress=lambda done, *_: steps.append(done)
        )
    assert torch.equal(resumed.raw, whole.raw)
    assert steps[0] == 60
