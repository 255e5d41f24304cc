"""CPPN: a small network that says, for any place, which colour is there.

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

from featviz.maximization.colours import LUCID, Colours, piecewise
from featviz.maximization.parametrizations import check_size


@dataclass(frozen=True)
class CPPN:
    """All weights of one network a picture, in a row: (N, P).

    hidden: channels of each hidden layer; each goes on as two, see below
    layers: hidden layers
    fit_steps: of Adam, when a given picture is fitted

    As in Lucid: coordinates from -sqrt(3) to sqrt(3), and after each layer arctan(x) / 0.67 beside
    arctan(x)^2 / 0.6. The last layer begins with zeros, so the start is plain grey.

    A given picture is fitted by optimisation, not by a formula: smooth ones are met within a few
    hundredths, fine grain is lost.
    """

    height: int
    width: int
    hidden: int = 24
    layers: int = 8
    fit_steps: int = 400
    colours: Colours = LUCID

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
        axes = torch.stack([self._axes(one) for one in parameters])
        return self.colours.to_rgb(axes)

    def _axes(self, parameters: Tensor) -> Tensor:
        """One picture's values on the decorrelated axes, (3, H, W)."""
        places = _places(self.height, self.width, parameters.dtype, parameters.device)
        values, used = places, 0  # (channels, H * W)
        for i, (out, into) in enumerate(self.shapes):
            if i:
                bent = values.atan()
                values = torch.cat([bent / 0.67, bent.square() / 0.6])
            weights = parameters[used : used + out * into].view(out, into)
            biases = parameters[used + out * into : used + out * into + out]
            # A copy begins at a round address: products may round by where in memory they begin.
            values = torch.addmm(biases.clone()[:, None], weights.clone(), values)
            used += out * into + out
        return values.view(3, self.height, self.width)

    def fit(self, pictures: Tensor) -> Tensor:
        check_size(pictures, self.height, self.width)
        return piecewise(self._fitted, pictures)

    def _fitted(self, pictures: Tensor) -> Tensor:
        """Adam on the squared error, from a start that is the same for every picture."""
        begin = self._start(Generator().manual_seed(0)).to(pictures.device)
        with torch.enable_grad():
            parameters = begin.expand(len(pictures), -1).clone().requires_grad_()
            optimiser = torch.optim.Adam([parameters], lr=0.01)
            for step in range(self.fit_steps):
                optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / self.fit_steps)
                optimiser.zero_grad()
                error = (self.picture(parameters) - pictures).square().mean((1, 2, 3)).sum()
                error.backward()
                optimiser.step()
        return parameters.detach()

    def detail(self, share: float) -> Tensor:
        return torch.ones(())  # every weight bears on the whole


@lru_cache(maxsize=8)
def _places(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, H * W): down and right, from -sqrt(3) to sqrt(3) along the longer side."""
    longest = max(height, width)
    with torch.inference_mode(False):
        y = (torch.arange(height, dtype=dtype, device=device) - (height - 1) / 2) * 2 / longest
        x = (torch.arange(width, dtype=dtype, device=device) - (width - 1) / 2) * 2 / longest
        grid = torch.stack([y[:, None].expand(height, width), x[None].expand(height, width)])
        return grid.flatten(1) * math.sqrt(3)
