"""Recorded passes on the (pretended) card give what ordinary ones give, in fewer launches.

What cannot be recorded, and what a recording would get wrong, is left to ordinary passes, with a
warning of one line.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from mutants import plant
from pretend_cuda import CARD, PretendedCuda
from torch import Tensor, nn

import featviz
from featviz.attacks.options import AttackOptions
from featviz.maximization.settings import settings_for
from featviz.models.graphed import KEPT, ORDINARY, graphed

PASSES = ORDINARY + 5
NONE = "no CUDA graph is used ({}); results are the same"


@pytest.fixture
def card() -> Iterator[PretendedCuda]:
    with PretendedCuda() as made:
        yield made


def _net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36, 5)).to(CARD).requires_grad_(False)


def _pictures(seed: int, rows: int = 2) -> Tensor:
    made = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return made.to(CARD).requires_grad_()


def _slopes(y: Tensor, x: Tensor, factors: tuple[float, ...] = (1.0,)) -> list[Tensor]:
    weights = [torch.full_like(y, factor) for factor in factors]
    return [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in weights]


def _values_and_gradients_of_every_pass_are_kept() -> None:
    net = _net()
    found: list[Tensor] = []
    want: list[Tensor] = []
    with graphed(net, wanted=True, device=CARD) as run:
        for seed in range(PASSES):
            for function, values in ((run, found), (net, want)):
                x = _pictures(seed)
                y = function(x)
                values += [y.detach(), *_slopes(y, x, (1.0, -2.0))]
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def _a_gradient_is_that_of_its_own_pass() -> None:
    net = _net()
    with graphed(net, wanted=True, device=CARD) as run:
        for seed in range(PASSES):
            first, second = _pictures(2 * seed), _pictures(2 * seed + 1)
            y, _ = run(first), run(second)
            assert torch.equal(_slopes(y, first)[0], _slopes(net(first), first)[0])


def _compared(function: Callable[[Tensor], Tensor]) -> list[str]:
    """The warnings of passes that give what the function gives."""
    with (
        warnings.catch_warnings(record=True) as caught,
        graphed(function, wanted=True, device=CARD) as run,
    ):
        warnings.simplefilter("always")
        for seed in range(PASSES):
            x = _pictures(seed)
            assert torch.equal(run(x), function(x))
    return [str(one.message) for one in caught]


def _what_changes_behind_a_recording_is_found() -> None:
    net, factors = _net(), torch.arange(4.0 * PASSES, device=CARD)
    given: list[Tensor] = []

    def scaled(x: Tensor) -> Tensor:
        if not given or given[-1] is not x:
            given.append(x)
        y: Tensor = net(x) * factors[len(given)]
        return y

    assert _compared(scaled) == [
        NONE.format("a recorded pass gives other values than an ordinary one")
    ]


def _what_a_recording_reads_is_not_freed() -> None:
    net, constants = _net(), [torch.ones(1, device=CARD)]
    with graphed(lambda x: net(x) + constants[0], wanted=True, device=CARD) as run:
        for seed in range(PASSES):
            constants[0] = torch.ones(1, device=CARD)  # the same numbers in other memory
            x = _pictures(seed)
            assert torch.equal(run(x), net(x) + 1)


LAWS = (
    _values_and_gradients_of_every_pass_are_kept,
    _a_gradient_is_that_of_its_own_pass,
    _what_changes_behind_a_recording_is_found,
    _what_a_recording_reads_is_not_freed,
)
MUTANTS = (
    ("_Recorded.replay", "mine.copy_(given)", "mine.set_(given.detach())"),
    ("_Recorded.replay", "mine.copy_(given)", "mine"),
    ("_Recorded.__init__", "apart.wait_stream(here)", "pass"),
    ("_Recorded.__init__", "here.wait_stream(apart)", "pass"),
    ("_Recorded.__init__", "_Held() as self.held", "_Held()"),
    ("_Recorded._record", ", retain_graph=True", ""),
    ("_Recorded.__init__", "_apart(", "torch.cuda.current_stream("),
    ("_Replay.forward", "output.clone()", "output.detach()"),
    ("_Replay.backward", "gradient.clone()", "gradient"),
    ("_Replay.backward", "ctx.turn != recorded.turn", "False"),
    ("_Graphed.__call__", "self._compare(shape.recorded, inputs)", "pass"),
)


@pytest.mark.parametrize("law", LAWS)
def test_a_recorded_pass_is_an_ordinary_pass(law: Callable[[], None], card: object) -> None:
    law()


def _all_laws() -> None:
    for law in LAWS:
        law()


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS)
def test_a_mistake_in_recording_is_refused(
    name: str, old: str, new: str, card: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, f"models.graphed:{name}", old, new)
    with pytest.raises((AssertionError, RuntimeError, UserWarning)):
        _all_laws()


def test_a_pass_that_waits_is_left_to_ordinary_passes(card: object) -> None:
    found = _compared(lambda x: x * float(x.detach().sum()))
    assert found == [NONE.format("called a synchronizing CUDA operation")]


def test_few_graphs_are_held_and_none_after_the_block(
    card: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    make = torch.cuda.CUDAGraph

    def graph() -> Any:
        one = make()
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    net = _net()
    with graphed(net, wanted=True, device=CARD) as run:
        for seed in range(PASSES):
            for rows in range(1, KEPT + 3):
                x = _pictures(seed, rows)
                assert torch.equal(run(x), net(x))
        assert len(made) > 2 * KEPT  # of each shape one forward and one backward
        assert 0 < sum(one() is not None for one in made) <= 2 * KEPT
    assert not any(one() for one in made)


def test_on_a_cpu_the_option_is_a_mistake_of_the_user() -> None:
    model = featviz.load("alexnet-mini", device="cpu")
    text = "cuda_graph is for models on CUDA, this one is on cpu; leave it out, or take device cuda"
    with pytest.raises(featviz.UserError, match=text):
        featviz.maximize(model, "conv4", units=[0], cuda_graph=True)
    settings = replace(settings_for(model, "conv4", steps=1), cuda_graph=True)
    with pytest.raises(featviz.UserError, match=text):
        featviz.maximize(model, "conv4", units=[0], settings=settings)
    with pytest.raises(featviz.UserError, match=text):
        featviz.attack(model, torch.rand(1, 3, 64, 64), cuda_graph=True)


def _launches(card: PretendedCuda, run: Callable[[int], Any], steps: int) -> tuple[Any, float, int]:
    """The result of so many steps, and launches and waits of one more."""
    card.counts.clear()
    result = run(steps)
    before = card.total("launch"), card.total("wait")
    card.counts.clear()
    run(steps + 4)
    return result, (card.total("launch") - before[0]) / 4, card.total("wait") - before[1]


@pytest.mark.parametrize(
    ("precision", "views"), [("float32", 1), pytest.param("bfloat16", 2, marks=pytest.mark.long)]
)
def test_pictures_are_the_same_in_a_third_of_the_launches(
    precision: Any, views: int, card: PretendedCuda
) -> None:
    model = featviz.load("alexnet-mini")

    def run(steps: int, graph: bool) -> featviz.Maximized:
        settings = settings_for(model, "conv4", steps=steps, size=48, precision=precision)
        noisy = replace(settings.transforms, noise=0.01)
        settings = replace(settings, checks=1, views=views, transforms=noisy, cuda_graph=graph)
        return featviz.maximize(model, "conv4", units=[0, 1], settings=settings)

    want, _, _ = _launches(card, lambda steps: run(steps, False), 8)
    found, launches, waits = _launches(card, lambda steps: run(steps, True), 8)
    assert torch.equal(found.images, want.images)
    assert torch.equal(found.trace, want.trace)
    assert launches <= 64
    assert waits == 4  # whether a picture is stalled


@pytest.mark.parametrize(
    "attack", [featviz.pgd, pytest.param(featviz.apgd, marks=pytest.mark.long)]
)
def test_an_attack_is_the_same_in_fewer_launches_and_waits(
    attack: Callable[..., Any], card: PretendedCuda
) -> None:
    model = featviz.load("alexnet-mini")
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels = model(x).argmax(1).cpu()

    def run(steps: int, graph: bool) -> Any:
        options = AttackOptions(cuda_graph=graph)
        return attack(model, x, labels, eps=1e-6, steps=steps, random_start=False, options=options)

    want, ordinary, _ = _launches(card, lambda steps: run(steps, False), 8)
    found, launches, waits = _launches(card, lambda steps: run(steps, True), 8)
    assert torch.equal(found.adversarial, want.adversarial)
    assert torch.equal(found.trace, want.trace)
    assert launches <= ordinary - 35
    assert waits == 8
