"""Paired tests, corrections and matched units against scipy and planted truths."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from featviz.comparison.paired import class_flips, flips, holm, mcnemar
from featviz.comparison.units import match_units


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 0), (1, 9), (7, 7), (30, 12), (3, 61)])
def test_mcnemars_test_is_scipys_binomial_test(fixed: int, broken: int) -> None:
    n = fixed + broken
    wanted = stats.binomtest(fixed, n, 0.5).pvalue if n else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(wanted, rel=1e-12)
    assert mcnemar(fixed, broken) == mcnemar(broken, fixed)


def test_holms_correction_equals_a_worked_example() -> None:
    # Four tests: 4 * .005, 3 * .01, then 2 * .03, and .04 raised to its predecessor.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_alarms_rare_where_nothing_changed() -> None:
    random = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(200):
        flips_each = torch.randint(0, 2, (20, 40), generator=random).sum(1).tolist()
        alarms += min(holm([mcnemar(k, 40 - k) for k in flips_each])) < 0.05
    assert alarms <= 200 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 200))


def test_flips_are_counted_by_class_the_largest_loss_first() -> None:
    names = ["cat"] * 8 + ["dog"] * 8
    first = torch.tensor([True] * 8 + [False] * 8)
    second = torch.tensor([False] * 7 + [True] + [False] * 4 + [True] * 4)
    whole = flips(first, second)
    assert whole == (16, 8, 5, 4, 7)
    cat, dog = class_flips(names, first, second)
    assert (cat.name, cat.flips.broken, cat.change.value) == ("cat", 7, -0.875)
    assert (dog.name, dog.flips.fixed, dog.change.value) == ("dog", 4, 0.5)
    assert cat.corrected == pytest.approx(2 * stats.binomtest(0, 7, 0.5).pvalue)
    assert (cat.verdict, dog.verdict) == ("worse", "")


def test_equal_models_have_no_flips() -> None:
    right = torch.rand(50, generator=torch.Generator().manual_seed(0)) < 0.7
    same = flips(right, right.clone())
    assert (same.fixed, same.broken, same.p) == (0, 0, 1.0)


def test_a_planted_permutation_of_units_is_found_exactly() -> None:
    random = torch.Generator().manual_seed(0)
    first = torch.randn(60, 40, generator=random)
    first[:, 7] = 0.25  # never varies
    order = torch.randperm(40, generator=random)
    second = 3 * first[:, order] + 1 + 0.05 * torch.randn(60, 40, generator=random)
    second[:, int((order == 7).nonzero())] = 1
    match = match_units(first, second, ("a", "b"))
    assert {(int(order[j]), j) for j in range(40) if order[j] != 7} == set(match.pairs)
    assert match.inactive == ((7,), (int((order == 7).nonzero()),))
    assert match.median is not None
    assert match.median > 0.99
    assert match.by_chance is not None
    assert match.by_chance < 0.6


def test_layers_of_different_width_pair_the_units_of_the_narrower() -> None:
    random = torch.Generator().manual_seed(1)
    wide = torch.randn(80, 12, generator=random)
    match = match_units(wide[:, [3, 9, 5]], wide, ("a", "b"))
    assert set(match.pairs) == {(0, 3), (1, 9), (2, 5)}
    assert match.correlation.shape == (3, 12)
