"""Small nets of difficult forms: functional ReLUs, skip connections, tokens, branches in Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from featviz.models.model import Model
from featviz.models.wrap import wrap


class Skips(nn.Module):
    """Functional and in-place ReLUs, one module that runs three times, sums and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        one = self.relu(self.first(x))
        two = self.relu(self.second(one))
        one += two  # in place, into a value that does not depend on `two`
        three = self.relu(self.second(torch.relu(one - 0.3)))
        logits: Tensor = self.head(torch.cat([three, two], 1).mean((2, 3)))
        return logits


class Tokens(nn.Module):
    """Attention over 16 tokens and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.more = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.more.expand(len(x), -1, -1), tokens], 1)
        logits: Tensor = self.head(self.block(tokens)[:, 0])
        return logits


class Decides(nn.Module):
    """Python code that looks at values behind the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        logits: Tensor = self.head(x if float(x.detach()[0, 0]) > 0 else -x)
        return logits


def small(net: Callable[[], nn.Module]) -> Model:
    """A model of one of them, with the same weights each time."""
    torch.manual_seed(0)
    return wrap(net(), input_size=16, channels=3)
