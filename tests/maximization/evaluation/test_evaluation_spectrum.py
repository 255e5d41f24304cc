"""The numbers of a picture's spectrum, on pictures whose spectrum is known."""

from __future__ import annotations

import math

import pytest
import torch

from featviz.maximization.evaluation import spectrum
from featviz.models.first_layer import input_strides
from featviz.models.model import Model


def energy_of(pictures: torch.Tensor) -> torch.Tensor:
    return spectrum.spectrum(pictures)


def waves(period: float, size: int = 96) -> torch.Tensor:
    x = torch.arange(size, dtype=torch.float64)
    wave = 0.5 + 0.3 * torch.sin(2 * math.pi * x / period)
    return wave.expand(1, 3, size, size).float()


def noise_of_slope(exponent: float, size: int = 128, count: int = 4) -> torch.Tensor:
    f = spectrum.frequencies(size, size).clamp(min=1 / size)
    white = torch.randn(
        count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    shaped: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(white) * f**exponent).real
    noise = 0.5 + 0.1 * shaped / shaped.std()
    return noise.float()


@pytest.mark.parametrize("exponent", [0.0, -1.0, -1.5])
def test_the_slope_of_noise_of_known_slope_is_found(exponent: float) -> None:
    found = spectrum.slope(energy_of(noise_of_slope(exponent)))
    assert found.mean().item() == pytest.approx(exponent, abs=0.1)


def test_a_plain_picture_has_no_slope() -> None:
    assert spectrum.slope(energy_of(torch.full((1, 3, 32, 32), 0.5))).isnan().all()


def test_the_high_share_tells_coarse_from_fine() -> None:
    assert spectrum.high_share(energy_of(waves(3)))[0] > 0.99
    assert spectrum.high_share(energy_of(waves(8)))[0] < 0.01
    # White noise: the share of the square of frequencies outside the circle of 1/4.
    assert spectrum.high_share(energy_of(noise_of_slope(0.0))).mean().item() == pytest.approx(
        1 - math.pi / 16, abs=0.01
    )
    assert spectrum.high_share(energy_of(torch.full((1, 3, 16, 16), 0.5)))[0] == 0


@pytest.mark.parametrize("period", [4, 8, 16])
def test_a_planted_lattice_is_found_at_its_own_period_and_no_other(period: int) -> None:
    plain = noise_of_slope(-1.0, size=160)
    combed = plain.clone()
    combed[..., ::period, ::period] += 0.15 * period / 4
    periods = (4, 8, 16)
    before, after = spectrum.lattices(plain, periods), spectrum.lattices(combed, periods)
    assert (after[period] > 3).all()
    for other in set(periods) - {period}:
        # Longer periods contain the shorter ones, whose frequencies are counted there alone; a
        # shorter one shares its frequencies with the longer and sees some of the comb.
        if other > period:
            assert torch.allclose(after[other], before[other], atol=0.15)
    for p in periods:
        assert before[p].mean().item() == pytest.approx(1, abs=0.35)


def test_a_comb_of_known_strength_is_measured() -> None:
    """White noise of energy 1 a coefficient, and a comb whose every line has a known energy."""
    size, period, strength = 128, 4, 0.2
    noise = torch.randn(
        8, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    comb = torch.zeros(size, size, dtype=torch.float64)
    comb[::period, ::period] = strength * period**2
    # A line of amplitude a has energy a^2 (sum of w)^2 in all under a window w, spread over 3 x 3
    # coefficients by Hann's kernel (1/4, 1/2, 1/4)^2 : (3/2)^2 times its middle. Noise of variance
    # 1 has sum of w^2 in each.
    w = torch.hann_window(size, periodic=False, dtype=torch.float64)
    w = w[:, None] * w
    line = strength**2 * w.sum() ** 2 * 1.5**2 / 9
    expected = float(1 + line / w.square().sum())
    found = spectrum.lattice(energy_of(noise + comb), period)
    assert found.mean().item() == pytest.approx(expected, rel=0.1)
    assert expected > 5


def test_streaks_of_upright_and_level_edges_are_no_lattice() -> None:
    """A picture of houses, so to say: all its energy lies on the axes of the spectrum."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(2, 128, generator=generator).cumsum(1) * 0.02
    streaks = (0.5 + rows[:, None] + columns).expand(1, 3, 128, 128)
    grain = 1e-4 * torch.randn(1, 3, 128, 128, generator=generator)
    assert spectrum.lattice(energy_of(streaks + grain), 4)[0] < 2


def test_a_picture_too_small_for_a_period_is_not_measured() -> None:
    assert spectrum.lattice(energy_of(torch.rand(1, 3, 27, 27)), 4).isnan().all()
    assert spectrum.lattice(energy_of(torch.rand(1, 3, 28, 28)), 4).isfinite().all()


def test_the_periods_are_the_strides_up_to_the_layer(mini: Model) -> None:
    # alexnet-mini: conv1 stride 2, then two pools of stride 2; a third before fc6.
    assert input_strides(mini, mini.layer("conv1"))[:1] == (2,)
    strides = {max(la.receptive_field.stride) for la in mini.layers.values() if la.receptive_field}
    assert input_strides(mini) == tuple(sorted(strides - {1}))
    field = mini.layer("conv5").receptive_field
    assert field is not None
    assert input_strides(mini, mini.layer("conv5"))[-1] == max(field.stride)
