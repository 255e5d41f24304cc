"""Nets of every common family for laws about all of them: random weights, logits that differ.

Random nets in eval mode give nearly the same logits for every picture, so each is calibrated:
batch normalization sees a few pictures, residual branches that begin at zero get weight, and
logits get a standard deviation of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featviz
from featviz.models.model import Model

TORCHVISION = (
    *("alexnet", "vgg11", "resnet18", "squeezenet1_1", "densenet121", "googlenet"),
    *("inception_v3", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5"),
    *("efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32"),
    "maxvit_t",
)
TIMM = tuple(
    f"timm/{name}"
    for name in (
        *("resnet10t", "convnext_atto", "vit_tiny_patch16_224", "mixer_s32_224", "lcnet_035"),
        *("poolformer_s12", "edgenext_xx_small", "nfnet_l0"),
    )
)


def random_pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Pictures (N, 3, side, side) with coarse shapes and fine detail."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        F.interpolate(torch.rand(count, 3, s, s, generator=generator), side, mode="bilinear")
        for s in (3, 8, side)
    ]
    return (0.5 * parts[0] + 0.35 * parts[1] + 0.15 * parts[2]).clamp(0, 1)


def first_tensor(values: Any) -> Tensor:
    """What a module gave, or the first tensor in it."""
    while not isinstance(values, Tensor):
        values = next(iter(values.values())) if isinstance(values, Mapping) else values[0]
    return values


def side_of(model: Model) -> int:
    """Side of the square pictures that a model of the catalogue takes."""
    return model.input_size[0]


@lru_cache(maxsize=2)
def calibrated(name: str) -> Model:
    """A model of the catalogue, or one of `OWN`."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name in OWN:
            model = featviz.wrap(OWN[name](), input_size=32)
        else:
            model = featviz.load(name, device="cpu")
        with torch.no_grad():
            _calibrate(model)
    return model


def _calibrate(model: Model) -> None:
    net = model.net
    for key, weight in net.named_parameters():
        if key.endswith(("layer_scale", "gamma")):
            weight.fill_(0.5)
        elif weight.dim() == 2 and not weight.any():
            nn.init.normal_(weight, std=0.02)
    pictures = model.normalize(random_pictures(4, side_of(model)))
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        net(pictures)
    net.eval()
    logits = net(pictures)
    head = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    scale = 1 / logits.std(0).mean()
    head.weight.mul_(scale)
    if head.bias is not None:
        head.bias.zero_()


class Functional(nn.Module):
    """ReLUs as functions, in place and not, and a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 5, stride=2), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x), inplace=True)
        out: Tensor = self.head(F.relu(self.two(x)).mean((2, 3)))
        return out


class Reused(nn.Module):
    """One ReLU module for all, as in torchvision's ResNet, with an addition in place."""

    act: nn.Module

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 5, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(8), act
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        y = self.norm(self.two(x))
        y += x
        y = self.norm(self.two(self.act(y)))
        y -= 0.5 * x
        out: Tensor = self.head(self.act(y).mean((2, 3)))
        return out


class Tuples(nn.Module):
    """Layers that give a tuple and a dict; what they give is then changed in place."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 5, stride=2)

        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            x = self.conv(x)
            return x, {"a": x, "b": 2 * x}

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"maps": [x, x + 1]}

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named, self.same = self.Pair(), self.Named(), nn.Identity()
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x, more = self.pair(x)
        x.relu_()
        x = self.same(x) + more["b"]
        x = self.named(self.same(x))["maps"][0]
        x.mul_(2)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


OWN = {
    "functional": Functional,
    "relu reused": lambda: Reused(nn.ReLU()),
    "relu reused in place": lambda: Reused(nn.ReLU(inplace=True)),
    "relu6 reused": lambda: Reused(nn.ReLU6()),
    "gelu reused": lambda: Reused(nn.GELU()),
    "silu reused in place": lambda: Reused(nn.SiLU(inplace=True)),
    "hardswish reused": lambda: Reused(nn.Hardswish()),
    "tuples": Tuples,
}
