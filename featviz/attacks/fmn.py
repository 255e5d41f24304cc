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

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.checks import check_norm
from featviz.attacks.half_spaces import reach
from featviz.attacks.loop import Classifier, Look, Seats, Walk
from featviz.attacks.losses import cross_entropy, margin
from featviz.attacks.minimal import NORMS, search_from_clean
from featviz.attacks.options import AttackOptions
from featviz.attacks.pgd import unit_l2
from featviz.attacks.result import AttackResult
from featviz.errors import UserError

_FIRST_STEP = {"l0": 1.0, "l1": 1.0, "l2": 1.0, "linf": 10.0}


def fmn(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str,
    steps: int = 100,
    first_step: float | None = None,
    shrink: float = 0.05,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The smallest changes by FMN, in L0, L1, L2 or L-infinity.

    steps: gradient steps; one more pass looks at where the last one led
    first_step: L2 length of the first step, the last has a hundredth (default 1, in L-infinity 10,
        where a change as small as 1/255 of every component is long in L2)
    shrink: how much the radius changes at first, as a share of it; 0.001 at the end

    Other arguments and what comes back as for `minimal`. Raises UserError for arguments out of
    range.
    """
    check_norm(norm, NORMS)
    length = _FIRST_STEP[norm] if first_step is None else first_step
    walk = _ShrinkingBall(norm, steps, length, shrink, targeted=options.targeted)
    return search_from_clean(
        model,
        walk,
        pictures,
        labels,
        attack="fmn",
        options=options,
    )


def ddn(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    shrink: float = 0.05,
    levels: int | None = None,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The smallest changes in L2 by DDN.

    shrink: how much the radius changes at every step, as a share of it
    levels: 256 looks only at what 8 bits can hold, so that what is found can be saved; the
        distance is larger for it

    Other arguments and what comes back as for `minimal`. Raises UserError for arguments out of
    range.
    """
    if levels is not None and levels < 2:
        raise UserError(f"levels is {levels}; a picture has 2 or more (256 in 8 bits)")
    walk = _Decoupled(steps, shrink, levels, targeted=options.targeted)
    return search_from_clean(
        model,
        walk,
        pictures,
        labels,
        attack="ddn",
        options=options,
    )


class _Radius(Walk):
    """What the two have in common: the radius and what has been found."""

    starts_at_picture = True
    leaves_at_hit = False

    def __init__(self, norm: str, steps: int, shrink: float, *, targeted: bool):
        if steps < 1 or not 0 < shrink < 1:
            raise UserError("steps must be 1 or more, and shrink between 0 and 1")
        self.norm, self.steps, self.looks = norm, steps, steps + 1
        self.shrink, self.targeted = shrink, targeted

    def prepare(self, seats: Seats) -> None:
        self.x = torch.zeros_like(seats.pictures)
        self.radius = torch.ones_like(seats.eps)
        self.best = torch.full_like(seats.eps, torch.inf)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        self.x[rows] = seats.pictures[rows]
        self.radius[rows], self.best[rows] = 1.0, torch.inf

    def propose(self, seats: Seats) -> Tensor:
        return self.x

    def _cosine(self, seats: Seats, first: float, last: float) -> Tensor:
        """(slots,) from `first` down to `last` over the steps of each walk."""
        turn = torch.cos(math.pi * seats.step.double() / self.steps)
        return last + (first - last) * (1 + turn) / 2

    def _distance(self, look: Look, seats: Seats) -> Tensor:
        change = look.pictures.detach() - seats.pictures
        size = reach(self.norm, change.flatten(1))
        self.best = torch.where(look.hit, torch.minimum(self.best, size), self.best)
        return size


class _ShrinkingBall(_Radius):
    """FMN's walk."""

    def __init__(self, norm: str, steps: int, length: float, shrink: float, *, targeted: bool):
        super().__init__(norm, steps, shrink, targeted=targeted)
        if not 0 < length < float("inf"):
            raise UserError(f"first_step is {length:g}; it must be above 0")
        self.length = length

    def advance(self, look: Look, seats: Seats) -> None:
        size = self._distance(look, seats)
        ahead, weights = margin(look.logits, seats.labels, targeted=self.targeted)
        gradient = look.gradient(weights)
        share = self._cosine(seats, self.shrink, 0.001)
        radius = self.radius
        if self.norm == "l0":
            smaller = torch.minimum(radius - 1, (radius * (1 - share)).floor())
            larger = torch.maximum(radius + 1, (radius * (1 + share)).floor())
        else:
            smaller, larger = radius * (1 - share), radius * (1 + share)
            to_go = size - ahead / projections.dual_size(gradient, self.norm).clamp(min=1e-300)
            # The boundary itself is not across: without a little more a linear model is never left.
            larger = torch.where(self.best.isfinite(), larger, to_go * (1 + share))
        radius = torch.where(look.hit, torch.minimum(smaller, self.best), larger)
        room = torch.maximum(seats.pictures, 1 - seats.pictures).flatten(1)
        self.radius = radius.clamp(min=0).minimum(reach(self.norm, room))
        step = projections.column(self._cosine(seats, self.length, self.length / 100))
        moved = self.x + (step * unit_l2(gradient)).to(self.x.dtype)
        if self.norm == "l0":
            self.x = _largest(seats.pictures, moved.clamp(0, 1), self.radius)
        else:
            self.x = projections.project(seats.pictures, moved, self.radius, self.norm)


def _largest(pictures: Tensor, moved: Tensor, count: Tensor) -> Tensor:
    """`moved` in the `count` (N,) components that it changes most, `pictures` in the others."""
    size = (moved - pictures).flatten(1).abs()
    place = size.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return torch.where((place < count[:, None]).view_as(moved), moved, pictures)


class _Decoupled(_Radius):
    """DDN's walk."""

    def __init__(self, steps: int, shrink: float, levels: int | None, *, targeted: bool):
        super().__init__("l2", steps, shrink, targeted=targeted)
        self.levels = levels

    def advance(self, look: Look, seats: Seats) -> None:
        self._distance(look, seats)
        ascent, weights = cross_entropy(look.logits, seats.labels, targeted=self.targeted)
        del ascent  # the radius follows successes, not the loss
        gradient = look.gradient(weights)
        # Cross-entropy's gradient is that of a margin over a mixture of the others: to first
        # order the boundary lies at that margin over its length.
        expected = -look.margin / projections.dual_size(gradient, "l2").clamp(min=1e-300)
        factor = torch.where(look.hit, 1 - self.shrink, 1 + self.shrink)
        radius = torch.where(seats.step == 0, expected, self.radius * factor)
        widest = reach("l2", torch.maximum(seats.pictures, 1 - seats.pictures).flatten(1))
        self.radius = radius.minimum(widest)
        step = projections.column(self._cosine(seats, 1.0, 0.01) * self.radius)
        change = (self.x - seats.pictures) + (step * unit_l2(gradient)).to(self.x.dtype)
        change = projections.column(self.radius) * unit_l2(change)
        moved = (seats.pictures + change.to(self.x.dtype)).clamp(0, 1)
        if self.levels is not None:
            moved = (moved * (self.levels - 1)).round() / (self.levels - 1)
        self.x = moved
