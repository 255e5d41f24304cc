"""Expanded weights are compositions of weights where all is linear, and say what they leave out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import featviz
from featviz.circuits.expanded import expanded_weights
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.models.wrap import wrap


def chain(*between: nn.Module) -> Model:
    """Three convolutions with modules between the second and the third."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        *between,
        nn.Conv2d(8, 4, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return copy.deepcopy(wrap(net, input_size=32, channels=3)).double()


def composed(model: Model, unit: int, third: int) -> Tensor:
    """The two convolutions' weights put together, (6, K, K)."""
    second, last = model.net[1].weight.detach(), model.net[third].weight.detach()  # type: ignore[index]
    full = last.new_zeros(1, 8, 3, 3)
    full[:, 4 * (unit // 2) : 4 * (unit // 2) + 4] = last[unit]
    return F.conv_transpose2d(full, second, stride=2)[0]


@pytest.mark.parametrize("unit", [0, 3])
def test_two_convolutions_are_composed_exactly(unit: int) -> None:
    model = chain()
    found = expanded_weights(model, f"2:{unit}", "0")
    expected = composed(model, unit, 2)
    assert found.exact
    assert found.weights.shape == expected.shape
    assert float((found.weights - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert expanded_weights(model, f"2:{unit}").layer == "0"
    pictures = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    again = expanded_weights(model, f"2:{unit}", "0", pictures=pictures)
    assert again.how == "exact: all between is linear"
    assert torch.equal(again.weights, found.weights)


def test_what_is_passed_over_is_named() -> None:
    model = chain(nn.ReLU())
    found = expanded_weights(model, "3:1", "0")
    assert found.left_out == ("ReLUs",)
    assert not found.exact
    expected = composed(model, 1, 3)
    assert float((found.weights - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    pooled = expanded_weights(chain(nn.MaxPool2d(2), nn.LocalResponseNorm(3)), "4:1", "0")
    assert len(pooled.left_out) == 2


def test_averaged_over_pictures_it_is_the_derivative_there(generator: torch.Generator) -> None:
    model = chain(nn.ReLU())
    pictures = torch.rand(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    found = expanded_weights(model, "3:1", "0", pictures=pictures)
    assert found.averaged == 3
    assert found.how.startswith("linearised: mean derivative over 3 pictures, through ReLUs")
    net = model.net
    assert isinstance(net, nn.Sequential)

    def unit(x: Tensor) -> Tensor:
        value: Tensor = net[3](net[2](net[1](x)))[:, 1, 8, 8].sum()
        return value

    own = torch.stack(
        [
            torch.autograd.functional.jacobian(unit, net[0](model.normalize(p[None])).detach())[0]
            for p in pictures
        ]
    ).mean(0)
    used = own.abs().amax(0)
    rows, columns = used.amax(1).nonzero()[:, 0], used.amax(0).nonzero()[:, 0]
    expected = own[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert found.weights.shape == expected.shape
    assert float((found.weights - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_groups_do_not_mix() -> None:
    model = featviz.load("alexnet-2012", device="cpu")
    for unit, other in (("conv5:0", slice(192, 384)), ("conv5:255", slice(0, 192))):
        found = expanded_weights(model, unit, "conv3")
        assert found.weights[other].abs().max() == 0
        assert found.weights.abs().max() > 0


def test_gates_are_refused_without_pictures(generator: torch.Generator) -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((2, 3), keepdim=True).sigmoid()

    model = chain(Gate())
    with pytest.raises(UserError, match="cannot be made linear; give pictures"):
        expanded_weights(model, "3:1", "0")
    pictures = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    assert expanded_weights(model, "3:1", "0", pictures=pictures).averaged == 2
    with pytest.raises(UserError, match="takes the picture itself"):
        expanded_weights(model, "0:1")
