"""The one loop of the iterated attacks: a fixed number of slots, refilled as pictures are decided.

A job is one picture with its label and eps. The model always sees batches of exactly `slots`
pictures: as soon as a picture is decided its slot goes to the next job, and slots without a job
are computed and ignored. That has two uses. No pass is spent on what is decided. And since the
batch shape never changes, the arithmetic on a picture does not change either: on the CPU its
result is the same, bit for bit, whatever the order, the number and the content of the others (a
library may choose another kernel, and other last bits, for another batch size, so results are
compared at equal `slots`).

The ascent direction is that of cross-entropy. With p = softmax(logits), the gradient of -log p_y
at the logits is (1 - p_y) * (softmax of the others - onehot of y). The positive factor 1 - p_y
changes neither a sign step nor a normalised step, but underflows to 0 on a confident model; it is
left out, so that confidence does not stop the attack.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from featviz.adversarial import balls
from featviz.errors import UserError

Classifier = Callable[[Tensor], Tensor]
"""pictures (N, 3, H, W) in [0, 1] to logits (N, classes)"""


@dataclass(frozen=True)
class Job:
    """One picture to be fooled."""

    picture: Tensor
    """(3, H, W)"""
    label: int
    """the class to leave; with `targeted`, the class to reach"""
    eps: float
    key: int
    """of its random starts (`balls.picture_key`)"""
    tag: Any = None
    """whatever the caller wants to find again"""
    known_right: bool = False
    """the clean picture has been judged already: do not spend a pass on it"""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    picture: Tensor
    """(3, H, W): the first picture that fooled, else the one that came nearest to it"""
    success: bool
    already: bool
    """the clean picture was wrong (or on target) by itself; nothing was done"""
    clean: int | None
    """the class of the clean picture"""
    predicted: int
    """the class of `picture`"""
    steps: int
    """gradient steps up to `picture`, over all restarts"""
    forwards: int
    backwards: int
    zero_gradients: int
    """steps at which the gradient was exactly 0 everywhere"""


@dataclass(frozen=True)
class Settings:
    """How a projected gradient attack walks."""

    norm: str = "linf"
    steps: int = 40
    step_size: float | None = None
    """in units of eps; None is 2.5 / steps in L-infinity, 5 / steps in L2"""
    restarts: int = 1
    random_start: bool = True
    targeted: bool = False
    eight_bit: bool = False
    margin: float = 0.0
    """by how much the wrong logit must win"""


@dataclass
class _Slot:
    job: Job
    checking: bool
    step: int = 0
    restart: int = 0
    clean: int | None = None
    steps: int = 0
    forwards: int = 0
    backwards: int = 0
    zero_gradients: int = 0
    best_margin: float = field(default=-float("inf"))
    best_class: int = -1
    best_steps: int = 0


def default_slots(device: torch.device) -> int:
    """How many pictures the model sees at once unless told otherwise."""
    return 128 if device.type == "cuda" else 16


def search(
    model: Classifier,
    jobs: Iterable[Job],
    settings: Settings,
    *,
    slots: int,
    done: Callable[[Job, Outcome], Job | None],
) -> None:
    """Run all jobs; `done` is told each outcome and may give a further job in its place.

    To be called within `frozen(model)`.
    """
    waiting = deque(jobs)
    if not waiting:
        return
    like = waiting[0].picture
    x0 = like.new_zeros(slots, *like.shape)
    x, best = x0.clone(), x0.clone()
    low, high = x0.clone(), x0.clone()
    eps = torch.zeros(slots, dtype=torch.float64, device=like.device)
    labels = torch.zeros(slots, dtype=torch.long, device=like.device)
    seats: list[_Slot | None] = [None] * slots
    # In L-infinity 2.5 eps cross the ball. On the L2 sphere all steps together, of length L in
    # units of eps, turn tan(angle / 2) down by exp(-L): 2.5 would leave 9 degrees of 90, 5 none.
    length = 2.5 if settings.norm == "linf" else 5.0
    fraction = settings.step_size if settings.step_size is not None else length / settings.steps

    def sit(c: int, job: Job) -> None:
        seats[c] = _Slot(job, checking=not job.known_right)
        x0[c] = best[c] = x[c] = job.picture
        eps[c], labels[c] = job.eps, job.label
        if settings.norm == "linf":
            low[c : c + 1], high[c : c + 1] = balls.linf_bounds(x0[c : c + 1], eps[c : c + 1])
        else:
            low[c], high[c] = -x0[c], 1 - x0[c]
        if job.known_right and settings.random_start:
            begin(c, job, 0)

    def begin(c: int, job: Job, restart: int) -> None:
        stream = balls.generator(job.key, restart)
        x[c] = balls.random_start(x0[c], job.eps, settings.norm, stream)

    while True:
        for c in range(slots):
            if seats[c] is None and waiting:
                sit(c, waiting.popleft())
        if all(seat is None for seat in seats):
            return
        seen = balls.on_levels(x0, x, eps, settings.norm) if settings.eight_bit else x.clone()
        leaf = seen.requires_grad_(True)
        logits = _forward(model, leaf)
        predicted, margins = _judge(logits, labels, settings.targeted)
        hits = margins > settings.margin if settings.margin > 0 else _hits(
            predicted, labels, settings.targeted
        )  # fmt: skip
        climbing: list[int] = []
        for c, seat in enumerate(seats):
            if seat is None:
                continue
            seat.forwards += 1
            job, margin, hit = seat.job, float(margins[c]), bool(hits[c])
            if math.isnan(margin):
                raise UserError("the model gives logits that are not finite; no attack can go on")
            if seat.checking:
                seat.clean = int(predicted[c])
                hit = (seat.clean == job.label) == settings.targeted
            if hit or margin > seat.best_margin:
                seat.best_margin, seat.best_class = margin, int(predicted[c])
                seat.best_steps = seat.steps
                best[c] = seen.detach()[c]
            over = seat.step == settings.steps
            if hit or job.eps == 0 or (over and seat.restart + 1 == settings.restarts):
                further = done(job, _outcome(seat, best[c], hit))
                seats[c] = None
                if further is not None:
                    waiting.appendleft(further)
            elif seat.checking and settings.random_start:
                seat.checking = False
                begin(c, job, 0)
            elif over:
                seat.restart, seat.step = seat.restart + 1, 0
                begin(c, job, seat.restart)
            else:
                seat.checking = False
                climbing.append(c)
        if climbing:
            rows = torch.tensor(climbing, device=like.device)
            gradient = _gradient(logits, leaf, labels, rows, settings.targeted)
            flat = gradient.flatten(1).abs().amax(1)
            moved = _step(x0, x, gradient, fraction * eps, eps, low, high, settings.norm)
            x[rows] = moved[rows]
            for c in climbing:
                climber = seats[c]
                assert climber is not None
                climber.step += 1
                climber.steps += 1
                climber.backwards += 1
                climber.zero_gradients += int(flat[c] == 0)


def _outcome(seat: _Slot, picture: Tensor, hit: bool) -> Outcome:
    already = hit and seat.checking
    return Outcome(
        picture=seat.job.picture.clone() if already else picture.clone(),
        success=hit,
        already=already,
        clean=seat.clean,
        predicted=seat.best_class,
        steps=seat.best_steps,
        forwards=seat.forwards,
        backwards=seat.backwards,
        zero_gradients=seat.zero_gradients,
    )


def _forward(model: Classifier, leaf: Tensor) -> Tensor:
    with torch.enable_grad():
        logits = model(leaf)
    if logits.dim() != 2 or logits.shape[0] != len(leaf) or logits.shape[1] < 2:
        raise UserError(
            f"an attack needs logits of shape ({len(leaf)}, classes) with 2 classes or more, "
            f"the model gives {tuple(logits.shape)}"
        )
    return logits


def _judge(logits: Tensor, labels: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    """The class of each picture and by how much the attack has won (above 0) or not yet."""
    z = logits.detach().double()
    own = z.gather(1, labels[:, None])[:, 0]
    others = z.scatter(1, labels[:, None], -torch.inf).amax(1)
    finite = z.isfinite().all(1)
    margin = own - others if targeted else others - own
    return z.argmax(1), torch.where(finite, margin, torch.nan)


def _hits(predicted: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    return predicted == labels if targeted else predicted != labels


def _gradient(logits: Tensor, leaf: Tensor, labels: Tensor, rows: Tensor, targeted: bool) -> Tensor:
    """The direction of steepest ascent of the loss, up to a positive factor, in `rows` only."""
    z = logits.detach().double()[rows]
    own = torch.zeros_like(z).scatter_(1, labels[rows, None], 1.0)
    others = z.masked_fill(own.bool(), -torch.inf).softmax(1)
    ascent = torch.zeros_like(logits)
    ascent[rows] = (own - others if targeted else others - own).to(logits.dtype)
    (gradient,) = torch.autograd.grad(logits, leaf, ascent)
    return gradient


def _step(
    x0: Tensor,
    x: Tensor,
    gradient: Tensor,
    length: Tensor,
    eps: Tensor,
    low: Tensor,
    high: Tensor,
    norm: str,
) -> Tensor:
    """One step along the gradient and back into the ball; `low` and `high` as `search` has them."""
    if norm == "linf":
        moved = x + (balls.column(length) * gradient.sign()).to(x.dtype)
        return torch.clamp(moved, low, high)
    direction = unit_l2(gradient)
    delta = (x - x0) + (balls.column(length) * direction).to(x.dtype)
    return balls.inside_l2(x0, x0 + balls.project_l2(delta, low, high, eps), eps)


def unit_l2(gradient: Tensor) -> Tensor:
    """Each picture's gradient scaled to length 1 in float64; a gradient of 0 stays 0."""
    g = gradient.double()
    g = g / balls.column(g.flatten(1).abs().amax(1).clamp(min=1e-300))  # squares cannot underflow
    return g / balls.column(g.flatten(1).square().sum(1).sqrt().clamp(min=1e-300))


def steepest(pictures: Tensor, gradient: Tensor, eps: Tensor, norm: str) -> Tensor:
    """One full step of size eps along the gradient, inside the ball: the picture of FGSM."""
    if norm == "linf":
        low, high = balls.linf_bounds(pictures, eps)
    else:
        low, high = -pictures, 1 - pictures
    return _step(pictures, pictures, gradient, eps, eps, low, high, norm)


def classify(model: Classifier, pictures: Tensor, *, slots: int) -> Tensor:
    """Logits (N, classes), computed in the same batch shape as the attacks' own."""
    parts = []
    for start in range(0, len(pictures), slots):
        batch = pictures[start : start + slots]
        leaf = _padded(batch, slots).requires_grad_(True)
        parts.append(_forward(model, leaf).detach()[: len(batch)])
    return torch.cat(parts)


def gradients(
    model: Classifier, pictures: Tensor, labels: Tensor, *, slots: int, targeted: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and the attacks' gradient (N, 3, H, W) at the pictures."""
    logits, found = [], []
    for start in range(0, len(pictures), slots):
        batch = pictures[start : start + slots]
        leaf = _padded(batch, slots).requires_grad_(True)
        z = _forward(model, leaf)
        rows = torch.arange(len(batch), device=batch.device)
        own = labels.new_zeros(slots)
        own[: len(batch)] = labels[start : start + slots]
        found.append(_gradient(z, leaf, own, rows, targeted)[: len(batch)])
        logits.append(z.detach()[: len(batch)])
    return torch.cat(logits), torch.cat(found)


def _padded(batch: Tensor, slots: int) -> Tensor:
    padded = batch.new_zeros(slots, *batch.shape[1:])
    padded[: len(batch)] = batch
    return padded
