"""The one loop of the iterated attacks: a fixed number of slots, refilled as pictures are decided.

A job is one picture with its label and eps. The model always sees batches of exactly `slots`
pictures: as soon as a picture is decided its slot goes to the next job, and slots without a job
are computed and ignored. That has two uses. No pass is spent on what is decided. And since the
batch shape never changes, the arithmetic on a picture does not change either: on the CPU its
result is the same, bit for bit, whatever the order, the number and the content of the others (a
library may choose another kernel, and other last bits, for another batch size, so results are
compared at equal `slots`).

How an attack moves is a `Walk`: the state of one walk a slot, as tensors with `slots` rows. The
loop asks it for pictures (`propose`), shows it what the model says of them (`advance`, with a
`Look`), and keeps for it what was found, what was spent and when. A walk has no loop of its own
and decides nothing about leaving, but for `finished`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featviz.attacks import projections
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
    """radius of the ball; inf where there is none"""
    key: int
    """of its random numbers (`projections.picture_key`)"""
    tag: Any = None
    """whatever the caller wants to find again"""
    known_right: bool = False
    """the clean picture has been judged already: do not spend a pass on it"""
    aim: int = 0
    """the class that the loss goes for, where a walk wants one; what counts is the label alone"""
    start: Tensor | None = None
    """(3, H, W): where to begin, for walks that can; within the ball"""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    picture: Tensor
    """(3, H, W): what was found (the first that fooled, or the nearest where the walk goes on
    after a success), else the picture that came nearest to fooling"""
    success: bool
    already: bool
    """the clean picture was wrong (or on target) by itself; nothing was done"""
    clean: int | None
    """the class of the clean picture"""
    predicted: int
    """the class of `picture`"""
    margin: float
    """by how much the attack has won at `picture` (above 0), or has not yet"""
    steps: int
    """steps up to `picture`, over all restarts"""
    first_step: int
    """steps up to the first success, -1 without"""
    made: int
    """steps made in all"""
    looks: int
    """how often the model was shown a picture of the walk"""
    forwards: int
    backwards: int
    zero_gradients: int
    """gradients that were 0 everywhere or not finite"""
    trace: Tensor
    """(walk's looks x restarts,): the margin at each look, on the CPU; nan where there was none
    or where it was outside the ball"""


class Seats:
    """What sits in the slots: tensors with `slots` rows, and what the host knows of each."""

    def __init__(self, like: Tensor, batch_size: int):
        device = like.device
        self.batch_size = batch_size
        self.pictures = like.new_zeros(batch_size, *like.shape)
        """(slots, 3, H, W) the clean pictures"""
        self.labels = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.aims = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.eps = torch.ones(batch_size, dtype=torch.float64, device=device)
        self.step = torch.zeros(batch_size, dtype=torch.long, device=device)
        """steps that the present walk has made"""
        self.jobs: list[Job | None] = [None] * batch_size
        self.restarts = [0] * batch_size
        """which walk of its job a slot is in"""
        self.walked = [0] * batch_size
        """`step` as the host knows it"""

    def job(self, row: int) -> Job:
        """The job of an occupied slot."""
        job = self.jobs[row]
        assert job is not None
        return job

    def stream(self, row: int) -> torch.Generator:
        """The random numbers of the walk in a slot: of its picture, the seed and the restart."""
        return projections.generator(self.job(row).key, self.restarts[row])


class Look:
    """What the model says of the pictures proposed; gradients on demand."""

    def __init__(
        self, pictures: Tensor, logits: Tensor, raw: Tensor, active: Tensor, climbing: Sequence[int]
    ):
        self.pictures = pictures
        """(slots, 3, H, W) as the model saw them; not to be written to"""
        self.logits = logits
        """(slots, classes) in float64"""
        self.active = active
        """(slots,) bool: the walks that go on from here; what becomes of other rows is ignored"""
        self.predicted = logits.argmax(1)
        self.margin: Tensor
        """(slots,) float64: by how much the attack has won (above 0) or has not yet"""
        self.hit: Tensor
        """(slots,) bool: it has won"""
        self.climbing = climbing
        """the same as the host knows it: their slots, ascending"""
        self.backwards = 0
        self.zero: Tensor | None = None
        self._raw = raw

    def gradient(self, weights: Tensor, *, more: bool = False) -> Tensor:
        """(slots, 3, H, W): the gradient at the pictures of the sum of weights * logits.

        weights: (slots, classes). more: another gradient of this look is going to be asked for.
        Rows that are not active, and rows whose gradient is not finite, are 0 throughout. One
        backward pass for every active picture is counted.
        """
        ascent = (weights * projections.row(self.active)).to(self._raw.dtype)
        (gradient,) = torch.autograd.grad(self._raw, self.pictures, ascent, retain_graph=more)
        size = gradient.flatten(1).abs().amax(1)
        usable = (size > 0) & size.isfinite()
        missing = (~usable & self.active).long()
        self.zero = missing if self.zero is None else self.zero + missing
        self.backwards += 1
        return torch.where(projections.column(usable), gradient, 0)


class Walk(ABC):
    """How an attack moves: one walk a slot, side by side.

    All tensors have `slots` rows; a row must depend on the same row of its inputs only. Rows of
    free slots may hold anything finite.
    """

    looks: int
    """pictures that one walk proposes at most: its steps + 1, since the last step is looked at"""
    norm: str = "linf"
    starts_at_picture: bool = True
    """the first proposal is the clean picture itself, which then need not be judged before"""
    leaves_at_hit: bool = True
    """the first success decides; otherwise the walk ends by itself and the nearest one counts"""
    uses_gradient: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, seats: Seats) -> None:
        """Make the state for `seats.slots` walks. Called once, before anything else."""

    @abstractmethod
    def seat(self, rows: Tensor, seats: Seats) -> None:
        """Begin new walks in the slots `rows` (k,): the jobs are in `seats` already."""

    @abstractmethod
    def propose(self, seats: Seats) -> Tensor:
        """(slots, 3, H, W) to be shown to the model, within ball and box."""

    @abstractmethod
    def advance(self, look: Look, seats: Seats) -> None:
        """Take one step from what the model says; `look.active` are the walks that go on."""

    def scouting(self, seats: Seats) -> Tensor | None:
        """(slots,) bool: what was proposed last lies outside the ball and cannot be a success."""
        return None

    def rough(self, seats: Seats) -> list[bool] | None:
        """For each slot: an answer in fewer bits does for what was proposed last.

        Such a look counts as a pass and is shown to the walk, but nothing is kept of it.
        """
        return None

    def finished(self) -> Tensor | None:
        """(slots,) bool: walks that have nothing more to try after what was proposed last."""
        return None


class _Book:
    """What was found in each slot, and what it cost."""

    def __init__(self, seats: Seats, looks: int):
        device, batch_size = seats.pictures.device, seats.batch_size

        def number(value: float) -> Tensor:
            return torch.full((batch_size,), value, dtype=torch.float64, device=device)

        def count(value: int) -> Tensor:
            return torch.full((batch_size,), value, dtype=torch.long, device=device)

        self.best = torch.zeros_like(seats.pictures)
        self.margin, self.distance = number(-torch.inf), number(torch.inf)
        self.predicted, self.steps = count(-1), count(0)
        self.clean, self.first, self.zero = count(-1), count(-1), count(0)
        self.made, self.looked = count(0), count(0)  # steps and looks, over all restarts
        self.success = torch.zeros(batch_size, dtype=torch.bool, device=device)
        self.trace = number(torch.nan)[:, None].repeat(1, looks)
        self.forwards, self.backwards = [0] * batch_size, [0] * batch_size

    def open(self, rows: Tensor, pictures: Tensor) -> None:
        self.best[rows] = pictures
        self.margin[rows], self.distance[rows] = -torch.inf, torch.inf
        self.success[rows] = False
        self.trace[rows] = torch.nan
        for counts, value in (
            (self.predicted, -1),
            (self.steps, 0),
            (self.clean, -1),
            (self.first, -1),
            (self.zero, 0),
            (self.made, 0),
            (self.looked, 0),
        ):
            counts[rows] = value
        for c in rows.tolist():
            self.forwards[c] = self.backwards[c] = 0

    def enter(
        self,
        look: Look,
        hit: Tensor,
        held: Tensor,
        walking: Tensor,
        scouting: Tensor | None,
        distance: Tensor | None,
    ) -> None:
        """Keep what a look has shown in the slots `held`; in `walking` it was the walk's own."""
        hit = hit & held
        better = hit & ~self.success
        if distance is not None:
            better |= hit & (distance < self.distance)
            self.distance = torch.where(better, distance, self.distance)
        better |= held & ~hit & ~self.success & (look.margin > self.margin)
        self.best = torch.where(projections.column(better), look.pictures.detach(), self.best)
        self.margin = torch.where(better, look.margin, self.margin)
        self.predicted = torch.where(better, look.predicted, self.predicted)
        self.steps = torch.where(better, self.made, self.steps)
        self.first = torch.where(hit & ~self.success, self.made, self.first)
        self.success |= hit
        place = self.looked.clamp(max=self.trace.shape[1] - 1)[:, None]
        shown = walking if scouting is None else walking & ~scouting
        now = torch.where(shown, look.margin, self.trace.gather(1, place)[:, 0])
        self.trace.scatter_(1, place, now[:, None])
        self.looked += walking

    def close(self, seats: Seats, rows: Sequence[int], already: Sequence[bool]) -> list[Outcome]:
        device = self.best.device
        at = torch.tensor(rows, device=device)
        pictures = self.best[at]
        traces = self.trace[at].cpu()
        numbers = torch.stack(
            [
                v[at].double()
                for v in (
                    self.success,
                    self.clean,
                    self.predicted,
                    self.margin,
                    self.steps,
                    self.first,
                    self.made,
                    self.looked,
                    self.zero,
                )
            ],
            1,
        ).tolist()
        return [
            Outcome(
                picture=seats.job(c).picture.clone() if was else pictures[i].clone(),
                success=bool(n[0]),
                already=was,
                clean=None if n[1] < 0 else int(n[1]),
                predicted=int(n[2]),
                margin=n[3],
                steps=int(n[4]),
                first_step=int(n[5]),
                made=int(n[6]),
                looks=int(n[7]),
                forwards=self.forwards[c],
                backwards=self.backwards[c],
                zero_gradients=int(n[8]),
                trace=traces[i],
            )
            for i, (c, was, n) in enumerate(zip(rows, already, numbers, strict=True))
        ]


def run(
    model: Classifier,
    jobs: Iterable[Job],
    walk: Walk,
    *,
    batch_size: int,
    done: Callable[[Job, Outcome], Job | None],
    targeted: bool = False,
    restarts: int = 1,
    eight_bit: bool = False,
    margin: float = 0.0,
    fast: Classifier | None = None,
) -> int:
    """Run all jobs; gives back how many classes the model has (0 if there was no job).

    done: is told each outcome and may give a further job in its place
    targeted: the label is to be reached, not left
    restarts: walks of a job, until one succeeds (all, where the walk does not leave at a success)
    eight_bit: show the model what 8 bits can hold, within eps; the walk keeps its own pictures
    margin: by how much the wrong logit must win
    fast: the model in fewer bits, for the looks that a walk calls `rough`

    To be called within `frozen(model)`. Raises UserError where the logits are not finite or of
    another shape than (slots, classes).
    """
    waiting = deque(jobs)
    if not waiting:
        return 0
    seats = Seats(waiting[0].picture, batch_size)
    device = seats.pictures.device
    walk.prepare(seats)
    book = _Book(seats, walk.looks * restarts)
    checking = [False] * batch_size  # the next look is (also) the clean picture's
    begin: list[int] = []
    classes = 0
    free = list(range(batch_size))
    while True:
        fresh = [(free.pop(0), waiting.popleft()) for _ in range(min(len(free), len(waiting)))]
        if fresh:
            _sit(seats, book, fresh)
            for c, job in fresh:
                checking[c] = not job.known_right
                if job.known_right or walk.starts_at_picture:
                    begin.append(c)
        if begin:
            rows = torch.tensor(sorted(begin), device=device)
            seats.step[rows] = 0
            walk.seat(rows, seats)
            for c in begin:
                seats.walked[c] = 0
            begin = []
        taken = [c for c in range(batch_size) if seats.jobs[c] is not None]
        if not taken:
            return classes

        proposed = walk.propose(seats)
        judged_only = [] if walk.starts_at_picture else [c for c in taken if checking[c]]
        if judged_only:
            proposed = torch.where(
                projections.column(_mask(judged_only, batch_size, device)), seats.pictures, proposed
            )
        if eight_bit:
            proposed = projections.on_levels(seats.pictures, proposed, seats.eps, walk.norm)
        leaf = proposed.detach().requires_grad_(walk.uses_gradient)
        rough = [] if fast is None else _rough(walk, seats, [c for c in taken if not checking[c]])
        raw = _answer(model, fast, leaf, taken, rough, walk.uses_gradient)
        classes = raw.shape[1]
        look = Look(leaf, raw.detach().double(), raw, torch.empty(0), [])
        look.margin = _margins(look.logits, seats.labels, targeted)
        look.hit = hit = _hits(look, seats.labels, targeted, margin)
        if any(checking):
            check = _mask([c for c in taken if checking[c]], batch_size, device)
            by_itself = (look.predicted == seats.labels) == targeted
            hit = torch.where(check, by_itself, hit)
            book.clean = torch.where(check, look.predicted, book.clean)
        held = _mask(taken, batch_size, device)
        scouting = walk.scouting(seats)
        if rough:
            in_few_bits = _mask(rough, batch_size, device)
            scouting = in_few_bits if scouting is None else scouting | in_few_bits
        if scouting is not None:
            if judged_only:
                scouting = scouting & ~_mask(judged_only, batch_size, device)
            hit, held = hit & ~scouting, held & ~scouting
        walking = _mask([c for c in taken if c not in judged_only], batch_size, device)
        if judged_only:  # the clean picture is no try of a walk that does not begin there
            held = held & (walking | hit)
        distance = None
        if not walk.leaves_at_hit:
            distance = projections.distance(seats.pictures, look.pictures.detach(), walk.norm)
        book.enter(look, hit, held, walking, scouting, distance)
        over = walk.finished()
        flags = hit.long() + 2 * look.margin.isnan().long()
        told = (flags if over is None else flags + 4 * over.long()).tolist()  # the one wait

        leaving: list[int] = []
        already: list[bool] = []
        climbing: list[int] = []
        for c in taken:
            flag = told[c]
            if flag & 2:
                raise UserError("the model gives logits that are not finite; no attack can go on")
            book.forwards[c] += 1
            was_clean, checking[c] = checking[c], False
            ended = bool(flag & 4) or seats.walked[c] + 1 >= walk.looks
            if was_clean and not walk.starts_at_picture:
                if flag & 1 or seats.job(c).eps == 0:
                    leaving.append(c)
                    already.append(bool(flag & 1))
                else:
                    begin.append(c)
                continue
            if (
                (flag & 1 and (walk.leaves_at_hit or was_clean))
                or seats.job(c).eps == 0
                or (ended and seats.restarts[c] + 1 >= restarts)
            ):
                leaving.append(c)
                already.append(bool(flag & 1) and was_clean)
            elif ended:
                seats.restarts[c] += 1
                begin.append(c)
            else:
                climbing.append(c)
        if climbing:
            look.active, look.climbing = _mask(climbing, batch_size, device), climbing
            walk.advance(look, seats)
            seats.step += look.active
            book.made += look.active
            if look.zero is not None:
                book.zero += look.zero
            for c in climbing:
                seats.walked[c] += 1
                book.backwards[c] += look.backwards
        if leaving:
            outcomes = book.close(seats, leaving, already)
            ended_jobs = [seats.job(c) for c in leaving]
            for c in leaving:
                seats.jobs[c] = None
            free = sorted(free + leaving)
            further = [done(j, o) for j, o in zip(ended_jobs, outcomes, strict=True)]
            waiting.extendleft(job for job in reversed(further) if job is not None)


def _rough(walk: Walk, seats: Seats, rows: Sequence[int]) -> list[int]:
    marked = walk.rough(seats)
    return [] if marked is None else [c for c in rows if marked[c]]


def _answer(
    model: Classifier,
    fast: Classifier | None,
    leaf: Tensor,
    taken: Sequence[int],
    rough: Sequence[int],
    with_gradient: bool,
) -> Tensor:
    """Logits, those of the slots `rough` in few bits, the others by the model itself."""
    if fast is None or not rough:
        return _forward(model, leaf, with_gradient)
    answer = _forward(fast, leaf, with_gradient)
    if len(rough) == len(taken):
        return answer
    # A row must not depend on what its neighbours are at.
    mask = _mask(rough, len(leaf), leaf.device)
    return torch.where(projections.row(mask), answer, _forward(model, leaf, with_gradient))


def _sit(seats: Seats, book: _Book, fresh: Sequence[tuple[int, Job]]) -> None:
    rows = torch.tensor([c for c, _ in fresh], device=seats.pictures.device)
    jobs = [job for _, job in fresh]
    pictures = torch.stack([job.picture for job in jobs])
    seats.pictures[rows] = pictures
    for tensor, name in ((seats.labels, "label"), (seats.aims, "aim"), (seats.eps, "eps")):
        values = [getattr(job, name) for job in jobs]
        tensor[rows] = torch.tensor(values, dtype=tensor.dtype, device=tensor.device)
    for c, job in fresh:
        seats.jobs[c], seats.restarts[c] = job, 0
    book.open(rows, pictures)


def _mask(rows: Sequence[int], batch_size: int, device: torch.device) -> Tensor:
    mask = [False] * batch_size
    for c in rows:
        mask[c] = True
    return torch.tensor(mask, device=device)


def _forward(model: Classifier, leaf: Tensor, with_gradient: bool) -> Tensor:
    with torch.set_grad_enabled(with_gradient):
        logits = model(leaf)
    if logits.dim() != 2 or logits.shape[0] != len(leaf) or logits.shape[1] < 2:
        raise UserError(
            f"an attack needs logits of shape ({len(leaf)}, classes) with 2 classes or more, "
            f"the model gives {tuple(logits.shape)}"
        )
    return logits


def _margins(z: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    """(N,) by how much the attack has won (above 0) or not yet; nan where logits are not finite."""
    own = z.gather(1, labels[:, None])[:, 0]
    others = z.scatter(1, labels[:, None], -torch.inf).amax(1)
    margin = own - others if targeted else others - own
    return torch.where(z.isfinite().all(1), margin, torch.nan)


def _hits(look: Look, labels: Tensor, targeted: bool, margin: float) -> Tensor:
    if margin > 0:
        return look.margin > margin
    return (look.predicted == labels) == targeted


def default_batch_size(device: torch.device) -> int:
    """How many pictures the model sees at once unless told otherwise."""
    return 128 if device.type == "cuda" else 8


def classify(model: Classifier, pictures: Tensor, *, batch_size: int) -> Tensor:
    """Logits (N, classes), computed in the same batch shape as the attacks' own."""
    parts = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        parts.append(_forward(model, _padded(batch, batch_size), False)[: len(batch)])
    return torch.cat(parts)


def differentiable(model: Classifier, batch: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """At most `slots` pictures, filled up to `slots`, and their logits with the graph between."""
    leaf = _padded(batch, batch_size).requires_grad_(True)
    return leaf, _forward(model, leaf, True)


def _padded(batch: Tensor, batch_size: int) -> Tensor:
    padded = batch.new_zeros(batch_size, *batch.shape[1:])
    padded[: len(batch)] = batch
    return padded
