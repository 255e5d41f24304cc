"""`fmn` and `ddn`: the ball shrinks after a success and grows after a miss.

    Pintor et al., "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", 2021
        (arXiv:2102.12827)
    Rony et al., "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks
        and Defenses", 2019 (arXiv:1811.09600)

Both take one step along the gradient, whose length follows a cosine down, and put the change on or
into a ball of the present radius. Differences from the papers, each for the better: projections
are those on the ball within [0, 1], and never enlarge a change; before the first success FMN's
radius goes a little beyond the linear estimate, since the boundary itself is not across; DDN begins
with the radius at which the linear estimate expects the boundary, and not with 1, from which it
takes a hundred steps to shrink to what AlexNets need.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import losses, projections
from featviz.attacks.evaluation import Attack, Batch, Evaluation
from featviz.attacks.loop import run_attack
from featviz.attacks.minimal import NORMS
from featviz.attacks.options import AttackOptions, Classifier, check_norm
from featviz.attacks.result import AttackResult
from featviz.errors import public
from featviz.types import Rate, Steps

_FIRST_STEP = {"l0": 1.0, "l1": 1.0, "l2": 1.0, "linf": 10.0}


@public
def fmn(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str,
    steps: Steps = 100,
    first_step: Rate | None = None,
    shrink: Annotated[float, Bounds(0, 0.999, above=True)] = 0.05,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The smallest changes by FMN, in L0, L1, L2 or L-infinity.

    Args:
        steps: Gradient steps; one more pass evaluates the last one.
        first_step: L2 length of the first step, the last has a hundredth. Default 1, in L-infinity
            10, where a change as small as 1/255 of every component is long in L2.
        shrink: How much the radius changes at first, as a share of it; 0.001 at the end.

    Other arguments and the result as for `minimal`.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm, NORMS)
    options.refuse("fmn", "restarts")
    length = _FIRST_STEP[norm] if first_step is None else first_step
    attack = AdaptiveBall(norm, steps, length, shrink)
    return run_attack(model, attack, pictures, labels, name="fmn", eps=None, options=options)


@public
def ddn(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: Steps = 100,
    shrink: Annotated[float, Bounds(0, 0.999, above=True)] = 0.05,
    levels: Annotated[int, Bounds(2, 65536)] | None = None,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The smallest changes in L2 by DDN.

    Args:
        steps: Gradient steps; one more pass evaluates the last one.
        shrink: How much the radius changes at every step, as a share of it.
        levels: 256 evaluates only pictures that 8 bits can hold, so that the result can be saved;
            the distance is larger for it.

    Other arguments and the result as for `minimal`.

    Raises:
        UserError: An argument is out of range.
    """
    options.refuse("ddn", "restarts")
    attack = DirectionAndNorm(steps, shrink, levels)
    return run_attack(model, attack, pictures, labels, name="ddn", eps=None, options=options)


class _AdaptiveRadius(Attack):
    """What the two have in common: a radius, and the smallest success."""

    leaves_at_hit = False

    def __init__(self, norm: str, steps: int, shrink: float):
        self.norm, self.steps, self.passes, self.shrink = norm, steps, steps + 1, shrink

    def start(self, batch: Batch) -> None:
        self.x = batch.pictures
        self.radius = torch.ones_like(batch.eps)
        self.best = torch.full_like(batch.eps, torch.inf)

    def cosine(self, step: int, first: float, last: float) -> float:
        """From `first` down to `last` over all steps."""
        return last + (first - last) * (1 + math.cos(math.pi * step / self.steps)) / 2

    def widest(self, batch: Batch) -> Tensor:
        """(n,) the radius at which the ball holds the whole box."""
        return projections.vector_norm(torch.maximum(batch.pictures, 1 - batch.pictures), self.norm)


class AdaptiveBall(_AdaptiveRadius):
    """The steps of FMN."""

    def __init__(self, norm: str, steps: int, length: float, shrink: float):
        super().__init__(norm, steps, shrink)
        self.length = length

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        return losses.margin(seen.logits, batch.labels, targeted=batch.targeted)

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        size = projections.distance(seen.pictures, batch.pictures, self.norm)
        self.best = torch.where(seen.hit, torch.minimum(self.best, size), self.best)
        share, radius = self.cosine(step, self.shrink, 0.001), self.radius
        if self.norm == "l0":
            smaller = torch.minimum(radius - 1, (radius * (1 - share)).floor())
            larger = torch.maximum(radius + 1, (radius * (1 + share)).floor())
        else:
            smaller, larger = radius * (1 - share), radius * (1 + share)
            dual = projections.dual_size(seen.gradient, self.norm).clamp(min=1e-300)
            # The boundary itself is not across: without a little more a linear model is never left.
            beyond = (size - seen.value / dual) * (1 + share)
            larger = torch.where(self.best.isfinite(), larger, beyond)
        radius = torch.where(seen.hit, torch.minimum(smaller, self.best), larger)
        self.radius = radius.clamp(min=0).minimum(self.widest(batch))
        length = self.cosine(step, self.length, self.length / 100)
        moved = self.x + length * projections.unit_l2(seen.gradient)
        if self.norm == "l0":
            self.x = _largest(batch.pictures, moved.clamp(0, 1), self.radius)
        else:
            self.x = projections.project(batch.pictures, moved, self.radius, self.norm)


def _largest(pictures: Tensor, moved: Tensor, count: Tensor) -> Tensor:
    """`moved` in the `count` (n,) components that it changes most, `pictures` in the others."""
    place = projections.places((moved - pictures).flatten(1).abs())
    return torch.where((place < count[:, None]).view_as(moved), moved, pictures)


class DirectionAndNorm(_AdaptiveRadius):
    """The steps of DDN."""

    def __init__(self, steps: int, shrink: float, levels: int | None):
        super().__init__("l2", steps, shrink)
        self.levels = levels

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        self.radius = self.radius * torch.where(seen.hit, 1 - self.shrink, 1 + self.shrink)
        if step == 0:
            # Cross-entropy's gradient is that of a margin over a mixture of the others: to first
            # order the boundary lies at that margin over its length.
            self.radius = -seen.margin / projections.dual_size(seen.gradient, "l2").clamp(
                min=1e-300
            )
        self.radius = self.radius.minimum(self.widest(batch))
        radius = projections.column(self.radius)
        length = self.cosine(step, 1.0, 0.01) * radius
        direction = projections.unit_l2(seen.gradient)
        change = (self.x - batch.pictures) + (length * direction).to(self.x.dtype)
        change = (radius * projections.unit_l2(change)).to(self.x.dtype)
        moved = (batch.pictures + change).clamp(0, 1)
        if self.levels is not None:
            moved = (moved * (self.levels - 1)).round() / (self.levels - 1)
        self.x = moved
