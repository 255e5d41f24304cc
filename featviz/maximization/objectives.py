"""From activations to one score per picture, (N,), higher is better.

An objective aims each picture at its own target (a unit, a neuron, a direction): target `i` of the
objective belongs to row `i` of what is maximised. Scores are gathered picture by picture and never
averaged over the batch, so neither its size nor a neighbour changes a gradient.

    goal = channel("conv5", [3, 12])            # two pictures, one unit each
    goal = goal - 0.5 * channel("conv4", [7, 7])
    scores = goal(activations)                  # (2,)

Names of layers are where the value is read: `conv5` of an AlexNet is the convolution's output
before its ReLU, so a unit that is silent at first still has a gradient to follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.errors import UserError

if TYPE_CHECKING:
    from featviz.models.load import Model

Score = Callable[[Mapping[str, Tensor], Sequence[int]], Tensor]
"""score(activations by layer, targets): the score of each picture, aimed at its target"""


@dataclass(frozen=True)
class Objective:
    """A score per picture. `+`, `-` and `*` make new objectives and change nothing."""

    layers: tuple[str, ...]
    """which activations it reads"""
    count: int
    """how many targets it has"""
    text: str
    score: Score
    width: int | None = None
    """how many positions a side of the map it looks at, where it does not look at all of them"""

    def __call__(
        self, activations: Mapping[str, Tensor], targets: Sequence[int] | None = None
    ) -> Tensor:
        """Scores (N,) of activations (N, ...); `targets` default to 0 ... N-1."""
        return self.score(activations, range(self.count) if targets is None else targets)

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        if other.count != self.count:
            raise UserError(
                f"cannot add objectives of {self.count} and {other.count} targets; "
                "give both one target for each picture"
            )
        one, two = self.score, other.score
        return Objective(
            layers=tuple(dict.fromkeys(self.layers + other.layers)),
            count=self.count,
            text=f"{self.text} + {other.text}",
            score=lambda acts, targets: one(acts, targets) + two(acts, targets),
        )

    def __mul__(self, factor: float) -> Objective:
        score = self.score
        return Objective(
            layers=self.layers,
            count=self.count,
            text=f"{factor:g} * ({self.text})",
            score=lambda acts, targets: factor * score(acts, targets),
        )

    __rmul__ = __mul__

    def __neg__(self) -> Objective:
        return self * -1.0

    def __sub__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return self + other * -1.0


def channel(layer: str, units: Sequence[int]) -> Objective:
    """The mean of a unit over all positions; its value where the layer has no positions."""
    return _read(layer, units, "mean of", lambda one: one.mean())


def centre(layer: str, units: Sequence[int], width: int = 2) -> Objective:
    """The mean of a unit over the `width` x `width` positions nearest to the map's middle.

    In a map of odd size an even width is made one smaller, so that the middle stays the middle.
    """
    goal = _read(layer, units, "middle of", lambda one: _middle(one, width).mean())
    return replace(goal, width=width)


def neuron(layer: str, units: Sequence[int], positions: Sequence[tuple[int, int]]) -> Objective:
    """A unit at one (row, column) of its map."""
    spots = list(positions)

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        values = acts[layer]
        return torch.stack([values[(i, units[t], *spots[t])] for i, t in enumerate(targets)])

    return Objective((layer,), len(units), f"one position of {layer}", score, width=1)


def logit(model: Model, classes: Sequence[int | str]) -> Objective:
    """The logit of a class, given by index, synset or name. Raises UserError for unknown ones."""
    return channel("logits", [model.class_index(name) for name in classes])


def direction(
    layer: str, directions: Tensor, *, power: float = 2.0, width: int | None = None
) -> Objective:
    """How far activations go along a direction, and how straight: dot * max(.1, cosine)^power.

    directions: (K, C), one target each; only their direction counts, not their length
    power: 0 rewards the projection alone, more rewards pointing nowhere else
    width: only the `width` x `width` positions in the middle; default all positions

    The floor of .1 keeps a gradient where the cosine is zero or less, and keeps the product of two
    negative values from being a reward (Carter et al. 2019, "Activation Atlas", Distill).
    """
    unit = directions.detach() / directions.detach().norm(dim=1, keepdim=True).clamp(min=1e-12)

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        rows = []
        for i, t in enumerate(targets):
            values = _positions(acts[layer][i], width)  # (C, P)
            aim = unit[t].to(values.device, values.dtype)
            dot = (values * aim[:, None]).sum(0)
            cos = dot / values.norm(dim=0).clamp(min=1e-6)
            rows.append((dot * cos.clamp(min=0.1) ** power).mean())
        return torch.stack(rows)

    return Objective((layer,), len(directions), f"directions in {layer}", score)


def _read(
    layer: str, units: Sequence[int], text: str, reduce: Callable[[Tensor], Tensor]
) -> Objective:
    units = list(units)

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        values = acts[layer]
        # Reduced picture by picture: the sum over a batch may round by the batch's size.
        return torch.stack([reduce(_unit(values[i], units[t])) for i, t in enumerate(targets)])

    return Objective((layer,), len(units), f"{text} {layer}".strip(), score)


def _unit(values: Tensor, unit: int) -> Tensor:
    """One unit of one picture's activation (C, H, W), (C,) or (tokens, C)."""
    return values[:, unit] if values.dim() == 2 else values[unit]


def _middle(values: Tensor, width: int) -> Tensor:
    """The middle positions of (..., H, W); values without positions as they are."""
    if values.dim() < 2:
        return values
    for axis in (-2, -1):
        size = values.shape[axis]
        count = min(size, width if (size - width) % 2 == 0 else max(1, width - 1))
        values = values.narrow(axis, (size - count) // 2, count)
    return values


def _positions(values: Tensor, width: int | None) -> Tensor:
    """One picture's activation as (C, positions)."""
    if values.dim() == 1:
        return values[:, None]
    if values.dim() == 2:
        return values.T
    return (values if width is None else _middle(values, width)).flatten(1)
