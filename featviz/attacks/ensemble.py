"""`ensemble`: attacks in turn, each on the pictures that are still right, the cheap ones first.

FGSM, then a few steps of APGD from there, fool most pictures of an undefended model at the cost of
a few passes. The rest meets APGD with cross-entropy, APGD with DLR, and short attempts of targeted
APGD towards the nearest classes. The best margin so far then says how near a picture is to a
success: those that are near get long attempts towards the classes that came nearest, the others a
few queries of Square, which uses no gradient.

These are the kinds of attack of AutoAttack (Croce & Hein 2020, arXiv:2003.01690), without FAB;
there every picture pays all steps of the first, and every one that stays right those of all. No
stage depends on the scale of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks.apgd import apgd, towards_all
from featviz.attacks.linear_estimate import linear_estimate
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
from featviz.attacks.result import AttackResult, together
from featviz.attacks.square import SQUARE_NORMS, square
from featviz.errors import public
from featviz.models.frozen import frozen
from featviz.pictures.images import check_pictures
from featviz.types import AutoPrecision, Steps, Tries

STAGES = (
    "fgsm",
    "apgd-ce short",
    "apgd-ce",
    "apgd-dlr",
    "apgd-margin",
    "apgd-t short",
    "apgd-t",
    "square",
)
"""In this order, each on the rest; apgd-margin takes the place of apgd-dlr with two classes."""
NEAR = 0.2
"""A picture is near to a success if no more than this share of its clean margin is left."""


@public
def ensemble(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: Steps = 100,
    targets: Annotated[int, Bounds(0, 1000)] = 9,
    queries: Tries = 1000,
    options: AttackOptions = AttackOptions(precision="auto"),
) -> AttackResult:
    """The strongest attack that featviz has within a fixed ball.

    `AttackResult.by` says which attack fooled a picture.

    Args:
        steps: Of the long attempts of APGD. The first has a tenth, those with cross-entropy and DLR
            have 4/10, the short targeted ones 15/100.
        targets: Classes that the targeted attempts go for.
        queries: Of Square where a picture is near to a success, a tenth elsewhere; 0 leaves it out
            (it does not exist in L1).

    Other arguments as for `pgd`; there is no targeted form.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm)
    options.refuse("ensemble", "targeted", "restarts")
    run = _Ensemble(model, pictures, labels, eps, norm, options)
    few, some, short = (max(1, share * steps // 100) for share in (10, 40, 15))
    several = "dlr" if run.found.classes >= 3 else "margin"
    run.apgd("apgd-ce short", few, "ce", from_best=True)
    run.apgd("apgd-ce", some, "ce")
    run.apgd("apgd-dlr" if several == "dlr" else "apgd-margin", some, several)
    if run.found.classes >= 4 and targets:
        aims = run.apgd_targeted(short, targets)
        # In L1, where the step sizes follow the number of steps, one length does not do.
        for length in (steps // 2, steps) if norm == "l1" else (steps,):
            run.apgd_long(max(1, length), aims)
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
        exact = replace(self.options, precision="float32")
        first = fgsm(
            model, self.x, self.y, eps=self.radii, norm=norm, rescale_logits=True, options=exact
        )
        self.found = replace(first, attacks=STAGES)

    def report(self, text: str, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.x), text)

    def rest(self, stage: str) -> Tensor:
        """Rows that no attack has fooled."""
        rows = (~self.found.success & (self.radii > 0)).nonzero()[:, 0]
        if len(rows):
            self.report(stage, len(self.x) - len(rows))
        return rows

    def inputs(self, rows: Tensor) -> tuple[Classifier, Tensor, Tensor]:
        at = rows.to(self.x.device)
        return self.model, self.x[at], self.y[at]

    def run(
        self,
        stage: str,
        rows: Tensor,
        attack: Callable[..., AttackResult],
        precision: AutoPrecision | None = None,
        **keywords: Any,
    ) -> AttackResult:
        """An attack on some rows, with new random numbers; what it finds is taken over."""
        self.seed += 1
        options = replace(
            self.options,
            clean=self.found.clean[rows],
            seed=self.seed,
            precision=precision or self.options.precision,
        )
        later = attack(
            *self.inputs(rows), eps=self.radii[rows], norm=self.norm, options=options, **keywords
        )
        self.found = together(self.found, rows, later, stage)
        return later

    def apgd(self, stage: str, steps: int, loss: str, *, from_best: bool = False) -> None:
        rows = self.rest(stage)
        if len(rows):
            starts = self.found.adversarial[rows.to(self.x.device)] if from_best else None
            self.run(stage, rows, apgd, steps=steps, loss=loss, starts=starts, rescale_logits=True)

    def apgd_targeted(self, steps: int, targets: int) -> Tensor:
        """Short attempts towards the nearest classes; (N, T) these, the most successful first."""
        rows = self.rest("apgd-t short")
        aims = self.y.new_zeros(len(self.x), 1)
        if not len(rows):
            return aims
        with frozen(self.model):
            near = linear_estimate(
                *self.inputs(rows), norm=self.norm, among=2 * targets, batch_size=self.batch_size
            )
        nearest = near.classes[:, :targets]
        self.found.forwards[rows] += 1
        self.found.backwards[rows] += near.classes.shape[1]
        reached = self.towards("apgd-t short", rows, nearest, steps)
        order = reached.argsort(dim=1, descending=True, stable=True).to(nearest.device)
        aims = aims.expand(-1, nearest.shape[1]).clone()
        aims[rows.to(aims.device)] = nearest.gather(1, order)
        return aims

    def apgd_long(self, steps: int, aims: Tensor) -> None:
        rows = self.rest("apgd-t")
        rows = rows[self._near(rows)]
        if len(rows):
            self.towards("apgd-t", rows, aims[rows.to(aims.device)], steps, "float32")

    def towards(
        self,
        stage: str,
        rows: Tensor,
        aims: Tensor,
        steps: int,
        precision: AutoPrecision | None = None,
    ) -> Tensor:
        """Attempts at the first class, then at the others at once; (k, T) their best margins."""
        reached = torch.full(aims.shape, -torch.inf, dtype=torch.float64)
        for classes in (slice(0, 1), slice(1, None)):
            left = (~self.found.success[rows]).nonzero()[:, 0]
            part = aims[left.to(aims.device), classes]
            if part.numel():
                later = self.run(stage, rows[left], towards_all, precision, aims=part, steps=steps)
                reached[left, classes] = later.reached
        return reached

    def square(self, queries: int) -> None:
        rows = self.rest("square")
        near = self._near(rows)
        for part, length in ((rows[near], queries), (rows[~near], max(1, queries // 10))):
            if len(part):
                self.run("square", part, square, queries=length)

    def _near(self, rows: Tensor) -> Tensor:
        """(k,) bool: whether what is left of the margin is a small share of the clean one."""
        trace = self.found.trace[rows]
        return trace.nan_to_num(-torch.inf).amax(1) >= NEAR * trace[:, 0].nan_to_num(0.0)
