"""A planted circuit is found, and shares and correlations obey their laws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import featviz
from featviz import results
from featviz.checkpoints import Interrupted
from featviz.circuits.trace import trace_circuit, trace_circuits
from featviz.errors import UserError
from featviz.gallery.build import build_gallery
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
    assert [found.inputs.names[i] for i in found.inputs.raising()] == ["0:5"]
    assert [found.inputs.names[i] for i in found.inputs.lowering()] == ["0:1"]
    two = next(one for one in found.followed if one.k == 2)
    assert two.correlation == pytest.approx(1.0, abs=1e-9)
    assert two.explained == pytest.approx(1.0, abs=1e-9)
    assert float(found.inputs.share.sum()) == pytest.approx(1.0, abs=1e-9)


def test_laws_of_the_curve(mini: Model) -> None:
    found = trace_circuit(
        mini, "conv3:10", featviz.sample_pictures(), depth=1, height=0, count=24, positions=16
    )
    assert float(found.inputs.share.sum()) == pytest.approx(1.0, abs=1e-9)
    last = found.followed[-1]
    assert last.k == len(found.inputs.names)
    assert last.correlation == pytest.approx(1.0, abs=1e-9)
    assert last.random == pytest.approx(1.0, abs=1e-9)
    for one in found.followed:
        assert one.low <= one.correlation + 1e-9
        assert one.correlation <= one.high + 0.05
    few = found.followed[3]
    assert few.correlation > few.random


def test_the_same_seed_gives_the_same_circuit(mini: Model) -> None:
    pictures = featviz.sample_pictures().spread(6)
    one, other = (
        trace_circuit(mini, "conv4:1", pictures, depth=1, height=1, icons="none", seed=5)
        for _ in range(2)
    )
    assert torch.equal(one.inputs.mean, other.inputs.mean)
    assert torch.equal(one.outputs[0].share, other.outputs[0].share)
    assert one.followed == other.followed


def test_too_few_pictures_are_refused(mini: Model) -> None:
    with pytest.raises(UserError, match="give 4 or more"):
        trace_circuit(mini, "conv4:1", featviz.sample_pictures().spread(3))


def test_a_circuit_reaches_from_the_kernels_to_the_classes(mini: Model, tmp_path: Path) -> None:
    found = trace_circuit(mini, "conv3:10", featviz.sample_pictures(4), count=12)
    layers = [level[0].partition(":")[0] for level in found.graph.levels]
    assert layers == ["logits", "fc7", "fc6", "conv5", "conv4", "conv3", "conv2", "conv1"]
    assert found.graph.levels[5] == ("conv3:10",)
    inputs = [e for e in found.graph.edges if e.unit == "conv3:10"]
    assert {e.input for e in inputs} == set(found.graph.levels[6])
    for edge in inputs:
        at = found.inputs.names.index(edge.input)
        assert edge.share == float(found.inputs.share[at])
        assert edge.mean == float(found.inputs.mean[at])
        assert edge.between == ("ReLU", "max pool")
        assert torch.equal(edge.weights, found.inputs.weights[at])
    for edge in found.graph.edges:
        if edge.input.startswith("conv1:"):
            weight = mini.net.get_submodule("features.3").weight
            unit, channel = (int(name.partition(":")[2]) for name in (edge.unit, edge.input))
            assert torch.equal(edge.weights, weight[unit, channel])  # type: ignore[index]
    assert set(found.pictures) >= set(found.graph.units)
    lowest = found.graph.levels[-1][0]
    kernel = featviz.kernel_sheet(mini, "conv1").weights[int(lowest.partition(":")[2])]
    shown = found.pictures[lowest] - 0.5
    cosine = torch.cosine_similarity(shown.flatten(), kernel.flatten(), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)
    folder = found.save(tmp_path / "run")
    figures = {one["file"]: one["units"] for one in results.read_result(folder)["figures"]}
    assert set(figures["graph.svg"]) == set(found.graph.units)
    assert len(found.graph.units) == sum(name.startswith("units/") for name in figures)
    build_gallery(tmp_path)
    page = (tmp_path / "gallery" / "units" / "conv3-10.html").read_text()
    for name in (*found.graph.levels[4], *found.graph.levels[6]):
        assert f'href="../units/{name.replace(":", "-")}.html" title="{name}"' in page
    graph = (tmp_path / "gallery" / "results" / "run" / "circuit.html").read_text()
    assert '"conv3:10": "../../units/conv3-10.html"' in graph
    assert 'id="unit-pages">{}<' in (folder / "circuit.html").read_text()


def test_what_a_unit_feeds_is_what_it_is_in_the_inputs_of_these(mini: Model) -> None:
    pictures = featviz.sample_pictures().spread(8)
    of = {"depth": 1, "icons": "none", "positions": 1000}
    (fed,) = trace_circuit(mini, "conv4:12", pictures, height=1, **of).outputs  # type: ignore[arg-type]
    child = trace_circuit(mini, "conv5:84", pictures, height=0, **of).inputs  # type: ignore[arg-type]
    for name in ("mean", "spread", "share", "top_mean"):
        one, other = getattr(fed, name)[84], getattr(child, name)[12]
        assert float(one) == pytest.approx(float(other), rel=1e-4, abs=1e-6), name
    assert torch.equal(fed.weights[84], child.weights[12])


def test_several_units_are_those_units_stopped_and_continued(
    mini: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = featviz.sample_pictures().spread(6)
    units = ["conv4:0-1", "fc6:3"]
    whole = trace_circuits(mini, units, pictures, positions=8)
    assert [one.unit for one in whole.circuits] == ["conv4:0", "conv4:1", "fc6:3"]
    alone = trace_circuit(mini, "conv4:1", pictures, depth=1, height=1, icons="none", positions=8)
    assert torch.equal(alone.inputs.share, whole.circuits[1].inputs.share)
    assert torch.equal(alone.outputs[0].share, whole.circuits[1].outputs[0].share)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featviz.circuits.measure.Task._effects", stop)
    with pytest.raises(Interrupted, match="kept"):
        trace_circuits(mini, units, pictures, positions=8, checkpoint=tmp_path / "run.partial")
    monkeypatch.undo()
    monkeypatch.setattr("featviz.circuits.measure.Task._inputs", stop)  # is not made again
    again = trace_circuits(mini, units, pictures, positions=8, checkpoint=tmp_path / "run.partial")
    for one, other in zip(whole.circuits, again.circuits, strict=True):
        assert torch.equal(one.inputs.share, other.inputs.share)
        assert one.effect == other.effect
    again.save(tmp_path / "run")
    assert (tmp_path / "run" / "conv4-1" / "circuit.html").is_file()


def test_pictures_of_the_inputs(planted: Model, generator: torch.Generator) -> None:
    pictures = torch.rand(6, 3, 16, 16, generator=generator)
    one, other = (
        trace_circuit(planted, "2:2", pictures, depth=1, height=0, icons=icons, positions=16)
        for icons in ("none", "maximize")
    )
    assert one.pictures == {}
    assert set(other.pictures) == {"2:2", "0:5", "0:1"}
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
    pictures = torch.rand(6, 3, 8, 8)
    found = trace_circuit(model, "third:1", pictures, depth=2, icons="patches")
    start = found.graph.levels.index(("third:1",))
    assert all("first" in name and "second" in name for name in found.graph.levels[start + 1])
    assert found.outputs == ()
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
    assert trace_circuit(planted, "2:2", pictures, height=0, icons="none").effect == ()
