"""The smallest eps of an attack within a ball, by bisection: an oracle for smallest changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from featviz.errors import UserError


def minimal_eps(
    attack: Callable[[Tensor, Tensor], Tensor],
    count: int,
    *,
    largest: float,
    steps: int = 12,
) -> Tensor:
    """(N,) float64: the smallest eps at which an attack within a ball fools each picture.

    A picture that is fooled at some eps is fooled at all larger ones, so each distance is an upper
    bound; a failed attack in between makes it larger than need be, never smaller.

    Args:
        attack: From rows (k,) and an eps for each, (k,) float64, to the distances (k,) at which
            these pictures are fooled, inf where they are not.
        count: N.
        largest: The eps to begin with; a picture that is not fooled there gets inf.
        steps: Halvings of [0, largest]. A success at a distance below eps shortens the interval to
            it.

    Example:
        def attack(rows, eps):
            return apgd(model, x[rows], y[rows], eps=eps).distance
        distances = minimal_eps(attack, len(x), largest=8 / 255)
    """
    if not 0 < largest < float("inf") or steps < 0:
        raise UserError(f"largest is {largest:g}; it must be above 0, and steps 0 or more")
    every = torch.arange(count)
    found = _attacked(attack, every, torch.full((count,), largest, dtype=torch.float64))
    low = torch.zeros_like(found)
    for _ in range(steps):
        rows = every[found.isfinite() & (found > 0)]
        if not len(rows):
            break
        eps = (low[rows] + found[rows]) / 2
        distance = _attacked(attack, rows, eps)
        low[rows] = torch.where(distance.isfinite(), low[rows], eps)
        found[rows] = torch.minimum(found[rows], distance)
    return found


def _attacked(attack: Callable[[Tensor, Tensor], Tensor], rows: Tensor, eps: Tensor) -> Tensor:
    distance = attack(rows, eps).detach().cpu().double()
    if distance.shape != rows.shape:
        raise UserError(
            f"an attack on {len(rows)} pictures must give as many distances, "
            f"got shape {tuple(distance.shape)}"
        )
    return torch.where(distance <= eps, distance, torch.inf)
