"""A unit that is read without the others of its layer has the value that it has beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featviz.maximization import objectives
from featviz.maximization.objectives import Objective, common_units
from featviz.maximization.reading import reading
from featviz.models.frozen import frozen
from featviz.models.model import Model
from featviz.types import Precision

UNITS = [2, 7, 2]


class Twice(nn.Module):
    """A convolution that runs twice; its last run is what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.again(self.again(self.conv(x)).relu())
        return self.head(maps.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(Twice(), name="twice", preprocessing=16)


def read(
    model: Model, layer: str, precision: Precision, units: Sequence[int], **options: Any
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with frozen(model), reading(model, [layer], precision, **options) as reader:
        whole, own = reader(x)[layer][range(3), units], reader.own(x, units)
        pair = [whole] if own is None else [whole, own]
        gradients = [torch.autograd.grad(values.square().sum(), x)[0] for values in pair]
    return whole, own, gradients


@pytest.mark.parametrize("layer", ["conv", "again", "head"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_unit_alone_is_what_it_is_beside_others(
    model: Model, layer: str, precision: Precision
) -> None:
    whole, own, gradients = read(model, layer, precision, UNITS)
    assert own is not None
    loose = 1e-5 if precision == "float32" else 0.03
    torch.testing.assert_close(own, whole, rtol=loose, atol=loose)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=loose, atol=loose)


def test_where_other_values_are_needed_all_are_computed(model: Model) -> None:
    assert read(model, "again", "float32", UNITS, entering=["again"])[1] is None
    few = Model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), name="few", preprocessing=16)
    assert read(few, "0", "float32", [0, 1, 2])[1] is None
    handle = model.net.get_submodule("again").register_forward_hook(lambda *_: None)
    assert read(model, "again", "float32", UNITS)[1] is None
    handle.remove()


def test_sums_and_multiples_of_one_unit_need_one_unit() -> None:
    values = torch.rand(3, 16, 5, 5)
    targets = [1, 0, 2]
    goals: list[Objective] = [
        objectives.channel("a", UNITS),
        objectives.channel("a", UNITS, over="max"),
        objectives.center("a", UNITS),
        objectives.neuron("a", UNITS, [(0, 1), (2, 3), (4, 4)]),
    ]
    goals.append(0.5 * goals[0] - goals[2] + goals[3])
    own = values[range(3), [UNITS[t] for t in targets]]
    for goal in goals:
        assert goal.units == tuple(UNITS)
        assert goal.own is not None
        assert torch.equal(goal.own(own, targets), goal({"a": values}, targets))
    assert common_units([goals[0], objectives.channel("b", UNITS)]) is None
    assert common_units([goals[0], objectives.channel("a", [1, 2, 3])]) is None
    assert (goals[0] + objectives.deepdream("a")).own is None
    assert (goals[0] * goals[1]).own is None
