"""The oracles of the smallest changes, against scipy's solvers, enumeration and grids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from oracles.minimal_distances import Vector, half_space, leave_ball, linear
from oracles.relu_milp import smallest_change
from scipy.optimize import linprog, minimize


def draws(count: int, n: int, seed: int = 0) -> Iterator[tuple[Vector, Vector, float]]:
    """Half-spaces and points; some components at the edges of the box."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        w, x = rng.normal(size=n), np.clip(1.4 * rng.random(n) - 0.2, 0, 1)
        room = np.where(w > 0, x, 1 - x)
        yield w, x, float(rng.uniform(0.1, 0.9) * (np.abs(w) * room).sum())


def linear_program(w: Vector, x: Vector, margin: float, norm: str, *, box: bool) -> float:
    n = len(w)
    costs = n if norm == "l1" else 1
    spread = np.eye(n) if norm == "l1" else np.ones((n, 1))
    rows = np.block([[np.eye(n), -spread], [-np.eye(n), -spread], [w, np.zeros(costs)]])
    upper = np.concatenate([x, -x, [w @ x - margin]])
    edge = (0, 1) if box else (None, None)
    solved = linprog(
        np.r_[np.zeros(n), np.ones(costs)], rows, upper, bounds=[edge] * n + [(0, None)] * costs
    )
    assert solved.status == 0
    return float(solved.fun)


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("norm", ["l1", "linf"])
def test_half_spaces_agree_with_a_linear_program(norm: str, box: bool) -> None:
    for w, x, margin in draws(25, 9):
        expected = linear_program(w, x, margin, norm, box=box)
        assert half_space(w, x, margin, norm, box=box) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("box", [False, True])
def test_half_spaces_agree_with_a_quadratic_program(box: bool) -> None:
    for w, x, margin in draws(15, 6):
        solved = minimize(
            lambda d: d @ d,
            np.where(w > 0, -x, 1 - x),
            jac=lambda d: 2 * d,
            method="SLSQP",
            bounds=list(zip(-x, 1 - x, strict=True)) if box else None,
            constraints={
                "type": "ineq",
                "fun": lambda d, w=w, m=margin: -(w @ d) - m,
                "jac": lambda d, w=w: -w,
            },
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert solved.success
        found = half_space(w, x, margin, "l2", box=box)
        assert found == pytest.approx(np.sqrt(solved.fun), rel=1e-5)


def test_fewest_components_agree_with_enumeration() -> None:
    for w, x, margin in draws(25, 7):
        gain = np.abs(w) * np.where(w > 0, x, 1 - x)
        fewest = next(
            k
            for k in range(1, 8)
            if any(gain[list(s)].sum() >= margin for s in itertools.combinations(range(7), k))
        )
        assert half_space(w, x, margin, "l0") == fewest


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
def test_out_of_reach_is_infinitely_far(norm: str) -> None:
    w, x = np.array([1.0, -2.0]), np.array([0.25, 0.5])
    assert half_space(w, x, 1.3, norm) == np.inf
    assert half_space(w, x, 1.3, norm, box=False) < np.inf


@pytest.mark.parametrize(("norm", "dual"), [("l1", np.inf), ("l2", 2), ("linf", 1)])
def test_without_a_box_it_is_the_margin_over_the_dual_norm(norm: str, dual: float) -> None:
    for w, x, margin in draws(5, 8):
        expected = margin / np.linalg.norm(w, dual)
        assert half_space(w, x, margin, norm, box=False) == pytest.approx(expected, rel=1e-12)


def sphere_distance(x: Vector, centre: Vector, radius: float, norm: str) -> float:
    """From many directions and many sizes: the smallest change that leaves the ball."""
    rng = np.random.default_rng(1)
    n = len(x)
    ways = rng.normal(size=(4000, n))
    if norm == "linf":
        corners = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
        ways = np.concatenate([np.sign(ways), corners])
        ways /= np.abs(ways).max(1, keepdims=True)
    elif norm == "l1":
        ways = np.concatenate([np.eye(n), -np.eye(n), ways / np.abs(ways).sum(1, keepdims=True)])
    else:
        ways = np.concatenate([ways, (x - centre)[None]])
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    d = x - centre
    along = ways @ d
    square = (ways**2).sum(1)
    t = (-along + np.sqrt(along**2 + square * (radius**2 - d @ d))) / square
    return float(t.min())


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_way_out_of_a_ball_is_the_shortest_of_many(norm: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, centre = rng.random(4), rng.random(4)
        radius = 1.3 * float(np.linalg.norm(x - centre))
        exact = leave_ball(x, centre, radius, norm)
        assert exact == pytest.approx(sphere_distance(x, centre, radius, norm), rel=1e-9)


def test_a_small_relu_net_agrees_with_a_grid() -> None:
    rng = np.random.default_rng(4)
    first = (2 * rng.normal(size=(8, 2)), rng.normal(size=8))
    layers = [first, (rng.normal(size=(3, 8)), np.zeros(3))]
    side = np.linspace(0, 1, 801)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    scores = np.maximum(grid @ layers[0][0].T + layers[0][1], 0) @ layers[1][0].T
    answers = scores.argmax(1)
    seen = 0
    for x in rng.random((6, 2)):
        label = int((np.maximum(layers[0][0] @ x + layers[0][1], 0) @ layers[1][0].T).argmax())
        wrong = grid[answers != label]
        for norm, size in (("linf", np.abs(wrong - x).max(1)), ("l1", np.abs(wrong - x).sum(1))):
            exact = smallest_change(layers, x, label, norm)
            assert exact <= size.min() + 1e-9
            assert exact >= size.min() - 2.5 / 800
            seen += exact > 0.02
    assert seen > 4  # the boundary is within the box, and not at the points themselves


def test_without_hidden_layers_the_program_gives_the_closed_form() -> None:
    rng = np.random.default_rng(2)
    weights, bias = rng.normal(size=(4, 6)), rng.normal(size=4) * 0.1
    for _ in range(4):
        x = rng.random(6)
        label = int((weights @ x + bias).argmax())
        for norm in ("l0", "l1", "linf"):
            exact = smallest_change([(weights, bias)], x, label, norm)
            assert exact == pytest.approx(linear(weights, bias, x, label, norm), rel=1e-5)
