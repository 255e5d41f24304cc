"""CPPN: a small network from places to colors.

A compositional pattern-producing network (Stanley 2007) draws smooth, endless pictures: no grain,
because a few thousand weights have no room for any. Its weights are the free parameters, so a step
bends the whole picture. Mordvintsev, Pezzotti, Schubert and Olah 2018, "Differentiable image
parameterizations" (Distill), "Compositional pattern producing networks".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

from featviz.maximization.colors import LUCID, Colors
from featviz.maximization.parametrizations import check_size


@dataclass(frozen=True)
class CPPN:
    """All weights of one network a picture, in a row: (N, P).

    hidden: channels of each hidden layer; each goes on as two, see below
    layers: hidden layers
    fit_steps: of Adam, when a given picture is fitted

    As in Lucid: coordinates from -sqrt(3) to sqrt(3), and after each layer arctan(x) / 0.67 beside
    arctan(x)^2 / 0.6. The last layer begins with zeros, so the start is plain gray.

    A given picture is fitted by optimization, not by a formula: smooth ones are met within a few
    hundredths, fine grain is lost.
    """

    height: int
    width: int
    hidden: int = 24
    layers: int = 8
    fit_steps: int = 400
    colors: Colors = LUCID

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of each layer's weights; each has as many biases as outputs."""
        inner = [(self.hidden, 2 * self.hidden)] * (self.layers - 1)
        return [(self.hidden, 2), *inner, (3, 2 * self.hidden)]

    def start(self, generators: Sequence[Generator]) -> Tensor:
        return torch.stack([self._start(generator) for generator in generators])

    def _start(self, generator: Generator) -> Tensor:
        parts: list[Tensor] = []
        for out, into in self.shapes[:-1]:
            # Weights as wide as keep the strength from layer to layer.
            weights = torch.randn(out * into, generator=generator) / math.sqrt(into)
            parts += [weights, torch.zeros(out)]
        out, into = self.shapes[-1]
        return torch.cat([*parts, torch.zeros(out * into + out)])

    def picture(self, parameters: Tensor) -> Tensor:
        values = _places(self.height, self.width).to(parameters)  # (2, H * W)
        used = 0
        for i, (out, into) in enumerate(self.shapes):
            if i:
                bent = values.atan()
                values = torch.cat([bent / 0.67, bent.square() / 0.6], 1)
            weights, biases = parameters[:, used : used + out * (into + 1)].split(
                [out * into, out], 1
            )
            values = torch.matmul(weights.view(-1, out, into), values) + biases[:, :, None]
            used += out * (into + 1)
        return self.colors.to_rgb(values.unflatten(2, (self.height, self.width)))

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        # Adam on the squared error, from a start that is the same for every picture.
        begin = self._start(Generator().manual_seed(0)).to(pictures)
        with torch.enable_grad():
            parameters = begin.expand(len(pictures), -1).clone().requires_grad_()
            optimizer = torch.optim.Adam([parameters], lr=0.01)
            for step in range(self.fit_steps):
                optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / self.fit_steps)
                optimizer.zero_grad()
                error = (self.picture(parameters) - pictures).square().mean((1, 2, 3)).sum()
                error.backward()
                optimizer.step()
        return parameters.detach()

    def detail(self, share: float) -> Tensor:
        return torch.ones((), dtype=torch.bool)  # every weight bears on the whole


@lru_cache(maxsize=8)
def _places(height: int, width: int) -> Tensor:
    """(2, H * W): down and right, from -sqrt(3) to sqrt(3) along the longer side."""
    longest = max(height, width)
    with torch.inference_mode(False):  # what is kept must serve autograd later
        y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2) * 2 / longest
        x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * 2 / longest
        return torch.stack(torch.meshgrid(y, x, indexing="ij")).flatten(1) * math.sqrt(3)
