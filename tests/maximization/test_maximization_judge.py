"""The numbers beside a picture, on pictures whose spectrum is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage

from featviz.maximization import judge


def waves(period: float, size: int = 96) -> torch.Tensor:
    x = torch.arange(size, dtype=torch.float64)
    wave = 0.5 + 0.3 * torch.sin(2 * math.pi * x / period)
    return wave.expand(1, 3, size, size).float()


def noise_of_slope(exponent: float, size: int = 128, count: int = 4) -> torch.Tensor:
    f = judge.frequencies(size, size).clamp(min=1 / size)
    white = torch.randn(
        count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    shaped = torch.fft.ifft2(torch.fft.fft2(white) * f**exponent).real
    return (0.5 + 0.1 * shaped / shaped.std()).float()


@pytest.mark.parametrize("exponent", [0.0, -1.0, -1.5])
def test_the_slope_of_noise_of_known_slope_is_found(exponent: float) -> None:
    assert judge.slope(noise_of_slope(exponent)).mean().item() == pytest.approx(exponent, abs=0.1)


def test_the_high_share_tells_coarse_from_fine() -> None:
    assert judge.high_share(waves(3))[0] > 0.99
    assert judge.high_share(waves(8))[0] < 0.01
    # White noise: the share of the square of frequencies outside the circle of 1/4.
    assert judge.high_share(noise_of_slope(0.0)).mean().item() == pytest.approx(
        1 - math.pi / 16, abs=0.01
    )
    assert judge.high_share(torch.full((1, 3, 16, 16), 0.5))[0] == 0


def test_a_lattice_stands_out_and_noise_has_none() -> None:
    plain = noise_of_slope(-1.0)
    assert judge.lattice(plain, 4).mean().item() == pytest.approx(1, abs=0.4)
    dots = torch.zeros(128, 128)
    dots[::4, ::4] = 1
    assert (judge.lattice(plain + 0.1 * dots, 4) > 5).all()
    assert judge.lattice(torch.rand(1, 3, 16, 16), 4).isnan().all()  # too small to say


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-4, 5), (30, 0)])
def test_shifts_agree_with_scipy(down: int, right: int) -> None:
    x = torch.rand(1, 3, 12, 15, generator=torch.Generator().manual_seed(0))
    theirs = ndimage.shift(x[0, 0].numpy(), (down, right), order=0, mode="mirror")
    assert torch.equal(judge.shifted(x, down, right)[0, 0], torch.from_numpy(theirs))


def test_softening_is_scipys_uniform_filter() -> None:
    x = torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    theirs = ndimage.uniform_filter(x[0, 1].double().numpy(), 3, mode="nearest")
    assert (judge.soften(x)[0, 1].double() - torch.from_numpy(theirs)).abs().max() < 1e-6


def test_the_held_out_score_is_the_mean_over_its_views() -> None:
    x = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))

    def corner(views: torch.Tensor) -> torch.Tensor:
        return views[:, 0, 0, 0]

    expected = sum(
        judge.soften(judge.shifted(x, down, right))[:, 0, 0, 0]
        for down, right in judge.HELD_OUT_SHIFTS
    ) / len(judge.HELD_OUT_SHIFTS)
    assert torch.allclose(judge.held_out(corner, x), expected)
