"""Moves of pictures against scipy's interpolation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

import featviz
from featviz.maximization.optimizers import gaussian_blur
from featviz.maximization.transforms import Crop, Transforms, move


def picture(height: int = 20, width: int = 26, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_no_reach_changes_nothing() -> None:
    x = picture()
    assert Transforms().still
    assert Transforms().apply(x, torch.zeros(1, 5)) is x


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
    # scipy asks where a pixel comes from: in = A (out - center - shift) + center, rows first.
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
    moved = Transforms(shift=16, rotate=15, scale=0.2, blur=2)
    draws = moved.draw(4000, torch.Generator().manual_seed(0))
    reach = torch.tensor([16, 16, math.radians(15), 0.2])
    assert (draws[:, :4].abs() <= reach).all()
    assert (draws[:, :4].abs().amax(0) > 0.99 * reach).all()
    assert (draws[:, :4].mean(0).abs() < 0.05 * reach).all()
    assert 0 <= draws[:, 4].min() < 0.01
    assert 1.99 < draws[:, 4].max() <= 2


def test_the_same_seed_draws_the_same() -> None:
    one, two = (Transforms(shift=4).draw(9, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)


def test_choices_come_up_alike() -> None:
    moved = Transforms(rotate=(-5.0, 0.0, 0.0, 9.0), scale=(0.5, 2.0))
    draws = moved.draw(8000, torch.Generator().manual_seed(0))
    degrees = draws[:, 2].rad2deg().round().tolist()
    counts = {angle: degrees.count(angle) for angle in (-5, 0, 9)}
    assert sum(counts.values()) == 8000
    # a fifth of a percent of chance for each bound: 3 standard deviations of a binomial
    for angle, share in ((-5, 0.25), (0, 0.5), (9, 0.25)):
        assert abs(counts[angle] - 8000 * share) < 3 * math.sqrt(8000 * share * (1 - share))
    assert sorted({round(v, 5) for v in draws[:, 3].exp().tolist()}) == [0.5, 2.0]


def test_a_jitter_is_turned_and_enlarged_with_the_picture() -> None:
    plain = Transforms(jitter=(4.0,)).draw(500, torch.Generator().manual_seed(1))
    turned = Transforms(jitter=(4.0,), rotate=(90.0,), scale=(2.0,))
    draws = turned.draw(500, torch.Generator().manual_seed(1))
    # a clockwise quarter turn brings what lies to the right below: down = 2 right, right = -2 down
    assert torch.allclose(draws[:, 0], 2 * plain[:, 1], atol=1e-5)
    assert torch.allclose(draws[:, 1], -2 * plain[:, 0], atol=1e-5)
    assert 7.9 < draws[:, :2].abs().max() <= 8
    twice = Transforms(jitter=(4.0, 4.0)).draw(4000, torch.Generator().manual_seed(1))
    assert twice[:, 0].abs().max() > 7
    assert twice[:, 0].std().item() == pytest.approx(math.sqrt(2 * 16 / 3), rel=0.05)


def test_a_crop_shows_the_window_that_was_drawn() -> None:
    # a window of half the side, its center where drawn: each pixel of it becomes 2 x 2
    x = picture(16, 16)
    moved = Transforms(crop=Crop(first=0.5, last=0.5, spread=0.0, middle=0.0))
    seen = moved.apply(x, moved.draw(1, torch.Generator()))
    expected = F.interpolate(x[..., 3:13, 3:13], scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]
    assert (seen - expected).abs().max() < 1e-5


def test_crops_are_drawn_as_published() -> None:
    moved = Transforms(crop=Crop(first=0.5, last=0.2, spread=0.05, middle=0.15))
    draws = moved.draw(20000, torch.Generator().manual_seed(0))
    side = (-draws[:, 3]).exp()
    middle = -draws[:, :2] * side[:, None]
    assert side[:2000].mean().item() == pytest.approx(0.485, abs=0.005)
    assert side[-2000:].mean().item() == pytest.approx(0.215, abs=0.005)
    assert (side - torch.linspace(0.5, 0.2, 20000)).std().item() == pytest.approx(0.05, rel=0.03)
    assert middle.std(0).tolist() == pytest.approx([0.15, 0.15], rel=0.03)
    inside = Transforms(crop=Crop(inside=True)).draw(5000, torch.Generator().manual_seed(0))
    side = (-inside[:, 3]).exp()
    middle = -inside[:, :2] * side[:, None]
    assert (middle.abs() + side[:, None] / 2).max() <= 0.5 + 1e-5


def test_a_window_of_an_oblong_picture_has_its_shape() -> None:
    x = picture(12, 24)
    moved = Transforms(crop=Crop(first=1.0, last=1.0, spread=0.0, middle=0.0), size=(24, 24))
    seen = moved.apply(x, moved.draw(1, torch.Generator()))
    expected = F.interpolate(x, (24, 24), mode="bilinear")
    assert seen.shape == (1, 3, 24, 24)
    assert (seen - expected).abs().max() < 1e-5


def test_a_crop_takes_no_shift_beside_it() -> None:
    with pytest.raises(featviz.UserError, match="leave out shift, jitter and rotate"):
        Transforms(crop=Crop(), shift=2.0).draw(1, torch.Generator())


def test_outside_of_a_picture_lies_its_mirror_image_or_gray() -> None:
    x = torch.full((1, 3, 12, 12), 0.9)
    moves = torch.tensor([[0.0, 4.0, 0.0, 0.0, 0.0]])
    assert Transforms(shift=4).apply(x, moves).min() > 0.89
    gray = Transforms(shift=4, border="gray").apply(x, moves)
    assert (gray[..., :3] - 0.5).abs().max() < 1e-6
    assert (gray[..., 4:] - 0.9).abs().max() < 1e-5
    with pytest.raises(featviz.UserError, match="unknown border 'black'"):
        Transforms(border="black")


@pytest.mark.parametrize("size", [(20, 26), (9, 7)])
def test_a_blur_agrees_with_scipy(size: tuple[int, int]) -> None:
    x = picture(*size).expand(2, -1, -1, -1)
    seen = Transforms(blur=1.5).apply(x, torch.tensor([[0.0] * 4 + [1.2], [0.0] * 5]))
    reach = min(5, min(size) - 1)
    theirs = ndimage.gaussian_filter(
        x[0].double().numpy(), (0, 1.2, 1.2), mode="mirror", radius=(0, reach, reach)
    )
    assert np.abs(seen[0].numpy() - theirs).max() < 1e-6
    assert (seen[1] - x[1]).abs().max() < 1e-6


def test_noise_is_as_strong_as_told() -> None:
    drawn = Transforms(noise=0.08).draw_noise((200, 200), torch.Generator().manual_seed(0))
    assert drawn.std().item() == pytest.approx(0.08, rel=0.02)
    both = Transforms(noise=0.08, uniform=0.04).draw_noise((200, 200), torch.Generator())
    assert both.std().item() == pytest.approx(math.sqrt(0.08**2 + 0.04**2 / 3), rel=0.02)
    flat = Transforms(uniform=0.04).draw_noise((200, 200), torch.Generator())
    assert 0.039 < flat.abs().max() <= 0.04
    assert not Transforms(shift=3).noisy


ALL = Transforms(
    shift=2, rotate=9, scale=0.2, blur=1, jitter=(1.0, 2.0), border="gray", size=(17, 17)
)
QUICK = Transforms(shift=2, rotate=9, scale=0.2)


@pytest.mark.parametrize("moved", [ALL, QUICK], ids=["exact", "quick"])
@pytest.mark.parametrize("size", [(20, 26), (21, 15)])
def test_the_company_changes_no_bit(size: tuple[int, int], moved: Transforms) -> None:
    x = torch.cat([picture(*size, seed=i) for i in range(3)])
    moves = torch.cat([moved.draw(1, torch.Generator().manual_seed(i)) for i in range(3)])

    def both(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        own = x[rows].clone().requires_grad_()
        seen = moved.apply(own, moves[rows])
        return seen.detach(), torch.autograd.grad(seen.square().sum(), own)[0]

    together, slopes = both([2, 1, 0])
    alone, slope = both([1])
    assert torch.equal(together[1], alone[0])
    assert torch.equal(slopes[1], slope[0])


def test_slopes_are_those_of_finite_differences() -> None:
    x = picture(6, 7).double().requires_grad_()
    moves = ALL.draw(1, torch.Generator().manual_seed(5))
    assert torch.autograd.gradcheck(lambda p: ALL.apply(p, moves), (x,))


def slopes_of(moves: list[list[float]], gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The exact slope and the quick one, of the inverse move."""
    x = torch.zeros_like(gradient, requires_grad=True)
    given = torch.tensor(moves, dtype=gradient.dtype)
    return tuple(
        torch.autograd.grad(move(x, given, exact=exact), x, gradient)[0] for exact in (True, False)
    )


@pytest.mark.parametrize(("down", "right"), [(3, -2), (0, 5), (-4, 0)])
def test_of_a_shift_by_whole_pixels_the_quick_slope_is_exact(down: int, right: int) -> None:
    gradient = torch.randn(1, 3, 20, 17, generator=torch.Generator().manual_seed(0)).double()
    exact, quick = slopes_of([[down, right, 0.0, 0.0]], gradient)
    # The mirror's share lies within the shift of the border.
    assert (exact - quick)[..., 4:-4, 5:-5].abs().max() < 1e-9
    assert quick[..., 4:-4, 5:-5].abs().max() > 1


def test_of_smooth_gradients_the_quick_slope_is_near_the_exact() -> None:
    coarse = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    gradient = F.interpolate(coarse, (64, 64), mode="bicubic")
    moves = [[3, 2, 0.2, 0.1], [0, 0, 0, 0.2], [1.3, -2, -0.1, -0.1], [0, 0.5, 0.1, 0]]
    exact, quick = slopes_of(moves, gradient)
    # Away from the mirror at the border, and behind a blur, as a scale prints beats of a few
    # pixels on the exact one.
    inside = (..., slice(18, -18), slice(18, -18))
    exact, quick = (gaussian_blur(slope, 2.0)[inside] for slope in (exact, quick))
    for one, two in zip(exact, quick, strict=True):
        assert (one - two).norm() < 0.01 * one.norm()
