"""Auto-PGD: gradient ascent whose step size follows the gain. `apgd` and `apgd_targeted`.

    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020 (arXiv:2003.01690), section 3 and algorithm 1
    Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021
        (arXiv:2103.01208), for L1

A step of size eta along the gradient is mixed with the step before it. At checkpoints the step is
halved where the loss rose too seldom, or where it has gained nothing since the last one; the search
then goes on from its best picture, with the gradient that is known there. In L1 the step moves few
components, whose number follows the sparsity of the best change; the search begins in balls of
three and two times eps, where no success counts.

Three differences from the authors' program. A picture leaves as soon as it fools. The first window
counts the rise of the first step against the loss at the start (there it is counted against a row
of zeros, so that the first step always counts as a rise). And the last step in L1 goes to the
picture of the ball that is farthest along the best gradient, which is exact on a linear model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import losses, projections
from featviz.attacks.evaluation import Batch, Evaluation
from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.loop import run_attack
from featviz.attacks.options import (
    AttackOptions,
    Classifier,
    check_batch_size,
    check_labels,
    check_norm,
    device_of,
)
from featviz.attacks.pgd import BallAttack, first_pictures
from featviz.attacks.result import AttackResult, best_copies
from featviz.errors import UserError, nearest, public
from featviz.models.frozen import frozen
from featviz.pictures.images import check_pictures
from featviz.types import Steps

LOSSES = ("ce", "dlr", "margin")
_RISES = 0.75  # rho: the share of steps of a window that must raise the loss
_FRESH = 0.75  # alpha: the weight of the new step; the rest is the step before it


@public
def apgd(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: Steps = 100,
    loss: str = "ce",
    random_start: bool = True,
    starts: Tensor | None = None,
    rescale_logits: bool = False,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Auto-PGD within a ball around each picture; no step size is to be chosen.

    Args:
        steps: Of an attempt; the step sizes are planned for their number.
        loss: "ce" (cross-entropy), "dlr" (difference of logits ratio, invariant to the scale of
            the logits; it needs 3 classes) or "margin" (the best other logit less the label's).
        random_start: As for `pgd`.
        starts: (N, 3, H, W), where the first attempt begins, brought into the balls.
        rescale_logits: Bring the logits to one scale before "ce" (`losses.temper`).

    Other arguments as for `pgd`.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm)
    if loss not in LOSSES:
        raise UserError(f"unknown loss {loss!r}{nearest(loss, LOSSES)}; take ce, dlr or margin")
    if starts is not None and check_pictures(starts, channels=None).shape != pictures.shape:
        raise UserError(
            f"starts must have the pictures' shape {tuple(pictures.shape)}, "
            f"got {tuple(starts.shape)}"
        )
    attack = AutoPGD(
        norm, steps, loss, random_start=random_start and starts is None, rescale=rescale_logits
    )
    return run_attack(
        model,
        attack,
        pictures,
        labels,
        name=f"apgd-{loss}",
        eps=eps,
        options=options,
        starts=starts,
    )


@public
def apgd_targeted(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: Steps = 100,
    targets: Annotated[int, Bounds(1, 1000)] = 9,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """APGD with the targeted DLR loss, towards one class after the other until one succeeds.

    Any class other than the label is a success. It needs 4 classes.

    Args:
        steps: Of each attempt.
        targets: How many classes. They are those of the `2 * targets` largest logits that are
            nearest by the linear estimate at the picture, the nearest first (the authors take them
            by logit).

    Other arguments as for `pgd`.
    """
    check_norm(norm)
    options.refuse("apgd-t", "targeted", "restarts")
    pictures = check_pictures(pictures, channels=None)
    here = pictures.to(device_of(model, pictures))
    labels = check_labels(labels, len(pictures)).to(here.device)
    rows = torch.arange(len(pictures), device=here.device)
    clean = options.clean
    if clean is not None:  # no pass is spent on what is wrong already
        predicted = clean.argmax(1) if clean.dim() == 2 else clean
        rows = (predicted.to(labels.device) == labels).nonzero()[:, 0]
    aims = labels.new_zeros(len(pictures), targets)
    spent = torch.zeros(len(pictures), dtype=torch.long)
    near = None
    if len(rows):
        with frozen(model):
            near = linear_estimate(
                model,
                here[rows],
                labels[rows],
                norm=norm,
                among=2 * targets,
                batch_size=check_batch_size(options.batch_size, here.device),
            )
        aims = aims[:, : near.classes.shape[1]]
        aims[rows] = near.classes[:, :targets]
        spent[rows.cpu()] = 1
        options = replace(options, clean=near.logits if clean is None else clean)
    found = towards_each(
        model, pictures, labels, aims=aims, eps=eps, norm=norm, steps=steps, options=options
    )
    if near is None:
        return found
    gradients = near.classes.shape[1] * spent * (~found.already)
    return replace(found, forwards=found.forwards + spent, backwards=found.backwards + gradients)


def towards_each(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    aims: Tensor,
    eps: float | Tensor,
    norm: str,
    steps: int,
    options: AttackOptions,
    copies: int = 1,
) -> AttackResult:
    """Targeted APGD towards the classes `aims` (N, T) in turn until one attempt succeeds.

    copies: so many rows in succession are the same picture; all leave once one has fooled
    """
    attack = AutoPGD(norm, steps, "dlr-towards", copies=copies)
    return run_attack(
        model, attack, pictures, labels, name="apgd-t", eps=eps, options=options, aims=aims
    )


def towards_all(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    aims: Tensor,
    eps: Tensor,
    norm: str,
    steps: int,
    options: AttackOptions,
) -> AttackResult:
    """As `towards_each`, but towards all classes at the same time, as rows of one batch.

    The clean classes are to be known (`options.clean`). A batch of copies costs much less than as
    many passes of single pictures.
    """
    copies = aims.shape[1]
    clean = options.clean
    assert clean is not None
    found = towards_each(
        model,
        pictures.repeat_interleave(copies, 0),
        labels.repeat_interleave(copies),
        aims=aims.reshape(-1, 1),
        eps=eps.repeat_interleave(copies),
        norm=norm,
        steps=steps,
        options=replace(options, clean=clean.repeat_interleave(copies, 0)),
        copies=copies,
    )
    return best_copies(found, copies)


class Phase(NamedTuple):
    """A part of an attempt, in a ball of its own."""

    share: float
    """of the steps"""
    radius: float
    """in units of eps"""


# Croce & Hein 2021, section 4.3: large balls first, each begun at the best picture of the last.
_PHASES = (Phase(0.3, 3.0), Phase(0.3, 2.0), Phase(0.4, 1.0))


def checkpoints(steps: int) -> list[int]:
    """(steps + 1,) the length of the window that ends after each step; 0 where none does."""
    window, least, less = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1), int(0.03 * steps)
    ends, at = [0] * (steps + 1), window
    while at <= steps:
        ends[at] = window
        window = max(window - max(less, 1), least)
        at += window
    return ends


class AutoPGD(BallAttack):
    """The steps of Auto-PGD.

    After k steps f(x_k) and its gradient are known. The step to z = P(x_k + eta * direction) is
    mixed with the last one: x_(k+1) = P(x_k + a (z - x_k) + (1 - a) (x_k - x_(k-1))).
    """

    starts_at_picture = False

    def __init__(
        self,
        norm: str,
        steps: int,
        loss: str,
        *,
        random_start: bool = True,
        rescale: bool = False,
        copies: int = 1,
    ):
        self.norm, self.loss_name, self.rescale, self.copies = norm, loss, rescale, copies
        self.random_start = random_start
        phases = _PHASES if norm == "l1" else (Phase(1.0, 1.0),)
        lengths = [int(phase.share * steps) for phase in phases]
        lengths[-1] = steps - sum(lengths[:-1])
        # Of each pass: the length of the window that ends with it, whether it begins a phase.
        self.windows: list[int] = []
        self.opens: list[bool] = []
        self.factors: list[float] = []
        for phase, length in zip(phases, lengths, strict=True):
            every = max(int(0.04 * length), 1)
            regular = [every if k and k % every == 0 else 0 for k in range(length + 1)]
            self.windows += regular if norm == "l1" else checkpoints(length)
            self.opens += [k == 0 for k in range(length + 1)]
            self.factors += [phase.radius] * (length + 1)
        self.passes = len(self.windows)

    def start(self, batch: Batch) -> None:
        super().start(batch)
        # Each copy begins elsewhere in the ball.
        own = replace(batch, keys=batch.keys + batch.rows % self.copies)
        self.x = first_pictures(own, self.norm, random=self.random_start)
        if batch.attempt == 0 and batch.starts is not None:
            widest = replace(batch, eps=self.factors[0] * batch.eps)
            self.x = self.project(self.x, widest)
        self.before = self.x
        self.eta = (self.factors[0] if self.norm == "l1" else 2) * batch.eps
        self.scale = torch.full_like(batch.eps, torch.nan if self.rescale else 1.0)
        self.picture = batch.rows // self.copies
        self.begun = self._left()
        if self.norm == "l1":
            size = batch.pictures[0].numel()
            self.changed = torch.full_like(batch.eps, size)
            self.share = torch.full_like(batch.eps, 0.2)
            if batch.attempt == 0 and batch.starts is not None:
                self._count_changed(batch)

    def _count_changed(self, batch: Batch) -> None:
        """Steps as sparse as the change is now."""
        self.changed = projections.distance(batch.pictures, self.x, "l0")
        self.share = self.changed.clamp(min=1.5) / batch.pictures[0].numel() / 1.5

    def _left(self) -> Tensor:
        """(n,) how many copies of the same picture are left."""
        return (self.picture == self.picture[:, None]).sum(1)

    def finished(self, seen: Evaluation, batch: Batch) -> Tensor | None:
        """Where a copy has fooled, the others stop."""
        return None if self.copies == 1 else self._left() < self.begun

    def counts(self, step: int) -> bool:
        return self.factors[step] <= 1

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        z, labels = seen.logits, batch.labels
        if self.loss_name == "ce":
            scale = self._scale(z, rows)
            return losses.cross_entropy(z, labels, targeted=batch.targeted, scale=scale)
        needed = {"dlr": 3, "dlr-towards": 4}.get(self.loss_name, 0)
        if z.shape[1] < needed:
            raise UserError(
                f"the {'' if needed == 3 else 'targeted '}DLR loss needs {needed} classes, "
                f'this model has {z.shape[1]}; take loss="margin"'
            )
        if needed == 4:
            return losses.dlr_towards(z, labels, batch.aims)
        kind = losses.dlr if needed else losses.margin
        return kind(z, labels, targeted=batch.targeted)

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        self.scale = self._scale(seen.logits, slice(None))
        self._note(seen.value, seen.gradient, begins=self.opens[step])
        x, gradient = self.x, seen.gradient
        if self.windows[step]:
            back = projections.column(self._check(batch, step))
            x = torch.where(back, self.best, x)
            gradient = torch.where(back, self.best_gradient, gradient)
        if self.norm == "l1":
            self._sparse_step(x, gradient, batch, step)
            return
        eta = projections.column(self.eta).to(x.dtype)
        direction = gradient.sign() if self.norm == "linf" else projections.unit_l2(gradient)
        moved = self.project(x + eta * direction, batch, exactly=False)
        fresh = 1.0 if step == 0 else _FRESH
        mixed = x + fresh * (moved - x) + (1 - fresh) * (x - self.before)
        self.before, self.x = x, self.project(mixed, batch)

    def _scale(self, logits: Tensor, rows: slice) -> Tensor:
        """(n,) one scale for a whole phase, or its losses could not be compared."""
        known = self.scale[rows]
        return torch.where(known.isnan(), losses.temper(logits), known) if self.rescale else known

    def _note(self, value: Tensor, gradient: Tensor, *, begins: bool) -> None:
        """Keep the best picture with its gradient, and count rises of the loss."""
        if begins:
            self.rises = torch.zeros_like(value)
            self.halved = torch.ones_like(value, dtype=torch.bool)
            self.best, self.best_gradient = self.x, gradient
            self.value = self.best_value = self.checked_value = value
            return
        self.rises = self.rises + (value > self.value)
        better = value > self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        self.best = torch.where(projections.column(better), self.x, self.best)
        self.best_gradient = torch.where(projections.column(better), gradient, self.best_gradient)
        self.value = value

    def _check(self, batch: Batch, step: int) -> Tensor:
        """At the end of a window: new step sizes; (n,) bool: rows that go back to their best."""
        if self.norm == "l1":
            changed = projections.distance(batch.pictures, self.best, "l0")
            sparser = changed < 0.95 * self.changed
            eps = batch.eps * self.factors[step]
            smaller = (self.eta / 1.5).clamp(min=eps / 10, max=eps)
            self.eta = torch.where(sparser, eps, smaller)
            self.share = changed / batch.pictures[0].numel() / 1.5
            self.changed = changed
            return sparser
        seldom = self.rises <= _RISES * self.windows[step]
        idle = ~self.halved & (self.checked_value >= self.best_value)
        self.halved = halve = seldom | idle
        self.eta = torch.where(halve, self.eta / 2, self.eta)
        self.checked_value, self.rises = self.best_value, torch.zeros_like(self.rises)
        return halve

    def _sparse_step(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> None:
        """In L1: along the signs of the share of components with the largest gradients."""
        if step == self.passes - 2:
            self.x = projections.farthest(batch.pictures, self.best_gradient, batch.eps, "l1")
            return
        if self.opens[step + 1]:  # the next ball, from the best picture of the last one
            self.scale = torch.full_like(self.scale, torch.nan if self.rescale else 1.0)
            self.eta = eps = self.factors[step + 1] * batch.eps
            self.x = projections.project(batch.pictures, self.best, eps, "l1")
            self._count_changed(batch)
            return
        flat = gradient.flatten(1)
        size = flat.abs()
        rank = ((1 - self.share) * size.shape[1]).long().clamp(0, size.shape[1] - 1)
        signs = torch.where(size >= ranked(size, rank)[:, None], flat.sign(), 0)
        length = self.eta / signs.abs().sum(1).clamp(min=1)
        moved = x + (length.to(x.dtype)[:, None] * signs).view_as(x)
        eps = batch.eps * self.factors[step]
        self.x = projections.project(batch.pictures, moved, eps, "l1")


def ranked(values: Tensor, rank: Tensor) -> Tensor:
    """(N,) the value of each row that `rank` (N,) others of it are below."""
    if values.device.type != "cpu":
        return values.sort(1).values.gather(1, rank[:, None])[:, 0]
    # One selection a row is much less work than sorting it.
    rows = zip(values, rank.tolist(), strict=True)
    return torch.stack([row.kthvalue(r + 1).values for row, r in rows])
