"""What concepts do to the logits: by the gradient, and by taking them out.

Of a picture whose activations at a layer are h = sum of parts + residual (`parts`):

    gradient  dz/dh . part: the change of a logit that the part would make in a network whose rest
              is linear at h. Over all parts and the residual it sums to dz/dh . h, gradient x
              activation, exactly.
    removal   z(h) - z(h - part): the logit less the logit without the concept.

Both are positive where the concept raises the logit, and agree where the rest of the network is
linear. (Olah et al. 2018, "The Building Blocks of Interpretability", Distill, call the first
channel attribution.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from featviz.models.rest import Rest


class Effects(NamedTuple):
    """What k concepts add to every logit of one picture."""

    gradient: Tensor
    """(k, classes)"""
    removal: Tensor
    """(k, classes)"""


def concept_effects(rest: Rest, values: Tensor, parts: Tensor, *, batch_size: int = 64) -> Effects:
    """The effects of parts (k, ...) of activations `values` (1, ...) on all logits (`rest_of`)."""
    gradient = torch.cat([_along(rest, values, some) for some in parts.split(batch_size)])
    with torch.no_grad():
        whole = rest(values)
        without = torch.cat([rest(values - some) for some in parts.split(batch_size)])
    return Effects(gradient, whole - without)


def _along(rest: Rest, values: Tensor, tangents: Tensor) -> Tensor:
    """(M, classes): the derivative of all logits at `values` along each tangent (M, ...)."""
    point = values.expand_as(tangents).contiguous()
    with torch.enable_grad():
        _, found = torch.autograd.functional.jvp(rest, point, tangents.contiguous())
    return torch.as_tensor(found).detach()


def logit_gradients(rest: Rest, values: Tensor, classes: Tensor) -> Tensor:
    """(L, ...): the gradient of each of some logits at activations `values` (1, ...)."""
    with torch.enable_grad():
        points = values.detach().expand(len(classes), *values.shape[1:]).clone()
        points.requires_grad_(True)
        chosen = rest(points).gather(1, classes[:, None].to(points.device))
        (gradients,) = torch.autograd.grad(chosen.sum(), points)
    return gradients
