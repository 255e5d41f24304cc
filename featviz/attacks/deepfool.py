"""`deepfool` and `superdeepfool`: from linearisation to linearisation until the answer turns.

    Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural
        networks", 2016 (arXiv:1511.04599)
    Abdolahpourrostam, Abroshan, Moosavi-Dezfooli, "SuperDeepFool: a new fast and accurate minimal
        adversarial attack", 2024 (arXiv:2303.12481)

A step goes to the nearest of the hyperplanes at which the linearised logits of other classes draw
level. The published steps leave [0, 1]; these are the nearest points of the hyperplanes within it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featviz.attacks.checks import check_norm
from featviz.attacks.half_spaces import nearest, reach
from featviz.attacks.loop import Classifier, Look, Seats, Walk
from featviz.attacks.losses import towards
from featviz.attacks.minimal import bisect, search_from_clean
from featviz.attacks.options import AttackOptions
from featviz.attacks.projections import column
from featviz.attacks.result import AttackResult
from featviz.errors import UserError

_OVERSHOOT = 0.02
_HALVINGS = 10


def deepfool(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str = "l2",
    steps: int = 50,
    classes: int = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Small changes by DeepFool: the first point past the boundary, in a few steps.

    norm: "l2", "l1" or "linf"
    steps: linearisations at most; each costs one forward pass and a backward pass a class
    classes: how many classes are weighed, those of largest logit at the clean picture, the
        label's own among them

    Other arguments and what comes back as for `minimal`; there is no targeted form. Raises
    UserError for arguments out of range.
    """
    check_norm(norm, ("l2", "linf", "l1"))
    walk = _Hyperplanes(norm, steps, classes)
    return search_from_clean(
        model,
        walk,
        pictures,
        labels,
        attack="deepfool",
        options=options,
    )


def superdeepfool(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: int = 100,
    classes: int = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Small changes in L2 by SuperDeepFool (m = infinity, n = 1), and ten halvings at the end.

    Where DeepFool has crossed the boundary, the change is projected on the boundary's normal,
    which brings it nearer to the picture, and DeepFool goes on from there until that point is
    across. Arguments as for `deepfool`; `steps` are looks at pictures of both kinds.
    """
    walk = _Normals(steps, classes)
    found = search_from_clean(
        model,
        walk,
        pictures,
        labels,
        attack="superdeepfool",
        options=options,
    )
    # Who was wrong when clean is not to be asked again: a class other than the label says so.
    known = torch.nn.functional.one_hot(found.clean, int(found.clean.max()) + 1)
    halved = bisect(
        model,
        pictures,
        labels,
        found.adversarial,
        norm="l2",
        steps=_HALVINGS,
        options=replace(options, clean=known.to(pictures.device)),
    )
    return _shortened(found, halved)


def _shortened(found: AttackResult, halved: AttackResult) -> AttackResult:
    """The first result, with the second's pictures where they are nearer; the passes of both."""
    better = halved.distance < found.distance
    changed: dict[str, Any] = {}
    for name in ("adversarial", "success_8bit", "predicted", "distance", "l2", "linf"):
        old, new = getattr(found, name), getattr(halved, name)
        mask = better.to(old.device).view(-1, *[1] * (old.dim() - 1))
        changed[name] = torch.where(mask, new, old)
    return replace(found, forwards=found.forwards + halved.forwards, **changed)


class _Hyperplanes(Walk):
    """DeepFool's walk."""

    starts_at_picture = True
    leaves_at_hit = True

    def __init__(self, norm: str, steps: int, classes: int):
        if steps < 1 or classes < 2:
            raise UserError("steps must be 1 or more, and classes 2 or more")
        self.norm, self.classes, self.looks = norm, classes, steps + 1

    def prepare(self, seats: Seats) -> None:
        self.x = torch.zeros_like(seats.pictures)
        self.candidates: Tensor | None = None  # (slots, classes - 1)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        self.x[rows] = seats.pictures[rows]

    def propose(self, seats: Seats) -> Tensor:
        past = (seats.pictures + (1 + _OVERSHOOT) * (self.x - seats.pictures)).clamp(0, 1)
        return torch.where(column(seats.step > 0), past, seats.pictures)

    def advance(self, look: Look, seats: Seats) -> None:
        self.x = self._stepped(look, seats)

    def _stepped(self, look: Look, seats: Seats) -> Tensor:
        """The nearest point at which a linearised logit of another class draws level."""
        others = look.logits.scatter(1, seats.labels[:, None], -torch.inf)
        top = others.topk(min(self.classes, others.shape[1]) - 1, 1).indices
        if self.candidates is None:
            self.candidates = top
        self.candidates = torch.where((seats.step == 0)[:, None], top, self.candidates)
        flat = self.x.flatten(1)
        best = torch.full_like(seats.eps, torch.inf)
        moved = flat
        for k in range(self.candidates.shape[1]):
            ahead, weights = towards(look.logits, seats.labels, self.candidates[:, k])
            gradient = -look.gradient(weights, more=True).flatten(1)
            gap = -ahead
            step = nearest(self.norm, gradient, -gap, -flat, 1 - flat)
            size = reach(self.norm, step)
            met = (gradient * step).sum(1, dtype=torch.float64) <= -0.99 * gap
            nearer = met & (size < best) & (size > 0)
            best = torch.where(nearer, size, best)
            moved = torch.where(nearer[:, None], flat + step, moved)
        return moved.view_as(self.x)


class _Normals(_Hyperplanes):
    """SuperDeepFool's walk: DeepFool's steps, and projections on the normal."""

    leaves_at_hit = False

    def __init__(self, steps: int, classes: int):
        super().__init__("l2", steps, classes)

    def prepare(self, seats: Seats) -> None:
        super().prepare(seats)
        self.projected = torch.zeros(
            seats.batch_size, dtype=torch.bool, device=seats.pictures.device
        )
        self.arrived = torch.zeros_like(self.projected)
        self.crossing = torch.full_like(seats.eps, torch.inf)  # how far the last crossing was

    def seat(self, rows: Tensor, seats: Seats) -> None:
        super().seat(rows, seats)
        self.projected[rows] = self.arrived[rows] = False
        self.crossing[rows] = torch.inf

    def propose(self, seats: Seats) -> Tensor:
        return torch.where(column(self.projected), self.x, super().propose(seats))

    def finished(self) -> Tensor:
        return self.arrived

    def advance(self, look: Look, seats: Seats) -> None:
        shown = look.pictures.detach()
        crossed = look.hit & ~self.projected
        size = reach("l2", (shown - seats.pictures).flatten(1))
        # The edge of the box can keep the projection from ever being across: no use to repeat it.
        stuck = crossed & (size > 0.999 * self.crossing)
        self.crossing = torch.where(crossed, size, self.crossing)
        self.arrived = look.hit & (self.projected | stuck)
        _, weights = towards(look.logits, seats.labels, look.predicted)
        normal = look.gradient(weights, more=True).double().flatten(1)
        normal = normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-300)
        change = (shown - seats.pictures).double().flatten(1)
        along = ((change * normal).sum(1, keepdim=True) * normal).view_as(shown)
        nearer = (seats.pictures + along.to(shown.dtype)).clamp(0, 1)
        stepped = self._stepped(look, seats)
        self.x = torch.where(
            column(self.arrived), shown, torch.where(column(crossed), nearer, stepped)
        )
        self.projected = look.hit
