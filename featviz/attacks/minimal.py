"""`minimal`: the smallest change of each picture that turns the model's answer, in one run.

In: a model, pictures (N, 3, H, W) in [0, 1], their labels, a norm and a number of passes. Out: an
`AttackResult` whose `distance` is the curve of accuracy against eps: a picture with distance d has
fallen at every eps >= d. A distance is an upper bound of the true smallest one: 0 for a picture
that is wrong by itself, inf for one where nothing was found.

`bisect` shortens what any attack has found; `minimal_eps` makes a smallest distance of any attack
with a budget. The published methods are beside it: `fmn`, `ddn`, `deepfool`, `superdeepfool` and
`sigma_zero`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from featviz import images
from featviz.attacks.boundary import Boundary, Plan
from featviz.attacks.checks import check_batch_size, check_labels, check_norm
from featviz.attacks.loop import Classifier, Look, Seats, Walk, classify
from featviz.attacks.options import AttackOptions, choose_precision
from featviz.attacks.result import AttackResult, find
from featviz.errors import UserError
from featviz.images import check_pictures
from featviz.models.frozen import frozen

NORMS = ("l0", "l1", "l2", "linf")
FEWEST_STEPS = 10


def minimal(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str,
    steps: int = 100,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The smallest change found in a norm that makes the model err (or reach the labels).

    model: pictures in [0, 1] to logits; a module is used in eval mode and left as it was
    pictures: (N, 3, H, W) in [0, 1]; labels: (N,) the true classes, or the classes to reach
    norm: "l0" (changed components; a pixel has three), "l1", "l2" or "linf"
    steps: passes a picture may cost, so many forward and so many backward, all included: the one
        that judges the clean picture, the estimate that orders the classes, the search, its
        polish, and the one that judges what 8 bits hold. 10 are the fewest; 100 are within a few
        per cent of 1,000 on AlexNets (docs/minimal-distances.md)
    targeted: reach the labels instead of leaving them
    eight_bit: look at pictures only as 8 bits hold them, and find the smallest change among those:
        what is found is adversarial in a file. The pictures themselves are rounded first
    margin: how far the wrong logit must be ahead
    clean: (N, classes) logits of the pictures, if they are known: saves the pass that judges them
    seed: of the random starts, which come in once every class has been tried
    slots: how many pictures the model sees at once (default 16, on CUDA 128). At equal slots a
        result does not depend on the order, the number or the content of the other pictures
    precision: "fp32", "bf16" for the first half of the search in bf16, while the boundary is far
        (what counts as found is judged in fp32 in any case), or "auto" to do so on processors that
        are faster at it

    The method is `boundary.Boundary`. Raises UserError for arguments out of range.

        found = minimal(model, pictures, labels, norm="l2")
        found.distance.median()
    """
    check_norm(norm, NORMS)
    precision = choose_precision(model, check_pictures(pictures), options.precision)
    options = replace(options, precision=precision)
    walk = Boundary(
        norm,
        plan(steps, norm, targeted=options.targeted),
        targeted=options.targeted,
        mixed=precision == "bfloat16",
        eight_bit=options.eight_bit,
    )
    return search_from_clean(
        model,
        walk,
        pictures,
        labels,
        attack="minimal",
        options=options,
    )


def plan(steps: int, norm: str = "l2", *, targeted: bool = False) -> Plan:
    """How `minimal` spends its passes. Raises UserError where they are too few."""
    if steps < FEWEST_STEPS:
        raise UserError(f"steps is {steps}; a smallest change takes {FEWEST_STEPS} passes or more")
    # The clean picture is judged by a pass of its own; one more judges what 8 bits hold.
    looks = steps - 2
    polish = max(3, min(12, steps // 8))
    # The polish needs no gradients: so many are left for the estimate at the clean picture.
    classes = 1 if targeted else min(9, polish)
    if norm == "l0":  # components are tried one by one: it takes as many looks as there are
        polish = max(polish, steps // 8)
    walking = looks - 1 - polish
    legs = 1 if targeted else max(1, min(9, walking // 20))
    leg = walking // 2 // legs
    return Plan(classes, legs, leg, walking - legs * leg, polish)


def search_from_clean(
    model: Classifier,
    walk: Walk,
    pictures: Tensor,
    labels: Tensor,
    *,
    attack: str,
    starts: Tensor | None = None,
    options: AttackOptions,
) -> AttackResult:
    """`find` without a ball, after one pass that judges the clean pictures.

    Pictures that are wrong by themselves never take a slot: those that do begin and end together,
    and the phases of a walk that cost more or less than a gradient fall together.
    """
    spent = 0
    if options.clean is None:
        pictures = check_pictures(pictures)
        check_labels(labels, len(pictures))
        pictures = images.quantize(pictures) if options.eight_bit else pictures
        with frozen(model):
            clean = classify(
                model, pictures, batch_size=check_batch_size(options.batch_size, pictures.device)
            )
        options, spent = replace(options, clean=clean), 1
    found = find(
        model,
        walk,
        pictures,
        labels,
        attack=attack,
        eps=None,
        starts=starts,
        options=options,
    )
    return replace(found, forwards=found.forwards + spent)


def bisect(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    adversarial: Tensor,
    *,
    norm: str = "l2",
    steps: int = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The segment from each picture to an adversarial one, halved towards the picture.

    adversarial: (N, 3, H, W) in [0, 1], from any attack; one that does not fool gives distance inf
    norm: the one in which distances are given; the segment is the same in all but L0, where it
        changes as many components as before
    steps: halvings; the distance is at most 2^-steps above that of a point of the boundary

    `steps` + 1 forward passes and no gradient. Other arguments as for `minimal`.
    Raises UserError for arguments out of range.
    """
    check_norm(norm, NORMS)
    if steps < 1:
        raise UserError(f"steps is {steps}; a segment is halved once or more")
    if adversarial.shape != pictures.shape:
        raise UserError(
            f"adversarial must have the pictures' shape {tuple(pictures.shape)}, "
            f"got {tuple(adversarial.shape)}"
        )
    starts = check_pictures(adversarial)
    return search_from_clean(
        model,
        _Segment(norm, steps),
        pictures,
        labels,
        attack="bisect",
        starts=starts,
        options=options,
    )


class _Segment(Walk):
    """Halves the segment between a picture and its start, as long as the start fools."""

    starts_at_picture = False
    leaves_at_hit = False
    uses_gradient = False

    def __init__(self, norm: str, halvings: int):
        self.norm, self.looks = norm, halvings + 1

    def prepare(self, seats: Seats) -> None:
        batch_size, device = seats.batch_size, seats.pictures.device
        self.ends = torch.zeros_like(seats.pictures)
        self.low = torch.zeros(batch_size, dtype=torch.float64, device=device)
        self.high, self.now = torch.ones_like(self.low), torch.ones_like(self.low)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        for c in rows.tolist():
            start = seats.job(c).start
            self.ends[c] = seats.pictures[c] if start is None else start
        self.low[rows], self.high[rows], self.now[rows] = 0.0, 1.0, 1.0

    def propose(self, seats: Seats) -> Tensor:
        part = self.now.to(seats.pictures.dtype).view(-1, 1, 1, 1)
        between = torch.lerp(seats.pictures, self.ends, part).clamp(0, 1)
        return torch.where(self.now.view(-1, 1, 1, 1) == 1, self.ends, between)

    def advance(self, look: Look, seats: Seats) -> None:
        self.high = torch.where(look.hit, self.now, self.high)
        # A start that does not fool leaves nothing to halve: stay there.
        self.low = torch.where(look.hit, self.low, torch.where(self.now < 1, self.now, 1.0))
        self.now = (self.low + self.high) / 2


def minimal_eps(
    attack: Callable[[Tensor, Tensor], Tensor],
    count: int,
    *,
    largest: float,
    steps: int = 12,
) -> Tensor:
    """(N,) float64: the smallest eps at which each picture falls to an attack with a budget.

    attack: told which pictures, rows (k,), and an eps for each, (k,) float64, gives the distances
        (k,) at which they fell, inf where they stood: whatever can be had within eps
    count: N; largest: the eps to begin with; a picture that stands there gets inf
    steps: halvings of [0, largest]. A fall at a distance below eps shortens the interval to it

    Whoever falls at some eps has fallen at all larger ones, so each answer is an upper bound, and
    a failed attack in between makes it larger than need be, never smaller.

        def attack(rows, eps):
            return apgd(model, x[rows], y[rows], eps=eps).distance
        distances = minimal_eps(attack, len(x), largest=8 / 255)
    """
    if not 0 < largest < float("inf") or steps < 0:
        raise UserError(f"largest is {largest:g}; it must be above 0, and steps 0 or more")
    everyone = torch.arange(count)
    found = _attacked(attack, everyone, torch.full((count,), largest, dtype=torch.float64))
    low = torch.zeros_like(found)
    for _ in range(steps):
        rows = everyone[found.isfinite() & (found > 0)]
        if not len(rows):
            break
        eps = (low[rows] + found[rows]) / 2
        distance = _attacked(attack, rows, eps)
        low[rows] = torch.where(distance.isfinite(), low[rows], eps)
        found[rows] = torch.minimum(found[rows], distance)
    return found


def _attacked(attack: Callable[[Tensor, Tensor], Tensor], rows: Tensor, eps: Tensor) -> Tensor:
    distance = attack(rows, eps).detach().cpu().double()
    if distance.shape != rows.shape:
        raise UserError(
            f"an attack on {len(rows)} pictures must give as many distances, "
            f"got shape {tuple(distance.shape)}"
        )
    return torch.where(distance <= eps, distance, torch.inf)
