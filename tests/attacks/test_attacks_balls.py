"""The balls: exact bounds, the projection against an oracle, 8-bit levels, random starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from featviz.attacks import projections

EPS = (1e-6, 0.5 / 255, 1 / 255, 0.03, 8 / 255, 0.3, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", EPS)
def test_linf_bounds_hold_exactly_and_are_tight(
    generator: torch.Generator, eps: float, dtype: torch.dtype
) -> None:
    x = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    radii = torch.full((4,), eps, dtype=torch.float64)
    low, high = projections.linf_bounds(x, radii)
    assert bool((x.double() - low.double() <= eps).all())
    assert bool((high.double() - x.double() <= eps).all())
    assert bool((low >= 0).all() and (high <= 1).all() and (low <= x).all() and (x <= high).all())
    ulp = torch.finfo(dtype).eps
    assert float((torch.minimum(x + eps, torch.ones_like(x)) - high).max()) <= 2 * ulp


def bisected(v: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """The projection, found by bisection: an independent way to the same point."""
    if v.clamp(low, high).norm() <= eps:
        return v.clamp(low, high)
    small, large = 0.0, 1.0
    for _ in range(200):
        middle = (small + large) / 2
        if (middle * v).clamp(low, high).norm() > eps:
            large = middle
        else:
            small = middle
    return (small * v).clamp(low, high)


def test_the_l2_projection_is_that_on_ball_and_box(generator: torch.Generator) -> None:
    x = torch.rand(24, 60, generator=generator, dtype=torch.float64)
    x[:, ::7] = 0.0  # components without room on one side
    v = torch.randn(24, 60, generator=generator, dtype=torch.float64)
    v *= torch.logspace(-2, 2, 24, dtype=torch.float64)[:, None]
    eps = 0.05 + 4 * torch.rand(24, generator=generator, dtype=torch.float64)
    projected = projections.project_l2(v, -x, 1 - x, eps)
    for i in range(24):
        expected = bisected(v[i], -x[i], 1 - x[i], float(eps[i]))
        torch.testing.assert_close(projected[i], expected, rtol=1e-9, atol=1e-12)
    assert bool((projected.norm(dim=1) <= eps * (1 + 1e-12)).all())
    again = projections.project_l2(projected, -x, 1 - x, eps)
    torch.testing.assert_close(again, projected, rtol=1e-12, atol=1e-15)
    # Nearest point of a convex set: no other member lies in the direction of v.
    others = projections.project_l2(
        torch.randn(24, 60, generator=generator, dtype=torch.float64), -x, 1 - x, eps
    )
    assert bool((((v - projected) * (others - projected)).sum(1) <= 1e-9).all())


def test_scaling_and_then_clipping_is_not_the_projection(generator: torch.Generator) -> None:
    x = torch.zeros(1, 10, dtype=torch.float64)
    v = torch.ones(1, 10, dtype=torch.float64)
    v[0, :5] = -1.0  # no room below 0
    eps = torch.ones(1, dtype=torch.float64)
    projected = projections.project_l2(v, -x, 1 - x, eps)
    clipped = (v / v.norm()).clamp(0, 1)
    assert float(projected.norm()) == pytest.approx(1.0)
    assert float(clipped.norm()) < 0.8


def drawn_in(v: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """The L1 projection, found by bisection of its threshold."""
    if v.clamp(low, high).abs().sum() <= eps:
        return v.clamp(low, high)
    small, large = 0.0, float(v.abs().max())
    for _ in range(200):
        middle = (small + large) / 2
        moved = (v.sign() * (v.abs() - middle).clamp(min=0)).clamp(low, high)
        if moved.abs().sum() > eps:
            small = middle
        else:
            large = middle
    return (v.sign() * (v.abs() - large).clamp(min=0)).clamp(low, high)


def test_the_l1_projection_is_that_on_ball_and_box(generator: torch.Generator) -> None:
    x = torch.rand(40, 60, generator=generator, dtype=torch.float64)
    x[:, ::7] = 0.0
    v = torch.randn(40, 60, generator=generator, dtype=torch.float64)
    v *= torch.logspace(-2, 2, 40, dtype=torch.float64)[:, None]
    v[3] = 0.5  # ties
    eps = 0.05 + 20 * torch.rand(40, generator=generator, dtype=torch.float64)
    projected = projections.project_l1(v, -x, 1 - x, eps)
    for i in range(40):
        expected = drawn_in(v[i], -x[i], 1 - x[i], float(eps[i]))
        torch.testing.assert_close(projected[i], expected, rtol=1e-9, atol=1e-11)
    assert bool((projected.abs().sum(1) <= eps * (1 + 1e-11)).all())
    again = projections.project_l1(projected, -x, 1 - x, eps)
    torch.testing.assert_close(again, projected, rtol=1e-9, atol=1e-11)
    others = projections.project_l1(
        torch.randn(40, 60, generator=generator, dtype=torch.float64), -x, 1 - x, eps
    )
    assert bool((((v - projected) * (others - projected)).sum(1) <= 1e-9).all())


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_projections_are_those_of_a_solver(generator: torch.Generator, norm: str) -> None:
    project = {"l2": projections.project_l2, "l1": projections.project_l1}[norm]
    n = 5
    for _ in range(6):
        x = torch.rand(1, n, generator=generator, dtype=torch.float64)
        v = torch.randn(1, n, generator=generator, dtype=torch.float64)
        eps = torch.rand(1, generator=generator, dtype=torch.float64) + 0.1
        # The parts above and below 0 as variables of their own make the L1 norm a sum.
        goal, radius = v[0].numpy(), float(eps)
        bounds = [(0, 1 - float(a)) for a in x[0]] + [(0, float(a)) for a in x[0]]
        norms = {
            "l1": lambda d, r=radius: r - d.sum(),
            "l2": lambda d, r=radius: r * r - ((d[:n] - d[n:]) ** 2).sum(),
        }
        solved = minimize(
            lambda d, g=goal: ((d[:n] - d[n:] - g) ** 2).sum(),
            np.zeros(2 * n),
            bounds=bounds,
            method="SLSQP",
            constraints={"type": "ineq", "fun": norms[norm]},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        expected = torch.from_numpy(solved.x[:n] - solved.x[n:])
        projected = project(v, -x, 1 - x, eps)[0]
        torch.testing.assert_close(projected, expected, rtol=0, atol=1e-5)


def test_the_farthest_picture_of_an_l1_ball_is_the_answer_of_a_linear_program(
    generator: torch.Generator,
) -> None:
    for _ in range(6):
        x = 1.4 * torch.rand(1, 3, 2, 2, generator=generator, dtype=torch.float64) - 0.2
        x = x.clamp(0, 1)
        g = torch.randn(1, 3, 2, 2, generator=generator, dtype=torch.float64)
        eps = 4 * torch.rand(1, generator=generator, dtype=torch.float64)
        bounds = [(0, 1 - float(a)) for a in x.flatten()] + [(0, float(a)) for a in x.flatten()]
        costs = torch.cat([-g.flatten(), g.flatten()]).numpy()
        best = -linprog(costs, A_ub=np.ones((1, 24)), b_ub=[float(eps)], bounds=bounds).fun
        moved = projections.farthest(x, g, eps, "l1")
        assert float((g * (moved - x)).sum()) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_nothing_of_the_ball_lies_farther_along_the_gradient(
    generator: torch.Generator, norm: str
) -> None:
    x = torch.rand(8, 3, 4, 4, generator=generator)
    x[:, :, 0] = 0.0
    g = torch.randn(x.shape, generator=generator)
    g[0, 0] = 0.0
    eps = 0.1 * torch.arange(1, 9, dtype=torch.float64) * {"linf": 1, "l2": 3, "l1": 10}[norm]
    far = projections.farthest(x, g, eps, norm)
    assert bool((projections.distance(x, far, norm) <= eps).all())
    assert bool((far >= 0).all() and (far <= 1).all())
    assert torch.equal(far[0, 0], x[0, 0]) or norm == "l1"
    gain = ((far - x) * g).double().sum((1, 2, 3))
    for _ in range(50):
        other = x + torch.randn(x.shape, generator=generator) * 3
        other = projections.project(x, other + 2 * g, eps, norm)
        assert bool((((other - x) * g).double().sum((1, 2, 3)) <= gain + 1e-5).all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_fill_the_ball_evenly(generator: torch.Generator, norm: str) -> None:
    middle = torch.full((3, 2, 2), 0.5)
    eps = 0.3
    starts = torch.stack(
        [
            projections.random_start(middle, eps, norm, projections.generator(7, k))
            for k in range(400)
        ]
    )
    sizes = projections.distance(middle.expand_as(starts), starts, norm)
    # Uniform in a ball of 12 dimensions: (size / eps)^12 is uniform.
    share = (sizes / eps) ** 12
    assert float(share.mean()) == pytest.approx(0.5, abs=0.06)
    assert float((starts - 0.5).mean()) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_noise_has_the_size_of_the_ball(generator: torch.Generator, norm: str) -> None:
    picture = torch.full((3, 8, 8), 0.5)
    noisy = projections.random_noise(picture, 0.4, norm, generator)
    size = float(projections.distance(picture[None], noisy[None], norm))
    assert size == pytest.approx(0.4, rel=1e-5)
    assert size <= 0.4


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_levels_are_whole_and_stay_in_the_ball(generator: torch.Generator, norm: str) -> None:
    x = torch.randint(0, 256, (6, 3, 9, 9), generator=generator).float() / 255
    eps = torch.tensor([0.2, 1.0, 1.5, 3.0, 8.0, 40.0], dtype=torch.float64) / 255
    eps = eps * {"linf": 1, "l2": 10, "l1": 100}[norm]
    moved = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    if norm != "linf":
        moved = projections.project(x, moved, eps, norm)
    levels = projections.on_levels(x, moved, eps, norm) * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4  # float32 of k/255 times 255
    change = (levels.round() - (x * 255).round()).double()
    if norm == "linf":
        assert bool((change.flatten(1).abs().amax(1) <= (255 * eps + 1e-6).floor()).all())
        assert change[1].abs().max() == 1
        assert not change[0].any()
    else:
        sizes = change.flatten(1).norm(p=2 if norm == "l2" else 1, dim=1)
        assert bool((sizes <= 255 * eps + 1e-5).all())
        assert bool((sizes >= 0.5 * 255 * eps)[2:].all())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_random_start_is_inside_and_belongs_to_the_picture_and_the_seed(
    generator: torch.Generator, norm: str
) -> None:
    pictures = torch.rand(2, 3, 8, 8, generator=generator)
    keys = [projections.picture_key(p, 0) for p in pictures]
    assert keys[0] != keys[1]
    assert keys[0] != projections.picture_key(pictures[0], 1)
    channels_last = pictures.contiguous(memory_format=torch.channels_last)
    assert projections.picture_key(channels_last[0], 0) == keys[0]

    def start(restart: int) -> Tensor:
        return projections.random_start(
            pictures[0], 0.1, norm, projections.generator(keys[0], restart)
        )

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    size = float(projections.distance(pictures[:1], start(0)[None], norm))
    assert 0 < size <= 0.1
    assert bool((start(0) >= 0).all() and (start(0) <= 1).all())


@pytest.mark.parametrize(
    ("eps", "norm", "text"),
    [
        (8 / 255, "linf", "8/255"),
        (0.5 / 255, "linf", "0.5/255"),
        (0.125 / 255, "linf", "0.125/255"),
        (0.03, "linf", "0.03"),
        (0.5, "l2", "0.5"),
        (0.0, "linf", "0"),
    ],
)
def test_an_eps_reads_as_people_write_it(eps: float, norm: str, text: str) -> None:
    assert projections.eps_text(eps, norm) == text
