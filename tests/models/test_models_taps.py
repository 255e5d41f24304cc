"""Taps and units: true values, early stops, the grammar and its messages."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.models.layers import tap
from featviz.models.model import Model
from featviz.models.units import Unit, parse_unit, parse_units


class Counting(nn.Module):
    """Counts how often it runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        result: Tensor = self.inner(x)
        return result


def net(classes: list[tuple[str, str]] | None = None) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 4, 3, padding=1),
                relu1=nn.ReLU(inplace=True),
                conv2=Counting(nn.Conv2d(4, 5, 3)),
                relu2=nn.ReLU(inplace=True),
                flat=nn.Flatten(),
                fc=nn.Linear(5 * 36, 6),
                relu3=nn.ReLU(inplace=True),
                logits=Counting(nn.Linear(6, 4)),
            )
        )
    names = ("conv1", "relu1", "conv2", "relu2", "fc", "relu3", "logits")
    return Model(
        layers, name="net", preprocessing=8, aliases={name: name for name in names}, classes=classes
    )


@pytest.fixture
def pictures(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=generator)


def test_taps_are_true_in_front_of_in_place_operations(pictures: Tensor) -> None:
    model = net()
    names = ["conv1", "relu1", "conv2", "relu2", "fc", "logits"]
    found = featviz.activations(model, pictures, names)
    x = model.normalize(pictures)
    weight, bias = (model.net.get_parameter(f"conv1.{name}") for name in ("weight", "bias"))
    conv1 = nn.functional.conv2d(x, weight, bias, padding=1)
    assert torch.equal(found["conv1"], conv1)
    assert float(found["conv1"].min()) < 0
    assert torch.equal(found["relu1"], conv1.clamp(min=0))
    assert torch.equal(found["relu2"], found["conv2"].clamp(min=0))
    assert torch.equal(found["logits"], model(pictures))


def test_tapping_does_not_change_the_logits(pictures: Tensor) -> None:
    model = net()
    plain = model(pictures)
    with tap(model, ["conv1", "fc"]) as taken:
        tapped = model(pictures)
        assert set(taken) == {"conv1", "fc"}
    assert torch.equal(plain, tapped)


def test_the_pass_stops_at_the_deepest_layer(pictures: Tensor) -> None:
    model = net()
    model.layers  # noqa: B018 - the table itself takes one pass
    conv2, logits = (model.net.get_submodule(name) for name in ("conv2", "logits"))
    assert isinstance(conv2, Counting)
    assert isinstance(logits, Counting)
    conv2.runs = logits.runs = 0
    featviz.activations(model, pictures, ["relu1"])
    assert (conv2.runs, logits.runs) == (0, 0)
    featviz.activations(model, pictures, ["conv1", "conv2"])
    assert (conv2.runs, logits.runs) == (1, 0)
    featviz.activations(model, pictures, ["logits", "conv1"])
    assert (conv2.runs, logits.runs) == (2, 1)


def test_gradients_flow_from_taps_to_pictures(pictures: Tensor) -> None:
    model = net().double()
    picture = pictures[:1].double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: featviz.activations(model, p, ["conv2"])["conv2"][:, :2], (picture,)
    )


def test_hooks_are_removed_also_after_an_error(pictures: Tensor) -> None:
    model = net()
    with pytest.raises(ZeroDivisionError), tap(model, ["conv1"]):
        raise ZeroDivisionError
    with pytest.raises(UserError):
        featviz.activations(model, pictures[:, :2], ["conv1"])
    with pytest.raises(UserError, match="no layer 'conv8'"):
        featviz.activations(model, pictures, ["conv1", "conv8"])
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_pictures_do_not_depend_on_their_batch(generator: torch.Generator) -> None:
    model = net().double()
    batch = torch.rand(5, 3, 8, 8, generator=generator, dtype=torch.float64)
    together = featviz.activations(model, batch, ["logits"])["logits"]
    for i in range(5):
        alone = featviz.activations(model, batch[i : i + 1], ["logits"])["logits"][0]
        assert torch.allclose(together[i], alone, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("conv2:3", Unit("conv2", 3)),
        ("conv2:3@5,0", Unit("conv2", 3, (5, 0))),
        ("logits:1", Unit("logits", 1)),
        ("logits:tabby", Unit("logits", 0)),
        ("logits:Tabby cat", Unit("logits", 0)),
        ("logits:sealyham_terrier", Unit("logits", 2)),
        ("logits:n02", Unit("logits", 1)),
    ],
)
def test_units_as_they_are_written(text: str, unit: Unit) -> None:
    model = net(
        [("n01", "tabby, tabby cat"), ("n02", "bus"), ("n03", "Sealyham terrier"), ("n04", "drake")]
    )
    assert parse_unit(model, text) == unit
    if "@" in text or text.partition(":")[2].isdigit():
        assert str(unit) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv7:1", r"net has no layer 'conv7'; did you mean conv2, conv1.*\(featviz layers lists"),
        ("conv2", "'conv2' names no unit; write conv2:0 to conv2:4"),
        ("conv2:", "'conv2:' names no unit; write conv2:0 to conv2:4"),
        ("conv2:5", "unit 5 is out of range: conv2 has units 0 to 4"),
        ("conv2:-1", "unit -1 is out of range: conv2 has units 0 to 4"),
        ("conv2:bus", r"'bus' is no unit of conv2; give a number \(0 to 4\)"),
        ("conv2:1@6,0", "conv2 has 6 x 6 positions, counted from 0"),
        ("logits:1@0,0", "has a position, but logits has no map of positions"),
        ("logits:tabbi", r"net has no class 'tabbi'; did you mean tabby"),
        ("logits:4", "unit 4 is out of range: logits has units 0 to 3"),
    ],
)
def test_wrong_units_are_explained(text: str, message: str) -> None:
    model = net([("n01", "tabby, tabby cat"), ("n02", "bus"), ("n03", "terrier"), ("n04", "x")])
    with pytest.raises(UserError, match=message):
        parse_unit(model, text)


@pytest.mark.parametrize(
    ("text", "indices"),
    [("0-2", [0, 1, 2]), ("3, 1,3", [3, 1]), ("all", [0, 1, 2, 3, 4]), ([4, "0-1"], [4, 0, 1])],
)
def test_lists_of_units_keep_their_order_and_hold_each_once(text: str, indices: list[int]) -> None:
    assert [u.index for u in parse_units(net(), "conv2", text)] == indices


def test_an_empty_list_of_units_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no units of conv2 were named; give numbers, a range or"):
        parse_units(net(), "conv2", " , ")
    with pytest.raises(UserError, match="unit 9 is out of range"):
        parse_units(net(), "conv2", "1-9")


def test_layers_are_found_by_alias_and_by_path() -> None:
    model = featviz.load("alexnet")
    assert model.layer("conv5") is model.layer("features.10")
    assert model.layer("conv5").shape == (256, 13, 13)
    assert model.layer("logits").units == 1000
    with pytest.raises(UserError, match=r"no layer 'conf5'; did you mean conv5"):
        model.layer("conf5")


@pytest.mark.parametrize(
    "wrong",
    [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
)
def test_what_is_no_batch_of_pictures_is_refused(wrong: Tensor) -> None:
    with pytest.raises(UserError, match=r"takes float pictures of shape \(N, 3, H, W\), got"):
        net()(wrong)
