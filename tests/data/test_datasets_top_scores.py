"""The highest scores of a data set against one table of all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from featviz.models.model import Model
from featviz.top_scores import ImageCache, scan

COUNT, UNITS = 50, 3


@pytest.fixture(scope="module")
def cache(mini: Model) -> ImageCache:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(COUNT, 3, 8, 8, generator=generator)
    pictures[30] = pictures[7]
    return ImageCache(mini, pictures)


def score(pictures: Tensor) -> Tensor:
    """Three units at 6 x 6 positions: the channels, but for the edge."""
    return pictures[..., 1:7, 1:7] - 0.5


def table(cache: ImageCache) -> Tensor:
    return score(torch.stack([cache.read(row) for row in range(COUNT)]))  # (N, C, 6, 6)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_scan_is_the_table_sorted(cache: ImageCache, batch_size: int) -> None:
    top = scan(cache, score, k=9, batch_size=batch_size)
    every = table(cache)
    best, rows = every.flatten(2).amax(2).sort(dim=0, descending=True, stable=True)
    assert torch.equal(top.values, best[:9].T)
    assert torch.equal(top.rows, rows[:9].T)
    for unit in range(UNITS):
        for value, row, (y, x) in zip(
            top.values[unit], top.rows[unit], top.positions[unit].tolist(), strict=True
        ):
            assert every[row, unit, y, x] == value
    units = every.transpose(0, 1).flatten(1)
    assert torch.allclose(top.mean, units.mean(1), atol=1e-6)
    assert torch.allclose(top.sd, units.std(1, correction=0), atol=1e-6)
    expected = np.percentile(units.double().numpy(), 99.9, axis=1)
    assert top.percentile.numpy() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(top.active, (every.flatten(2).amax(2) > 0).float().mean(0))
    assert (top.count, top.sampled) == (COUNT, COUNT)


def test_of_equal_pictures_the_first_comes_first(cache: ImageCache) -> None:
    rows = scan(cache, score, k=COUNT).rows.tolist()
    assert all(own.index(7) + 1 == own.index(30) for own in rows)


def test_the_percentile_is_computed_for_the_named_units_alone(cache: ImageCache) -> None:
    top = scan(cache, score, k=2, units=[2])
    assert top.percentile.isnan().tolist() == [True, True, False]


def test_the_best_pictures_are_scored_again_exactly(cache: ImageCache) -> None:
    def rough(pictures: Tensor) -> Tensor:
        return (score(pictures) * 256).round() / 256

    top = scan(cache, rough, k=12, exact=score)
    every = table(cache).flatten(2).amax(2)  # (N, C)
    assert torch.equal(top.values[:, 0], every.amax(0))
    assert torch.equal(top.values[:, :3], every.T.gather(1, top.rows)[:, :3])
    assert (top.values[:, :-1] >= top.values[:, 1:]).all()


def test_a_sample_is_spread_over_the_data(cache: ImageCache) -> None:
    sample = torch.stack(list(cache.spread(5)))
    assert torch.equal(sample, torch.stack([cache.read(row) for row in (0, 10, 20, 30, 40)]))
