"""Moves of pictures against scipy's interpolation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from featviz.maximization.transforms import Transforms, move


def picture(height: int = 20, width: int = 26, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_no_reach_changes_nothing() -> None:
    x = picture()
    assert Transforms().still
    assert Transforms().apply(x, torch.zeros(1, 4)) is x


def test_a_move_by_nothing_changes_nothing_but_rounding() -> None:
    x = picture()
    assert (move(x, torch.zeros(1, 4)) - x).abs().max() < 1e-5


def test_a_shift_by_whole_pixels_moves_content_down_and_right() -> None:
    x = picture()
    moved = move(x, torch.tensor([[3.0, 5.0, 0.0, 0.0]]))
    assert (moved[..., 3:, 5:] - x[..., :-3, :-5]).abs().max() < 1e-5
    # Reflected at the border, edge pixels twice: what enters at the top is what left its mirror.
    assert (moved[..., :3, 5:] - x[..., :3, :-5].flip(-2)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("down", "right", "degrees", "log_scale"),
    [(0, 0, 90, 0), (1.3, -2.6, 0, 0), (0, 0, 17, 0), (0, 0, 0, 0.3), (-2.2, 4.1, -12, -0.25)],
)
@pytest.mark.parametrize("size", [(20, 26), (21, 15)])
def test_moves_agree_with_scipy(
    down: float, right: float, degrees: float, log_scale: float, size: tuple[int, int]
) -> None:
    x = picture(*size)
    angle = math.radians(degrees)
    ours = move(x, torch.tensor([[down, right, angle, log_scale]]))[0]
    # scipy asks where a pixel comes from: in = A (out - centre - shift) + centre, rows first.
    # Rows grow downwards, so a clockwise turn of the content by `angle` is undone by
    # y' = cos y - sin x, x' = cos x + sin y.
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix *= math.exp(-log_scale)
    middle = (np.array(size) - 1) / 2
    offset = middle - matrix @ (middle + np.array([down, right]))
    for channel in range(3):
        theirs = ndimage.affine_transform(
            x[0, channel].double().numpy(), matrix, offset, order=1, mode="reflect"
        )
        assert np.abs(ours[channel].numpy() - theirs).max() < 1e-4


def test_a_positive_turn_is_clockwise() -> None:
    x = torch.zeros(1, 3, 21, 21)
    x[..., 2, 10] = 1  # above the middle
    moved = move(x, torch.tensor([[0.0, 0.0, math.pi / 2, 0.0]]))
    assert moved[0, 0, 10, 18] > 0.9  # now on its right


def test_every_picture_has_its_own_move() -> None:
    x = picture().expand(3, -1, -1, -1)
    moves = torch.tensor([[0.0, 0, 0, 0], [2, 1, 0.1, 0.1], [-3, 0, 0.2, -0.1]])
    together = move(x, moves)
    for i in range(3):
        assert torch.equal(together[i], move(x[i : i + 1], moves[i : i + 1])[0])


def test_draws_stay_within_reach_and_fill_it() -> None:
    draws = Transforms(shift=16, rotate=15, scale=0.2).draw(4000, torch.Generator().manual_seed(0))
    reach = torch.tensor([16, 16, math.radians(15), 0.2])
    assert (draws.abs() <= reach).all()
    assert (draws.abs().amax(0) > 0.99 * reach).all()
    assert (draws.mean(0).abs() < 0.05 * reach).all()


def test_the_same_seed_draws_the_same() -> None:
    one, two = (Transforms(shift=4).draw(9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
