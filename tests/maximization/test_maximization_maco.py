"""MACO: amplitudes are kept, phases are free, and a picture's own phases give it back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import featviz
from featviz.maximization import image_statistics as stats
from featviz.maximization.colors import LUCID
from featviz.maximization.maco import MACO, faded
from featviz.models.model import Model

SIZES = [(8, 8), (9, 9), (7, 10), (10, 7)]


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def spectrum_of(pictures: torch.Tensor) -> stats.Spectrum:
    return stats.measure_spectrum(pictures, edges=True)


@pytest.mark.parametrize("size", SIZES)
def test_with_its_own_spectrum_a_picture_is_met_exactly(size: tuple[int, int]) -> None:
    # within the margin of the measurement from black and white
    given = 0.1 + 0.8 * torch.rand(1, 3, *size, generator=generators(0)[0])
    form = MACO(*size, spectrum=spectrum_of(given))
    shown = form.picture(form.fit(given))
    # float32's rounding of phases of up to pi, times amplitudes of up to 10
    assert (shown - given).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(16, 16), (15, 17)])
def test_with_another_spectrum_the_phases_are_the_pictures(size: tuple[int, int]) -> None:
    given = 0.1 + 0.8 * torch.rand(2, 3, *size, generator=generators(0)[0])
    form = MACO(*size)
    shown = form.picture(form.fit(given))
    waves, wanted = (torch.fft.rfft2(form.spectrum.colors.from_rgb(x)) for x in (shown, given))
    apart = torch.polar(torch.ones_like(waves.abs()), waves.angle() - wanted.angle()).angle()
    assert apart.abs().max() < 0.01
    amplitudes = waves.abs() / math.sqrt(size[0] * size[1])
    assert (amplitudes / form.spectrum.at(*size) - 1).abs().max() < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_no_phases_change_an_amplitude(size: tuple[int, int]) -> None:
    """Save in the columns that stand for themselves and their mirror: those average the two."""
    form = MACO(*size, spectrum=spectrum_of(torch.rand(4, 3, *size)))
    shown = form.picture(form.start(generators(3)))
    waves = torch.fft.rfft2(LUCID.from_rgb(shown), norm="ortho").abs()[0]
    columns = slice(1, (size[1] + 1) // 2)
    expected = form.spectrum.at(*size)[..., columns]
    assert torch.allclose(waves[..., columns], expected, rtol=1e-3, atol=1e-4)


def test_standardized_pictures_do_not_hang_on_the_phases_mean_or_spread() -> None:
    form = MACO(16, 16, standardized=True)
    phases = form.start(generators(1, 2))
    shown = form.picture(phases)
    assert (form.picture(3 * phases + 5) - shown).abs().max() < 1e-4
    axes = form.spectrum.colors.from_rgb(shown)
    assert axes.mean((1, 2, 3)).abs().max() < 1e-4
    assert (axes.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("standardized", [False, True])
def test_slopes_are_those_of_finite_differences(standardized: bool) -> None:
    form = MACO(4, 5, standardized=standardized)
    phases = form.start(generators(1)).double().requires_grad_()
    assert torch.autograd.gradcheck(form.picture, (phases,), atol=1e-6)


def test_what_did_not_matter_fades_to_white() -> None:
    pictures = torch.full((1, 3, 2, 5), 0.2)
    mattered = torch.arange(10.0).view(1, 2, 5)
    seen = faded(pictures, mattered, clear=0.5)  # opaque from 4.5 on
    assert seen[0, 0, 0, 0] == 1
    assert seen[0, 1, 0, 3].item() == pytest.approx(1 - 0.8 * 3 / 4.5)
    assert torch.equal(seen[0, :, 1], pictures[0, :, 1])
    assert torch.equal(faded(pictures, torch.zeros(1, 2, 5)), torch.ones_like(pictures))


def test_the_preset_saves_what_mattered(mini: Model, tmp_path: Path) -> None:
    made = featviz.maximize(mini, "conv2", units=[1, 2], preset="maco", steps=2, size=32)
    assert made.transparency is not None
    assert made.transparency.shape == (2, 32, 32)
    assert (made.transparency.amax((1, 2)) > 0).all()
    made.save(tmp_path / "made")
    assert (tmp_path / "made" / "faded.png").is_file()
    with np.load(tmp_path / "made" / "maximized.npz") as arrays:
        assert np.array_equal(arrays["transparency"], made.transparency.numpy())
