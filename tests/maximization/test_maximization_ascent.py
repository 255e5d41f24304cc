"""The loop itself: slots, groups, views, starts, memory, and who leaves when."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import featviz
from featviz.maximization import loop, objectives
from featviz.maximization.loop import Settings, ascend, ascend_all, climbing
from featviz.maximization.objectives import PICTURE, Objective
from featviz.maximization.optimizers import PlainAscent
from featviz.maximization.parametrizations import Fourier, Pixels
from featviz.maximization.transforms import Transforms
from featviz.models.model import Model

SIDE = 20
MOVED = Transforms(shift=2.0, rotate=10.0, scale=0.1, noise=0.02)
SEEDS = [11, 12, 13, 14, 15, 16]


def net() -> Model:
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
    aliases = {"conv1": "0", "conv2": "2"}
    return Model(
        layers, name="net", input_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, aliases=aliases
    )


def settings(**changes: object) -> Settings:
    base = {"steps": 7, "parametrization": Fourier(SIDE, SIDE), "transforms": MOVED, "reach": 4}
    return Settings(**(base | changes))  # type: ignore[arg-type]


def climb_all(goal: Objective, rows: list[int], own: Settings, **options: object) -> loop.Climb:
    """In slots whose number is known to change nothing."""
    start = options.pop("start", None)
    given = {} if start is None else {"start": start[rows]}
    seeds = [SEEDS[row] for row in rows]
    climbs = dict(ascend_all(net(), goal, rows, seeds, own, **options, **given))
    return loop.together([climbs[i] for i in range(len(rows))])


def same(one: loop.Climb, other: loop.Climb, rows: list[int] | None = None) -> bool:
    return all(
        torch.equal(a if rows is None else a[rows], b)
        if a.dtype != torch.float32
        else torch.equal((a if rows is None else a[rows]).nan_to_num(-9), b.nan_to_num(-9))
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


# Slots


@pytest.mark.parametrize("changes", [{}, {"views": 3, "transparency": True}])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_slot_that_is_free_is_taken_by_the_next_and_nothing_else_changes(
    batch_size: int, changes: dict
) -> None:
    goal = objectives.channel("conv2", range(6))
    whole = climb_all(goal, list(range(6)), settings(**changes), film=3)
    refilled = climb_all(goal, list(range(6)), settings(**changes), film=3, batch_size=batch_size)
    assert same(whole, refilled)
    backwards = climb_all(
        goal, [5, 4, 3, 2, 1, 0], settings(**changes), film=3, batch_size=batch_size
    )
    assert same(whole, backwards, [5, 4, 3, 2, 1, 0])
    assert whole.frames.shape == (6, 3, 3, SIDE, SIDE)


def saturating(level: float) -> Objective:
    """A channel's mean up to a level; the even units reach it, the odd ones are let go on."""
    inner = objectives.channel("conv2", range(6))

    def score(acts: dict, targets: list[int]) -> torch.Tensor:
        values = inner.score(acts, targets)
        odd = torch.tensor([t % 2 for t in targets], dtype=torch.bool)
        return torch.where(odd, values, values.clamp(max=level) + 1e-9 * values)

    return Objective(inner.layers, 6, "saturating", score)


@pytest.mark.parametrize("batch_size", [2, 3, 6])
def test_pictures_that_gain_nothing_leave_alone_of_their_own_score(batch_size: int) -> None:
    own = settings(steps=40, checks=10, patience=2, coarse=0.0, transforms=Transforms())
    goal = saturating(0.05)
    together = climb_all(goal, list(range(6)), own, batch_size=batch_size)
    assert (together.steps[::2] == 26).all()  # checks after 22, 24 and 26 steps: nothing gained
    assert (together.steps[1::2] > 26).all()
    assert together.trace[0].isnan().sum() == 40 - 26
    for i in range(6):
        assert same(together, climb_all(goal, [i], own), [i])


def test_without_patience_all_steps_are_taken() -> None:
    climb = ascend(net(), saturating(0.05), range(6), SEEDS, settings(steps=40, checks=10))
    assert climb.steps.tolist() == [40] * 6
    assert climb.trace.isfinite().all()


def test_the_best_clean_score_is_that_of_the_picture_that_is_kept() -> None:
    model, goal = net(), objectives.channel("conv2", range(6))
    climb = ascend(model, goal, range(6), SEEDS, settings(steps=30))
    with torch.no_grad():
        maps = featviz.activations(model, climb.pictures, ["conv2"])["conv2"]
    expected = maps[range(6), range(6)].mean((1, 2))
    assert torch.allclose(climb.clean, expected, atol=1e-6)
    assert torch.equal(climb.pictures * 255, (climb.pictures * 255).round())


# Groups


def coupled(group: int) -> Objective:
    goal = objectives.channel("conv2", [0, 0, 0, 1, 1, 1])
    return goal - 0.5 * objectives.diversity("conv2", group) * -1.0


@pytest.mark.parametrize("batch_size", [3, 6])
def test_a_group_climbs_together_and_with_nobody_else(batch_size: int) -> None:
    model, goal = net(), coupled(3)
    whole = ascend(model, goal, range(6), SEEDS, settings(), batch_size=batch_size)
    for first in (0, 3):
        rows = list(range(first, first + 3))
        alone = ascend(model, goal, rows, SEEDS[first : first + 3], settings())
        assert same(whole, alone, rows)
    for row, climb in ascend_all(model, goal, range(6), SEEDS, settings(), batch_size=4):
        assert same(whole, climb, [row])
    with pytest.raises(ValueError, match="whole groups of 3"):
        ascend(model, goal, range(4), SEEDS[:4], settings())


def test_members_of_a_group_change_one_another() -> None:
    model = net()
    coupled_climb = ascend(model, coupled(3), range(3), SEEDS[:3], settings())
    free = ascend(model, objectives.channel("conv2", [0] * 3), range(3), SEEDS[:3], settings())
    assert not torch.equal(coupled_climb.pictures, free.pictures)


# Views, transparency, starts


def linear() -> Model:
    """Scores are weighted sums of pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers = nn.Sequential(nn.Conv2d(3, 4, 9, bias=False), nn.Flatten())
    return Model(layers, name="linear", input_size=9, aliases={"conv1": "0"})


def test_views_are_averaged_each_under_its_own_move() -> None:
    """The first step of plain ascent is rate times the mean of the moved kernels' gradients."""
    model, goal = linear(), objectives.channel("conv1", range(2))
    moved = Transforms(shift=2.0, rotate=20.0)
    own = Settings(
        steps=4,
        parametrization=Pixels(9, 9),
        transforms=moved,
        views=3,
        coarse=0.0,
        rule=PlainAscent(rate=255.0**2, mean=(0.0,) * 3),
    )
    moments = climbing(model, goal, range(2), SEEDS[:2], own)
    first, second = next(moments), next(moments)
    # Of pixels' parameters the picture is a sigmoid, after the colours: undo neither, compare both.
    for row in range(2):
        generator = torch.Generator().manual_seed(SEEDS[row])
        start = own.parametrization.start([generator]).requires_grad_(True)
        moves = moved.draw(12, generator).view(4, 3, -1)[0]
        picture = own.parametrization.picture(start)
        kernel = model.net[0].weight[row]
        scores = [(moved.apply(picture, m[None]) * kernel).sum() for m in moves]
        score = torch.stack(scores).mean()
        (slope,) = torch.autograd.grad(score, start)
        after = (start + slope).clamp(0, 1)
        assert torch.allclose(first.scores[row], score, atol=1e-5)
        assert torch.allclose(
            second.pictures[row], own.parametrization.picture(after.detach())[0], atol=1e-5
        )


def test_transparency_adds_up_what_each_pixel_mattered() -> None:
    model, goal = linear(), objectives.channel("conv1", range(4))
    own = Settings(
        steps=5, parametrization=Pixels(9, 9), transforms=Transforms(), transparency=True
    )
    climb = ascend(model, goal, range(4), SEEDS[:4], own)
    assert torch.allclose(climb.transparency, 5 * model.net[0].weight.abs().mean(1), rtol=1e-5)
    assert ascend(model, goal, [0], [1], settings(steps=1)).transparency.shape == (1, 0, 0)


def test_an_ascent_begins_at_the_pictures_it_is_given() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(2, 3, SIDE, SIDE, generator=generator)
    goal = objectives.channel("conv2", range(2))
    moments = climbing(net(), goal, range(2), SEEDS[:2], settings(), start=given)
    first = next(moments)
    assert torch.allclose(first.pictures, given, atol=2e-3)
    assert first.step == 0
    assert first.rows == [0, 1]
    together = climb_all(goal, [0, 1], settings(), start=given)
    assert same(together, climb_all(goal, [1], settings(), start=given), [1])


def test_moments_are_the_steps_and_what_they_scored() -> None:
    goal = objectives.channel("conv2", range(3))
    moments = list(climbing(net(), goal, range(3), SEEDS[:3], settings(), batch_size=2))
    climb = ascend(net(), goal, range(3), SEEDS[:3], settings(), batch_size=2)
    assert [m.step for m in moments] == list(range(15))
    assert [len(m.rows) for m in moments] == [2] * 7 + [1] * 7 + [0]
    assert [row for m in moments for row, _ in m.done] == [0, 1, 2]
    assert torch.equal(torch.stack([m.scores for m in moments[:7]], 1), climb.trace[:2])


def test_between_moments_the_model_is_the_callers() -> None:
    model, goal = net(), objectives.channel("conv2", [0])
    undisturbed = [m.scores for m in climbing(model, goal, [0], [1], settings())]
    scores = []
    for moment in climbing(model, goal, [0], [1], settings()):
        assert not any(module._forward_hooks for module in model.modules())
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)  # all of it runs
        scores.append(moment.scores)
    assert torch.equal(torch.cat(scores), torch.cat(undisturbed))


# Pictures as activations


def test_an_objective_of_the_picture_alone_needs_no_pass_of_the_model() -> None:
    class Never(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.requires_grad:
                raise AssertionError("the model was asked")
            return x.flatten(1)

    model = Model(Never(), name="never", input_size=SIDE)
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    target = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
    goal = -objectives.distance(PICTURE, target)
    own = settings(steps=150, even=0.0, smooth=0.0, calm=0.0, plain=0.0, coarse=0.0)
    climb = ascend(model, goal, [0], [1], own)
    assert (climb.pictures - target).abs().mean() < 0.03  # whatever the moves: it is not moved


# Memory


class Cramped(nn.Module):
    """Has room for so many pictures at a time."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__()
        self.room, self.error = room, error
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
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
def test_out_of_memory_halves_the_slots_and_goes_on(error: Exception) -> None:
    roomy, cramped = net(), net()
    room = Cramped(4, error)
    cramped.net.insert(0, room)
    cramped = Model(
        cramped.net,
        name="cramped",
        input_size=32,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        aliases={"conv2": "3"},
    )
    goal = objectives.channel("conv2", range(6))
    free = dict(ascend_all(roomy, goal, range(6), SEEDS, settings(), batch_size=6))
    held = dict(ascend_all(cramped, goal, range(6), SEEDS, settings(), batch_size=6))
    assert max(room.seen) == 6
    assert sorted(held) == list(range(6))
    for row in range(6):
        assert same(free[row], held[row])


def test_what_is_finished_before_memory_runs_out_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, goal = net(), objectives.channel("conv2", range(6))
    free = dict(ascend_all(model, goal, range(6), SEEDS, settings(), batch_size=2))
    true_climbing, calls = loop.climbing, []

    def failing(*args, **options):
        for moment in true_climbing(*args, **options):
            yield moment
            if options.get("stop_after") is None:
                calls.append(options["batch_size"])
                if len(calls) == 10:  # two are done, two more are on their way
                    raise MemoryError

    monkeypatch.setattr(loop, "climbing", failing)
    done: list[tuple[int, int]] = []
    held = list(
        ascend_all(
            model,
            goal,
            range(6),
            SEEDS,
            settings(),
            batch_size=2,
            progress=lambda *now: done.append(now),
        )
    )
    assert [row for row, _ in held] == [0, 1, 2, 3, 4, 5]
    assert set(calls[:10]) == {2}
    assert set(calls[10:]) == {1}
    assert all(torch.equal(free[row].pictures, climb.pictures) for row, climb in held)
    assert done[-1] == (42, 42)


def test_no_room_for_one_picture_is_a_line_and_other_errors_are_themselves() -> None:
    for error, expected, said in (
        (MemoryError(), featviz.UserError, "not enough memory for a single picture"),
        (RuntimeError("shapes do not match"), RuntimeError, "shapes do not match"),
    ):
        model = Model(
            nn.Sequential(Cramped(0, error), nn.Conv2d(3, 2, 3), nn.Flatten()),
            name="full",
            input_size=8,
            headless=True,
        )
        model.net[0].room = 99
        goal = objectives.channel("1", [0])
        _ = model.layers
        model.net[0].room = 0
        with pytest.raises(expected, match=said):
            list(ascend_all(model, goal, [0], [1], settings(parametrization=Pixels(8, 8))))


def test_memory_does_not_grow_with_steps() -> None:
    def held() -> int:
        gc.collect()
        found = {
            o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
            for o in gc.get_objects()
            if issubclass(type(o), torch.Tensor)
        }
        return sum(found.values())

    goal = objectives.channel("conv2", range(2))
    moments = climbing(net(), goal, range(2), SEEDS[:2], settings(steps=60, coarse=0.0))
    for moment in moments:
        if moment.step == 41:  # after the first check, which leaves something behind
            early = held()
        if moment.step == 55:
            assert held() <= early
            break


# What the gradient is made into


def test_the_neighbourhood_is_two_reflected_means() -> None:
    import numpy as np

    values = torch.rand(1, 17, 23, generator=torch.Generator().manual_seed(0)).double()
    expected = values[0].numpy()
    for axis in (0, 1):
        for _ in range(2):
            margin = [(3, 3) if a == axis else (0, 0) for a in (0, 1)]
            wide = np.pad(expected, margin, mode="reflect")
            parts = [wide.take(range(i, i + expected.shape[axis]), axis) for i in range(7)]
            expected = np.mean(parts, axis=0)
    down, up = loop._neighbourhood(17, 3)  # so near that nothing is pooled
    right, back = loop._neighbourhood(23, 3)
    found = up @ (down @ values[0].float() @ right.T) @ back.T
    assert torch.allclose(found.double(), torch.from_numpy(expected), atol=1e-6)


@pytest.mark.parametrize(("size", "reach"), [(176, 25), (64, 9), (31, 16), (8, 2)])
def test_a_mean_of_ones_is_one_and_a_step_stays_near(size: int, reach: int) -> None:
    down, up = loop._neighbourhood(size, reach)
    assert torch.allclose(up @ down @ torch.ones(size), torch.ones(size), atol=1e-5)
    spot = torch.zeros(size)
    spot[0] = 1.0
    seen = up @ down @ spot
    assert (seen[min(size, 4 * reach + 4) :] == 0).all()
    assert seen[0] > 0


def test_the_direction_is_the_evened_gradient_less_its_restraints() -> None:
    generator = torch.Generator().manual_seed(2)
    gradient = (
        torch.randn(2, 3, 16, 16, generator=generator)
        * torch.tensor([1.0, 1e-6])[:, None, None, None]
    )
    pictures = torch.rand(2, 3, 16, 16, generator=generator)
    own = settings(parametrization=Pixels(16, 16), even=0.0, smooth=2.0, calm=0.3, plain=0.2)
    steered, peak = loop._steered(gradient, pictures, own, True)
    g, x = gradient.double(), pictures.double()
    strength = g.square().mean((1, 2, 3), keepdim=True).sqrt()

    def mean9(v: torch.Tensor) -> torch.Tensor:
        wide = nn.functional.pad(v, (1, 1, 1, 1), mode="replicate")
        return sum(wide[..., i : i + 16, j : j + 16] for i in range(3) for j in range(3)) / 9

    ripples = x - mean9(x)
    expected = g / strength - 2.0 * (ripples - mean9(ripples))
    expected = expected - 0.3 * (x - 0.5) - 0.2 * (x - x.mean(1, keepdim=True))
    assert torch.allclose(steered.double(), expected, atol=1e-4)
    assert torch.allclose(peak.double(), g.square().mean(1).amax((1, 2)), rtol=1e-4)
    bare, _ = loop._steered(gradient, pictures, own, False)
    assert torch.equal(bare, gradient)
