"""From a layer onwards: what a direction in it does to the logits, to first order.

The Jacobian of the logits by a layer, times a vector of that layer: how much each logit would rise
if that vector were added, as long as the rest of the net stays linear. Between a layer and the
logits with nothing but linear layers in between it is exact. Carter et al. 2019 ("Activation
Atlas", Distill) label the cells of their maps so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featviz.models.frozen import frozen
from featviz.models.layers import activations

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
    """The first-order effect of vectors (N, C) of a layer on all logits, (N, classes) float32.

    pictures: (N, 3, S, S) where to stand: the effect is that of adding a vector to the activation
        that this picture has. A vector layer needs none: the point is the vector itself, so the
        effect is that of its own presence. Layers with positions need them
    positions: (N, 2) row and column at which the vector is added; default: at every position, as
        a vector that is a mean over them asks for

    Raises UserError for a model without a head, ValueError for a map without pictures.
    """
    place = model.layer(layer)
    model.layer("logits")  # a model without a head says so here
    found = []
    for start in range(0, len(vectors), _BATCH):
        part = slice(start, start + _BATCH)
        values = vectors[part].to(model.device)
        if len(place.shape) == 1:
            point = tangent = values
        elif pictures is None:
            raise ValueError(
                f"{place.name} is a map; give pictures whose activations to start from"
            )
        else:
            seen = pictures[part].to(model.device)
            with torch.no_grad():
                point = activations(model, seen, [place.name])[place.name].clone()
            tangent = _spread(values, point, place, None if positions is None else positions[part])
        found.append(_jacobian_times(model, place, point, tangent).float().cpu())
    return torch.cat(found)


def _jacobian_times(model: Model, place: Layer, point: Tensor, tangent: Tensor) -> Tensor:
    """J t, (N, classes): the derivative by u of (J^T u) . t, so two backward passes do it."""
    with torch.enable_grad(), frozen(model):
        h = point.detach().requires_grad_(True)
        logits = logits_from(model, place, h)
        u = torch.zeros_like(logits, requires_grad=True)
        (back,) = torch.autograd.grad(logits, h, u, create_graph=True)
        (forth,) = torch.autograd.grad(back, u, tangent)
    return forth


def logits_from(model: Model, place: Layer, values: Tensor) -> Tensor:
    """The logits (N, classes) of activations (N, ...) put in the place of a layer's own."""
    blank = model.mean.new_zeros(1, 3, model.input_size, model.input_size)
    with _replaced(model, place, values):
        logits: Tensor = model(blank)
    # Where the rest of the net reads nothing else, the batch is that of the values.
    return logits.expand(len(values), -1) if len(logits) != len(values) else logits


def top_effects(
    model: Model, effects: Tensor, most: int = 5
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """For each row of (N, classes) the classes that it raises most above the mean of all.

    What raises all logits alike changes no answer, so the mean over the classes is taken off.
    """
    above = effects - effects.mean(1, keepdim=True)
    best = above.sort(dim=1, descending=True, stable=True)
    return tuple(
        tuple((model.class_name(i), v) for i, v in zip(which, values, strict=True))
        for which, values in zip(
            best.indices[:, :most].tolist(), best.values[:, :most].tolist(), strict=True
        )
    )


def _spread(values: Tensor, like: Tensor, place: Layer, positions: Tensor | None) -> Tensor:
    """Vectors (N, C) as activations of a layer: at their positions, or at all."""
    if like.dim() == 3:
        return (values[:, None] if like.shape[2] == place.units else values[:, :, None]).expand_as(
            like
        )
    if positions is None:
        return values[:, :, None, None].expand_as(like)
    spread = torch.zeros_like(like)
    rows = torch.arange(len(values), device=like.device)
    where = positions.to(like.device)
    spread[rows, :, where[:, 0], where[:, 1]] = values
    return spread


@contextmanager
def _replaced(model: Model, place: Layer, values: Tensor) -> Iterator[None]:
    """Within the block the layer gives these values, whatever goes in."""
    ran = 0

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal ran
        ran += 1
        if ran < place.calls:
            return None
        given = values.permute(0, 2, 3, 1) if place.channels_last else values
        return given.clone()  # an in-place ReLU must not reach what was given

    module = model.net.get_submodule(place.path)
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def effect_on(effects: Tensor, target: int) -> Tensor:
    """How much rows of (N, classes) speak for one class: its effect less the mean of all, (N,)."""
    return effects[:, target] - effects.mean(1)


def names_of(pairs: Sequence[tuple[str, float]], form: str = "+.2f") -> str:
    """ "tabby +3.10; lynx +2.00" """
    return "; ".join(f"{name} {value:{form}}" for name, value in pairs)
