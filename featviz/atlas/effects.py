"""The first-order effect of a direction in a layer on the logits.

The Jacobian of the logits with respect to a layer, times a vector of that layer: how much each
logit would rise if that vector were added and the rest of the network were linear. With only linear
layers in between it is exact. Carter et al. 2019 ("Activation Atlas", Distill) label the cells of
their maps with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.rest import logits_from

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model

_BATCH = 64


def logit_effects(
    model: Model,
    layer: str,
    vectors: Tensor,
    *,
    pictures: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """The first-order effect of vectors of a layer on all logits.

    Args:
        model: A model with a head.
        layer: The layer of the vectors.
        vectors: (N, C).
        pictures: (N, 3, S, S) whose activations the network is linearized at: the effect is that of
            adding the vector there. Required for layers with positions. A vector layer is
            linearized at the vector itself.
        positions: (N, 2) row and column at which the vector is added; default: every position, as
            for a mean over them.

    Returns:
        (N, classes) float32.

    Raises:
        UserError: The model has no head.
        ValueError: A layer with positions and no pictures.
    """
    place = model.layer(layer)
    model.layer("logits")  # a model without a head raises here
    if len(place.shape) > 1 and pictures is None:
        raise ValueError(f"{place.name} has positions; give pictures whose activations to start at")
    found = []
    for start in range(0, len(vectors), _BATCH):
        part = slice(start, start + _BATCH)
        point = tangent = vectors[part].to(model.device)
        if len(place.shape) > 1 and pictures is not None:
            seen = pictures[part].to(model.device)
            with torch.no_grad():
                point = activations(model, seen, [place.name])[place.name].clone()
            where = None if positions is None else positions[part]
            tangent = _at_positions(tangent, point, place, where)
        with torch.enable_grad(), frozen(model):
            _, effects = torch.autograd.functional.jvp(
                lambda h: logits_from(model, place, h), point, tangent.contiguous()
            )
        found.append(effects.float().cpu())
    return torch.cat(found)


def top_effects(
    model: Model, effects: Tensor, most: int = 5
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """For each row of (N, classes) the classes raised most above the mean of all, largest first.

    What raises all logits alike changes no prediction, so the mean over the classes is subtracted.
    """
    best = (effects - effects.mean(1, keepdim=True)).sort(dim=1, descending=True, stable=True)
    return tuple(
        tuple((model.class_name(i), v) for i, v in zip(which, values, strict=True))
        for which, values in zip(
            best.indices[:, :most].tolist(), best.values[:, :most].tolist(), strict=True
        )
    )


def attribution(effects: Tensor, target: int) -> Tensor:
    """The effect on one class less the mean effect on all, (N,), of rows (N, classes)."""
    return effects[:, target] - effects.mean(1)


def _at_positions(values: Tensor, like: Tensor, place: Layer, positions: Tensor | None) -> Tensor:
    """Vectors (N, C) as activations of a layer: at their positions, or at all."""
    if like.dim() == 3:
        return values.unsqueeze(1 if like.shape[2] == place.units else 2).expand_as(like)
    if positions is None:
        return values[:, :, None, None].expand_as(like)
    spread = torch.zeros_like(like)
    y, x = positions.to(like.device).T
    spread[torch.arange(len(values), device=like.device), :, y, x] = values
    return spread
