"""`ensemble`: attacks in turn, each on the pictures that are still right, the cheap ones first.

FGSM, a short APGD, then a short search along the decision boundary (that of `minimal`, left as soon
as it meets the ball), fool most pictures of an undefended model at the cost of a few passes. Where
the boundary was found a little outside the ball, its point brought into the ball is nearly one that
fools, and APGD with DLR goes on from there. The rest meets a longer APGD with cross-entropy, a
longer search along the boundary, towards several classes, where it is not known to be far, and DLR
once more. Pictures that are near to a success after that get targeted APGD, the longest where they
are nearest. Square, which uses no gradient, comes last, with many queries where the gradients found
no boundary at all.

These are the kinds of attack of AutoAttack (Croce & Hein 2020, arXiv:2003.01690), with another
boundary search in place of FAB; there every picture pays all steps of the first, and every one that
stays right those of all. No stage depends on the scale of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import losses
from featviz.attacks.apgd import apgd, towards_all
from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.minimal import search_in_ball
from featviz.attacks.options import (
    AttackOptions,
    Classifier,
    check_batch_size,
    check_eps,
    check_labels,
    check_norm,
    device_of,
)
from featviz.attacks.pgd import fgsm
from featviz.attacks.result import AttackResult, together, within_ball
from featviz.attacks.square import SQUARE_NORMS, square
from featviz.errors import public
from featviz.models.frozen import frozen
from featviz.pictures.images import check_pictures
from featviz.types import AutoPrecision, Steps, Tries

STAGES = (
    "fgsm",
    "apgd-ce short",
    "boundary short",
    "apgd-dlr",
    "apgd-margin",
    "apgd-ce",
    "boundary",
    "apgd-ce long",
    "apgd-t",
    "apgd-t long",
    "square",
)
"""In this order, each on the rest; apgd-margin takes the place of apgd-dlr with two classes.
APGD with DLR comes again after the boundary's longer search."""
FAR = {"linf": 1.3, "l2": 1.3, "l1": 2.0}
"""A picture whose boundary was found farther away, in eps, is far: it is not searched longer."""
NEAR = {"linf": 1.1, "l2": 1.1, "l1": 1.3}
"""A picture is near to a success if its boundary was found within, in eps, ..."""
LEFT = 0.05
"""... or if no more than this share of its clean margin is left."""
CLOSEST = 1 / 3
"""It is searched longest within this share of both."""
_EXACT: AutoPrecision = "float32"
COPIES = 3
"""Starts of the longest search."""


@public
def ensemble(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: Steps = 100,
    targets: Annotated[int, Bounds(0, 1000)] = 2,
    queries: Tries = 1000,
    options: AttackOptions = AttackOptions(precision="auto"),
) -> AttackResult:
    """The strongest attack that featviz has within a fixed ball.

    `AttackResult.by` says which attack fooled a picture.

    Args:
        steps: Of the targeted attempts of APGD, where a picture is near to a success, and three
            times as many where it is nearest. APGD with cross-entropy has 2/10 of them, then as
            many (in L1 4/10 and, near to a success, all), with DLR 4/10; the search along the
            boundary 2/10, the longer one 6/10.
        targets: Classes that the targeted attempts go for.
        queries: Of Square where gradients have found no boundary, a tenth elsewhere; 0 leaves it
            out (it does not exist in L1).

    Other arguments as for `pgd`; there is no targeted form.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm)
    options.refuse("ensemble", "targeted", "restarts")
    run = _Ensemble(model, pictures, labels, eps, norm, options)
    some = max(1, 40 * steps // 100)
    several = "dlr" if run.found.classes >= 3 else "margin"
    run.apgd("apgd-ce short", max(1, steps // 5), "ce")
    run.boundary("boundary short", max(10, steps // 5), first=True)
    run.from_boundary(some, several)
    # In L1 no success counts before 6/10 of the steps.
    run.apgd("apgd-ce", some if norm == "l1" else steps, "ce")
    run.boundary("boundary", max(10, 60 * steps // 100))
    run.from_boundary(some, several)
    run.apgd(f"apgd-{several}", some, several, where="far")
    if norm == "l1":
        run.apgd("apgd-ce long", steps, "ce", where="near")
    if run.found.classes >= 4 and targets:
        run.apgd_targeted(steps, targets)
        run.apgd_longest(3 * steps)
    if norm in SQUARE_NORMS and queries:
        run.square(queries)
    run.report("ensemble", len(run.x))
    return run.found.moved(pictures.device)


class _Ensemble:
    """The pictures, what has been found so far, and the stages on the rest."""

    def __init__(
        self,
        model: Classifier,
        pictures: Tensor,
        labels: Tensor,
        eps: float | Tensor,
        norm: str,
        options: AttackOptions,
    ):
        self.model, self.norm, self.progress = model, norm, options.progress
        self.x = check_pictures(pictures, channels=None).to(device_of(model, pictures))
        self.y = check_labels(labels, len(self.x)).to(self.x.device)
        self.radii = check_eps(eps, norm, len(self.x))
        self.batch_size = check_batch_size(options.batch_size, self.x.device)
        self.options = replace(options, progress=None)
        self.seed = options.seed
        exact = replace(self.options, precision=_EXACT)
        first = fgsm(
            model, self.x, self.y, eps=self.radii, norm=norm, rescale_logits=True, options=exact
        )
        self.found = replace(first, attacks=STAGES)
        self.distance = torch.full_like(self.radii, torch.inf)
        """(N,) at which the boundary was found, inf where it was not"""
        self.on_boundary = self.x.clone()
        """(N, C, H, W) the pictures there"""

    def report(self, text: str, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.x), text)

    def rest(self, stage: str) -> Tensor:
        """Rows that no attack has fooled; the stage has random numbers of its own from here on."""
        self.seed += 2
        rows = (~self.found.success & (self.radii > 0)).nonzero()[:, 0]
        if len(rows):
            self.report(stage, len(self.x) - len(rows))
        return rows

    def inputs(self, rows: Tensor) -> tuple[Classifier, Tensor, Tensor]:
        at = rows.to(self.x.device)
        return self.model, self.x[at], self.y[at]

    def run(
        self,
        rows: Tensor,
        attack: Callable[..., AttackResult],
        precision: AutoPrecision | None = None,
        turn: int = 0,
        **keywords: Any,
    ) -> AttackResult:
        """An attack on some rows."""
        options = replace(
            self.options,
            clean=self.found.clean[rows],
            seed=self.seed + turn,
            precision=precision or self.options.precision,
        )
        return attack(
            *self.inputs(rows), eps=self.radii[rows], norm=self.norm, options=options, **keywords
        )

    def take(self, stage: str, rows: Tensor, later: AttackResult) -> None:
        """What an attack on some rows has found and cost."""
        self.found = together(self.found, rows, later, stage)

    def boundary(self, stage: str, passes: int, *, first: bool = False) -> None:
        """The search of `minimal`; after the first one only where a picture is not far."""
        rows = self.rest(stage)
        rows = rows if first else rows[~self._far(rows)]
        if len(rows):
            later = self.run(rows, search_in_ball, _EXACT, passes=passes)
            nearer = later.distance < self.distance[rows]
            self.distance[rows[nearer]] = later.distance[nearer]
            self.on_boundary[rows[nearer]] = later.adversarial[nearer]
            self.take(stage, rows, within_ball(later))

    def from_boundary(self, steps: int, loss: str) -> None:
        """APGD from the point of the boundary, brought into the ball, where that is not far."""
        stage = f"apgd-{loss}"
        rows = self.rest(stage)
        rows = rows[~self._far(rows)]
        if len(rows):
            starts = self.on_boundary[rows]
            later = self.run(rows, apgd, _EXACT, steps=steps, loss=loss, starts=starts)
            self.take(stage, rows, later)

    def apgd(self, stage: str, steps: int, loss: str, *, where: str = "") -> None:
        """APGD from random points; where: "near" or "far", on such pictures alone.

        What is near to a success is searched in float32: bfloat16's rounding is larger than what is
        left of the margin.
        """
        rows = self.rest(stage)
        near = self._near(rows)
        chosen = {"near": near, "far": self._far(rows)}.get(where, torch.ones_like(near))
        own = self.options.precision
        for part, precision in ((rows[near & chosen], _EXACT), (rows[~near & chosen], own)):
            if len(part):
                later = self.run(part, apgd, precision, steps=steps, loss=loss, rescale_logits=True)
                self.take(stage, part, later)

    def apgd_targeted(self, steps: int, targets: int) -> None:
        """Towards the nearest class, then the others at once, where a picture is near."""
        rows = self.rest("apgd-t")
        rows = rows[self._near(rows)]
        if not len(rows):
            return
        with frozen(self.model):
            near = linear_estimate(
                *self.inputs(rows), norm=self.norm, among=2 * targets, batch_size=self.batch_size
            )
        self.found.forwards[rows] += 1
        self.found.backwards[rows] += near.classes.shape[1]
        aims = near.classes[:, :targets]
        for turn, classes in enumerate((slice(0, 1), slice(1, None))):
            left = (~self.found.success[rows]).nonzero()[:, 0]
            part = aims[left.to(aims.device), classes]
            if part.numel():
                later = self.run(rows[left], towards_all, _EXACT, turn, aims=part, steps=steps)
                self.take("apgd-t", rows[left], later)

    def apgd_longest(self, steps: int) -> None:
        """From several starts at once towards the class that has come nearest."""
        rows = self.rest("apgd-t long")
        rows = rows[self._near(rows, CLOSEST)]
        if len(rows):
            logits, labels = self.found.logits_after[rows], self.found.labels[rows]
            aims = losses.others(logits, labels).argmax(1)[:, None].expand(-1, COPIES)
            later = self.run(rows, towards_all, _EXACT, aims=aims, steps=steps)
            self.take("apgd-t long", rows, later)

    def square(self, queries: int) -> None:
        rows = self.rest("square")
        hidden = self.distance[rows].isinf()
        for part, length in ((rows[hidden], queries), (rows[~hidden], max(1, queries // 10))):
            if len(part):
                self.take("square", part, self.run(part, square, queries=length))

    def _far(self, rows: Tensor) -> Tensor:
        """(k,) bool: whether the boundary is not known to be near."""
        return self.distance[rows] > FAR[self.norm] * self.radii[rows]

    def _near(self, rows: Tensor, share: float = 1.0) -> Tensor:
        """(k,) bool: whether the boundary was found near, or little is left of the margin."""
        trace = self.found.trace[rows]
        left = trace.nan_to_num(-torch.inf).amax(1) >= share * LEFT * trace[:, 0].nan_to_num(0.0)
        within = 1 + share * (NEAR[self.norm] - 1)
        return left | (self.distance[rows] <= within * self.radii[rows])
