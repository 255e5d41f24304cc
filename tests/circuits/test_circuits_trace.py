"""A planted circuit is found, and shares and correlations obey their laws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import featviz
from featviz import results
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


def test_the_strongest_inputs_are_traced_down_to_the_kernels(mini: Model, tmp_path: Path) -> None:
    found = trace_circuit(mini, "conv3:10", featviz.sample_pictures(), depth=2, count=12)
    top, middle, lowest = found.levels
    assert top == ("conv3:10",)
    assert {name.partition(":")[0] for name in middle} == {"conv2"}
    assert {name.partition(":")[0] for name in lowest} == {"conv1"}
    assert tuple(found.before) == middle
    for edge in found.graph_edges():
        own = found if edge.unit == found.unit else found.before[edge.unit]
        assert edge.share == float(own.share[own.inputs.index(edge.input)])
    assert set(found.pictures) >= {*top, *middle, *lowest}
    kernel = featviz.kernel_sheet(mini, "conv1").weights[int(lowest[0].partition(":")[2])]
    shown = found.pictures[lowest[0]] - 0.5
    cosine = torch.cosine_similarity(shown.flatten(), kernel.flatten(), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    document = results.read_result(found.save(tmp_path / "run"))
    figures = {one["file"]: one["units"] for one in document["figures"]}
    assert figures["graph.svg"] == [*top, *middle]
    assert sum(name.endswith("circuit.svg") for name in figures) == 1 + len(middle)


def test_pictures_of_the_inputs(planted: Model, generator: torch.Generator) -> None:
    pictures = torch.rand(6, 3, 16, 16, generator=generator)
    one, other = (
        trace_circuit(planted, "2:2", pictures, icons=icons, positions=16)
        for icons in ("none", "maximize")
    )
    assert one.pictures == {}
    assert set(other.pictures) == {"0:5", "0:1"}
    assert trace_circuit(planted, "0:1", pictures).label("input:2") == "blue"


def test_sums_of_layers_are_followed_and_attention_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 8, 3, padding=1)
            self.third = nn.Conv2d(8, 8, 3, padding=1)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            x = self.third(x + torch.relu(self.second(x))).flatten(2).transpose(1, 2)
            out: torch.Tensor = self.head(self.mix(x, x, x)[0].mean(1))
            return out

    torch.manual_seed(0)
    model = wrap(Mixed(), input_size=8, channels=3)
    found = trace_circuit(model, "third:1", torch.rand(6, 3, 8, 8), depth=2, icons="patches")
    assert all("first" in name and "second" in name for name in found.levels[1])
    assert set(found.before) == set(found.levels[1])
    with pytest.raises(UserError, match="attention lies before this layer"):
        trace_circuit(model, "head:1", torch.rand(6, 3, 8, 8))


def test_the_effect_on_the_logits_is_the_weights_times_the_unit(
    planted: Model, generator: torch.Generator
) -> None:
    pictures = torch.rand(6, 3, 16, 16, generator=generator)
    found = trace_circuit(planted, "2:2", pictures, depth=2, icons="none")
    with torch.no_grad():
        value = featviz.activations(planted, pictures, ["2"])["2"][:, 2].mean()
    assert isinstance(planted.net, nn.Sequential)
    weight = planted.net[5].weight
    assert isinstance(weight, torch.Tensor)
    assert found.effect == pytest.approx((weight[:, 2] * value).tolist(), abs=1e-5)
    assert trace_circuit(planted, "2:2", pictures, icons="none").effect == ()
