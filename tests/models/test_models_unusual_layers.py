"""Layers that compute with other weights than they hold, and that are called in unusual ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import featviz
from featviz.circuits.contributions import linear_layer
from featviz.models.layers import activations
from featviz.models.linear_operations import computing
from featviz.models.model import Model


class Standardized(nn.Conv2d):
    """Weights of mean 0 and deviation 1, as in timm's `StdConv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        axes = (1, 2, 3)
        weight = self.weight - self.weight.mean(axes, keepdim=True)
        weight = weight / (self.weight.std(axes, keepdim=True) + 1e-5)
        made: Tensor = self._conv_forward(input, weight, self.bias)
        return made


class PaddedWithin(nn.Conv2d):
    """Pads more at the end, as in timm's `Conv2dSame`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 2, 1, 2)), self.weight, self.bias, self.stride)


class Twice(nn.Conv2d):
    """More than one product."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.sigmoid(super().forward(x))


class Net(nn.Module):
    """The second convolution is called by the name of its argument."""

    def __init__(self, wrapped: Callable[..., nn.Module]):
        super().__init__()
        self.first, self.second = wrapped(3, 8, 3, stride=2), wrapped(8, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(input=F.relu(self.first(x))))
        return self.head(input=x.mean((2, 3)))  # type: ignore[no-any-return]


KINDS: dict[str, Callable[..., nn.Module]] = {
    "plain": nn.Conv2d,
    "standardized": Standardized,
    "padded": PaddedWithin,
    "weight norm": lambda *a, **k: parametrizations.weight_norm(nn.Conv2d(*a, **k)),
    "spectral norm": lambda *a, **k: parametrizations.spectral_norm(nn.Conv2d(*a, **k)),
    "hooked": lambda *a, **k: nn.utils.spectral_norm(nn.Conv2d(*a, **k)),
}


def model_of(kind: str) -> tuple[Model, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(KINDS[kind])  # stays in train mode
        return featviz.wrap(net, input_size=(24, 20)), torch.rand(3, 3, 24, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_contributions_add_up_to_the_value_of_the_net(kind: str) -> None:
    model, pictures = model_of(kind)
    before = {name: t.clone() for name, t in model.net.state_dict().items()}
    for layer in ("first", "second"):
        assert model.layer(layer).kind in {"Conv2d", "Standardized", "PaddedWithin"}
        made = featviz.patch_times_kernel(model, pictures[0], f"{layer}:1", position=(0, 0))
        assert made.total == pytest.approx(made.activation, rel=1e-4, abs=1e-6)
    for layer in ("first", "second", "head"):
        linear = linear_layer(model, layer)
        with torch.no_grad():
            value = activations(model, pictures, [layer])[layer][:, 1]
            x = activations(model, pictures, [layer], entering=[layer])[layer]
            total = linear.contributions(x, 1).sum(1) + linear.bias(1)
        assert torch.allclose(total.flatten(), value.flatten(), rtol=1e-4, atol=1e-6)
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_sheet_shows_the_kernels_that_compute() -> None:
    model, _ = model_of("standardized")
    shown = featviz.kernel_sheet(model, "first").weights
    wanted = computing(model, model.layer("first")).weight
    assert float(wanted[0].mean().abs()) < 1e-6
    assert float(wanted[0].std()) == pytest.approx(1, rel=1e-3)
    assert torch.allclose(torch.as_tensor(shown), wanted, atol=1e-6)


def test_a_layer_of_several_products_is_refused() -> None:
    model = featviz.wrap(nn.Sequential(Twice(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(featviz.UserError, match="0 is a Twice that computes more than one product"):
        featviz.patch_times_kernel(model, torch.rand(3, 32, 32), "0:1")


def test_deepdream_chooses_among_layers_of_derived_classes() -> None:
    model, pictures = model_of("weight norm")
    made = featviz.deepdream(model, pictures[0], steps=1, octaves=1)
    assert made.images.isfinite().all()
