"""`minimal`: the smallest change of each picture that turns the prediction, in one run.

In: a model, pictures (N, 3, H, W) in [0, 1], their labels, a norm and a number of passes. Out: an
`AttackResult` whose `distance` is the curve of accuracy against eps: a picture with distance d is
fooled at every eps >= d. A distance is an upper bound of the true smallest one: 0 for a picture
that is wrong by itself, inf for one where nothing was found.

`bisect` shortens what any attack has found. The published methods are beside it: `fmn`, `ddn`,
`deepfool`, `superdeepfool` and `sigma_zero`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.boundary import BoundarySearch, Plan, SearchInBall
from featviz.attacks.evaluation import Attack, Batch, Evaluation
from featviz.attacks.loop import run_attack
from featviz.attacks.options import AttackOptions, Classifier, check_norm, choose_precision
from featviz.attacks.result import AttackResult
from featviz.errors import UserError, public
from featviz.pictures.images import check_pictures
from featviz.types import SearchSteps

NORMS = ("l0", "l1", "l2", "linf")
FEWEST_STEPS = 10


@public
def minimal(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str,
    steps: SearchSteps = 100,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The smallest change found in a norm that makes the model err (or reach the labels).

    The method is `boundary.BoundarySearch`.

    Args:
        model: Pictures in [0, 1] to logits (N, classes); a module is used in eval mode and left as
            it was.
        pictures: (N, 3, H, W) in [0, 1].
        labels: (N,) the true classes, or the classes to reach.
        norm: "l0" (changed components; a pixel has three), "l1", "l2" or "linf".
        steps: Passes that a picture may cost, so many forward and so many backward: the estimate at
            the clean picture, which also judges it and orders the classes, the search, its polish,
            and the pass that judges what 8 bits hold. 10 are the fewest; 100 are within a few per
            cent of 1,000 on AlexNets (docs/minimal-distances.md).
        options: What all attacks share. With `eight_bit` the smallest change that a file holds is
            searched; `precision` "bfloat16" makes the first half of the search in bfloat16, while
            the boundary is far.

    Raises:
        UserError: An argument is out of range.

    Example:
        found = featviz.minimal(model, pictures, labels, norm="l2")
        found.distance.median()
    """
    check_norm(norm, NORMS)
    options.refuse("minimal", "restarts")
    precision = choose_precision(model, check_pictures(pictures, channels=None), options.precision)
    mixed = precision == "bfloat16"
    # In bfloat16 the clean picture is judged by a float32 pass of its own.
    planned = plan(steps, norm, targeted=options.targeted, apart=int(mixed))
    return run_attack(
        model,
        BoundarySearch(norm, planned, mixed=mixed),
        pictures,
        labels,
        name="minimal",
        eps=None,
        options=replace(options, precision=precision),
    )


def search_in_ball(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: Tensor,
    norm: str,
    passes: int,
    options: AttackOptions,
) -> AttackResult:
    """As `minimal`, but each picture leaves once its change is no larger than `eps` (N,).

    `success` and `distance` are those of the nearest picture that fools, in the ball or not
    (`result.within_ball` keeps those in it).
    """
    attack = SearchInBall(norm, plan(passes, norm))
    return run_attack(model, attack, pictures, labels, name="boundary", eps=eps, options=options)


def plan(steps: int, norm: str = "l2", *, targeted: bool = False, apart: int = 0) -> Plan:
    """How `minimal` spends its passes, `apart` of them not in the search.

    Raises:
        UserError: They are too few.
    """
    passes = steps - 1 - apart  # one judges what 8 bits hold
    polish = max(3, min(12, steps // 8))
    # The polish needs no gradients: so many are left for the estimate at the clean picture.
    classes = 1 if targeted else min(9, polish)
    if norm == "l0":  # components are tried one by one: it takes as many passes as there are
        polish = max(polish, steps // 8)
    following = passes - 1 - polish
    legs = 1 if targeted else max(1, min(9, following // 20))
    leg = following // 2 // legs
    return Plan(classes, legs, leg, following - legs * leg, polish)


@public
def bisect(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    adversarial: Tensor,
    *,
    norm: str = "l2",
    steps: SearchSteps = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The segment from each picture to an adversarial one, halved towards the picture.

    It takes `steps` + 1 forward passes and no gradient.

    Args:
        adversarial: (N, 3, H, W) in [0, 1], from any attack; one that does not fool gives distance
            inf.
        norm: In which distances are given; the segment is the same in all but L0, where it changes
            as many components as before.
        steps: Halvings; the distance is at most 2^-steps above that of a point of the boundary.

    Other arguments as for `minimal`.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm, NORMS)
    if adversarial.shape != pictures.shape:
        raise UserError(
            f"adversarial must have the pictures' shape {tuple(pictures.shape)}, "
            f"got {tuple(adversarial.shape)}"
        )
    starts = check_pictures(adversarial, channels=None)
    return run_attack(
        model,
        Bisection(norm, steps),
        pictures,
        labels,
        name="bisect",
        eps=None,
        options=options,
        starts=starts,
    )


class Bisection(Attack):
    """Halves the segment between a picture and its start, as long as the start fools."""

    starts_at_picture = False
    uses_gradient = False
    leaves_at_hit = False

    def __init__(self, norm: str, halvings: int):
        self.norm, self.passes = norm, halvings + 1

    def start(self, batch: Batch) -> None:
        assert batch.starts is not None
        self.x = self.ends = batch.starts
        self.low, self.high = torch.zeros_like(batch.eps), torch.ones_like(batch.eps)
        self.now = self.high

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        self.high = torch.where(seen.hit, self.now, self.high)
        # A start that does not fool leaves nothing to halve.
        self.low = torch.where(seen.hit, self.low, torch.where(self.now < 1, self.now, 1.0))
        self.now = (self.low + self.high) / 2
        part = projections.column(self.now).to(self.ends.dtype)
        between = torch.lerp(batch.pictures, self.ends, part).clamp(0, 1)
        self.x = torch.where(part == 1, self.ends, between)
