"""The search behind `minimal`: along the decision boundary, by one linearization a step.

An evaluation gives the margin f of the true class over one other class and its gradient g. The next
picture is the nearest one (`half_spaces`) at which this linearization is a little below 0, moved no
farther than the linearization is trusted; trust shrinks with the steps. On a linear model the first
step is the exact solution, within the box too. How far below 0 it aims follows the outcome of each
picture: farther after a miss, nearer after a success.

The search has several legs. Every leg begins at the clean picture and goes for one class, the
nearest by the local linear estimate first; the last leg goes on from the best point of all.
What remains of the passes has no gradients: halving the segment to the clean picture, or giving
back components, bundle after bundle, in L0.

Aiming at one class a leg is APGD-T's and FAB-T's (Croce & Hein 2020, arXiv:2003.01690 and
1907.02044); following the boundary by linearizations is DeepFool's and FAB's (arXiv:1511.04599);
aiming nearer or farther by success is DDN's and FMN's (arXiv:1811.09600, 2102.12827). To solve
each linearization exactly, within box and trust, in all four norms, is what is different here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.evaluation import Attack, Batch, Evaluation
from featviz.attacks.half_spaces import beyond_rounding, fewest, nearest

_FARTHER, _NEARER = 1.5, 0.7  # of the aim below 0, after a miss and after a success
_AIM, _LAST_AIM = 0.02, 0.005  # of the clean margin, where a leg begins, and where the last does
_LEAST_AIM, _MOST_AIM = 0.002, 2.0
_LOW_PRECISION = 0.7  # of the last leg that bfloat16 may do, before the boundary is near
_MEMORY = 0.7  # of the gradient, in L0
_TRUST = {"linf": (0.3, 0.02), "l2": (0.3, 0.02), "l1": (0.3, 0.02), "l0": (0.0, 1.0)}
_LAST_TRUST = {"linf": (0.1, 0.01), "l2": (0.1, 0.01), "l1": (0.1, 0.01), "l0": (0.5, 2.0)}
_LONG, _ROUNDS = 150, 3  # passes of a last leg that is made in rounds, in L-infinity
_ESTIMATE = -1


@dataclass(frozen=True)
class Plan:
    """What the passes of one search are for."""

    classes: int
    """how many classes the estimate weighs: gradients at the clean picture"""
    legs: int
    """towards the nearest of them"""
    leg: int
    """passes of each"""
    last: int
    """passes of the last leg"""
    polish: int
    """passes without gradient"""

    @property
    def passes(self) -> int:
        """All of them."""
        return 1 + self.legs * self.leg + self.last + self.polish

    def at(self, step: int) -> tuple[int, float]:
        """Which leg a step belongs to, and how far along it is, from 0 to 1.

        -1 is the estimate, `legs` the last leg, `legs` + 1 the polish.
        """
        if step == 0:
            return _ESTIMATE, 0.0
        step -= 1
        if step < self.legs * self.leg:
            return step // self.leg, step % self.leg / self.leg
        step -= self.legs * self.leg
        if step < self.last:
            return self.legs, step / self.last
        return self.legs + 1, 0.0


class BoundarySearch(Attack):
    """Legs along the boundary towards several classes, then polish. It goes on after a success."""

    leaves_at_hit = False

    def __init__(self, norm: str, plan: Plan, *, mixed: bool = False):
        self.norm, self.plan, self.passes = norm, plan, plan.passes
        self.mixed = mixed
        """the first part is made in bfloat16"""

    def wants_gradient(self, step: int) -> bool:
        return self.plan.at(step)[0] <= self.plan.legs and step + 1 < self.passes

    def in_low_precision(self, step: int) -> bool:
        leg, along = self.plan.at(step)
        return leg < self.plan.legs or (leg == self.plan.legs and along < _LOW_PRECISION)

    def start(self, batch: Batch) -> None:
        self.taken = 0
        self.x = batch.pictures
        self.clean = batch.pictures.flatten(1)  # (n, D), as all changes
        self.change = self.best = self.average = torch.zeros_like(self.clean)
        self.starts = self.clean.new_zeros(len(batch), self.plan.legs, self.clean.shape[1])
        self.goals = batch.labels[:, None].repeat(1, self.plan.legs + 1)
        self.distance = torch.full_like(batch.eps, torch.inf)
        self.aim = torch.full_like(batch.eps, _AIM)

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        leg, _ = self.plan.at(self.taken)
        if leg > _ESTIMATE:
            # Where another class has won on the way, its boundary is the one that counts.
            goal = torch.where(seen.hit, seen.predicted, self.goals[rows, leg])
            return _margin(seen.logits, batch, goal)
        classes = self._candidates(seen.logits, batch)
        margins, weights = zip(*(_margin(seen.logits, batch, c) for c in classes.T), strict=True)
        return torch.stack(margins, 1), torch.stack(weights, 1)

    def _candidates(self, logits: Tensor, batch: Batch) -> Tensor:
        """(n, K) the likeliest other classes."""
        count = 1 if batch.targeted else min(self.plan.classes, logits.shape[1] - 1)
        return losses.others(logits, batch.labels).topk(count, 1).indices

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        change = seen.pictures.flatten(1) - self.clean
        size = projections.vector_norm(change, self.norm)
        nearer = seen.hit & (size < self.distance)
        self.distance = torch.where(nearer, size, self.distance)
        self.best = torch.where(nearer[:, None], change, self.best)
        self.goals[:, -1] = torch.where(nearer, seen.predicted, self.goals[:, -1])
        leg, along = self.plan.at(step)
        if leg == _ESTIMATE:
            self._estimate(seen, batch)
        elif leg <= self.plan.legs:
            self._follow(seen, batch, change, leg, along)
        else:
            self._polish(seen.hit)
        self.taken = step + 1
        following, _ = self.plan.at(step + 1)
        if following != leg:
            self._turn(following)
        if self.mixed and self.in_low_precision(step) and not self.in_low_precision(step + 1):
            # What bfloat16 took for a success is a point to go on from, no more.
            self._go_to_best()
            self.distance = torch.full_like(self.distance, torch.inf)
        self.x = (self.clean + self.change).clamp(0, 1).view_as(batch.pictures)

    def _go_to_best(self) -> None:
        found = self.distance.isfinite()[:, None]
        self.change = torch.where(found, self.best, self.change)

    def _turn(self, leg: int) -> None:
        """A new leg begins with the next step: where, and how far it aims."""
        if leg <= self.plan.legs:
            self.average = torch.zeros_like(self.average)
        if leg < self.plan.legs:
            self.change = self.starts[:, leg]
            self.aim = torch.full_like(self.aim, _AIM)
            return
        self._go_to_best()
        found = self.distance.isfinite()
        self.aim = torch.where(found, _LAST_AIM, self.aim)
        self.goals[:, -1] = torch.where(found, self.goals[:, -1], self.goals[:, 0])
        if leg > self.plan.legs:
            self.polished = self.change
            self.low, self.high = torch.zeros_like(self.aim), torch.ones_like(self.aim)
            self.bundle = ((self.polished != 0).sum(1) // 4).clamp(min=1)
            self.needed = torch.zeros_like(self.change, dtype=torch.bool)
            self._propose_polish()

    def _estimate(self, seen: Evaluation, batch: Batch) -> None:
        """Order the classes by the linearization at the clean picture; solve it for each."""
        gap = seen.logits.gather(1, batch.labels[:, None]) - seen.logits
        self.gap = -seen.margin[:, None].expand_as(gap) if batch.targeted else gap
        classes = self._candidates(seen.logits, batch)
        low, high = -self.clean, 1 - self.clean
        points, sizes = [], []
        for k in range(classes.shape[1]):
            gradient, bound = -seen.gradient[:, k].flatten(1), (1 + _AIM) * seen.value[:, k]
            point, size = first_point(self.norm, gradient, bound, low, high)
            if batch.eight_bit:
                point = beyond_rounding(point, gradient, bound, self.clean)
                rounded = projections.in_levels(self.clean + point)
                size = projections.distance(rounded, self.clean, self.norm)
            points.append(point)
            sizes.append(size)
        order = torch.stack(sizes, 1).argsort(dim=1, stable=True)
        size = torch.stack(sizes, 1).amin(1)
        number = torch.arange(len(batch), device=order.device)
        for leg in range(self.plan.legs):
            pick = order[:, leg % classes.shape[1]]
            self.goals[:, leg] = classes[number, pick]
            if leg < classes.shape[1]:
                self.starts[:, leg] = torch.stack(points, 1)[number, pick]
                continue
            # All classes have had their turn: from elsewhere, as far off as the estimate says.
            for i, stream in enumerate(batch.streams(leg)):
                start = random_change(self.norm, self.clean[i], float(size[i]), stream)
                self.starts[i, leg] = start

    def _follow(
        self, seen: Evaluation, batch: Batch, change: Tensor, leg: int, along: float
    ) -> None:
        """The nearest point at which the linearization is a little below 0."""
        goal = torch.where(seen.hit, seen.predicted, self.goals[:, leg])
        gradient = -seen.gradient.flatten(1)
        if along > 0:
            factor = torch.where(seen.hit, _NEARER, _FARTHER)
            self.aim = (self.aim * factor).clamp(_LEAST_AIM, _MOST_AIM)
        ahead = self.aim * self.gap.gather(1, goal[:, None])[:, 0].abs() - seen.value
        trust = torch.full_like(self.clean[:, 0], self._trust(leg, along))
        low, high = -self.clean, 1 - self.clean
        if self.norm == "l0":
            memory = _MEMORY if along > 0 else 0.0
            self.average = gradient = memory * self.average + (1 - memory) * gradient
        bound = (gradient * change).sum(1, dtype=torch.float64) - ahead
        if self.norm == "l0":
            moved = fewest(gradient, bound, low, high, change=change, keep=trust)
        else:
            if self.norm == "linf":
                trust = trust * change.abs().amax(1)
            moved = nearest(self.norm, gradient, bound, low, high, change=change, trust=trust)
        if batch.eight_bit:
            moved = beyond_rounding(moved, gradient, bound, self.clean)
        self.change = torch.where((gradient != 0).any(1, keepdim=True), moved, change)

    def _trust(self, leg: int, along: float) -> float:
        """How far to trust a linearization at this point of a leg; in L0: how much to keep."""
        first, last = (_TRUST if leg < self.plan.legs else _LAST_TRUST)[self.norm]
        if self.norm == "l0":
            return first + along * (last - first)
        if self.norm == "linf" and leg == self.plan.legs and self.plan.last >= _LONG:
            # A long leg widens its trust again: the point it has reached need not be the nearest.
            first, along = _TRUST["linf"][0], along * _ROUNDS % 1
        return first * math.exp(along * math.log(last / first))

    def _polish(self, hit: Tensor) -> None:
        middle = (self.low + self.high) / 2
        self.high = torch.where(hit, middle, self.high)
        self.low = torch.where(hit, self.low, middle)
        if self.norm == "l0":
            dropped = (self.polished != 0) & (self.change == 0)
            self.polished = torch.where(hit[:, None], self.change, self.polished)
            self.needed |= dropped & (~hit & (self.bundle == 1))[:, None]
            self.bundle = torch.where(hit, self.bundle, (self.bundle // 2).clamp(min=1))
        self._propose_polish()

    def _propose_polish(self) -> None:
        if self.norm != "l0":
            middle = (self.low + self.high) / 2
            self.change = middle[:, None].to(self.polished.dtype) * self.polished
            return
        # Give back the components that the average gradient has least use for.
        spare = self.average * self.polished
        spare = torch.where((self.polished != 0) & ~self.needed, spare, -torch.inf)
        back = (projections.places(spare) < self.bundle[:, None]) & spare.isfinite()
        self.change = torch.where(back, 0, self.polished)


class SearchInBall(BoundarySearch):
    """The same, but a picture has nothing more to try once the change lies within its ball."""

    stays_in_ball = False

    def finished(self, seen: Evaluation, batch: Batch) -> Tensor:
        size = projections.distance(seen.pictures, batch.pictures, self.norm)
        return seen.hit & (size <= batch.eps)


def _margin(logits: Tensor, batch: Batch, goal: Tensor) -> tuple[Tensor, Tensor]:
    """By how much a class is ahead of the label, or a target of the best other class; its slope."""
    if batch.targeted:
        return losses.margin(logits, batch.labels, targeted=True)
    return losses.towards(logits, batch.labels, goal)


def random_change(norm: str, picture: Tensor, size: float, noise: torch.Generator) -> Tensor:
    """(n,) a random change of one picture (n,), within the box and about `size` large."""
    n = len(picture)
    size = min(size, float(n))
    if norm in {"l2", "linf"}:
        drawn = torch.rand(n, generator=noise, dtype=torch.float64) * 2 - 1
        factor = size if norm == "linf" else size / float(drawn.norm())
        change = (factor * drawn).to(picture.device, picture.dtype)
        return torch.clamp(change, -picture, 1 - picture)
    # A few components, each to one of its ends.
    few = torch.randperm(n, generator=noise)[: max(1, round(size))]
    ends = torch.randint(0, 2, (len(few),), generator=noise)
    change = torch.zeros_like(picture)
    few = few.to(picture.device)
    change[few] = ends.to(picture.device, picture.dtype) - picture[few]
    return change


def first_point(
    norm: str, gradient: Tensor, bound: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The smallest change (N, n) with gradient.d <= bound, and its size (N,), inf out of reach."""
    if norm != "l0":
        point = nearest(norm, gradient, bound, low, high)
        size = projections.vector_norm(point, norm)
    else:
        free = torch.zeros_like(bound).to(gradient.dtype)
        point = fewest(gradient, bound, low, high, change=torch.zeros_like(gradient), keep=free)
        # Whole components tie often: among equals the one that is nearest in L1 comes first.
        ties = projections.vector_norm(nearest("l1", gradient, bound, low, high), "l1")
        ties = ties / gradient.shape[1]
        size = projections.vector_norm(point, norm) + ties
    missed = (gradient * point).sum(1, dtype=torch.float64) > 0.99 * bound
    return point, torch.where(missed & (bound < 0), torch.inf, size)
