"""A planted circuit is found, and shares and correlations obey their laws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featviz
from featviz.circuits.trace import trace_circuit
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.models.wrap import wrap


@pytest.fixture
def planted() -> Model:
    """Unit 2 of the second layer is 3 times unit 5 minus twice unit 1 of the first."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    with torch.no_grad():
        weight = net[2].weight
        assert isinstance(weight, torch.Tensor)
        weight[2] = 0
        weight[2, 5] = 3.0
        weight[2, 1] = -2.0
    return wrap(net, input_size=16, channels=3)


def test_a_planted_circuit_is_found(planted: Model, generator: torch.Generator) -> None:
    pictures = torch.rand(12, 3, 16, 16, generator=generator)
    found = trace_circuit(planted, "2:2", pictures)
    raising, lowering = found.strongest
    assert [found.inputs[i] for i in raising.tolist()] == ["0:5"]
    assert [found.inputs[i] for i in lowering.tolist()] == ["0:1"]
    two = next(one for one in found.followed if one.k == 2)
    assert two.correlation == pytest.approx(1.0, abs=1e-9)
    assert two.explained == pytest.approx(1.0, abs=1e-9)
    assert float(found.share.sum()) == pytest.approx(1.0, abs=1e-9)


def test_laws_of_the_curve(mini: Model) -> None:
    found = trace_circuit(mini, "conv3:10", featviz.sample_pictures(), count=24, positions=16)
    assert float(found.share.sum()) == pytest.approx(1.0, abs=1e-9)
    last = found.followed[-1]
    assert last.k == len(found.inputs)
    assert last.correlation == pytest.approx(1.0, abs=1e-9)
    assert last.random == pytest.approx(1.0, abs=1e-9)
    for one in found.followed:
        assert one.low <= one.correlation + 1e-9
        assert one.correlation <= one.high + 0.05
    few = found.followed[3]
    assert few.correlation > few.random


def test_the_same_seed_gives_the_same_circuit(mini: Model) -> None:
    pictures = featviz.sample_pictures().spread(6)
    one, other = (trace_circuit(mini, "conv4:1", pictures, seed=5) for _ in range(2))
    assert torch.equal(one.mean, other.mean)
    assert one.followed == other.followed


def test_too_few_pictures_are_refused(mini: Model) -> None:
    with pytest.raises(UserError, match="give 4 or more"):
        trace_circuit(mini, "conv4:1", featviz.sample_pictures().spread(3))
