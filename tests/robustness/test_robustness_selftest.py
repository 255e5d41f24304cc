"""The self-test: it passes with working attacks, and fails with broken ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flat_attacks import minimal
from scipy.optimize import linprog, minimize

from featviz.attacks.result import AttackResult
from featviz.robustness import self_test as tested
from featviz.robustness.self_test import self_test, smallest


def test_the_attacks_of_the_audit_pass_it_within_a_few_seconds() -> None:
    found = self_test()
    assert found.passed, found.line
    assert set(found.worst) == {"linf", "l2", "l1", "l0"}
    assert "self-test passed" in found.line
    assert "\n" not in found.line
    assert found.seconds < 10


def test_a_search_that_ends_too_far_or_impossibly_near_fails_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for factor in (1.05, 0.9):

        def wrong(*arguments: Any, factor: float = factor, **options: Any) -> AttackResult:
            found = minimal(*arguments, **options)
            return replace(found, distance=factor * found.distance)

        monkeypatch.setattr(tested, "minimal", wrong)
        found = self_test()
        assert not found.passed
        assert "FAILED" in found.line


def test_a_check_that_finds_nothing_or_breaks_its_ball_fails_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = self_test()
    assert not replace(found, above={**found.above, "l2": 0}).passed
    assert not replace(found, below={**found.below, "linf": 1}).passed


@pytest.mark.parametrize("seed", range(4))
def test_the_closed_forms_are_those_of_linear_and_quadratic_programs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(12, generator=generator, dtype=torch.float64)
    x = (1.4 * torch.rand(12, generator=generator, dtype=torch.float64) - 0.2).clamp(0, 1)
    room = torch.where(w > 0, x, 1 - x)
    margin = 0.4 * float((w.abs() * room).sum())
    a, r = w.abs().numpy(), room.numpy()
    # Changes along -sign(w): t >= 0, a.t >= margin, t <= room.
    l1 = linprog([1.0] * 12, A_ub=[-a], b_ub=[-margin], bounds=list(zip([0] * 12, r, strict=True)))
    assert smallest(w, x, margin, "l1") == pytest.approx(l1.fun, rel=1e-9)
    identity = [[float(i == j) for j in range(12)] + [-1.0] for i in range(12)]
    linf = linprog(
        [0.0] * 12 + [1.0],
        A_ub=[[*-a, 0.0], *identity],
        b_ub=[-margin] + [0.0] * 12,
        bounds=[*zip([0] * 12, r, strict=True), (0, None)],
    )
    assert smallest(w, x, margin, "linf") == pytest.approx(linf.fun, rel=1e-9)
    l2 = minimize(
        lambda t: (t * t).sum(),
        r / 2,
        jac=lambda t: 2 * t,
        method="SLSQP",
        bounds=list(zip([0] * 12, r, strict=True)),
        options={"maxiter": 500, "ftol": 1e-14},
        constraints={"type": "ineq", "fun": lambda t: a @ t - margin, "jac": lambda t: a},
    )
    assert smallest(w, x, margin, "l2") == pytest.approx(float(l2.fun) ** 0.5, rel=1e-5)
    gains = sorted((a * r).tolist(), reverse=True)
    fewest = next(k for k in range(1, 13) if sum(gains[:k]) >= margin)
    assert smallest(w, x, margin, "l0") == fewest


def test_what_no_corner_reaches_is_infinitely_far() -> None:
    w, x = torch.ones(3, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    assert smallest(w, x, 1.6, "l2") == float("inf")
