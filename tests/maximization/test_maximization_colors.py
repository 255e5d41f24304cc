"""Decorrelated colors: the published matrix, inverses, and slopes."""

from __future__ import annotations

import math

import pytest
import torch

from featviz.maximization.colors import LUCID, Colors, from_root

OTHER = Colors("other", ((0.6, 0.3, 0.1), (0.5, -0.2, 0.2), (0.4, 0.1, -0.3)))


def test_the_matrix_is_as_published() -> None:
    # Lucid's normalised matrix, worked out by hand from its rows and its longest column.
    longest = math.sqrt(0.26**2 + 0.27**2 + 0.27**2)
    rows = [[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]]
    for ours, row in zip(LUCID.matrix, rows, strict=True):
        assert ours == pytest.approx([value / longest for value in row], abs=1e-7)


def test_the_longest_axis_has_length_one() -> None:
    made = from_root("x", 7 * torch.tensor(LUCID.matrix))
    for ours, row in zip(made.matrix, LUCID.matrix, strict=True):
        assert ours == pytest.approx(row, abs=1e-7)


@pytest.mark.parametrize("colors", [LUCID, OTHER], ids=["lucid", "other"])
def test_there_and_back(colors: Colors) -> None:
    axes = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("ca,nahw->nchw", torch.tensor(colors.matrix), axes).sigmoid()
    shown = colors.to_rgb(axes)
    assert (shown - expected).abs().max() < 1e-6
    # logits amplify float32's steps near black and white, and small axes are divided by little
    assert (colors.from_rgb(shown) - axes).abs().max() < 1e-3


def test_brightness_alone_is_nearly_gray() -> None:
    axes = torch.zeros(1, 3, 2, 2)
    axes[:, 0] = 0.5
    red, green, blue = LUCID.to_rgb(axes)[0, :, 0, 0]
    assert green == blue
    assert abs(red - green) < 0.01 < green - 0.5


@pytest.mark.parametrize("colors", [LUCID, OTHER], ids=["lucid", "other"])
def test_slopes_are_those_of_finite_differences(colors: Colors) -> None:
    axes = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(colors.to_rgb, (axes,))
