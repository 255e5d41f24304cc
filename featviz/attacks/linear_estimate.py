"""How far the nearest other classes are, if the model were linear at the picture.

The distance to where class k overtakes the label y is then (z_y - z_k) / ||grad (z_y - z_k)||_q,
with q the dual of the norm. One forward pass and one backward pass a class give it. It orders the
targets of an attack (the nearest first) and the pictures of a data set (the least robust first).
Beside a distance that was found, it tells how linear the model is there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.evaluation import with_graph
from featviz.attacks.options import Classifier


class Estimate(NamedTuple):
    """The nearest classes of each picture, nearest first."""

    classes: Tensor
    """(N, K)"""
    distances: Tensor
    """(N, K) float64, in the norm asked for; below 0 where the class is ahead already, inf where
    the gradient is 0"""
    logits: Tensor
    """(N, classes) of the pictures"""


def linear_estimate(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    among: int = 10,
    batch_size: int,
) -> Estimate:
    """The distances to the `among` classes of largest logit, other than the labels.

    pictures: (N, 3, H, W); labels: (N,). To be called within `frozen(model)`.
    """
    classes, distances, logits = [], [], []
    for part, own in zip(pictures.split(batch_size), labels.split(batch_size), strict=True):
        leaf, raw = with_graph(model, part)
        z = raw.detach().double()
        others = losses.others(z, own)
        best, candidates = others.topk(min(among, z.shape[1] - 1), 1)
        sizes = []
        for k, aims in enumerate(candidates.T):
            _, weights = losses.towards(z, own, aims)
            more = k + 1 < candidates.shape[1]
            (gradient,) = torch.autograd.grad(raw, leaf, weights.to(raw.dtype), retain_graph=more)
            sizes.append(projections.dual_size(gradient, norm))
        found = (z.gather(1, own[:, None]) - best) / torch.stack(sizes, 1)
        found = torch.where(found.isnan(), torch.inf, found)
        order = found.argsort(dim=1, stable=True)
        classes.append(candidates.gather(1, order))
        distances.append(found.gather(1, order))
        logits.append(raw.detach())
    return Estimate(torch.cat(classes), torch.cat(distances), torch.cat(logits))
