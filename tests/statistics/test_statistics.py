"""Intervals, censored medians and shrinkage against scipy and against enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from featviz.results import show_interval, show_number
from featviz.statistics import (
    Prior,
    fit_prior,
    median,
    paired_difference,
    percentiles,
    rank_correlation,
    rank_correlations,
    resampled_means,
    share,
)


@pytest.mark.parametrize(("right", "n"), [(0, 20), (7, 20), (20, 20), (1, 1), (123, 900)])
def test_shares_have_the_wilson_interval_of_scipy(right: int, n: int) -> None:
    oracle = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    found = share(right, n)
    assert found.value == right / n
    assert found.low == pytest.approx(oracle.low, abs=1e-12)
    assert found.high == pytest.approx(oracle.high, abs=1e-12)
    assert found.low <= right / n <= found.high


def test_wilsons_interval_equals_its_textbook_values() -> None:
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29.
    for hits, count, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert share(hits, count)[2:] == pytest.approx((low, high), abs=5e-5)


def test_the_interval_solves_the_equation_it_comes_from() -> None:
    """Wilson's bounds are where |p_hat - p| is z standard errors of p itself."""
    for hits, count in [(3, 10), (440, 1000), (2405, 5000)]:
        for bound in share(hits, count)[2:]:
            error = (bound * (1 - bound) / count) ** 0.5
            assert abs(hits / count - bound) == pytest.approx(1.959964 * error)
        _, _, low, high = share(count - hits, count)
        assert (1 - high, 1 - low) == pytest.approx(share(hits, count)[2:])


def test_a_share_of_no_pictures_says_nothing() -> None:
    assert share(0, 0) == (0, 0, 0.0, 1.0)
    assert share(0, 0).value is None


@pytest.mark.parametrize("n", [6, 7, 20, 51, 200])
def test_the_medians_interval_is_that_of_the_quantile_test(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    oracle = stats.quantile_test(values, q=0, p=0.5).confidence_interval(0.95)
    found = median(torch.tensor(values))
    assert (found.low, found.high) == (oracle.low, oracle.high)
    assert found.value is not None
    assert found.value == np.quantile(values, 0.5, method="inverted_cdf")
    assert found.low <= found.value <= found.high


def test_the_medians_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for n in (8, 25):
        hits = 0
        for _ in range(2000):
            found = median(torch.tensor(rng.normal(size=n)))
            hits += found.low <= 0 <= found.high
        rank = int(stats.binom.ppf(0.025, n, 0.5))
        exact = 1 - 2 * stats.binom.cdf(rank - 1, n, 0.5)
        assert exact >= 0.95
        assert hits / 2000 == pytest.approx(exact, abs=0.015)


def test_pictures_that_stand_are_kept_as_kaplan_and_meier_keep_them() -> None:
    values = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, math.inf, math.inf], dtype=torch.float64)
    found = median(values)
    oracle = stats.ecdf(
        stats.CensoredData.right_censored([0.1, 0.2, 0.3, 0.4, 0.5, 1, 1], [0, 0, 0, 0, 0, 1, 1])
    )
    survival = oracle.sf.probabilities
    assert found.value == oracle.sf.quantiles[(survival <= 0.5).argmax()] == 0.4
    assert found.censored == 2
    assert found.high == math.inf
    left_out = median(values[values.isfinite()])
    assert left_out.value is not None
    assert left_out.value < found.value  # what leaving them out would have claimed


def test_a_median_that_most_pictures_withstand_is_not_known() -> None:
    found = median(torch.tensor([0.1, math.inf, math.inf]))
    assert found.value is None
    assert (found.low, found.high) == (0.0, math.inf)
    assert median(torch.zeros(0)).n == 0


def test_the_prior_is_the_likeliest_of_a_fine_grid() -> None:
    rng = np.random.default_rng(1)
    n = rng.integers(2, 12, 80)
    right = rng.binomial(n, rng.beta(3, 5, 80))
    found = fit_prior(right.tolist(), n.tolist())

    def likelihood(a: float, b: float) -> float:
        return float(stats.betabinom.logpmf(right, n, a, b).sum())

    grid = [
        (m * s, (1 - m) * s) for m in np.linspace(0.2, 0.6, 41) for s in np.geomspace(0.5, 200, 61)
    ]
    assert likelihood(*found) >= max(likelihood(a, b) for a, b in grid) - 1e-6
    assert found.mean == pytest.approx(3 / 8, abs=0.08)


def test_classes_alike_are_drawn_together_and_classes_unlike_are_left_alone() -> None:
    alike = fit_prior([5, 5, 5, 5, 4, 6], [10] * 6)
    assert alike.a + alike.b > 1000
    assert alike.shrink(0, 5).value == pytest.approx(0.5, abs=0.01)
    unlike = fit_prior([0, 0, 50, 50], [50] * 4)
    assert unlike.a + unlike.b < 2
    assert unlike.shrink(0, 50).value < 0.02


def test_shrinkage_is_the_posterior_of_the_beta() -> None:
    prior = Prior(2.0, 3.0)
    found = prior.shrink(4, 6)
    oracle = stats.beta(6, 5)
    assert found.value == pytest.approx(oracle.mean())
    assert (found.low, found.high) == pytest.approx(oracle.interval(0.95))
    few, many = prior.shrink(1, 1), prior.shrink(100, 100)
    assert prior.mean < few.value < many.value < 1


def test_counts_at_the_border_do_not_break_the_prior() -> None:
    assert 0 < fit_prior([0, 0, 0], [3, 4, 5]).mean < 0.2
    assert 0.8 < fit_prior([3, 4, 5], [3, 4, 5]).mean < 1
    assert fit_prior([], []) == Prior(1.0, 1.0)
    assert fit_prior([0], [0]) == Prior(1.0, 1.0)


def test_rank_correlation_is_spearmans_with_infinite_values_as_ties() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    oracle = stats.spearmanr(x, y).statistic
    assert rank_correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(oracle)
    y[:4] = math.inf
    z = np.where(np.isinf(y), 1e9, y)
    assert rank_correlation(torch.tensor(x), torch.tensor(y)) == pytest.approx(
        stats.spearmanr(x, z).statistic
    )
    assert rank_correlation(torch.ones(2), torch.ones(2)) is None
    assert rank_correlation(torch.ones(5), torch.arange(5.0)) is None


def test_rank_correlations_of_rows_are_scipys_with_ties_and_nan_for_a_constant() -> None:
    generator = torch.Generator().manual_seed(0)
    # many zeros, as behind a ReLU: ties matter
    a, b = (torch.randn(n, 40, generator=generator).clamp(min=0) for n in (3, 4))
    b[3] = 7
    found = rank_correlations(a, b)
    assert found.shape == (3, 4)
    for i in range(3):
        for j in range(3):
            oracle = stats.spearmanr(a[i].numpy(), b[j].numpy()).statistic
            assert float(found[i, j]) == pytest.approx(oracle, abs=1e-12)
            assert rank_correlation(a[i], b[j]) == pytest.approx(oracle, abs=1e-12)
    assert found[:, 3].isnan().all()


def test_rank_correlations_by_hand() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, a.exp()) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, torch.tensor([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)


def test_a_share_as_a_number_has_its_interval_and_n() -> None:
    number = share(7, 20).number("right")
    oracle = stats.binomtest(7, 20).proportion_ci(0.95, method="wilson")
    assert (number.value, number.unit, number.n) == (0.35, "fraction", 20)
    assert (number.low, number.high) == pytest.approx((oracle.low, oracle.high))
    assert show_number(number) == "35.0%"
    assert show_interval(number) == "95%: 18.1% to 56.7%, n = 20"
    assert show_number(share(0, 0).number("right")) == "-"


def pairs(both: int, first: int, second: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    table = [(True, True)] * both + [(True, False)] * first
    table += [(False, True)] * second + [(False, False)] * neither
    one, other = zip(*table, strict=True)
    return torch.tensor(one), torch.tensor(other)


def test_a_paired_difference_equals_newcombes_example() -> None:
    # Newcombe 1998, paired data, method 10: of 50, 36 in both, 12 in the first, 2 in the second.
    first, second = pairs(36, 12, 2, 0)
    found = paired_difference(second, first)
    assert found == pytest.approx((0.2, 0.0569, 0.3404, 50), abs=5e-5)
    mirrored = paired_difference(first, second)
    assert mirrored == pytest.approx((-0.2, -0.3404, -0.0569, 50), abs=5e-5)


def test_a_difference_of_equal_models_is_zero_within_an_interval() -> None:
    found = paired_difference(*pairs(40, 0, 0, 10))
    assert found.value == 0
    assert found.low < 0 < found.high
    assert paired_difference(*pairs(0, 6, 0, 0)).low == -1


def test_intervals_of_paired_differences_cover_the_truth() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        cells = random.multinomial(60, [0.5, 0.08, 0.2, 0.22])
        found = paired_difference(*pairs(*cells.tolist()))
        covered += found.low <= 0.12 <= found.high
    assert covered >= 0.92 * 400


def test_means_drawn_again_spread_as_the_standard_error() -> None:
    values = torch.rand(80, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = resampled_means(values)
    assert drawn.shape == (1000, 2)
    assert torch.allclose(drawn.mean(0), values.mean(0), atol=0.005)
    assert torch.allclose(drawn.std(0), values.std(0) / 80**0.5, rtol=0.1)
    low, high = percentiles(drawn[:, 0])
    middle, half = float(values[:, 0].mean()), 1.96 * float(values[:, 0].std()) / 80**0.5
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.25 * half)
