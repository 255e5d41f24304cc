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


def test_a_relu_leads_to_the_layer_before_it(mini: Model) -> None:
    assert linear_layer(mini, "relu4").layer == "conv4"


def test_other_layers_are_refused(mini: Model) -> None:
    with pytest.raises(UserError, match="is a MaxPool2d: contributions are followed"):
        linear_layer(mini, "pool1")
