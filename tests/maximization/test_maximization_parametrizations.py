"""Parametrisations against plain float64 arithmetic, and their inverses."""

from __future__ import annotations

import math

import pytest
import torch

from featviz.maximization import parametrizations as par

SIZES = [(8, 8), (9, 9), (7, 10), (10, 7), (11, 13)]
FORMS = [par.Fourier, par.Pixels]


def test_the_colour_matrices_are_inverses_and_as_published() -> None:
    assert torch.allclose(par.COLOURS @ par.DECORRELATED, torch.eye(3), atol=1e-6)
    # Lucid's normalised matrix, worked out by hand from its rows and its longest column.
    longest = math.sqrt(0.26**2 + 0.27**2 + 0.27**2)
    assert par.COLOURS[0].tolist() == pytest.approx(
        [0.26 / longest, 0.09 / longest, 0.02 / longest]
    )


def test_brightness_alone_is_nearly_grey() -> None:
    axes = torch.zeros(1, 3, 2, 2)
    axes[:, 0] = 0.5
    red, green, blue = par.to_rgb(axes)[0, :, 0, 0]
    assert green == blue
    assert abs(red - green) < 0.01 < green - 0.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_a_given_picture_is_fitted(form: type, size: tuple[int, int]) -> None:
    given = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    made = form(*size)
    parameters = made.fit(given)
    shown = made.picture(parameters)
    assert shown.shape == given.shape
    # Only the margin towards black and white (1/1024) may differ, and float32's rounding.
    assert (shown - given.clamp(1 / 1024, 1 - 1 / 1024)).abs().max() < 2e-6


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
    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in seeds]

    made = form(12, 12)
    assert torch.equal(made.start(seeded(1, 2))[1], made.start(seeded(2, 3, 4))[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_start_is_nearly_grey(form: type) -> None:
    shown = form(32, 32).picture(form(32, 32).start([torch.Generator().manual_seed(0)]))
    assert (shown - 0.5).abs().max() < 0.1
    assert shown.std() > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_of_another_size_cannot_be_fitted(form: type) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 9\)"):
        form(8, 8).fit(torch.zeros(1, 3, 8, 9))
