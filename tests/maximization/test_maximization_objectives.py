"""Objectives against sums done by hand, and the laws of their arithmetic."""

from __future__ import annotations

import pytest
import torch

import featviz
from featviz.maximization import objectives as obj


@pytest.fixture
def acts(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "maps": torch.randn(3, 4, 5, 6, generator=generator),
        "vector": torch.randn(3, 7, generator=generator),
        "tokens": torch.randn(3, 9, 4, generator=generator),
    }


def family() -> dict[str, obj.Objective]:
    """Every kind of objective, three targets each; one list of laws runs over all of them."""
    aims = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    long_aims = torch.randn(3, 7, generator=torch.Generator().manual_seed(6))
    return {
        "channel": obj.channel("maps", [0, 2, 3]),
        "channel of a vector": obj.channel("vector", [6, 0, 1]),
        "channel of tokens": obj.channel("tokens", [3, 0, 1]),
        "centre": obj.centre("maps", [1, 1, 0]),
        "neuron": obj.neuron("maps", [0, 2, 3], [(0, 0), (4, 5), (2, 3)]),
        "direction": obj.direction("maps", aims),
        "direction in the middle": obj.direction("maps", aims, power=1, width=2),
        "direction of a vector": obj.direction("vector", long_aims, power=0),
        "sum": obj.channel("maps", [0, 1, 2]) - 2 * obj.channel("vector", [1, 1, 1]),
    }


each = pytest.mark.parametrize("goal", family().values(), ids=family().keys())


def test_values_are_the_sums_done_by_hand(acts: dict[str, torch.Tensor]) -> None:
    maps = acts["maps"]
    mean = sum(maps[1, 2, y, x] for y in range(5) for x in range(6)) / 30
    assert obj.channel("maps", [0, 2, 3])(acts)[1].item() == pytest.approx(mean.item(), abs=1e-6)
    assert obj.channel("vector", [6, 0, 1])(acts)[0] == acts["vector"][0, 6]
    token = acts["tokens"][2, :, 1].sum() / 9
    assert obj.channel("tokens", [3, 0, 1])(acts)[2].item() == pytest.approx(token.item(), abs=1e-6)
    assert obj.neuron("maps", [0, 2, 3], [(0, 0), (4, 5), (2, 3)])(acts)[1] == maps[1, 2, 4, 5]


def test_the_middle_is_the_middle() -> None:
    even = {"maps": torch.arange(36.0).view(1, 1, 6, 6)}
    assert obj.centre("maps", [0])(even).item() == (14 + 15 + 20 + 21) / 4
    odd = {"maps": torch.arange(25.0).view(1, 1, 5, 5)}
    assert obj.centre("maps", [0])(odd).item() == 12  # symmetric round the middle position
    tiny = {"maps": torch.tensor([[[[3.0]]]])}
    assert obj.centre("maps", [0])(tiny).item() == 3


def test_a_direction_is_projection_times_cosine() -> None:
    value = torch.tensor([3.0, 4.0])
    acts = {"v": value[None], "back": -value[None]}
    aim = torch.tensor([[10.0, 0.0]])  # its length does not count
    assert obj.direction("v", aim, power=0)(acts).item() == pytest.approx(3)
    assert obj.direction("v", aim, power=2)(acts).item() == pytest.approx(3 * 0.6**2)
    # Away from the aim: the floor of .1, and the sign of the projection.
    assert obj.direction("back", aim, power=2)(acts).item() == pytest.approx(-3 * 0.1**2)


def test_a_silent_place_leaves_a_direction_its_gradient() -> None:
    values = torch.full((1, 2), 1e-4, requires_grad=True)
    score = obj.direction("v", torch.tensor([[1.0, -1.0]]))({"v": values})
    (gradient,) = torch.autograd.grad(score.sum(), values)
    assert gradient.abs().sum() > 0


@each
def test_no_gradient_reaches_a_neighbour(goal: obj.Objective, acts: dict) -> None:
    leaves = {name: value.clone().requires_grad_() for name, value in acts.items()}
    for row in range(3):
        used = [leaves[name] for name in goal.layers]
        gradients = torch.autograd.grad(goal(leaves)[row], used)
        for gradient in gradients:
            others = [i for i in range(3) if i != row]
            assert gradient[row].abs().sum() > 0
            assert gradient[others].abs().sum() == 0


@each
def test_the_company_changes_neither_score_nor_gradient(goal: obj.Objective, acts: dict) -> None:
    def score_and_gradient(rows: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = {name: value[rows].clone().requires_grad_() for name, value in acts.items()}
        scores = goal(leaves, rows)
        return scores, list(torch.autograd.grad(scores.sum(), [leaves[n] for n in goal.layers]))

    alone, slope = score_and_gradient([1])
    together, slopes = score_and_gradient([2, 1, 0])
    assert torch.equal(alone[0], together[1])
    for one, many in zip(slope, slopes, strict=True):
        assert torch.equal(one[0], many[1])


@each
def test_arithmetic_is_that_of_scores(goal: obj.Objective, acts: dict) -> None:
    other = obj.channel("maps", [1, 1, 1])
    before = goal(acts)
    a, b = goal(acts), other(acts)
    assert torch.equal((goal + other)(acts), a + b)
    assert torch.equal((goal - other)(acts), a - b)
    assert torch.equal((-goal)(acts), -a)
    assert torch.equal((2.5 * goal)(acts), 2.5 * a)
    assert torch.equal((goal * 2.5)(acts), 2.5 * a)
    assert torch.allclose((3 * (goal - 2 * other))(acts), 3 * (a - 2 * b))
    assert torch.equal(goal(acts), before)  # nothing was changed by all that


def test_objectives_of_unlike_counts_do_not_add() -> None:
    with pytest.raises(featviz.UserError, match="2 and 3 targets"):
        obj.channel("maps", [0, 1]) + obj.channel("maps", [0, 1, 2])


def test_a_sum_reads_all_its_layers() -> None:
    goal = obj.channel("conv4", [0]) + obj.channel("conv5", [0]) - obj.channel("conv4", [1])
    assert goal.layers == ("conv4", "conv5")
