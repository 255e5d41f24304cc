"""`deepfool` and `superdeepfool`: from linearization to linearization until the prediction turns.

    Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural
        networks", 2016 (arXiv:1511.04599)
    Abdolahpourrostam, Abroshan, Moosavi-Dezfooli, "SuperDeepFool: a new fast and accurate minimal
        adversarial attack", 2024 (arXiv:2303.12481)

A step goes to the nearest of the hyperplanes at which the linearized logits of other classes draw
level. The published steps leave [0, 1]; these are the nearest points of the hyperplanes within it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import losses, projections
from featviz.attacks.evaluation import Attack, Batch, Evaluation
from featviz.attacks.half_spaces import nearest
from featviz.attacks.loop import run_attack
from featviz.attacks.minimal import bisect
from featviz.attacks.options import AttackOptions, Classifier, check_norm
from featviz.attacks.result import AttackResult, choose_rows
from featviz.errors import public
from featviz.types import Steps

_OVERSHOOT = 0.02
_HALVINGS = 10


@public
def deepfool(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str = "l2",
    steps: Steps = 50,
    candidates: Annotated[int, Bounds(2, 100000)] = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Small changes by DeepFool: the first point past the boundary, in a few steps.

    There is no targeted form.

    Args:
        norm: "l2", "l1" or "linf".
        steps: Linearizations at most; each costs one forward pass and a backward pass a class.
        candidates: How many classes are weighed, those of largest logit at the clean picture, the
            label's own among them.

    Other arguments and the result as for `minimal`.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm, ("l2", "linf", "l1"))
    options.refuse("deepfool", "targeted", "restarts")
    attack = Hyperplanes(norm, steps, candidates)
    return run_attack(model, attack, pictures, labels, name="deepfool", eps=None, options=options)


@public
def superdeepfool(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: Steps = 100,
    candidates: Annotated[int, Bounds(2, 100000)] = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Small changes in L2 by SuperDeepFool (m = infinity, n = 1), and ten halvings at the end.

    Where DeepFool has crossed the boundary, the change is projected on the boundary's normal,
    which brings it nearer to the picture, and DeepFool goes on from there until that point is
    across. Arguments as for `deepfool`; `steps` counts points of both kinds.
    """
    options.refuse("superdeepfool", "targeted", "restarts")
    attack = ProjectedHyperplanes(steps, candidates)
    found = run_attack(
        model, attack, pictures, labels, name="superdeepfool", eps=None, options=options
    )
    known = replace(options, clean=found.clean)
    halved = bisect(model, pictures, labels, found.adversarial, steps=_HALVINGS, options=known)
    shorter = choose_rows(found, halved, halved.distance < found.distance)
    return replace(shorter, forwards=found.forwards + halved.forwards)


class Hyperplanes(Attack):
    """The steps of DeepFool."""

    def __init__(self, norm: str, steps: int, candidates: int):
        self.norm, self.count, self.passes = norm, candidates - 1, steps + 1

    def start(self, batch: Batch) -> None:
        self.x = self.point = batch.pictures
        self.classes: Tensor | None = None  # (n, K) the candidates other than the label

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        classes = self._candidates(seen.logits, batch)
        if self.classes is not None:
            classes = self.classes[rows]
        each = [losses.towards(seen.logits, batch.labels, aims) for aims in classes.T]
        return torch.stack([v for v, _ in each], 1), torch.stack([w for _, w in each], 1)

    def _candidates(self, logits: Tensor, batch: Batch) -> Tensor:
        others = losses.others(logits, batch.labels)
        return others.topk(min(self.count, logits.shape[1] - 1), 1).indices

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        self.point = self._stepped(seen, batch)
        past = batch.pictures + (1 + _OVERSHOOT) * (self.point - batch.pictures)
        self.x = past.clamp(0, 1)

    def _stepped(self, seen: Evaluation, batch: Batch) -> Tensor:
        """The nearest point at which a linearized logit of another class is level."""
        if self.classes is None:
            self.classes = self._candidates(seen.logits, batch)
        flat = self.point.flatten(1)
        best = torch.full_like(batch.eps, torch.inf)
        moved = flat
        for k in range(self.classes.shape[1]):
            gradient, gap = -seen.gradient[:, k].flatten(1), -seen.value[:, k]
            step = nearest(self.norm, gradient, -gap, -flat, 1 - flat)
            size = projections.vector_norm(step, self.norm)
            met = (gradient * step).sum(1, dtype=torch.float64) <= -0.99 * gap
            nearer = met & (size < best) & (size > 0)
            best = torch.where(nearer, size, best)
            moved = torch.where(nearer[:, None], flat + step, moved)
        return moved.view_as(self.point)


class ProjectedHyperplanes(Hyperplanes):
    """The steps of SuperDeepFool: those of DeepFool, and projections on the normal."""

    leaves_at_hit = False

    def __init__(self, steps: int, candidates: int):
        super().__init__("l2", steps, candidates)

    def start(self, batch: Batch) -> None:
        super().start(batch)
        self.projected = self.arrived = torch.zeros_like(batch.labels, dtype=torch.bool)
        self.crossing = torch.full_like(batch.eps, torch.inf)  # how far the last crossing was

    def finished(self, seen: Evaluation, batch: Batch) -> Tensor:
        return self.arrived

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        value, weights = super().loss(seen, batch, rows)
        ahead, normal = losses.towards(seen.logits, batch.labels, seen.predicted)
        return torch.cat([value, ahead[:, None]], 1), torch.cat([weights, normal[:, None]], 1)

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        crossed = seen.hit & ~self.projected
        change = (seen.pictures - batch.pictures).double().flatten(1)
        size = change.norm(dim=1)
        # The edge of the box can keep the projection from being across: no use to repeat it.
        stuck = crossed & (size > 0.999 * self.crossing)
        self.crossing = torch.where(crossed, size, self.crossing)
        self.arrived = seen.hit & (self.projected | stuck)
        normal = projections.unit_l2(seen.gradient[:, -1].double()).flatten(1)
        along = ((change * normal).sum(1, keepdim=True) * normal).view_as(seen.pictures)
        nearer = (batch.pictures + along.to(seen.pictures.dtype)).clamp(0, 1)
        stays, back = projections.column(self.arrived), projections.column(crossed)
        super().step(seen, batch, step)
        self.point = torch.where(stays, seen.pictures, torch.where(back, nearer, self.point))
        self.x = torch.where(projections.column(seen.hit), self.point, self.x)
        self.projected = seen.hit
