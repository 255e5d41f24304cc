"""Parametrizations against plain float64 arithmetic, and their inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featviz.maximization import parametrizations as par
from featviz.maximization.colors import LUCID

SIZES = [(8, 8), (9, 9), (7, 10), (10, 7), (11, 13), (1, 5)]
FORMS = [par.Fourier, par.Pixels, par.LaplacianPyramid, par.RawPixels]
SQUASHED = [par.Fourier, par.Pixels, par.LaplacianPyramid]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_a_given_picture_is_fitted(form: type, size: tuple[int, int]) -> None:
    given = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    made = form(*size)
    parameters = made.fit(given)
    shown = made.picture(parameters)
    assert shown.shape == given.shape
    # Only the margin towards black and white (1/1024) may differ, and float32's rounding. Logits
    # reach 7, where float32 steps by 5e-7; a few such steps add up.
    margin = 0 if form is par.RawPixels else 1 / 1024
    assert (shown - given.clamp(margin, 1 - margin)).abs().max() < 2e-6


@pytest.mark.parametrize("form", FORMS)
def test_black_and_white_are_fitted_within_half_a_step_of_eight_bits(form: type) -> None:
    given = torch.zeros(1, 3, 9, 9)
    given[..., ::2] = 1
    shown = form(9, 9).picture(form(9, 9).fit(given))
    assert (shown - given).abs().max() < 0.5 / 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_fourier_agrees_with_a_sum_of_waves_in_float64(size: tuple[int, int], decay: float) -> None:
    height, width = size
    form = par.Fourier(height, width, decay=decay)
    parameters = torch.randn(
        1, 3, height, width // 2 + 1, 2, generator=torch.Generator().manual_seed(2)
    )
    axes = torch.zeros(3, height, width, dtype=torch.float64)
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None, :]
    for k in range(height):
        for m in range(width // 2 + 1):
            fy = (k if k <= height // 2 else k - height) / height
            f = max(math.hypot(fy, m / width), 1 / max(size))
            weight = 1 if m == 0 or 2 * m == width else 2  # waves that stand for their mirror too
            weight *= f**-decay / 4 / math.sqrt(height * width)
            phase = 2 * math.pi * (k * y / height + m * x / width)
            real, imaginary = parameters[0, :, k, m].double().unbind(-1)
            axes += weight * (
                real[:, None, None] * phase.cos() - imaginary[:, None, None] * phase.sin()
            )
    longest = math.sqrt(0.26**2 + 2 * 0.27**2)
    rows = [[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]]
    matrix = torch.tensor(rows, dtype=torch.float64) / longest
    expected = torch.einsum("ca,ahw->chw", matrix, axes).sigmoid()
    assert (form.picture(parameters)[0].double() - expected).abs().max() < 1e-5


def test_amplitudes_fall_with_frequency_as_told() -> None:
    scale = par.Fourier(64, 64, decay=1.25).scale()
    assert (scale[0, 8] / scale[0, 16]).item() == pytest.approx(2**1.25, rel=1e-5)
    assert scale[3, 0] == scale[-3, 0]
    assert scale[0, 0] == scale[0, 1]  # the mean counts as one period


@pytest.mark.parametrize("form", FORMS)
def test_a_start_depends_on_its_own_generator_alone(form: type) -> None:
    made = form(12, 12)
    assert torch.equal(made.start(seeded(1, 2))[1], made.start(seeded(2, 3, 4))[0])


@pytest.mark.parametrize("form", SQUASHED)
def test_the_start_is_nearly_gray(form: type) -> None:
    shown = form(32, 32).picture(form(32, 32).start([torch.Generator().manual_seed(0)]))
    assert (shown - 0.5).abs().max() < 0.1
    assert shown.std() > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_of_another_size_cannot_be_fitted(form: type) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 9\)"):
        form(8, 8).fit(torch.zeros(1, 3, 8, 9))


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
@pytest.mark.parametrize("form", SQUASHED)
def test_slopes_are_those_of_finite_differences(form: type, size: tuple[int, int]) -> None:
    made = form(*size)
    parameters = (40 * made.start(seeded(5, 6))).double().requires_grad_()
    assert torch.autograd.gradcheck(made.picture, (parameters,), atol=1e-6)


def test_raw_pixels_are_cut_off_at_black_and_white_but_not_their_slopes() -> None:
    made = par.RawPixels(1, 3)
    parameters = torch.tensor([[[[-0.2, 0.4, 1.3]]]]).expand(1, 3, 1, 3).clone().requires_grad_()
    shown = made.picture(parameters)
    assert shown[0, 0, 0].tolist() == pytest.approx([0, 0.4, 1])
    (slope,) = torch.autograd.grad(shown.sum(), parameters)
    assert torch.equal(slope, torch.ones_like(slope))
    start = par.RawPixels(64, 64).start(seeded(0))[0]
    assert start.mean((1, 2)).tolist() == pytest.approx([0.485, 0.456, 0.406], abs=0.003)
    assert start.std((1, 2)).tolist() == pytest.approx([10 / 255] * 3, rel=0.05)


def test_a_pyramid_is_the_sum_of_its_enlarged_levels() -> None:
    made = par.LaplacianPyramid(4, 5, levels=3)
    assert made.sizes == [(4, 5), (2, 3), (1, 2)]
    parameters = torch.randn(1, 3, 20 + 6 + 2, generator=seeded(1)[0], dtype=torch.float64)
    fine, middle, coarse = parameters[0].split([20, 6, 2], dim=1)
    axes = torch.zeros(3, 4, 5, dtype=torch.float64)
    for axis in range(3):
        level = coarse[axis].view(1, 2).numpy()
        for pixels, size in ((middle[axis].view(2, 3), (2, 3)), (fine[axis].view(4, 5), (4, 5))):
            level = enlarged(level, size) + pixels.numpy()
        axes[axis] = torch.from_numpy(level)
    expected = torch.einsum("ca,ahw->chw", torch.tensor(LUCID.matrix).double(), axes).sigmoid()
    assert (made.picture(parameters)[0] - expected).abs().max() < 1e-6


def enlarged(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, the centers of pixels half a pixel from the border, edges repeated."""
    for axis, new in enumerate(size):
        old = pixels.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(2)])
        pixels = (1 - share) * pixels.take(low, axis) + share * pixels.take(high, axis)
    return pixels


def test_detail_is_let_in_from_coarse_to_fine() -> None:
    pyramid = par.LaplacianPyramid(16, 16, levels=3)
    assert pyramid.detail(0.0).tolist() == [0.0] * (256 + 64) + [1.0] * 16
    assert pyramid.detail(0.5).tolist() == [0.0] * 256 + [1.0] * (64 + 16)
    assert pyramid.detail(1.0).min() == 1
    waves = par.Fourier(16, 16)
    shares = [waves.detail(share).sum().item() for share in (0, 0.3, 0.6, 1)]
    assert shares == sorted(shares)
    assert waves.detail(1).min() == 1
