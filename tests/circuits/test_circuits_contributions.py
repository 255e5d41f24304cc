"""Laws of contributions: with the bias they are the unit, and they come from the units named."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.circuits.contributions import linear_layer
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.layers import StopForward, tap
from featviz.models.model import Model
from featviz.models.wrap import wrap


def both(model: Model, layer: str, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Input and output of a layer."""
    with frozen(model), torch.no_grad():
        with tap(model, [layer]) as out:
            model(pictures)
        tapped = tap(model, [layer], entering=[layer], stop=True)
        with tapped as entered, suppress(StopForward):
            model(pictures)
    return entered[layer], out[layer]


class Kinds(nn.Module):
    """Grouped, strided, dilated and padded convolutions, normalization, pooling, sums, concat."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.LocalResponseNorm(3)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.bn = nn.BatchNorm2d(8)
        self.mirrored = nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")
        self.dilated = nn.Conv2d(14, 4, 3, dilation=2, stride=2, bias=False)
        self.head = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        one = self.norm(torch.relu(self.first(x)))
        two = torch.relu(self.bn(self.grouped(one)) + one)
        three = torch.max_pool2d(torch.relu(self.mirrored(two)), 2)
        joined = torch.cat([three, nn.functional.avg_pool2d(two, 2)], 1)
        out: Tensor = self.head(torch.relu(self.dilated(joined)).flatten(1))
        return out


@pytest.fixture
def kinds() -> Model:
    torch.manual_seed(0)
    net = Kinds()
    net.bn.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    return wrap(net, input_size=20, channels=3)


LAYERS = ("first", "grouped", "mirrored", "dilated", "head")


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("layer", LAYERS)
def test_contributions_and_bias_are_the_unit(
    kinds: Model, layer: str, dtype: torch.dtype, error: float, generator: torch.Generator
) -> None:
    model = copy.deepcopy(kinds).to(dtype)
    x, out = both(model, layer, torch.rand(3, 3, 20, 20, generator=generator, dtype=dtype))
    linear = linear_layer(model, layer)
    for unit in range(out.shape[1]):
        total = linear.contributions(x, unit).detach().sum(1) + linear.bias(unit)
        expected = out[:, unit].view_as(total)
        assert float((total - expected).abs().max()) <= error * float(expected.abs().max())


def test_the_bundled_model_is_followed_to_its_logits(mini: Model) -> None:
    pictures = featviz.read_batch(mini, featviz.sample_pictures().spread(3)).pictures
    for layer in ("conv1", "conv3", "conv5", "fc6", "logits"):
        x, out = both(mini, layer, pictures)
        linear = linear_layer(mini, layer)
        total = linear.contributions(x, 3).sum(1) + linear.bias(3)
        expected = out[:, 3].view_as(total)
        assert float((total - expected).abs().max()) <= 1e-5 * float(out.abs().max())


def test_sources_are_found_on_the_graph(kinds: Model) -> None:
    def sources(layer: str) -> list[tuple[str, int, int]]:
        return [(s.layer, s.first, s.count) for s in linear_layer(kinds, layer).sources]

    assert sources("first") == []
    assert sources("grouped") == [("first", 0, 8)]
    assert sorted(sources("mirrored")) == [("first", 0, 8), ("grouped", 0, 8)]
    assert sorted(sources("dilated")) == [
        ("first", 6, 8),
        ("grouped", 6, 8),
        ("mirrored", 0, 6),
    ]
    assert sources("head") == [("dilated", 0, 4)]
    assert linear_layer(kinds, "dilated").name(2) == "mirrored:2"
    assert set(linear_layer(kinds, "dilated").name(7).split(" + ")) == {"first:1", "grouped:1"}
    assert linear_layer(kinds, "first").name(1) == "input:1"


def test_groups_do_not_mix() -> None:
    model = featviz.load("alexnet-2012", device="cpu")
    for layer in ("conv2", "conv4", "conv5"):
        linear = linear_layer(model, layer)
        half = linear.channels // 2
        units = linear.module.weight.shape[0]
        x = torch.rand(1, linear.channels, 8, 8)
        assert linear.contributions(x, 0)[:, half:].abs().max() == 0
        assert linear.contributions(x, units - 1)[:, :half].abs().max() == 0
        assert linear.weights(0)[half:].abs().max() == 0
        assert linear.weights(0)[:half].abs().max() > 0


@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_channel_adds_is_the_same_seen_from_both_ends(
    kinds: Model, layer: str, generator: torch.Generator
) -> None:
    x, _ = both(kinds, layer, torch.rand(2, 3, 20, 20, generator=generator))
    linear = linear_layer(kinds, layer)
    for unit in range(linear.units):
        added, weights = linear.contributions(x, unit), linear.weights(unit)
        for channel in range(linear.channels):
            from_channel = linear.contributions_from(x, channel)[:, unit]
            assert torch.allclose(from_channel, added[:, channel], atol=1e-5)
            assert torch.equal(linear.weights_from(channel)[unit], weights[channel])


def test_through_pool_and_normalization_it_is_the_winning_value_over_its_norm() -> None:
    """The values before ReLU, normalization and pool, picked by hand, give the contributions."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.LocalResponseNorm(5, alpha=0.5),
        nn.MaxPool2d(3, 2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    norm = net[4]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean.uniform_(-1, 1)
    model = copy.deepcopy(wrap(net, input_size=15, channels=3)).double()
    pictures = torch.rand(2, 3, 15, 15, dtype=torch.float64)
    x, out = both(model, "5", pictures)
    first = both(model, "0", pictures)[1]
    squares = nn.functional.pad(first.clamp(min=0).square(), (0, 0, 0, 0, 2, 2))
    sums = sum(squares[:, i : i + 6] for i in range(5))
    normed = first.clamp(min=0) / (1 + 0.5 / 5 * sums) ** 0.75
    _, winners = nn.functional.max_pool2d(normed, 3, 2, return_indices=True)
    won = normed.flatten(2).gather(2, winners.flatten(2)).view_as(winners)
    after = model.net.get_submodule("4").eval()(won)
    weight = model.net.get_submodule("5").weight
    assert isinstance(weight, Tensor)
    after = after.detach()
    linear = linear_layer(model, "5")
    assert linear.between == (
        *("ReLU", "response normalization", "max pool", "batch normalization"),
    )
    for unit in range(4):
        group = slice(3 * (unit // 2), 3 * (unit // 2) + 3)
        expected = torch.zeros_like(after)
        expected[:, group] = after[:, group] * weight[unit, :, 0, 0, None, None].detach()
        found = linear.contributions(x, unit).detach()
        assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
        total = found.sum(1) + linear.bias(unit)
        assert float((total - out[:, unit]).abs().max()) <= 1e-12 * float(out.abs().max())


def test_layers_that_pass_units_on_lead_to_the_layer_before(mini: Model, kinds: Model) -> None:
    assert linear_layer(mini, "relu4").layer == "conv4"
    assert linear_layer(mini, "pool1").layer == "conv1"
    assert linear_layer(mini, "classifier").layer == "logits"
    assert linear_layer(kinds, "bn").layer == "grouped"
    assert linear_layer(kinds, "norm").layer == "first"


def test_the_window_of_a_flattened_map_is_known(kinds: Model, mini: Model) -> None:
    assert linear_layer(kinds, "head").window == (3, 3)
    assert linear_layer(kinds, "head").weights(0).shape == (4, 3, 3)
    assert linear_layer(mini, "fc6").weights(0).shape == (256, 3, 3)
    assert linear_layer(mini, "fc7").weights(0).shape == (640, 1, 1)


@pytest.mark.long
def test_sums_and_layers_of_several_sources_are_refused_by_name() -> None:
    model = featviz.load("squeezenet1_1", device="cpu")
    message = r"features.3 is a Fire: .*; take features.3.expand1x1 or features.3.expand3x3"
    with pytest.raises(UserError, match=message):
        linear_layer(model, "features.3")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "layer", "below"),
    [
        ("resnet18", "layer2.0.conv1", "layer1.1.conv2"),
        ("squeezenet1_1", "features.4.squeeze", "features.3.expand3x3"),
        ("vgg11", "features.6", "features.3"),
        ("densenet121", "features.denseblock1.denselayer3.conv1", "features.conv0"),
        ("mobilenet_v3_small", "features.2.block.0.0", "features.1.block.2.0"),
        ("convnext_tiny", "features.1.1.block.3", "features.1.1.block.0"),
        ("googlenet", "inception3b.branch1.conv", "inception3a.branch1.conv"),
    ],
)
def test_nets_of_the_catalogue_are_followed(name: str, layer: str, below: str) -> None:
    model = featviz.load(name, device="cpu")
    x, out = both(model, layer, torch.rand(1, *model.blank().shape[1:]))
    linear = linear_layer(model, layer)
    total = linear.contributions(x, 1).sum(1) + linear.bias(1)
    assert float((total - out[:, 1]).abs().max()) <= 1e-5 * float(out.abs().max())
    assert below in [source.layer for source in linear.sources]
    assert linear_layer(model, "logits").units == 1000


@pytest.mark.long
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_attention_is_refused_in_one_line(name: str) -> None:
    model = featviz.load(name, device="cpu")
    with pytest.raises(UserError, match="attention lies before this layer") as caught:
        linear_layer(model, "logits")
    assert "\n" not in str(caught.value)
