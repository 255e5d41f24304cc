"""Auto-PGD: ascent whose step size follows what it gains. `apgd` and `apgd_targeted`.

    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020 (arXiv:2003.01690), section 3 and algorithm 1
    Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021
        (arXiv:2103.01208), for L1

A step of size eta along the gradient is mixed with the step before it. At checkpoints the step is
halved where the loss rose too seldom, or where nothing has come of it since the last one; the walk
then goes on from its best picture, with the gradient that is known there. In L1 the step moves few
components, whose number follows the sparsity of the best change; the walk begins in balls of
three and two times eps, where nothing that it finds counts.

Three differences from the authors' program. A picture leaves as soon as it fools. The first window
counts the rise of the first step against the loss at the start (there it is counted against a row
of zeros, so that the first step always counts as a rise). And the last step in L1 goes to the
picture of the ball that is farthest along the best gradient, which is exact on a linear model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.checks import check_batch_size, check_labels
from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.loop import Classifier, Job, Look, Outcome, Seats, Walk
from featviz.attacks.options import AttackOptions
from featviz.attacks.pgd import check_walk, starts
from featviz.attacks.result import AttackResult, find
from featviz.errors import UserError, nearest
from featviz.images import check_pictures
from featviz.models.frozen import frozen

LOSSES = ("ce", "dlr", "margin")
_RISES = 0.75  # rho: the share of steps of a window that must raise the loss
_FRESH = 0.75  # alpha: the weight of the new step; the rest is the step before it


def apgd(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 100,
    loss: str = "ce",
    random_start: bool = True,
    starts: Tensor | None = None,
    rescale_logits: bool = False,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Auto-PGD within a ball round each picture; no step size is to be chosen.

    loss: "ce" (cross-entropy) or "dlr" (difference of logits ratio, which the scale of the logits
        does not change; it needs 3 classes) or "margin" (the best other logit less the label's)
    steps: of a restart; the step sizes are planned for their number
    starts: (N, 3, H, W) within the balls: where the first walks begin, instead of a random point
    rescale_logits: bring the logits to one scale before "ce" (`losses.temper`)

    Other arguments as for `pgd`. Raises UserError for arguments out of range.
    """
    check_walk(norm, steps, restarts=options.restarts)
    if loss not in LOSSES:
        raise UserError(f"unknown loss {loss!r}{nearest(loss, LOSSES)}; take ce, dlr or margin")
    walk = Auto(
        norm,
        steps,
        loss,
        random_start=random_start and starts is None,
        targeted=options.targeted,
        rescale_logits=rescale_logits,
    )
    return find(
        model,
        walk,
        pictures,
        labels,
        attack=f"apgd-{loss}",
        eps=eps,
        starts=starts,
        options=options,
    )


def apgd_targeted(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """APGD with the targeted DLR loss, one target class after the other until one leads out.

    targets: how many classes. They are those of the `2 * targets` largest logits that are nearest
        by the linear estimate at the picture, the nearest first (the authors take them by logit)

    Any answer other than the label is a success. It needs 4 classes. Other arguments as for `pgd`.
    """
    check_walk(norm, steps)
    if targets < 1:
        raise UserError(f"targets is {targets}; take 1 or more")
    pictures = check_pictures(pictures)
    labels = check_labels(labels, len(pictures)).to(pictures.device)
    batch_size = check_batch_size(options.batch_size, pictures.device)
    clean = options.clean
    rows = torch.arange(len(pictures), device=pictures.device)
    if clean is not None:  # nothing is asked of the model for what is wrong already
        answers = clean.argmax(1) if clean.dim() == 2 else clean
        rows = (answers.to(labels.device) == labels).nonzero()[:, 0]
    aims = labels.new_zeros(len(pictures), targets)
    if len(rows):
        with frozen(model):
            near = linear_estimate(
                model,
                pictures[rows],
                labels[rows],
                norm=norm,
                among=2 * targets,
                batch_size=batch_size,
            )
        aims = aims[:, : near.classes.shape[1]]
        aims[rows] = near.classes[:, :targets]
        clean = near.logits if clean is None else clean
    found, _ = towards_each(
        model,
        pictures,
        labels,
        aims,
        eps=eps,
        norm=norm,
        steps=steps,
        options=replace(options, clean=clean),
    )
    if not len(rows):
        return found
    asked = torch.zeros(len(pictures), dtype=torch.long).index_fill(0, rows.cpu(), 1)
    gradients = near.classes.shape[1] * asked * (~found.already)
    return replace(found, forwards=found.forwards + asked, backwards=found.backwards + gradients)


def towards_each(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    aims: Tensor,
    *,
    eps: float | Tensor,
    norm: str,
    steps: int,
    options: AttackOptions,
) -> tuple[AttackResult, Tensor]:
    """Targeted APGD towards classes in turn until a picture falls, and how near each one came.

    aims: (N, T) classes, the first to be tried first; options: those of `apgd_targeted`

    Returns the result and (N, T) float64: the best margin of each walk, -inf for those not made.
    """
    walk = Auto(norm, steps, "dlr-towards")
    given = aims.tolist()
    reached = [[-torch.inf] * aims.shape[1] for _ in pictures]
    at = [0] * len(pictures)

    def further(job: Job, outcome: Outcome) -> Job | None:
        i = job.tag
        reached[i][at[i]] = outcome.margin
        at[i] += 1
        if at[i] == len(given[i]):
            return None
        return replace(job, aim=given[i][at[i]], key=job.key + 1, known_right=True)

    found = find(
        model,
        walk,
        pictures,
        labels,
        attack="apgd-t",
        eps=eps,
        aims=aims[:, 0],
        options=options,
        further=further,
    )
    return found, torch.tensor(reached, dtype=torch.float64)


class Phase(NamedTuple):
    """A part of a walk, in a ball of its own."""

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


class Auto(Walk):
    """The walk of Auto-PGD.

    After k steps f(x_k) and its gradient are known. The step to z = P(x_k + eta * direction) is
    mixed with the last one: x_(k+1) = P(x_k + a (z - x_k) + (1 - a) (x_k - x_(k-1))).
    """

    def __init__(
        self,
        norm: str,
        steps: int,
        loss: str,
        *,
        random_start: bool = True,
        targeted: bool = False,
        rescale_logits: bool = False,
    ):
        self.norm, self.loss, self.targeted, self.rescale_logits = (
            norm,
            loss,
            targeted,
            rescale_logits,
        )
        self.random_start, self.starts_at_picture = random_start, False
        phases = _PHASES if norm == "l1" else (Phase(1.0, 1.0),)
        lengths = [int(phase.share * steps) for phase in phases]
        lengths[-1] = steps - sum(lengths[:-1])
        # What happens at each look: the end of a window, the first look of a phase, its last.
        self.ends, self.opens, self.closes, self.factors = [], [], [], []
        for phase, length in zip(phases, lengths, strict=True):
            every = max(int(0.04 * length), 1)
            regular = [every if k and k % every == 0 else 0 for k in range(length + 1)]
            self.ends += regular if norm == "l1" else checkpoints(length)
            self.opens += [k == 0 for k in range(length + 1)]
            self.closes += [k == length for k in range(length + 1)]
            self.factors += [phase.radius] * (length + 1)
        self.looks = len(self.ends)

    def prepare(self, seats: Seats) -> None:
        like, device = seats.pictures, seats.pictures.device
        self.x, self.before = torch.zeros_like(like), torch.zeros_like(like)
        self.low, self.high = torch.zeros_like(like), torch.zeros_like(like)
        self.best, self.best_gradient = torch.zeros_like(like), torch.zeros_like(like)
        zero = torch.zeros(seats.batch_size, dtype=torch.float64, device=device)
        self.value, self.best_value, self.checked_value = zero, zero, zero
        self.eta, self.share, self.changed = zero.clone(), zero.clone(), zero.clone()
        self.scale = torch.ones_like(zero)
        self.rises = torch.zeros(seats.batch_size, dtype=torch.long, device=device)
        self.halved = torch.ones(seats.batch_size, dtype=torch.bool, device=device)
        self.window = torch.tensor(self.ends, device=device)
        self.first = torch.tensor(self.opens, device=device)
        self.last = torch.tensor(self.closes, device=device)
        self.radius = torch.tensor([*self.factors, 1.0], dtype=torch.float64, device=device)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        pictures, eps = seats.pictures[rows], seats.eps[rows]
        if self.norm == "linf":
            self.low[rows], self.high[rows] = projections.linf_bounds(pictures, eps)
        begin = starts(rows, seats, self.norm, random=self.random_start)
        self.x[rows] = self.before[rows] = begin
        self.eta[rows] = self.factors[0] * eps if self.norm == "l1" else 2 * eps
        size = pictures[0].numel()
        given = torch.tensor(
            [seats.job(c).start is not None and not seats.restarts[c] for c in rows.tolist()],
            device=rows.device,
        )
        own = projections.l0_distance(pictures, begin)
        # A walk that begins on a sparse change goes on as sparsely.
        self.changed[rows] = torch.where(given, own, size).double()
        self.share[rows] = torch.where(given, own.clamp(min=1.5) / size / 1.5, 0.2).double()

    def propose(self, seats: Seats) -> Tensor:
        return self.x

    def scouting(self, seats: Seats) -> Tensor | None:
        if self.norm != "l1":
            return None
        return self.radius[seats.step.clamp(max=self.looks - 1)] > 1

    def advance(self, look: Look, seats: Seats) -> None:
        value, weights = self._loss(look, seats)
        gradient = look.gradient(weights)
        at = seats.step.clamp(max=self.looks - 1)
        first = self.first[at]
        better = first | (value > self.best_value)
        self.rises = torch.where(first, 0, self.rises + (value > self.value).long())
        self.halved = torch.where(first, True, self.halved)
        self.checked_value = torch.where(first, value, self.checked_value)
        self.best_value = torch.where(better, value, self.best_value)
        self.best = torch.where(projections.column(better), self.x, self.best)
        self.best_gradient = torch.where(projections.column(better), gradient, self.best_gradient)
        self.value = value
        x = self.x
        if any(self.ends[min(k, self.looks - 1)] for k in seats.walked):
            back = self._check(seats)
            x = torch.where(projections.column(back), self.best, x)
            gradient = torch.where(projections.column(back), self.best_gradient, gradient)
        if self.norm == "l1":
            eps = seats.eps * self.radius[at]
            self.x = self._sparse_step(x, gradient, eps, seats)
            if any(self.closes[min(k, self.looks - 1)] for k in seats.walked):
                self._next_phase(self.last[at], self.radius[at + 1] * seats.eps, seats)
            if any(k == self.looks - 2 for k in seats.walked):
                far = projections.farthest(seats.pictures, self.best_gradient, seats.eps, "l1")
                self.x = torch.where(projections.column(seats.step == self.looks - 2), far, self.x)
            return
        moved = self._into(x + self._direction(gradient), seats, exactly=False)
        fresh = projections.column(torch.where(first, 1.0, _FRESH)).to(x.dtype)
        mixed = x + fresh * (moved - x) + (1 - fresh) * (x - self.before)
        self.before = x
        self.x = self._into(mixed, seats, exactly=True)

    def _loss(self, look: Look, seats: Seats) -> tuple[Tensor, Tensor]:
        if self.loss == "ce":
            if self.rescale_logits:  # one scale, or losses could not be compared
                begin = self.first[seats.step.clamp(max=self.looks - 1)]
                self.scale = torch.where(begin, losses.temper(look.logits), self.scale)
            return losses.cross_entropy(
                look.logits, seats.labels, targeted=self.targeted, scale=self.scale
            )
        if self.loss == "margin":
            return losses.margin(look.logits, seats.labels, targeted=self.targeted)
        classes = look.logits.shape[1]
        needed = 3 if self.loss == "dlr" else 4
        if classes < needed:
            raise UserError(
                f"the {'' if needed == 3 else 'targeted '}DLR loss needs {needed} classes, "
                f'this model has {classes}; take loss="margin"'
            )
        if self.loss == "dlr":
            return losses.dlr(look.logits, seats.labels, targeted=self.targeted)
        return losses.dlr_towards(look.logits, seats.labels, seats.aims)

    def _check(self, seats: Seats) -> Tensor:
        """At the end of a window: new step sizes; (slots,) bool: who goes back to his best."""
        window = self.window[seats.step.clamp(max=self.looks - 1)]
        due = window > 0
        if self.norm == "l1":
            changed = projections.l0_distance(seats.pictures, self.best)
            sparser = due & (changed < 0.95 * self.changed)
            eps = seats.eps * self.radius[seats.step.clamp(max=self.looks - 1)]
            smaller = (self.eta / 1.5).clamp(min=eps / 10, max=eps)
            self.eta = torch.where(sparser, eps, torch.where(due, smaller, self.eta))
            share = changed / seats.pictures[0].numel() / 1.5
            self.share = torch.where(due, share, self.share)
            self.changed = torch.where(due, changed, self.changed)
            return sparser
        seldom = self.rises <= _RISES * window
        idle = ~self.halved & (self.checked_value >= self.best_value)
        halve = due & (seldom | idle)
        self.eta = torch.where(halve, self.eta / 2, self.eta)
        self.halved = torch.where(due, halve, self.halved)
        self.checked_value = torch.where(due, self.best_value, self.checked_value)
        self.rises = torch.where(due, 0, self.rises)
        return halve

    def _direction(self, gradient: Tensor) -> Tensor:
        eta = projections.column(self.eta)
        if self.norm == "linf":
            return eta.to(gradient.dtype) * gradient.sign()
        return eta.to(gradient.dtype) * projections.unit_l2(gradient)

    def _into(self, moved: Tensor, seats: Seats, *, exactly: bool) -> Tensor:
        if self.norm == "linf":
            return torch.clamp(moved, self.low, self.high)
        return projections.project(seats.pictures, moved, seats.eps, self.norm, exactly=exactly)

    def _sparse_step(self, x: Tensor, gradient: Tensor, eps: Tensor, seats: Seats) -> Tensor:
        """Along the signs of the share of components with the largest gradients."""
        flat = gradient.flatten(1)
        size = flat.abs()
        rank = ((1 - self.share) * size.shape[1]).long().clamp(0, size.shape[1] - 1)
        least = projections.row(ranked(size, rank))
        signs = torch.where(size >= least, flat.sign(), 0)
        count = signs.abs().sum(1).clamp(min=1)
        step = projections.row((self.eta / count).to(x.dtype)) * signs
        return projections.project(seats.pictures, x + step.view_as(x), eps, "l1")

    def _next_phase(self, due: Tensor, eps: Tensor, seats: Seats) -> None:
        """Go on in the next ball, from the best picture of the last one, as sparsely as it is."""
        begin = projections.project(seats.pictures, self.best, eps, "l1")
        self.x = torch.where(projections.column(due), begin, self.x)
        changed = projections.l0_distance(seats.pictures, begin)
        share = changed.clamp(min=1.5) / seats.pictures[0].numel() / 1.5
        self.eta = torch.where(due, eps, self.eta)
        self.changed = torch.where(due, changed, self.changed)
        self.share = torch.where(due, share, self.share)


def ranked(values: Tensor, rank: Tensor) -> Tensor:
    """(N,) the value of each row that `rank` (N,) others of it are below."""
    if values.device.type != "cpu":
        return values.sort(1).values.gather(1, projections.row(rank))[:, 0]
    # One selection a row is much less work than sorting it.
    rows = zip(values, rank.tolist(), strict=True)
    return torch.stack([row.kthvalue(r + 1).values for row, r in rows])
