"""Finding a net's tensors in a file, whatever wrappers its names passed through."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featviz.models import zoo
from featviz.models.alexnet import AlexNet2012, AlexNetMini
from featviz.models.matching import CAFFE_LAYERS, Shape, match
from featviz.models.weights_file import WeightsFile


class Block(nn.Module):
    """Names that wrappers have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "net": nn.Linear(4, 2)})
        self.scale = nn.Parameter(torch.ones(4))


NETS = {"alexnet-mini": AlexNetMini(num_classes=5), "block": Block()}
WORDS = ["module", "model", "net", "encoder", "_orig_mod", "student", "0", "features", "x"]


def named(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.state_dict())


def shapes(net: nn.Module) -> dict[str, Shape]:
    return {name: tuple(t.shape) for name, t in net.state_dict().items()}


def modules(tensors: dict[str, Tensor]) -> list[str]:
    parts = [name.split(".")[:-1] for name in tensors]
    return sorted({".".join(p[:end]) for p in parts for end in range(1, len(p) + 1)})


def wrapped(name: str, before: list[str], inside: dict[str, str]) -> str:
    """The name behind the words of `before`, with a word behind each module of `inside`."""
    words = list(before)
    parts = name.split(".")
    for end, part in enumerate(parts, start=1):
        words += [part, *([inside[path]] if (path := ".".join(parts[:end])) in inside else [])]
    return ".".join(words)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=100, deadline=None)
@given(
    before=st.lists(st.sampled_from(WORDS), max_size=4),
    words=st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(WORDS[:5])), max_size=3),
)
def test_any_wrappers_at_any_depth_are_left_out(
    name: str, before: list[str], words: list[tuple[int, str]]
) -> None:
    net = NETS[name]
    tensors, places = named(net), modules(named(net))
    inside = {places[at % len(places)]: word for at, word in words}
    file = WeightsFile({wrapped(n, before, inside): t for n, t in tensors.items()})
    found = match(file, shapes(net))
    assert found.tensors.keys() == tensors.keys()
    assert all(found.tensors[n] is tensors[n] for n in tensors)
    assert not found.unknown
    assert not found.others
    assert set(found.wrappers) <= {*before, *inside.values()}
    assert bool(found.wrappers) == bool(before or inside)


def test_what_lies_beside_the_weights_is_left_alone() -> None:
    net = NETS["block"]
    tensors = {f"model.module.{n}": t for n, t in named(net).items()}
    beside = {
        "optimizer.state.0.exp_avg": torch.ones(4),
        "model.n_averaged": torch.tensor(3),
        "loss.center": torch.ones(2),
    }
    found = match(WeightsFile(tensors | beside), shapes(net))
    assert found.place == "model.module"
    assert found.tensors.keys() == named(net).keys()
    assert not found.unknown


def test_more_than_the_net_has_is_unknown() -> None:
    net = NETS["alexnet-mini"]
    more = {f"module.{n}": t for n, t in named(net).items()}
    more["module.features.99.weight"] = torch.ones(3)
    assert list(match(WeightsFile(more), shapes(net)).unknown) == ["features.99.weight"]


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema.module", "ema", "a.EMA"])
@pytest.mark.parametrize("first", [True, False])
def test_of_several_sets_that_without_averaging_is_taken(average: str, first: bool) -> None:
    net = NETS["block"]
    raw = {f"state.net.{n}": t for n, t in named(net).items()}
    mean = {f"{average}.{n}": t + 1 for n, t in named(net).items()}
    file = WeightsFile(mean | raw if first else raw | mean)
    found = match(file, shapes(net))
    assert (found.place, found.others) == ("state.net", (average,))
    assert all(torch.equal(found.tensors[n], t) for n, t in named(net).items())
    other = match(file.part(average), shapes(net))
    assert other.others == ()
    assert all(torch.equal(other.tensors[n], t + 1) for n, t in named(net).items())


def test_the_more_complete_set_is_taken_and_never_a_mixture() -> None:
    net = NETS["alexnet-mini"]
    student = {f"student.{n}": t for n, t in named(net).items() if "classifier.6" not in n}
    teacher = {f"teacher.{n}": t + 1 for n, t in named(net).items()}
    found = match(WeightsFile(student | teacher), shapes(net))
    assert (found.place, found.others) == ("teacher", ("student",))
    alone = match(WeightsFile(student | teacher).part("student"), shapes(net))
    assert named(net).keys() - alone.tensors.keys() == {"classifier.6.weight", "classifier.6.bias"}


def test_the_same_weights_twice_are_one_set() -> None:
    net = NETS["block"]
    twice = {f"{at}.{n}": t for at in ("model", "attacker.model") for n, t in named(net).items()}
    assert match(WeightsFile(twice), shapes(net)).others == ()


def test_trunk_and_head_in_different_places_are_joined() -> None:
    net = NETS["alexnet-mini"]
    apart = {
        f"{'head' if n.startswith('classifier') else 'backbone'}.{n}": t
        for n, t in named(net).items()
    }
    found = match(WeightsFile(apart), shapes(net))
    assert found.tensors.keys() == named(net).keys()
    assert set(found.wrappers) == {"head", "backbone"}


def test_parametrized_weights_are_not_taken_for_weights() -> None:
    net = NETS["block"]
    tensors = named(net)
    tensors["encoder.0.parametrizations.weight.original"] = tensors.pop("encoder.0.weight")
    found = match(WeightsFile(tensors), shapes(net))
    assert "encoder.0.weight" not in found.tensors
    assert list(found.unknown) == ["encoder.0.parametrizations.weight.original"]


@pytest.mark.parametrize("before", ["", "module."])
def test_caffe_names_are_mapped(before: str) -> None:
    with torch.device("meta"):
        state = dict(AlexNet2012().state_dict())
    ours = {path: caffe for caffe, path in CAFFE_LAYERS.items()}
    in_caffe = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        in_caffe[f"{before}{ours[layer]}.{kind}"] = tensor
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    assert set(in_caffe) == {f"{before}{n}.{kind}" for n in names for kind in ("weight", "bias")}
    found = match(WeightsFile(in_caffe), {n: tuple(t.shape) for n, t in state.items()})
    assert all(found.tensors[name] is state[name] for name in state)


def test_old_names_of_densenet_are_repaired() -> None:
    with torch.device("meta"):
        state = dict(zoo.construct("densenet121").state_dict())
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", n): t for n, t in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    found = match(WeightsFile(old), {n: tuple(t.shape) for n, t in state.items()})
    assert not found.unknown
    assert all(found.tensors[name] is state[name] for name in state)


def test_hostile_names_end_in_nothing() -> None:
    deep = {".".join(["a"] * 5000): torch.ones(1), "": torch.ones(1), "...": torch.ones(1)}
    assert match(WeightsFile(deep), shapes(NETS["block"])).tensors == {}
