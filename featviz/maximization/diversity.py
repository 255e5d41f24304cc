"""Regularizers that compare pictures, in units of the score of the objective that they go with.

`diversity`, `alignment` and `resemblance` say how alike pictures are; a score may be 3 at one layer
and 300 at another. `scaled_by_score` makes a weight mean the same at both: a share of the score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from featviz.maximization import objectives
from featviz.maximization.objectives import Activations, Objective, Targets, layers_of, of_layer
from featviz.maximization.reading import channel_means
from featviz.models.model import Layer

if TYPE_CHECKING:
    from featviz.models.model import Model


def scaled_by_score(objective: Objective, pressure: Objective, weight: float) -> Objective:
    """A regularizer for an objective: weight * score * pressure, with the score held constant.

    With weight 1 a pressure that rises from 0 to 1 is worth as much as doubling the score. Below a
    score of 0 there is no pressure: the pictures first raise the score.
    """

    def score(acts: Activations, targets: Targets) -> Tensor:
        reached = objective.score(acts, targets).detach().clamp(min=0)
        return weight * reached * pressure.score(acts, targets)

    return Objective(
        layers_of((objective, pressure)),
        objective.count,
        f"{weight:g} * score * {pressure.text}",
        score,
        group=pressure.group,
    )


def relative_alignment(layer: str, group: int) -> Objective:
    """`alignment` as a share of how strong the activations are: 0 is the same, -1 about unlike."""
    apart = objectives.alignment(layer, group)

    def score(acts: Activations, targets: Targets) -> Tensor:
        values = acts[layer].detach()
        strength = values.square().flatten(1).mean(1).view(-1, group).mean(1)
        whole = strength.repeat_interleave(group).clamp(min=1e-12)
        return apart.score(acts, targets) / whole

    return Objective((layer,), None, f"relative {apart.text}", score, group=group)


def codes(values: Tensor) -> Tensor:
    """Channels wherever they are active: (N, C) of unit length, mean over positions of max(0, v).

    values: (N, C, H, W), (N, C) or (N, tokens, C)
    """
    return F.normalize(channel_means(values.clamp(min=0)), dim=1)


def resemblance(layer: str, centers: Tensor, means: Tensor) -> Objective:
    """How far a picture is like one group of pictures and unlike all of them: -1 to 1.

    centers, means: (K, C), one target each: the mean `codes` of its group, and of all groups

    The cosine between the picture's code and the group's, less the mean of all groups.
    """
    aims = F.normalize(centers - means, dim=1)

    def score(values: Tensor, targets: Targets) -> Tensor:
        own, rows = codes(values), list(targets)
        own = F.normalize(own - means[rows].to(own), dim=1)
        return (own * aims[rows].to(own)).sum(1)

    return of_layer(layer, f"resemblance in {layer}", score, count=len(centers))


def texture_layer(model: Model, layer: Layer) -> Layer:
    """Where textures of a layer's units are compared: its own map, or the last one before it.

    After the ReLU, where there is one: below zero most units differ little between pictures.
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
