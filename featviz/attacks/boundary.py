"""The walk behind `minimal`: along the decision boundary, by one linearisation a step.

A look gives the margin f of the true class over one other class and its gradient g. The next
picture is the nearest one (`half_space`) at which this linearisation is a little below 0, moved no
farther than the linearisation is trusted; trust shrinks as the walk goes on. On a linear model the
first step is the exact answer, within the box too. How far below 0 it aims is learned from each
picture: farther after a miss, nearer after a hit.

One walk has several legs. Every leg begins at the clean picture and goes for one class, those that
are nearest by the local linear estimate first; the last leg goes on from the best point of all.
What remains of the passes has no gradients: halving the segment to the clean picture, or giving
back components, bundle after bundle, in L0.

Aiming at one class a leg is APGD-T's and FAB-T's (Croce & Hein 2020, arXiv:2003.01690 and
1907.02044); following the boundary by linearisations is DeepFool's and FAB's (arXiv:1511.04599);
aiming nearer or farther by success is DDN's and FMN's (arXiv:1811.09600, 2102.12827). To solve
each linearisation exactly, within box and trust, in all four norms, is what is different here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.half_spaces import beyond_rounding, fewest, in_levels, nearest, reach
from featviz.attacks.loop import Look, Seats, Walk

_FARTHER, _NEARER = 1.5, 0.7  # of the aim below 0, after a miss and after a hit
_AIM, _LAST_AIM = 0.02, 0.005  # of the clean margin, where a leg begins, and where the last does
_LEAST_AIM, _MOST_AIM = 0.002, 2.0
_ROUGH = 0.7  # of the last leg that may be walked in few bits, before the boundary is near
_MEMORY = 0.7  # of the gradient, in L0
_TRUST = {"linf": (0.3, 0.02), "l2": (0.3, 0.02), "l1": (0.3, 0.02), "l0": (0.0, 1.0)}
_LAST_TRUST = {"linf": (0.1, 0.01), "l2": (0.1, 0.01), "l1": (0.1, 0.01), "l0": (0.5, 2.0)}
_LONG, _ROUNDS = 150, 3  # looks of a last leg that is walked in rounds, in L-infinity
_ESTIMATE = -1


@dataclass(frozen=True)
class Plan:
    """What the looks of one walk are for."""

    classes: int
    """how many classes the estimate weighs: gradients at the clean picture"""
    legs: int
    """walks towards the nearest of them"""
    leg: int
    """looks of each"""
    last: int
    """looks of the last leg"""
    polish: int
    """looks without gradient"""

    @property
    def looks(self) -> int:
        return 1 + self.legs * self.leg + self.last + self.polish

    def at(self, look: int) -> tuple[int, float]:
        """Which leg a look belongs to, and how far along it is, from 0 to 1.

        -1 is the estimate, `legs` the last leg, `legs` + 1 the polish.
        """
        if look == 0:
            return _ESTIMATE, 0.0
        look -= 1
        if look < self.legs * self.leg:
            return look // self.leg, look % self.leg / self.leg
        look -= self.legs * self.leg
        if look < self.last:
            return self.legs, look / self.last
        return self.legs + 1, 0.0


class Boundary(Walk):
    """Legs along the boundary towards several classes, then polish. Goes on after a success."""

    starts_at_picture = True
    leaves_at_hit = False

    def __init__(
        self,
        norm: str,
        plan: Plan,
        *,
        targeted: bool = False,
        mixed: bool = False,
        eight_bit: bool = False,
    ):
        self.norm, self.plan, self.targeted, self.mixed = norm, plan, targeted, mixed
        self.eight_bit = eight_bit
        self.looks = plan.looks

    def prepare(self, seats: Seats) -> None:
        batch_size, device = seats.batch_size, seats.pictures.device

        def numbers(value: float) -> Tensor:
            return torch.full((batch_size,), value, dtype=torch.float64, device=device)

        self.clean = torch.zeros_like(seats.pictures).flatten(1)  # (slots, n)
        self.change = torch.zeros_like(self.clean)
        self.best, self.average = torch.zeros_like(self.clean), torch.zeros_like(self.clean)
        self.starts = self.clean.new_zeros(batch_size, self.plan.legs, self.clean.shape[1])
        self.goals = torch.zeros(batch_size, self.plan.legs + 1, dtype=torch.long, device=device)
        self.distance, self.aim = numbers(torch.inf), numbers(_AIM)
        self.gap: Tensor | None = None  # (slots, classes): the clean margin over each class
        # Of the polish: the change it began with, and what is known of it.
        self.begun = torch.zeros_like(self.clean)
        self.low, self.high = numbers(0.0), numbers(1.0)
        self.bundle = torch.ones(batch_size, dtype=torch.long, device=device)
        self.needed = torch.zeros_like(self.clean, dtype=torch.bool)
        self.at = [0] * batch_size  # the look that comes next

    def seat(self, rows: Tensor, seats: Seats) -> None:
        self.clean[rows] = seats.pictures[rows].flatten(1)
        for tensor in (self.change, self.best, self.average, self.starts, self.needed):
            tensor[rows] = 0
        self.distance[rows] = torch.inf
        for c in rows.tolist():
            self.at[c] = 0

    def propose(self, seats: Seats) -> Tensor:
        return (self.clean + self.change).clamp(0, 1).view_as(seats.pictures)

    def rough(self, seats: Seats) -> list[bool] | None:
        return [self._is_rough(at) for at in self.at] if self.mixed else None

    def _is_rough(self, look: int) -> bool:
        leg, along = self.plan.at(look)
        return leg < self.plan.legs or (leg == self.plan.legs and along < _ROUGH)

    def advance(self, look: Look, seats: Seats) -> None:
        shown = look.pictures.detach().flatten(1) - self.clean
        active = look.active.tolist()
        self._remember(look, shown)
        groups: dict[str, list[int]] = {"estimate": [], "step": [], "polish": []}
        for c in range(seats.batch_size):
            if active[c]:
                leg = self.plan.at(self.at[c])[0]
                polishing = leg > self.plan.legs
                groups["estimate" if leg < 0 else "polish" if polishing else "step"].append(c)
        if groups["estimate"]:
            self._estimate(look, seats, torch.tensor(groups["estimate"], device=shown.device))
        if groups["step"]:
            self._step(look, seats, shown, groups["step"])
        if groups["polish"]:
            self._polish(look, torch.tensor(groups["polish"], device=shown.device))
        for c in range(seats.batch_size):
            if active[c]:
                before = self.plan.at(self.at[c])[0]
                self.at[c] += 1
                after = self.plan.at(self.at[c])[0]
                if after != before:
                    self._turn(c, after)
                if self.mixed and self._is_rough(self.at[c] - 1) and not self._is_rough(self.at[c]):
                    self._forget(c)

    def _remember(self, look: Look, change: Tensor) -> None:
        size = reach(self.norm, change)
        better = look.hit & look.active & (size < self.distance)
        self.distance = torch.where(better, size, self.distance)
        self.best = torch.where(better[:, None], change, self.best)
        self.goals[:, -1] = torch.where(better, look.predicted, self.goals[:, -1])

    def _forget(self, c: int) -> None:
        """What few bits took for a success is a place to go on from, no more."""
        found = self.distance[c].isfinite()
        self.change[c] = torch.where(found, self.best[c], self.change[c])
        self.distance[c] = torch.inf

    def _turn(self, c: int, leg: int) -> None:
        """A new leg begins in slot c with the next look: where, and how far it aims."""
        plan = self.plan
        if leg < plan.legs:
            self.change[c] = self.starts[c, leg]
            self.aim[c] = _AIM
        else:
            found = self.distance[c].isfinite()
            self.change[c] = torch.where(found, self.best[c], self.change[c])
            self.aim[c] = torch.where(found, _LAST_AIM, self.aim[c])
            self.goals[c, -1] = torch.where(found, self.goals[c, -1], self.goals[c, 0])
        if leg <= plan.legs:
            self.average[c] = 0
        else:
            self.begun[c] = self.change[c]
            self.low[c], self.high[c] = 0.0, 1.0
            self.bundle[c] = ((self.begun[c] != 0).sum() // 4).clamp(min=1)
            self._propose_polish(torch.tensor([c], device=self.change.device))

    def _estimate(self, look: Look, seats: Seats, rows: Tensor) -> None:
        """Order the classes by the linearisation at the clean picture; solve it for each."""
        own = seats.labels[:, None]
        gap = look.logits.gather(1, own) - look.logits
        if self.targeted:
            gap = -look.margin[:, None].expand_as(gap)
        if self.gap is None:
            self.gap = torch.ones_like(gap)
        self.gap[rows] = gap[rows]
        count = 1 if self.targeted else min(self.plan.classes, look.logits.shape[1] - 1)
        classes = look.logits.scatter(1, own, -torch.inf).topk(count, 1).indices
        low, high = -self.clean[rows], 1 - self.clean[rows]
        points, sizes = [], []
        for k in range(count):
            goal = classes[:, k]
            margin, weights = self._margin(look, seats, goal)
            gradient = look.gradient(weights, more=True).flatten(1)[rows]
            bound = -(1 + _AIM) * margin[rows]
            point, size = first_point(self.norm, gradient, bound, low, high)
            if self.eight_bit:
                point = beyond_rounding(point, gradient, bound, self.clean[rows])
                size = reach(self.norm, in_levels(self.clean[rows] + point) - self.clean[rows])
            points.append(point)
            sizes.append(size)
        order = torch.stack(sizes, 1).argsort(dim=1, stable=True)
        size = torch.stack(sizes, 1).amin(1)
        number = torch.arange(len(rows), device=rows.device)
        for leg in range(self.plan.legs):
            pick = order[:, leg % count]
            self.goals[rows, leg] = classes[rows, pick]
            if leg < count:
                self.starts[rows, leg] = torch.stack(points, 1)[number, pick]
                continue
            # All classes have had their turn: from elsewhere, as far off as the estimate says.
            for i, c in enumerate(rows.tolist()):
                noise = projections.generator(seats.job(c).key, leg)
                start = random_change(self.norm, self.clean[c], float(size[i]), noise)
                self.starts[c, leg] = start

    def _margin(self, look: Look, seats: Seats, goal: Tensor) -> tuple[Tensor, Tensor]:
        """(slots,) the margin that must fall below 0, and its gradient at the logits."""
        z, own = look.logits, seats.labels[:, None]
        if self.targeted:
            goal = z.scatter(1, own, -torch.inf).argmax(1)
        margin = (z.gather(1, own) - z.gather(1, goal[:, None]))[:, 0]
        weights = torch.zeros_like(z).scatter_(1, own, 1.0).scatter_(1, goal[:, None], -1.0)
        return (-margin, -weights) if self.targeted else (margin, weights)

    def _step(self, look: Look, seats: Seats, shown: Tensor, taken: list[int]) -> None:
        device = shown.device
        rows = torch.tensor(taken, device=device)
        places = [self.plan.at(self.at[c]) for c in taken]
        legs = torch.tensor([leg for leg, _ in places], device=device)
        fresh = torch.tensor([along == 0 for _, along in places], device=device)
        goal = torch.zeros_like(seats.labels)
        goal[rows] = self.goals[rows].gather(1, legs[:, None])[:, 0]
        # Where another class has won on the way, its boundary is the one that counts.
        goal = torch.where(look.hit, look.predicted, goal)
        margin, weights = self._margin(look, seats, goal)
        gradient = look.gradient(weights).flatten(1)[rows]
        aim = self.aim[rows]
        learned = aim * torch.where(look.hit[rows], _NEARER, _FARTHER)
        aim = torch.where(fresh, aim, learned.clamp(_LEAST_AIM, _MOST_AIM))
        self.aim[rows] = aim
        assert self.gap is not None
        gap = self.gap[rows].gather(1, goal[rows, None])[:, 0].abs()
        ahead = margin[rows] + aim * gap
        now = shown[rows]
        trust = torch.tensor(
            [self._trust(leg, along) for leg, along in places], dtype=now.dtype, device=device
        )
        low, high = -self.clean[rows], 1 - self.clean[rows]
        if self.norm == "l0":
            self.average[rows] = torch.where(
                fresh[:, None], gradient, _MEMORY * self.average[rows] + (1 - _MEMORY) * gradient
            )
            gradient = self.average[rows]
        bound = (gradient * now).sum(1, dtype=torch.float64) - ahead
        if self.norm == "l0":
            moved = fewest(gradient, bound, low, high, change=now, keep=trust)
        else:
            if self.norm == "linf":
                trust = trust * now.abs().amax(1)
            moved = nearest(self.norm, gradient, bound, low, high, change=now, trust=trust)
        if self.eight_bit:
            moved = beyond_rounding(moved, gradient, bound, self.clean[rows])
        self.change[rows] = torch.where((gradient != 0).any(1, keepdim=True), moved, now)

    def _trust(self, leg: int, along: float) -> float:
        """How far to trust a linearisation at this point of a leg; in L0: how much to keep."""
        first, last = (_TRUST if leg < self.plan.legs else _LAST_TRUST)[self.norm]
        if self.norm == "l0":
            return first + along * (last - first)
        if self.norm == "linf" and leg == self.plan.legs and self.plan.last >= _LONG:
            # A long leg widens its trust again: what it has settled on need not be the nearest.
            first, along = _TRUST["linf"][0], along * _ROUNDS % 1
        return first * math.exp(along * math.log(last / first))

    def _polish(self, look: Look, rows: Tensor) -> None:
        hit = look.hit[rows]
        middle = (self.low[rows] + self.high[rows]) / 2
        self.high[rows] = torch.where(hit, middle, self.high[rows])
        self.low[rows] = torch.where(hit, self.low[rows], middle)
        if self.norm == "l0":
            dropped = (self.begun[rows] != 0) & (self.change[rows] == 0)
            self.begun[rows] = torch.where(hit[:, None], self.change[rows], self.begun[rows])
            single = ~hit & (self.bundle[rows] == 1)
            self.needed[rows] |= dropped & single[:, None]
            smaller = (self.bundle[rows] // 2).clamp(min=1)
            self.bundle[rows] = torch.where(hit, self.bundle[rows], smaller)
        self._propose_polish(rows)

    def _propose_polish(self, rows: Tensor) -> None:
        begun = self.begun[rows]
        if self.norm != "l0":
            middle = (self.low[rows] + self.high[rows]) / 2
            self.change[rows] = middle[:, None].to(begun.dtype) * begun
            return
        # Give back the components that the average gradient has least use for.
        use = -(self.average[rows] * begun)
        use = torch.where((begun != 0) & ~self.needed[rows], use, torch.inf)
        place = use.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        back = (place < self.bundle[rows][:, None]) & use.isfinite()
        self.change[rows] = torch.where(back, 0, begun)


def random_change(norm: str, picture: Tensor, size: float, noise: torch.Generator) -> Tensor:
    """(n,) a random change of one picture (n,), within the box and about `size` large."""
    n = len(picture)
    size = min(size, float(n))
    if norm in {"l2", "linf"}:
        drawn = torch.rand(n, generator=noise, dtype=torch.float64) * 2 - 1
        factor = size if norm == "linf" else size / float(drawn.norm())
        change = (factor * drawn).to(picture.device, picture.dtype)
        return _within(change, picture)
    # A few components, each to one of its ends.
    few = torch.randperm(n, generator=noise)[: max(1, round(size))]
    ends = torch.randint(0, 2, (len(few),), generator=noise)
    change = torch.zeros_like(picture)
    few = few.to(picture.device)
    change[few] = ends.to(picture.device, picture.dtype) - picture[few]
    return change


def _within(change: Tensor, picture: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(change, -picture), 1 - picture)


def first_point(
    norm: str, gradient: Tensor, bound: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The smallest change (N, n) with gradient.d <= bound, and its size (N,), inf out of reach."""
    if norm != "l0":
        point = nearest(norm, gradient, bound, low, high)
        size = reach(norm, point)
    else:
        free = torch.zeros_like(bound).to(gradient.dtype)
        point = fewest(gradient, bound, low, high, change=torch.zeros_like(gradient), keep=free)
        # Whole components tie often: among equals the one that is nearest in L1 comes first.
        ties = reach("l1", nearest("l1", gradient, bound, low, high)) / gradient.shape[1]
        size = reach(norm, point) + ties
    missed = (gradient * point).sum(1, dtype=torch.float64) > 0.99 * bound
    return point, torch.where(missed & (bound < 0), torch.inf, size)
