"""The scores beside a picture, against scipy and by hand."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from featviz.maximization.evaluation import clean_scores
from featviz.pictures.images import mean_3x3


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-4, 5), (30, 0)])
def test_shifts_agree_with_scipy(down: int, right: int) -> None:
    x = torch.rand(1, 3, 12, 15, generator=torch.Generator().manual_seed(0))
    theirs = ndimage.shift(x[0, 0].numpy(), (down, right), order=0, mode="mirror")
    assert torch.equal(clean_scores.shifted(x, down, right)[0, 0], torch.from_numpy(theirs))


def test_blurring_is_scipys_uniform_filter() -> None:
    x = torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    theirs = ndimage.uniform_filter(x[0, 1].double().numpy(), 3, mode="nearest")
    assert (mean_3x3(x)[0, 1].double() - torch.from_numpy(theirs)).abs().max() < 1e-6


def test_the_held_out_score_is_the_mean_over_its_views() -> None:
    x = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))

    def corner(views: torch.Tensor) -> torch.Tensor:
        return views[:, 0, 0, 0]

    views = [
        mean_3x3(clean_scores.shifted(x, down, right))[:, 0, 0, 0]
        for down, right in clean_scores.HELD_OUT_SHIFTS
    ]
    assert torch.allclose(clean_scores.held_out(corner, x), torch.stack(views).mean(0))
