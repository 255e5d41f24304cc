"""Small networks as users have them: any channels, a normalization within, many forms of output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def layers(channels: int = 3, classes: int = 5, seed: int = 0) -> nn.Sequential:
    """Two convolutions with weights that tell classes apart; any size of pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(3)
    return net


class Normalized(nn.Module):
    """A network that normalizes by itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net((x - self.mean) / self.std)
        return out


@dataclasses.dataclass
class Given:
    features: Tensor
    logits: Tensor


class Gives(nn.Module):
    """A network whose output is what `form` makes of logits and features."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.trunk = layers()[:6]
        self.head, self.form = nn.Linear(32, 5), form

    def forward(self, x: Tensor) -> Any:
        features = self.trunk(x)
        return self.form(self.head(features), features)
