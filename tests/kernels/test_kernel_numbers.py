"""Numbers of kernels against patterns whose direction, wavelength and color are known."""

from __future__ import annotations

import math

import pytest
import torch

from featviz.kernels.tuning import GROUPS, measure_kernels


def gabor(degrees: float, wavelength: float, size: int = 11, phase: float = 0.4) -> torch.Tensor:
    """(3, size, size): gray stripes at `degrees` (0 lies, 90 stands, 45 rises to the right)."""
    half = (size - 1) / 2
    rows, columns = torch.meshgrid(
        torch.arange(size) - half, torch.arange(size) - half, indexing="ij"
    )
    right, up = columns.double(), -rows.double()
    across = -right * math.sin(math.radians(degrees)) + up * math.cos(math.radians(degrees))
    envelope = torch.exp(-(right**2 + up**2) / (2 * (size / 4) ** 2))
    wave = torch.cos(2 * math.pi * across / wavelength + phase)
    return (envelope * wave).expand(3, -1, -1).clone()


@pytest.mark.parametrize("wavelength", [3.5, 5.0, 7.0])
@pytest.mark.parametrize("size", [9, 11])
def test_orientation_of_a_gabor_is_found_within_five_degrees(wavelength: float, size: int) -> None:
    angles = [7.5 * i for i in range(24)]
    m = measure_kernels(torch.stack([gabor(a, wavelength, size) for a in angles]))
    for found, angle in zip(m.orientation.tolist(), angles, strict=True):
        away = abs(found - angle) % 180
        assert min(away, 180 - away) < 5
    assert bool((m.coherence > 0.6).all())
    # The envelope is about one wave wide at the longest wavelength, which pulls the peak down.
    assert torch.allclose(1 / m.frequency, torch.tensor(wavelength).double(), rtol=0.2)
    assert {GROUPS[g] for g in m.group.tolist()} == {"light and dark, oriented"}


def test_mirroring_a_kernel_mirrors_its_orientation_and_nothing_else() -> None:
    kernel = gabor(30, 5.0)[None]
    m, mirrored = measure_kernels(kernel), measure_kernels(kernel.flip(3))
    assert float(mirrored.orientation) == pytest.approx(180 - float(m.orientation), abs=1e-6)
    for name in ("norm", "colorfulness", "coherence", "frequency", "spread"):
        assert torch.allclose(getattr(m, name), getattr(mirrored, name)), name


def test_numbers_do_not_depend_on_the_scale(generator: torch.Generator) -> None:
    kernels = torch.randn(6, 3, 7, 7, generator=generator, dtype=torch.float64)
    m, scaled = measure_kernels(kernels), measure_kernels(-40 * kernels)
    assert torch.allclose(scaled.norm, 40 * m.norm)
    for name in ("colorfulness", "orientation", "coherence", "frequency", "spread"):
        assert torch.allclose(getattr(m, name), getattr(scaled, name)), name


def test_color_blob_is_colored_and_has_no_direction() -> None:
    rows, columns = torch.meshgrid(torch.arange(11) - 5.0, torch.arange(11) - 5.0, indexing="ij")
    blob = torch.exp(-(rows**2 + columns**2) / 8)
    green = torch.stack([-blob, 2 * blob, -blob])  # no gray part at all
    m = measure_kernels(torch.stack([green, blob.expand(3, -1, -1)]))
    assert float(m.colorfulness[0]) == pytest.approx(1)
    assert float(m.colorfulness[1]) == pytest.approx(0, abs=1e-12)
    assert float(m.hue[0]) == pytest.approx(120)
    assert bool((m.coherence < 0.05).all())
    assert [GROUPS[g] for g in m.group.tolist()] == ["colored", "light and dark, no direction"]


@pytest.mark.parametrize(("color", "hue"), [(0, 0), (1, 120), (2, 240)])
def test_hue_is_that_of_the_strongest_weight(color: int, hue: float) -> None:
    kernel = torch.zeros(1, 3, 5, 5)
    kernel[0, color, 2, 2] = 1
    m = measure_kernels(kernel)
    assert float(m.hue) == pytest.approx(hue, abs=1e-9)
    # One color alone is a third gray: its energy of 1 has 1/3 along (1, 1, 1) / sqrt(3).
    assert float(m.colorfulness) == pytest.approx(2 / 3)


def test_white_noise_has_spread_one_and_waves_have_little(generator: torch.Generator) -> None:
    noise = torch.randn(400, 3, 11, 11, generator=generator, dtype=torch.float64)
    m = measure_kernels(noise)
    # E[P]^2 / E[P^2] of a sum of three exponentials is 9 / 12; 400 kernels, finite size.
    assert float(m.spread.mean()) == pytest.approx(1, abs=0.03)
    assert bool(m.noisy.all())
    wave = torch.cos(2 * math.pi * 3 * torch.arange(11) / 11).expand(1, 3, 11, 11)
    # Two of the 121 Fourier coefficients carry a whole wave.
    assert float(measure_kernels(wave).spread) == pytest.approx(2 / 121 / 0.75, rel=1e-6)


def test_dead_kernels_are_faint_and_give_numbers_all_the_same(generator: torch.Generator) -> None:
    kernels = torch.randn(5, 3, 5, 5, generator=generator)
    kernels[1] = 0
    kernels[3] *= 0.01
    m = measure_kernels(kernels)
    assert m.faint.tolist() == [False, True, False, True, False]
    assert GROUPS[int(m.group[1])] == "faint or noisy"
    for name in ("norm", "colorfulness", "hue", "orientation", "coherence", "spread"):
        assert bool(getattr(m, name).isfinite().all()), name
