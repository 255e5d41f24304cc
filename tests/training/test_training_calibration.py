"""Calibration against closed forms and made-up models that are calibrated by construction."""

from __future__ import annotations

import pytest
import torch

from featviz.training.calibration import BINS, Calibration


def test_the_error_of_one_confidence_is_its_gap() -> None:
    right = torch.tensor([True] * 7 + [False] * 3)
    for confidence, error in ((0.7, 0.0), (1.0, 0.3), (0.2, 0.5)):
        found = Calibration(torch.full((10,), confidence, dtype=torch.double), right)
        assert found.error == pytest.approx(error, abs=1e-12)
        assert [one.right.n for one in found.bins] == [10]


def test_the_error_is_the_weighted_mean_of_the_bins(generator: torch.Generator) -> None:
    confidences = torch.rand(500, generator=generator, dtype=torch.double)
    found = Calibration(confidences, torch.rand(500, generator=generator) < 0.5)
    weighted = sum(b.right.n * abs((b.right.value or 0) - b.confidence) for b in found.bins) / 500
    assert found.error == pytest.approx(weighted, abs=1e-12)
    assert sum(b.right.n for b in found.bins) == 500
    order = torch.randperm(500, generator=generator)
    shuffled = Calibration(confidences[order], found.right[order])
    assert shuffled.error == pytest.approx(found.error, abs=1e-12)


def test_a_bin_holds_its_upper_end() -> None:
    ends = torch.arange(1, BINS + 1, dtype=torch.double) / BINS
    bins = Calibration(ends, torch.ones(BINS, dtype=torch.bool)).bins
    assert len(bins) == BINS
    for one in bins:
        assert one.low < one.confidence <= one.high + 1e-12


def test_a_calibrated_model_lies_within_what_chance_explains() -> None:
    above = 0
    for seed in range(15):
        generator = torch.Generator().manual_seed(seed)
        confidences = torch.rand(200, generator=generator, dtype=torch.double)
        right = torch.rand(200, generator=generator, dtype=torch.double) < confidences
        found = Calibration(confidences, right)
        above += found.error > found.expected_if_calibrated[1]
    assert above <= 3  # of 15 at 5% each; more than 3 in less than 1 of 100 such tests


def test_an_overconfident_model_is_told_apart(generator: torch.Generator) -> None:
    confidences = 0.9 + 0.1 * torch.rand(400, generator=generator, dtype=torch.double)
    found = Calibration(confidences, torch.rand(400, generator=generator) < 0.6)
    low, high = found.interval
    assert 0.25 < low < found.error < high < 0.45
    assert found.error > 5 * found.expected_if_calibrated[1]
    assert "surer than right" in found.numbers()["mean confidence"].meaning
