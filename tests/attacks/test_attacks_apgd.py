"""Auto-PGD's schedule and losses, and Square's windows, against the papers' formulas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from attack_models import Linear, photographs, tiny_model
from flat_attacks import apgd, minimal, square
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.apgd import AutoPGD, checkpoints
from featviz.attacks.evaluation import Batch, Evaluation
from featviz.attacks.square import SquareLinf, bump, corners, window_at
from featviz.errors import UserError


def test_the_checkpoints_are_those_of_the_paper() -> None:
    ends = checkpoints(100)
    assert len(ends) == 101
    found = [k for k, window in enumerate(ends) if window]
    assert found == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [ends[k] for k in found] == [22, 19, 16, 13, 10, 7, 6, 6]
    # p_0 = 0, p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06), w_j = ceil(p_j N)
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    assert found == [math.ceil(round(100 * q, 9)) for q in p[1:] if q < 1]
    for steps in (1, 2, 5, 10):
        assert checkpoints(steps)[steps] >= 0


def differentiated(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_(True)
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    return 3 * torch.randn(64, 7, generator=generator, dtype=torch.float64)


def test_the_losses_and_their_gradients_are_those_of_the_papers(
    logits: Tensor, generator: torch.Generator
) -> None:
    labels = torch.randint(0, 7, (64,), generator=generator)
    aims = (labels + 1 + torch.randint(0, 6, (64,), generator=generator)) % 7
    rows = torch.arange(64)

    def others(z: Tensor) -> Tensor:
        return z.scatter(1, labels[:, None], -torch.inf).amax(1)

    def plain_dlr(z: Tensor) -> Tensor:
        top = z.sort(1, descending=True).values
        return -(z[rows, labels] - others(z)) / (top[:, 0] - top[:, 2] + 1e-12)

    def plain_towards(z: Tensor) -> Tensor:
        top = z.sort(1, descending=True).values
        size = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
        return -(z[rows, labels] - z[rows, aims]) / size

    for ours, plain in (
        (losses.dlr(logits, labels), plain_dlr),
        (losses.dlr_towards(logits, labels, aims), plain_towards),
        (losses.margin(logits, labels), lambda z: others(z) - z[rows, labels]),
        (losses.towards(logits, labels, aims), lambda z: z[rows, aims] - z[rows, labels]),
    ):
        value, gradient = differentiated(plain, logits)
        torch.testing.assert_close(ours[0], value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours[1], gradient, rtol=1e-9, atol=1e-9)

    # Cross-entropy is log(1 + exp(m)): the same order, the same direction.
    value, weights = losses.cross_entropy(logits, labels)
    entropy, gradient = differentiated(
        lambda z: torch.nn.functional.cross_entropy(z, labels, reduction="none"), logits
    )
    torch.testing.assert_close(torch.log1p(value.exp()), entropy)
    own = 1 - logits.softmax(1)[rows, labels]
    torch.testing.assert_close(own[:, None] * weights, gradient)


def test_dlr_knows_neither_shift_nor_scale_and_tells_who_errs(
    logits: Tensor, generator: torch.Generator
) -> None:
    labels = torch.randint(0, 7, (64,), generator=generator)
    aims = (labels + 1) % 7
    for loss in (lambda z: losses.dlr(z, labels), lambda z: losses.dlr_towards(z, labels, aims)):
        value, weights = loss(logits)
        for factor, shift in ((1e3, 5.0), (1e-3, -40.0)):
            moved, slope = loss(factor * logits + shift)
            torch.testing.assert_close(moved, value, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(factor * slope, weights, rtol=1e-8, atol=1e-8)
    value, _ = losses.dlr(logits, labels)
    wrong = logits.argmax(1) != labels
    assert torch.equal(value > 0, wrong)
    assert bool((value[~wrong] >= -1).all())


def test_confidence_does_not_silence_cross_entropy() -> None:
    z = torch.tensor([[1e6, 0.0, -1.0]], dtype=torch.float64)
    _, weights = losses.cross_entropy(z, torch.tensor([0]))
    assert float(weights[0, 0]) == -1.0
    assert float(weights.sum()) == pytest.approx(0.0)
    scaled = z * losses.temper(z)[:, None]
    assert float(scaled.std()) == pytest.approx(5.0)


def step_sizes(values: list[float]) -> list[float]:
    """The step sizes of an attempt whose losses are given, in units of its first."""
    attack = AutoPGD("linf", len(values) - 1, "ce")
    one = torch.ones(1, dtype=torch.float64)
    zero, picture = torch.zeros(1, dtype=torch.long), torch.full((1, 3, 2, 2), 0.5)
    batch = Batch(picture, zero, 0.1 * one, zero, zero, zero, None)
    attack.start(batch)
    sizes = []
    for step, value in enumerate(values[:-1]):
        z = torch.tensor([[0.0, value]], dtype=torch.float64)
        gradient = torch.ones_like(picture)
        seen = Evaluation(attack.x, z, zero, one, one > 2, value * one, gradient, zero)
        attack.step(seen, batch, step)
        sizes.append(float(attack.eta) / 0.2)
    return sizes


def test_the_step_is_halved_where_the_loss_rises_too_seldom() -> None:
    steps = 100
    rising = step_sizes([float(k) for k in range(steps + 1)])
    assert rising == [1.0] * steps  # it always rises: nothing is ever halved
    flat = step_sizes([1.0] * (steps + 1))
    halvings = [k for k, (a, b) in enumerate(itertools.pairwise([1.0, *flat])) if b == a / 2]
    assert halvings == [22, 41, 57, 70, 80, 87, 93, 99]


def test_the_first_step_counts_as_a_rise_only_if_it_is_one() -> None:
    # 17 of 22 rises are more than 75%, 16 are not. Programs that compare the first loss with a
    # row of zeros count one too many here.
    for rises, halved in ((17, False), (16, True)):
        values = [100.0]
        for k in range(22):
            values.append(values[-1] + (-1.0 if k < 22 - rises else 1.0))
        values += [values[-1] + k for k in range(1, 79)]
        # Its best must improve after the fall, or the second condition would halve.
        assert (step_sizes(values)[22] == 0.5) == halved


def test_windows_reach_every_row_and_column() -> None:
    pictures = torch.zeros(2, 3, 8, 8)
    corner = torch.tensor([[0.0, 0.0], [0.999999, 0.999999]], dtype=torch.float64)
    top, left = corners(corner, 3, pictures)
    assert top.tolist() == left.tolist() == [0, 5]
    window = window_at(top, left, 3, pictures)
    assert window.sum((1, 2, 3)).tolist() == [9, 9]
    assert bool(window[0, 0, 0, 0] and window[1, 0, -1, -1])
    every = torch.linspace(0, 1, 601, dtype=torch.float64)[:-1]
    places, _ = corners(torch.stack([every, every], 1), 3, pictures)
    assert places.unique().tolist() == [0, 1, 2, 3, 4, 5]


def test_the_window_shrinks_as_the_paper_says() -> None:
    walk = SquareLinf(10_000, 0.8, rescale_schedule=True)
    marks = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    for k, mark in enumerate(marks):
        assert walk.share(mark) == 0.8 / 2**k
        assert walk.share(mark + 1) == 0.8 / 2 ** (k + 1)
    assert SquareLinf(1000, 0.8, rescale_schedule=True).share(100) == walk.share(1000)
    assert SquareLinf(1000, 0.8, rescale_schedule=False).share(100) == walk.share(100)


def test_square_moves_every_value_as_far_as_the_ball_allows() -> None:
    model, pictures = tiny_model(), photographs(6)
    labels = model(pictures).argmax(1)
    eps = 2 / 255
    found = square(model, pictures, labels, eps=eps, queries=60)
    low, high = projections.linf_bounds(pictures, torch.full((6,), eps, dtype=torch.float64))
    at_bound = (found.adversarial == low) | (found.adversarial == high)
    assert bool(at_bound.all())
    spent = square(model, pictures, labels, eps=0.05, norm="l2", queries=60)
    kept = ~spent.success
    assert kept.any()
    size = projections.l2_distance(pictures, spent.adversarial)[kept]
    assert bool((size <= 0.05).all() and (size > 0.045).all())


def test_bumps_have_length_one_and_a_side_of_each_sign() -> None:
    for side in (1, 2, 3, 7, 12):
        shape = bump(side)
        assert shape.shape == (side, side)
        assert float(shape.norm()) == pytest.approx(1.0)
    assert bool((bump(7)[:3] >= 0).all() and (bump(7)[3:] <= 0).all())


def test_a_later_best_is_kept_with_its_gradient(generator: torch.Generator) -> None:
    # From the start that is given the walk can only lose; its best stays the start.
    model, pictures = tiny_model(), photographs(4)
    labels = model(pictures).argmax(1)
    eps = 0.2 / 255
    first = apgd(model, pictures, labels, eps=eps, steps=50)
    again = apgd(model, pictures, labels, eps=eps, steps=50, starts=first.adversarial)
    kept = ~first.success
    assert kept.any()
    best = [f.trace.nan_to_num(-torch.inf).amax(1)[kept] for f in (first, again)]
    assert bool((best[1] >= best[0] - 1e-6).all())


@pytest.mark.parametrize("norm", projections.NORMS)
def test_a_start_outside_the_ball_is_brought_into_it(norm: str, generator: torch.Generator) -> None:
    weights = torch.randn(3, 48, generator=generator)
    pictures = 0.4 + 0.2 * torch.rand(6, 3, 4, 4, generator=generator)
    model = Linear(weights, -(weights @ torch.full((48,), 0.5)))
    labels = model(pictures).argmax(1)
    known = minimal(model, pictures, labels, norm=norm)
    eps = 0.9 * known.distance  # of a linear model these are the true distances
    outside = (pictures + 3 * (known.adversarial - pictures)).clamp(0, 1)
    assert not bool((model(outside).argmax(1) == labels).any())
    found = apgd(model, pictures, labels, eps=eps, norm=norm, steps=20, starts=outside)
    assert not bool(found.success.any())
    change = projections.distance(pictures, found.adversarial, norm)
    assert bool((change <= eps).all())
    with pytest.raises(UserError, match=r"starts must have the pictures' shape \(6, 3, 4, 4\)"):
        apgd(model, pictures, labels, eps=eps, norm=norm, steps=1, starts=outside[:2])
