"""Pressures between pictures that climb together, in the units of the goal they climb.

`diversity`, `alignment` and `resemblance` say how alike pictures are; a goal may be 3 at one layer
and 300 at another. `beside` makes a weight mean the same at both: the pressure grows with the
goal's score, as a share of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.maximization import objectives
from featviz.maximization.objectives import Objective
from featviz.models.model import Layer

if TYPE_CHECKING:
    from featviz.models.model import Model


def beside(goal: Objective, pressure: Objective, weight: float) -> Objective:
    """What is climbed with `goal`: `weight` * pressure, for each unit of score that is reached.

    With weight 1 a pressure that rises from 0 to 1 is worth as much as doubling the score. Below a
    score of 0 there is no pressure: the pictures first find what the goal asks for.
    """
    layers = tuple(dict.fromkeys((*goal.layers, *pressure.layers)))

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        reached = goal.score(acts, targets).detach().clamp(min=0)
        return weight * reached * pressure.score(acts, targets)

    return Objective(
        layers, goal.count, f"{weight:g} * score * {pressure.text}", score, group=pressure.group
    )


def relative_alignment(layer: str, group: int) -> Objective:
    """`alignment` as a share of how strong the activations are: 0 is the same, -1 about unlike."""
    apart = objectives.alignment(layer, group)

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        values = acts[layer].detach()
        strength = torch.stack([one.square().mean() for one in values])
        rows = [strength[i : i + group].mean() for i in range(0, len(values), group)]
        whole = torch.stack(rows).repeat_interleave(group).clamp(min=1e-12)
        return apart.score(acts, targets) / whole

    return Objective((layer,), None, f"relative {apart.text}", score, group=group)


def codes(values: Tensor) -> Tensor:
    """What is answered, wherever: (N, C) of unit length, the mean over positions of values above 0.

    values: (N, C, H, W), (N, C) or (N, tokens, C)
    """
    heard = values.clamp(min=0)
    if heard.dim() == 4:
        heard = heard.flatten(2).contiguous().mean(2)
    elif heard.dim() == 3:
        heard = heard.transpose(1, 2).contiguous().mean(2)
    return F.normalize(heard, dim=1)


def resemblance(layer: str, centres: Tensor, middles: Tensor) -> Objective:
    """How far a picture leans to one group of others, away from all of them: -1 to 1.

    centres, middles: (K, C), one target each: the mean `codes` of its group, and of all groups

    The cosine between the picture's code and the group's, both seen from the middle.
    """
    aims = F.normalize(centres - middles, dim=1)

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        own, rows = codes(acts[layer]), list(targets)
        own = F.normalize(own - middles[rows].to(own), dim=1)
        return (own * aims[rows].to(own)).sum(1)

    return Objective((layer,), len(centres), f"resemblance in {layer}", score)


def heard(model: Model, layer: Layer) -> Layer:
    """Where textures of a layer's units are compared: its own map, or the last one before it.

    Behind the ReLU, where there is one: below zero most units say much the same of everything.
    """
    order = list(model.layers.values())
    last = next(i for i, one in enumerate(order) if one.name == layer.name)
    maps = [i for i, one in enumerate(order[: last + 1]) if one.spatial]
    if not maps:
        return layer
    behind = order[maps[-1] + 1 : maps[-1] + 2]
    if behind and behind[0].kind == "ReLU" and behind[0].shape == order[maps[-1]].shape:
        return behind[0]
    return order[maps[-1]]
