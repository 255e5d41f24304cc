"""Measured colors and spectra against pictures made to have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import featviz
from featviz.maximization import image_statistics as stats
from featviz.maximization.colors import LUCID
from featviz.maximization.parametrizations import frequencies
from featviz.pictures import images


def colored(root: torch.Tensor, count: int = 64) -> torch.Tensor:
    """Noise whose colors have the covariance root @ root.T, far from black and white."""
    noise = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return (0.5 + torch.einsum("ca,nahw->nchw", root, noise)).clamp(0, 1)


def test_colors_are_the_root_of_the_covariance_that_pictures_were_made_with() -> None:
    # orthogonal axes of strengths 0.08, 0.03, 0.01: what an eigenvector can give back
    axes = torch.linalg.qr(torch.tensor([[1.0, 2, -3], [2, 1, 1], [1, -1, 2]])).Q
    root = axes * torch.where(axes[0] < 0, -1, 1) * torch.tensor([0.08, 0.03, 0.01])
    assert root[0].min() > 0.003  # red says each axis' sign
    found = torch.tensor(stats.measure_colors(colored(root)).matrix)
    expected = root / 0.08
    # 16,384 pixels: a covariance is off by a percent or so
    assert (found - expected).abs().max() < 0.02


def test_gray_pictures_have_no_axes_of_color() -> None:
    gray = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1)
    with pytest.raises(featviz.UserError, match="fewer than three independent colors"):
        stats.measure_colors(gray)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_a_spectrum_is_the_mean_amplitude_on_the_axes(size: tuple[int, int]) -> None:
    pictures = 0.1 + 0.8 * torch.rand(5, 3, *size, generator=torch.Generator().manual_seed(2))
    found = stats.measure_spectrum(pictures, edges=True)
    axes = torch.einsum(
        "ac,nchw->nahw",
        torch.linalg.inv(torch.tensor(LUCID.matrix).double()),
        torch.logit(pictures.double()),
    )
    whole = torch.fft.fft2(axes).abs().mean(0) / (size[0] * size[1]) ** 0.5
    expected = whole[..., : size[1] // 2 + 1]
    assert (found.amplitudes - expected).abs().max() < 1e-4
    assert (found.at(*size) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(8, 9), (7, 12)])
def test_the_seam_solves_the_equation_of_poisson(size: tuple[int, int]) -> None:
    values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    seam = torch.fft.irfft2(stats.seam(values), s=size, norm="ortho")
    laplacian = sum(seam.roll(d, axis) for d in (-1, 1) for axis in (-2, -1)) - 4 * seam
    # by hand: each border pixel lacks its neighbor round the edge
    jump = torch.zeros_like(values)
    for i in range(size[1]):
        jump[..., 0, i] += values[..., -1, i] - values[..., 0, i]
        jump[..., -1, i] += values[..., 0, i] - values[..., -1, i]
    for i in range(size[0]):
        jump[..., i, 0] += values[..., i, -1] - values[..., i, 0]
        jump[..., i, -1] += values[..., i, 0] - values[..., i, -1]
    assert (laplacian - jump).abs().max() < 1e-10
    assert seam.mean((-2, -1)).abs().max() < 1e-12


def test_a_slope_of_brightness_leaves_no_cross_in_the_spectrum() -> None:
    ramp = torch.linspace(0.2, 0.8, 32)[:, None].expand(1, 3, 32, 32)
    whole = stats.measure_spectrum(ramp, edges=True).amplitudes[0, 4:29, 0]
    inner = stats.measure_spectrum(ramp).amplitudes[0, 4:29, 0]
    assert (inner < 0.1 * whole).all()


@pytest.mark.parametrize("canvas", [(32, 32), (48, 31), (9, 11), (200, 200)])
def test_a_spectrum_of_1_over_f_stays_one_on_any_canvas(canvas: tuple[int, int]) -> None:
    f = frequencies(16, 16).clone()
    f[0, 0] = 1.0  # the mean is 5 whatever the frequencies do
    axes = torch.tensor([3.0, 2.0, 1.0])[:, None, None] / f
    axes[:, 0, 0] = 5
    found = stats.Spectrum("x", axes, 16).at(*canvas)
    f = frequencies(*canvas).clone()
    expected = torch.tensor([3.0, 2.0, 1.0])[:, None, None] / f.clamp(min=1e-9)
    expected[:, 0, 0] = 5 * (canvas[0] * canvas[1] / 256) ** 0.5  # the mean of an orthonormal one
    assert (found / expected - 1).abs().max() < 1e-5


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    pictures = torch.rand(6, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    measured = stats.measure_statistics(pictures)
    measured.save(tmp_path / "mine.safetensors")
    again = stats.load_statistics(tmp_path / "mine.safetensors")
    assert again.colors == measured.colors
    assert again.spectrum.colors == measured.colors
    # amplitudes have 16 bits, 11 of them for the digits
    ratio = again.spectrum.amplitudes / measured.spectrum.amplitudes
    assert (ratio - 1).abs().max() < 2**-11
    assert again.spectrum.at(20, 20).shape == (3, 20, 11)


def test_a_folder_of_pictures_is_measured_like_its_tensor(tmp_path: Path) -> None:
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pictures = images.quantize(pictures)
    for i, picture in enumerate(pictures):
        images.write_png(picture, tmp_path / f"{i}.png")
    seen: list[tuple[int, int]] = []
    folder = stats.measure_statistics(
        featviz.open_pictures(tmp_path),
        size=16,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    given = stats.measure_statistics(pictures)
    assert torch.allclose(folder.spectrum.amplitudes, given.spectrum.amplitudes, atol=1e-5)
    assert seen == [(3, 3), (3, 3)]


def test_other_files_are_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(featviz.UserError, match="no such file"):
        stats.load_statistics(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(featviz.UserError, match="holds no statistics of photographs"):
        stats.load_statistics(tmp_path / "text.safetensors")


def test_the_bundled_spectrum_is_that_of_photographs() -> None:
    bundled = stats.bundled()
    brightness = bundled.spectrum.amplitudes[0]
    f = frequencies(bundled.spectrum.height, bundled.spectrum.width)
    middle = (f > 0.06) & (f < 0.3)
    slope = torch.linalg.lstsq(
        torch.stack([f[middle].log(), torch.ones(int(middle.sum())).double()], 1),
        brightness[middle].double().log()[:, None],
    ).solution[0, 0]
    assert -1.6 < slope < -0.9  # Field 1987: about -1
    matrix = torch.tensor(bundled.colors.matrix)
    assert matrix[:, 0].norm().item() == pytest.approx(1, abs=1e-6)
    assert (matrix[:, 0] > 0.5).all()  # the strongest axis is brightness
    assert stats.BUNDLED.stat().st_size < 40_000
