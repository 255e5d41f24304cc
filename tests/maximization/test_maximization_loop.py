"""The loop: independence of the pictures of a batch, groups, views, starts, memory."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.maximization import objectives
from featviz.maximization.cppn import CPPN
from featviz.maximization.loop import optimize
from featviz.maximization.maco import MACO
from featviz.maximization.objectives import PICTURE, Objective
from featviz.maximization.optimized import Optimized
from featviz.maximization.optimizers import PlainAscent
from featviz.maximization.parametrizations import Fourier, LaplacianPyramid, Pixels
from featviz.maximization.regularizers import local_mean, shaped_gradient
from featviz.maximization.settings import Settings
from featviz.maximization.transforms import Transforms
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

SIDE = 20
MOVED = Transforms(shift=2.0, rotate=10.0, scale=0.1, noise=0.02)
SEEDS = [11, 12, 13, 14, 15, 16]


def net(first: nn.Module | None = None) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    if first is not None:
        layers.insert(0, first)
    return Model(
        layers,
        name="net",
        preprocessing=Preprocessing.of(32, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"conv2": "2" if first is None else "3"},
    )


def settings(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "steps": 7,
        "parametrization": Fourier(SIDE, SIDE),
        "transforms": MOVED,
        "window": 4,
    }
    return Settings(**(base | changes))


def channels(count: int = 6) -> Objective:
    return objectives.channel("conv2", range(count))


def close(one: Optimized, other: Optimized, rows: Sequence[int], tolerance: float) -> bool:
    """Whether some rows of a result are another result."""
    pairs = [(getattr(one, f.name)[list(rows)], getattr(other, f.name)) for f in fields(Optimized)]
    return all(torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance) for a, b in pairs)


# Batches


FORMS = [
    Fourier(SIDE, SIDE),
    Pixels(SIDE, SIDE),
    LaplacianPyramid(SIDE, SIDE),
    CPPN(SIDE, SIDE, layers=3, fit_steps=2),
    MACO(SIDE, SIDE),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_pictures_do_not_depend_on_their_batch_in_float64(form: Any) -> None:
    model = net()
    model.double()
    begun = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()
    own = settings(parametrization=form, views=2, transparency=True)
    together = optimize(model, channels(), range(6), SEEDS, own, start=begun, frames=2)
    for size in (1, 4):
        split = optimize(
            model, channels(), range(6), SEEDS, own, start=begun, frames=2, batch_size=size
        )
        assert close(together, split, range(6), 1e-9)
    rows = [4, 1]
    others = optimize(
        model, channels(), rows, [SEEDS[r] for r in rows], own, start=begun[rows], frames=2
    )
    assert close(together, others, rows, 1e-9)


@pytest.mark.numeric
@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_pictures_do_not_depend_on_their_batch_in_the_first_steps(form: Any) -> None:
    own = settings(parametrization=form, steps=3)
    together = optimize(net(), channels(), range(6), SEEDS, own)
    alone = optimize(net(), channels(), [4], SEEDS[4:5], own)
    scale = together.trace.abs().max()
    assert (together.trace[4] - alone.trace[0]).abs().max() < 1e-4 * scale
    # Of pictures, not of parameters: a coefficient without effect has a gradient of rounding
    # errors, of which Adam makes whole steps.
    shown = form.picture(together.parameters[4:5]) - form.picture(alone.parameters)
    assert shown.abs().max() < 1e-4


def test_the_same_call_gives_the_same_bits() -> None:
    one, two = (optimize(net(), channels(), range(6), SEEDS, settings(), frames=3) for _ in "ab")
    for field in fields(Optimized):
        assert torch.equal(getattr(one, field.name), getattr(two, field.name)), field.name
    other = optimize(net(), channels(), range(6), [s + 1 for s in SEEDS], settings())
    assert not torch.equal(one.images, other.images)


def test_the_best_clean_score_is_that_of_the_picture_that_is_kept() -> None:
    model = net()
    made = optimize(model, channels(), range(6), SEEDS, settings(steps=30))
    with torch.no_grad():
        maps = featviz.activations(model, made.images, ["conv2"])["conv2"]
    expected = maps[range(6), range(6)].mean((1, 2))
    assert torch.allclose(made.scores, expected, atol=1e-6)
    assert torch.equal(made.images * 255, (made.images * 255).round())
    assert ((made.best_steps >= 15) & (made.best_steps <= 30)).all()
    assert made.steps.tolist() == [30] * 6


def test_clean_scores_are_checked_so_often_in_the_last_half() -> None:
    clean: list[int] = []

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        if not acts[PICTURE].requires_grad:
            clean.append(len(targets))
        return acts[PICTURE].mean((1, 2, 3))

    optimize(net(), Objective((PICTURE,), 2, "mean", score), [0, 1], [1, 2], settings(checks=3))
    assert clean == [2, 2, 2]


def test_progress_counts_the_steps_of_all_pictures() -> None:
    seen: list[tuple[int, int]] = []
    optimize(
        net(),
        channels(3),
        range(3),
        SEEDS[:3],
        settings(),
        batch_size=2,
        progress=lambda done, total, _: seen.append((done, total)),
    )
    assert seen == [(2 * i, 21) for i in range(1, 8)] + [(14 + i, 21) for i in range(1, 8)]


# Groups


def coupled(group: int) -> Objective:
    goal = objectives.channel("conv2", [0, 0, 0, 1, 1, 1])
    return goal + 0.5 * objectives.diversity("conv2", group)


def test_a_group_is_optimized_together_and_apart_from_others() -> None:
    model = net()
    model.double()
    begun = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()
    whole = optimize(model, coupled(3), range(6), SEEDS, settings(), start=begun)
    for batch_size in (1, 3, 5):
        split = optimize(
            model, coupled(3), range(6), SEEDS, settings(), start=begun, batch_size=batch_size
        )
        assert close(whole, split, range(6), 1e-9)
    with pytest.raises(ValueError, match="whole groups of 3"):
        optimize(model, coupled(3), range(4), SEEDS[:4], settings())


def test_members_of_a_group_change_one_another() -> None:
    made = optimize(net(), coupled(3), range(3), SEEDS[:3], settings())
    goal = objectives.channel("conv2", [0] * 3)
    free = optimize(net(), goal, range(3), SEEDS[:3], settings())
    assert not torch.equal(made.images, free.images)


def test_a_regularizer_is_maximized_but_not_scored() -> None:
    flat = 100.0 * -objectives.l2(around=0.5)
    free = optimize(net(), channels(2), range(2), SEEDS[:2], settings(steps=20))
    held = optimize(net(), channels(2), range(2), SEEDS[:2], settings(steps=20), regularizer=flat)
    assert (held.images - 0.5).abs().mean() < 0.8 * (free.images - 0.5).abs().mean()
    maps = featviz.activations(net(), held.images, ["conv2"])["conv2"]
    assert torch.allclose(held.scores, maps[range(2), range(2)].mean((1, 2)), atol=1e-6)


# Views, transparency, starts


def linear() -> Model:
    """Scores are weighted sums of pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = nn.Sequential(nn.Conv2d(3, 4, 9, bias=False), nn.Flatten())
    return Model(layers, name="linear", preprocessing=9, aliases={"conv1": "0"})


def test_views_are_averaged_each_under_its_own_transforms() -> None:
    """A step of plain ascent is lr times the mean of the gradients of all views."""
    model, goal = linear(), objectives.channel("conv1", range(2))
    moved = Transforms(shift=2.0, rotate=20.0)
    own = Settings(
        steps=1,
        parametrization=Pixels(9, 9),
        transforms=moved,
        views=3,
        coarse_to_fine=0.0,
        optimizer=PlainAscent(mean=(0.0,) * 3),
        lr=255.0**2,
    )
    made = optimize(model, goal, range(2), SEEDS[:2], own)
    for row in range(2):
        generator = torch.Generator().manual_seed(SEEDS[row])
        start = own.parametrization.start([generator]).requires_grad_(True)
        moves = moved.draw(3, generator)
        picture = own.parametrization.picture(start)
        kernel = model.net.get_submodule("0").weight[row]  # type: ignore[index]
        scores = [(moved.apply(picture, m[None]) * kernel).sum() for m in moves]
        score = torch.stack(scores).mean()
        (gradient,) = torch.autograd.grad(score, start)
        assert torch.allclose(made.trace[row, 0], score, atol=1e-5)
        assert torch.allclose(
            made.parameters[row], (start + gradient).detach().clamp(0, 1)[0], atol=1e-5
        )


def test_transparency_adds_up_how_much_each_pixel_mattered() -> None:
    model, goal = linear(), objectives.channel("conv1", range(4))
    own = Settings(
        steps=5, parametrization=Pixels(9, 9), transforms=Transforms(), transparency=True
    )
    made = optimize(model, goal, range(4), SEEDS[:4], own)
    weight = model.net.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    assert torch.allclose(made.transparency, 5 * weight.abs().mean(1), rtol=1e-5)
    assert optimize(model, goal, [0], [1], settings(steps=1)).transparency.shape == (1, 0, 0)


def test_frames_begin_at_the_given_pictures_and_end_at_the_last_step() -> None:
    given = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    own = settings(steps=5)
    made = optimize(net(), channels(2), range(2), SEEDS[:2], own, start=given, frames=3)
    assert made.frames.shape == (2, 3, 3, SIDE, SIDE)
    assert (made.frames[:, 0] / 255 - given).abs().max() < 4e-3
    last = own.parametrization.picture(made.parameters)
    assert (made.frames[:, -1] / 255 - last).abs().max() < 3e-3


def test_a_picture_without_gradient_or_numbers_is_left_as_it_was() -> None:
    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        factors = torch.tensor([[1.0, 0.0, float("nan")][t] for t in targets])
        return factors * acts[PICTURE].mean((1, 2, 3))

    goal = Objective((PICTURE,), 3, "some", score)
    made = optimize(net(), goal, range(3), SEEDS[:3], settings())
    assert made.alive.tolist() == [True, False, False]
    assert made.failed.tolist() == [-1, -1, 0]
    assert made.steps.tolist() == [7, 7, 0]
    assert made.scores.isfinite().tolist() == [True, True, False]
    for row in (1, 2):
        start = settings().parametrization.start([torch.Generator().manual_seed(SEEDS[row])])
        assert torch.equal(made.parameters[row], start[0])


# Pictures as activations


def test_an_objective_of_the_picture_alone_needs_no_pass_of_the_model() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.requires_grad:
                raise AssertionError("the model was run")
            return x.flatten(1)

    model = Model(Never(), name="never", preprocessing=SIDE)
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    target = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    goal = -objectives.distance(PICTURE, target)
    own = settings(
        steps=150,
        local_normalization=0.0,
        roughness_weight=0.0,
        contrast_weight=0.0,
        saturation_weight=0.0,
        coarse_to_fine=0.0,
    )
    made = optimize(model, goal, [0], [1], own)
    assert (made.images - target).abs().mean() < 0.03  # whatever the transforms: they come after


# Memory


class Cramped(nn.Module):
    """Has room for so many pictures at a time."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__()
        self.room, self.error = room, error
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise self.error
        return x


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_halves_the_batch_and_goes_on(error: Exception) -> None:
    room = Cramped(4, error)
    made = optimize(net(room), channels(), range(6), SEEDS, settings())
    assert set(room.seen) == {1, 6, 3}  # 1: how a model's layers are found
    free = optimize(net(), channels(), range(6), SEEDS, settings(), batch_size=3)
    assert torch.equal(made.images, free.images)


def test_no_room_for_one_picture_is_a_line_and_other_errors_are_themselves() -> None:
    cases: list[tuple[Exception, type[Exception], str]] = [
        (MemoryError(), featviz.UserError, "not enough memory for 1 picture at a time"),
        (RuntimeError("shapes do not match"), RuntimeError, "shapes do not match"),
    ]
    for error, expected, words in cases:
        room = Cramped(99, error)
        model = net(room)
        _ = model.layers
        room.room = 0
        with pytest.raises(expected, match=words):
            optimize(model, channels(), [0, 1], [1, 2], settings())


def test_memory_does_not_grow_with_steps() -> None:
    held: dict[int, int] = {}

    def progress(done: int, total: int, text: str) -> None:
        if done in (2 * 41, 2 * 55):
            gc.collect()
            found = {
                o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
                for o in gc.get_objects()
                if issubclass(type(o), Tensor) and o.layout is torch.strided
            }
            held[done] = sum(found.values())

    own = settings(steps=60, coarse_to_fine=0.0)
    optimize(net(), channels(2), range(2), SEEDS[:2], own, progress=progress)
    assert held[2 * 55] <= held[2 * 41]


# What the gradient is made into


def test_the_local_mean_is_two_reflected_means() -> None:
    values = torch.rand(1, 17, 23, generator=torch.Generator().manual_seed(0)).double()
    expected = values[0].numpy()
    for axis in (0, 1):
        for _ in range(2):
            margin = [(3, 3) if a == axis else (0, 0) for a in (0, 1)]
            wide = np.pad(expected, margin, mode="reflect")
            parts = [wide.take(range(i, i + expected.shape[axis]), axis) for i in range(7)]
            expected = np.mean(parts, axis=0)
    assert torch.allclose(local_mean(values, 3)[0], torch.from_numpy(expected), atol=1e-12)


@pytest.mark.parametrize(("size", "window"), [(176, 25), (31, 16), (8, 2), (4, 9), (1, 3)])
def test_the_local_mean_of_ones_is_one_and_stays_near(size: int, window: int) -> None:
    assert torch.allclose(local_mean(torch.ones(1, size, size), window), torch.ones(()), atol=1e-5)
    spot = torch.zeros(1, size, size)
    spot[0, 0, 0] = 1.0
    assert (local_mean(spot, window)[0, min(size, 2 * window + 1) :] == 0).all()


def test_the_direction_is_the_normalized_gradient_less_its_penalties() -> None:
    generator = torch.Generator().manual_seed(2)
    factors = torch.tensor([1.0, 1e-6])[:, None, None, None]
    gradient = torch.randn(2, 3, 16, 16, generator=generator) * factors
    pictures = torch.rand(2, 3, 16, 16, generator=generator)
    own = settings(
        local_normalization=0.0, roughness_weight=2.0, contrast_weight=0.3, saturation_weight=0.2
    )
    g, x = gradient.double(), pictures.double()
    strength = g.square().mean((1, 2, 3), keepdim=True).sqrt()

    def mean9(v: Tensor) -> Tensor:
        wide = nn.functional.pad(v, (1, 1, 1, 1), mode="replicate")
        parts = [wide[..., i : i + 16, j : j + 16] for i in range(3) for j in range(3)]
        return torch.stack(parts).mean(0)

    rough = x - mean9(x)
    expected = g / strength - 2.0 * (rough - mean9(rough))
    expected = expected - 0.3 * (x - 0.5) - 0.2 * (x - x.mean(1, keepdim=True))
    assert torch.allclose(shaped_gradient(gradient, pictures, own).double(), expected, atol=1e-4)


def test_local_normalization_gives_every_place_the_same_strength() -> None:
    gradient = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    gradient[..., 32:] *= 1e-3
    bare: dict[str, Any] = dict.fromkeys(
        ("roughness_weight", "contrast_weight", "saturation_weight"), 0.0
    )
    own = settings(local_normalization=1.0, window=3, **bare)
    found = shaped_gradient(gradient, torch.zeros_like(gradient), own).square().mean(1)[0]
    assert found[:, 45:].mean() > 0.1 * found[:, :20].mean()
