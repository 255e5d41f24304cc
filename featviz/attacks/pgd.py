"""Attacks that walk up a loss within a ball: `fgsm`, `bim`, `pgd`, `mi_fgsm`, and their walk.

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015 (arXiv:1412.6572)
    Kurakin et al., "Adversarial examples in the physical world", 2017 (arXiv:1607.02533)
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018
        (arXiv:1706.06083)
    Dong et al., "Boosting Adversarial Attacks with Momentum", 2018 (arXiv:1710.06081)
    Tramèr & Boneh, "Adversarial Training and Robustness for Multiple Perturbations", 2019
        (arXiv:1904.13000), for the sparse steps in L1

A model is anything that takes pictures (N, 3, H, W) in [0, 1] and gives logits (N, classes). What
comes back is inside the ball and inside [0, 1] exactly. A picture leaves the batch as soon as it
is fooled; one that is wrong by itself has distance 0 and costs one forward pass. Success is judged
twice: as computed in float32, and again on the picture rounded to 8 bits as a file holds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.checks import check_norm
from featviz.attacks.loop import Classifier, Look, Seats, Walk
from featviz.attacks.losses import cross_entropy, temper
from featviz.attacks.options import AttackOptions
from featviz.attacks.result import AttackResult, find
from featviz.errors import UserError

unit_l2 = projections.unit_l2
SPARSITY = 0.01
"""the share of the components that a step in L1 moves"""


def fgsm(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    rescale_logits: bool = False,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """One step to the picture of the ball that is farthest along the gradient.

    In L-infinity that is eps times the gradient's sign, in L2 its direction, in L1 the components
    of largest gradient; in each the box [0, 1] is reckoned with, so that on a linear model nothing
    of the ball does better. Goodfellow et al. 2015, section 4.

    rescale_logits: bring the logits to one scale first (`losses.temper`)

    Other arguments as for `pgd`.
    """
    check_walk(norm)
    return find(
        model,
        Farthest(norm, targeted=options.targeted, rescale_logits=rescale_logits),
        pictures,
        labels,
        attack="fgsm",
        eps=eps,
        options=options,
    )


def bim(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 10,
    step_size: float = 0.2,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """FGSM iterated in small steps from the picture itself: `pgd` without a random start.

    Arguments as for `pgd`. Kurakin et al. 2017, section 2.2.
    """
    check_walk(norm, steps, step_size)
    walk = Ascent(norm, steps, step_size, random_start=False, targeted=options.targeted)
    return find(
        model,
        walk,
        pictures,
        labels,
        attack="bim",
        eps=eps,
        options=options,
    )


def mi_fgsm(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """BIM along a running sum of gradients, each divided by its L1 norm.

    decay: what remains of the sum from step to step (the paper's mu)
    step_size: in units of eps; default 1 / steps

    Other arguments as for `pgd`. Known for pictures that fool other models, too. Dong et al. 2018.
    """
    check_walk(norm, steps, step_size)
    if not 0 <= decay < float("inf"):
        raise UserError(f"decay {decay:g} is out of range; it is 0 or more, 1 in the paper")
    walk = Ascent(
        norm,
        steps,
        step_size or 1 / steps,
        random_start=False,
        targeted=options.targeted,
        decay=decay,
    )
    return find(
        model,
        walk,
        pictures,
        labels,
        attack="mi-fgsm",
        eps=eps,
        options=options,
    )


def pgd(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 40,
    step_size: float | None = None,
    random_start: bool = True,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Projected gradient ascent of the cross-entropy within a ball round each picture.

    model: pictures in [0, 1] to logits; a module is used in eval mode and left as it was
    pictures: (N, 3, H, W) in [0, 1]; labels: (N,) the true classes, or the classes to reach
    eps: radius of the ball, one number or (N,) numbers; norm: "linf", "l2" or "l1"
    steps: gradient steps of a restart. More find more, up to a plateau; the audit says when not
    step_size: in units of eps; default 2.5 / steps in L-infinity (the walk can cross the ball),
        5 / steps in L2 (it can turn from any direction to any other) and 10 / steps in L1 (where a
        step moves the 1% of the components whose gradient is largest and that have room)
    restarts: walks per picture; it stops at the first success
    random_start: begin at a random point of the ball (drawn from the picture's own values, the
        seed and the number of the restart); otherwise the first walk begins at the picture
    targeted: reach the labels instead of leaving them
    eight_bit: look at pictures only as 8 bits hold them, so that what is found can be saved;
        the pictures themselves are rounded first, and eps is counted in whole levels of 1/255
    margin: how far the wrong logit must be ahead; above 0 the answer survives the last-bit
        differences between batch sizes and devices
    clean: (N, classes) logits of the pictures, or (N,) classes, if they are known: saves the pass
        that judges the pictures
    slots: how many pictures the model sees at once (default 8, on CUDA 128). At equal slots a
        result does not depend on the order, the number or the content of the other pictures
    precision: "fp32", "bf16" to search in bf16 and judge in fp32, or "auto" to do so on processors
        that are faster at it

    The projections in L2 and L1 are those on the ball within the box; the common "rescale, then
    clip" is not. Raises UserError for arguments out of range.
    """
    check_walk(norm, steps, step_size, options.restarts)
    walk = Ascent(norm, steps, step_size, random_start=random_start, targeted=options.targeted)
    return find(
        model,
        walk,
        pictures,
        labels,
        attack="pgd",
        eps=eps,
        options=options,
    )


def check_walk(
    norm: str, steps: int = 1, step_size: float | None = None, restarts: int = 1
) -> None:
    """Raise UserError for a setting of a walk that makes no sense."""
    check_norm(norm)
    if steps < 1 or restarts < 1:
        raise UserError("steps and restarts must be 1 or more")
    if step_size is not None and not 0 < step_size < float("inf"):
        raise UserError(f"step_size {step_size:g} must be above 0, in units of eps")


class Farthest(Walk):
    """One step to the farthest point of the ball along the gradient."""

    def __init__(self, norm: str, *, targeted: bool = False, rescale_logits: bool = False):
        self.norm, self.looks, self.targeted, self.rescale_logits = (
            norm,
            2,
            targeted,
            rescale_logits,
        )

    def prepare(self, seats: Seats) -> None:
        self.x = torch.zeros_like(seats.pictures)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        self.x[rows] = seats.pictures[rows]

    def propose(self, seats: Seats) -> Tensor:
        return self.x

    def advance(self, look: Look, seats: Seats) -> None:
        scale = temper(look.logits) if self.rescale_logits else 1.0
        _, weights = cross_entropy(look.logits, seats.labels, targeted=self.targeted, scale=scale)
        gradient = look.gradient(weights)
        self.x = projections.farthest(seats.pictures, gradient, seats.eps, self.norm)


class Ascent(Walk):
    """Steepest ascent of the cross-entropy, projected back into the ball after each step."""

    def __init__(
        self,
        norm: str,
        steps: int,
        step_size: float | None = None,
        *,
        random_start: bool = True,
        targeted: bool = False,
        decay: float | None = None,
    ):
        # In L-infinity 2.5 eps cross the ball. On the L2 sphere all steps together, of length L
        # in units of eps, turn tan(angle / 2) down by exp(-L): 2.5 would leave 9 degrees of 90,
        # 5 none. In L1 a step reaches a share of the components only.
        length = {"linf": 2.5, "l2": 5.0, "l1": 10.0}[norm]
        self.norm, self.looks = norm, steps + 1
        self.fraction = step_size if step_size is not None else length / steps
        self.random_start, self.targeted, self.decay = random_start, targeted, decay
        self.starts_at_picture = not random_start

    def prepare(self, seats: Seats) -> None:
        self.x = torch.zeros_like(seats.pictures)
        self.low, self.high = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.momentum = torch.zeros_like(self.x)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        pictures, eps = seats.pictures[rows], seats.eps[rows]
        if self.norm == "linf":
            self.low[rows], self.high[rows] = projections.linf_bounds(pictures, eps)
        self.momentum[rows] = 0
        self.x[rows] = starts(rows, seats, self.norm, random=self.random_start)

    def propose(self, seats: Seats) -> Tensor:
        return self.x

    def advance(self, look: Look, seats: Seats) -> None:
        _, weights = cross_entropy(look.logits, seats.labels, targeted=self.targeted)
        direction = look.gradient(weights)
        if self.decay is not None:
            total = direction.flatten(1).abs().sum(1, dtype=torch.float64).clamp(min=1e-300)
            direction = (direction.double() / projections.column(total)).to(direction.dtype)
            self.momentum = direction = self.decay * self.momentum + direction
        length = self.fraction * seats.eps
        if self.norm == "linf":
            moved = self.x + projections.column(length).to(self.x.dtype) * direction.sign()
            self.x = torch.clamp(moved, self.low, self.high)
            return
        step = projections.unit_l2(direction) if self.norm == "l2" else sparse_l1(self.x, direction)
        moved = self.x + projections.column(length).to(self.x.dtype) * step
        self.x = projections.project(seats.pictures, moved, seats.eps, self.norm)


def starts(rows: Tensor, seats: Seats, norm: str, *, random: bool) -> Tensor:
    """(k, 3, H, W): where the walks in some slots begin.

    The first walk of a job begins at its `start` where it has one; without `random` it begins at
    the picture. All others begin at a random point of the ball.
    """
    found = []
    for c in rows.tolist():
        job, again = seats.job(c), seats.restarts[c] > 0
        if job.start is not None and not again:
            found.append(job.start)
        elif random or again:
            found.append(projections.random_start(job.picture, job.eps, norm, seats.stream(c)))
        else:
            found.append(job.picture)
    return torch.stack(found)


def sparse_l1(x: Tensor, gradient: Tensor, share: float = SPARSITY) -> Tensor:
    """A step of L1 length 1: the sign of the largest gradients, where the box leaves room."""
    room = ((gradient > 0) & (x < 1)) | ((gradient < 0) & (x > 0))
    flat = torch.where(room, gradient, 0).flatten(1)
    count = max(1, round(share * flat.shape[1]))
    place = flat.abs().topk(count, 1).indices
    signs = flat.gather(1, place).sign()
    signs /= signs.abs().sum(1, keepdim=True).clamp(min=1)
    return torch.zeros_like(flat).scatter_(1, place, signs).view_as(gradient)
