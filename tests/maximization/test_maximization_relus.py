"""Gradients through silent ReLUs: whom they help, how far, and whom they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featviz
from featviz.maximization import objectives
from featviz.maximization.loop import optimize
from featviz.maximization.relu_gradients import RedirectedReLUs
from featviz.maximization.settings import settings_for
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "function in place": lambda x: F.relu(x, inplace=True),
    "torch": torch.relu,
    "method in place": lambda x: x.relu_(),
    "six": nn.ReLU6(),
    "six in place": lambda x: F.relu6(x, inplace=True),
}


def gradient(form: str, x: torch.Tensor, out: torch.Tensor, blocked: list[bool] | None) -> Any:
    leaf = x.clone().requires_grad_(True)
    if blocked is None:
        return FORMS[form](leaf * 1.0), torch.autograd.grad(FORMS[form](leaf * 1.0), leaf, out)[0]
    block = RedirectedReLUs(torch.tensor(blocked))
    with block:
        value = FORMS[form](leaf * 1.0)
    (slope,) = torch.autograd.grad(value, leaf, out)
    return value, slope, block.redirected.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_a_silent_picture_is_pushed_up_and_never_down(form: str) -> None:
    x = torch.tensor([[-1.0, -2.0], [-1.0, 3.0], [-1.0, -2.0]])
    out = torch.tensor([[0.5, -0.5], [0.5, 0.25], [0.5, -0.5]])
    value, slope, redirected = gradient(form, x, out, [True, True, False])
    plain_value, plain = gradient(form, x, out, None)
    assert torch.equal(value, plain_value)
    assert redirected == [True, False, False]
    # The first is silent and may be helped; the second has a gradient, the third was not asked for.
    assert slope.tolist() == [[0.5, 0.0], [0.0, 0.25], [0.0, 0.0]]
    assert torch.equal(slope[1:], plain[1:])


def test_six_is_a_wall_from_the_other_side() -> None:
    x, out = torch.tensor([[7.0, -1.0]]), torch.tensor([[-0.5, -0.5]])
    assert gradient("six", x, out, [True])[1].tolist() == [[-0.5, 0.0]]


def test_a_picture_that_nobody_asks_of_is_not_redirected() -> None:
    x = torch.full((1, 2), -1.0)
    _, slope, redirected = gradient("module", x, torch.zeros(1, 2), [True])
    assert slope.tolist() == [[0.0, 0.0]]
    assert redirected == [False]


class Blocked(nn.Module):
    """Nothing passes its first ReLU until a picture is far from gray."""

    def __init__(self, form: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.last = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 4, 3)
        for conv, bias in ((self.first, -0.7), (self.last, 0.0)):
            assert conv.bias is not None
            nn.init.constant_(conv.bias, bias)
        self.form = form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mapped: torch.Tensor = self.last(FORMS[self.form](self.first(x)))
        return mapped.mean((2, 3))


def net_of(model: Model) -> Any:
    return cast(Blocked, model.net)


def blocked_model(form: str) -> Model:
    return Model(
        Blocked(form),
        name="blocked",
        preprocessing=Preprocessing.of(16, mean=(0.5,) * 3, std=(0.25,) * 3),
    )


@pytest.mark.parametrize("form", ["module", "in place", "function", "six in place"])
def test_a_blocked_unit_is_freed_without_surgery(form: str) -> None:
    model = blocked_model(form)
    x = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    assert not torch.autograd.grad(model(x)[0, 0], x)[0].any()
    result = featviz.maximize(model, "logits", units=[0, 1], steps=64, precision="float32")
    assert result.alive.all()
    assert (result.scores > 0.01).all()  # where everything is silent it is the bias, 0
    assert not net_of(model).first._forward_hooks


def test_a_unit_that_stays_dead_is_named() -> None:
    model = blocked_model("function")
    with torch.no_grad():
        net_of(model).first.bias.fill_(-1000.0)
        net_of(model).last.weight[1] = 0
    settings = settings_for(model, "logits", steps=64, size=16, precision="float32")
    made = optimize(model, objectives.channel("logits", [0, 1]), [0, 1], [5, 6], settings)
    assert made.alive.tolist() == [False, False]
    start = settings.parametrization.start([torch.Generator().manual_seed(s) for s in (5, 6)])
    assert not torch.equal(made.parameters[0], start[0])  # pushed to the end, in vain
    assert torch.equal(made.parameters[1], start[1])
    result = featviz.maximize(model, "logits", units=[0, 1], steps=20, precision="float32")
    assert result.alive.tolist() == [False, False]
    assert result.warnings[0].startswith("no gradient reaches logits:0, logits:1")


def test_help_for_one_picture_changes_no_other() -> None:
    model = blocked_model("function").double()
    with torch.no_grad():
        net_of(model).first.bias.zero_()
        net_of(model).last.weight[3] = 0  # has no gradient, with or without help
    settings = settings_for(model, "logits", steps=8, size=16, precision="float32")
    begun = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    goal = objectives.channel("logits", [0, 3])
    together = optimize(model, goal, [0, 1], [5, 6], settings, start=begun)
    alone = optimize(model, goal, [0], [5], settings, start=begun[:1])
    assert together.alive.tolist() == [True, False]
    assert torch.allclose(together.parameters[0], alone.parameters[0], rtol=0, atol=1e-9)
