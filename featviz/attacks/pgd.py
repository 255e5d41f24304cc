"""Attacks that walk up a loss within a ball: `fgsm`, `bim`, `pgd`, `mi_fgsm`, and their walk.

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015 (arXiv:1412.6572)
    Kurakin et al., "Adversarial examples in the physical world", 2017 (arXiv:1607.02533)
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018
        (arXiv:1706.06083)
    Dong et al., "Boosting Adversarial Attacks with Momentum", 2018 (arXiv:1710.06081)
    Tramèr & Boneh, "Adversarial Training and Robustness for Multiple Perturbations", 2019
        (arXiv:1904.13000), for the sparse steps in L1

The result lies inside the ball and inside [0, 1] exactly. The projections in L2 and L1 are those on
the ball within the box; the common "rescale, then clip" is not.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import losses, projections
from featviz.attacks.evaluation import Attack, Batch, Evaluation
from featviz.attacks.loop import run_attack
from featviz.attacks.options import AttackOptions, Classifier, check_norm
from featviz.attacks.result import AttackResult
from featviz.errors import public
from featviz.types import Steps

SPARSITY = 0.01
"""the share of the components that a step in L1 moves"""


@public
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
    of largest gradient; all within the box [0, 1], so that on a linear model no other picture of
    the ball does better. Goodfellow et al. 2015, section 4.

    Args:
        model: Pictures in [0, 1] to logits (N, classes); a module is used in eval mode and left as
            it was.
        pictures: (N, 3, H, W) in [0, 1].
        labels: (N,) the true classes, or the classes to reach.
        eps: Radius of the ball, one number or (N,), in [0, 1] units.
        norm: "linf", "l2" or "l1".
        rescale_logits: Bring the logits to one scale before the cross-entropy (`losses.temper`).
        options: What all attacks share.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm)
    options.refuse("fgsm", "restarts")
    attack = FarthestPoint(norm, rescale_logits=rescale_logits)
    return run_attack(model, attack, pictures, labels, name="fgsm", eps=eps, options=options)


@public
def bim(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: Steps = 10,
    step_size: Annotated[float, Bounds(0, 10, above=True)] = 0.2,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """FGSM iterated in small steps from the picture itself. Kurakin et al. 2017, section 2.2.

    Arguments as for `pgd`, which has a random start in addition.
    """
    check_norm(norm)
    attack = GradientAscent(norm, steps, step_size, random_start=False)
    return run_attack(model, attack, pictures, labels, name="bim", eps=eps, options=options)


@public
def mi_fgsm(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: Steps = 10,
    step_size: Annotated[float, Bounds(0, 10, above=True)] | None = None,
    decay: Annotated[float, Bounds(0, 10)] = 1.0,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """BIM along a running sum of gradients, each divided by its L1 norm. Dong et al. 2018.

    Known for pictures that fool other models, too.

    Args:
        step_size: In units of eps; default 1 / steps.
        decay: What remains of the sum from step to step (the paper's mu).

    Other arguments as for `pgd`.
    """
    check_norm(norm)
    attack = GradientAscent(norm, steps, step_size or 1 / steps, random_start=False, decay=decay)
    return run_attack(model, attack, pictures, labels, name="mi-fgsm", eps=eps, options=options)


@public
def pgd(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: Steps = 40,
    step_size: Annotated[float, Bounds(0, 10, above=True)] | None = None,
    random_start: bool = True,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Projected gradient ascent of the cross-entropy within a ball around each picture.

    Args:
        model: Pictures in [0, 1] to logits (N, classes); a module is used in eval mode and left as
            it was.
        pictures: (N, 3, H, W) in [0, 1].
        labels: (N,) the true classes, or the classes to reach.
        eps: Radius of the ball, one number or (N,), in [0, 1] units: in L-infinity the largest
            change of a value, in L2 the length of the change, in L1 the sum of all changes.
        norm: "linf", "l2" or "l1".
        steps: Gradient steps of an attempt. More find more, up to a plateau.
        step_size: In units of eps. Default 2.5 / steps in L-infinity (all steps can cross the
            ball), 5 / steps in L2 (they can turn from any direction to any other) and 10 / steps
            in L1 (where a step moves the 1% of the components whose gradient is largest and that
            have room).
        random_start: Begin at a random point of the ball; otherwise the first attempt begins at
            the picture.
        options: What all attacks share.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm)
    attack = GradientAscent(norm, steps, step_size, random_start=random_start)
    return run_attack(model, attack, pictures, labels, name="pgd", eps=eps, options=options)


class FarthestPoint(Attack):
    """One step to the farthest point of the ball along the gradient."""

    passes = 2

    def __init__(self, norm: str, *, rescale_logits: bool = False):
        self.norm, self.rescale_logits = norm, rescale_logits

    def start(self, batch: Batch) -> None:
        self.x = batch.pictures

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        scale = losses.temper(seen.logits) if self.rescale_logits else 1.0
        return losses.cross_entropy(seen.logits, batch.labels, targeted=batch.targeted, scale=scale)

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        self.x = projections.farthest(batch.pictures, seen.gradient, batch.eps, self.norm)


class BallAttack(Attack):
    """An attack that moves within a ball and the box; the bounds of L-infinity are kept."""

    low: Tensor
    high: Tensor

    def start(self, batch: Batch) -> None:
        if self.norm == "linf":
            self.low, self.high = projections.linf_bounds(batch.pictures, batch.eps)

    def project(self, moved: Tensor, batch: Batch, *, exactly: bool = True) -> Tensor:
        """The nearest pictures within ball and box."""
        if self.norm == "linf":
            return torch.clamp(moved, self.low, self.high)
        return projections.project(batch.pictures, moved, batch.eps, self.norm, exactly=exactly)


class GradientAscent(BallAttack):
    """Steepest ascent of the cross-entropy, projected back into the ball after each step."""

    def __init__(
        self,
        norm: str,
        steps: int,
        step_size: float | None = None,
        *,
        random_start: bool = True,
        decay: float | None = None,
    ):
        # In L-infinity 2.5 eps cross the ball. On the L2 sphere all steps together, of length L
        # in units of eps, turn tan(angle / 2) down by exp(-L): 2.5 would leave 9 degrees of 90,
        # 5 none. In L1 a step reaches a share of the components only.
        length = {"linf": 2.5, "l2": 5.0, "l1": 10.0}[norm]
        self.norm, self.passes = norm, steps + 1
        self.step_size = step_size if step_size is not None else length / steps
        self.random_start, self.decay = random_start, decay
        self.starts_at_picture = not random_start

    def start(self, batch: Batch) -> None:
        super().start(batch)
        self.x = first_pictures(batch, self.norm, random=self.random_start)
        self.momentum = torch.zeros_like(self.x)

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        direction = seen.gradient
        if self.decay is not None:
            total = direction.flatten(1).abs().sum(1, dtype=torch.float64).clamp(min=1e-300)
            direction = (direction.double() / projections.column(total)).to(direction.dtype)
            self.momentum = direction = self.decay * self.momentum + direction
        if self.norm == "linf":
            direction = direction.sign()
        elif self.norm == "l2":
            direction = projections.unit_l2(direction)
        else:
            direction = sparse_l1(self.x, direction)
        length = projections.column(self.step_size * batch.eps).to(self.x.dtype)
        self.x = self.project(self.x + length * direction, batch)


def first_pictures(batch: Batch, norm: str, *, random: bool) -> Tensor:
    """(n, 3, H, W): where an attempt begins.

    The first begins at `starts` where there are any; without `random` it begins at the picture. All
    others begin at a random point of the ball.
    """
    if batch.attempt == 0 and batch.starts is not None:
        return batch.starts
    if batch.attempt == 0 and not random:
        return batch.pictures
    given = zip(batch.pictures, batch.eps.tolist(), batch.streams(), strict=True)
    return torch.stack([projections.random_start(x, eps, norm, stream) for x, eps, stream in given])


def sparse_l1(x: Tensor, gradient: Tensor, share: float = SPARSITY) -> Tensor:
    """A step of L1 length 1: the sign of the largest gradients, where the box leaves room."""
    room = ((gradient > 0) & (x < 1)) | ((gradient < 0) & (x > 0))
    flat = torch.where(room, gradient, 0).flatten(1)
    count = max(1, round(share * flat.shape[1]))
    place = flat.abs().topk(count, 1).indices
    signs = flat.gather(1, place).sign()
    signs /= signs.abs().sum(1, keepdim=True).clamp(min=1)
    return torch.zeros_like(flat).scatter_(1, place, signs).view_as(gradient)
