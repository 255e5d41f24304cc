"""Attacks that walk up a loss within a ball: `fgsm`, `pgd`, and their common walk.

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", 2015 (arXiv:1412.6572)
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018
        (arXiv:1706.06083)

A model is anything that takes pictures (N, 3, H, W) in [0, 1] and gives logits (N, classes). What
comes back is inside the ball and inside [0, 1] exactly. A picture leaves the batch as soon as it
is fooled; one that is wrong by itself has distance 0 and costs one forward pass. Success is judged
twice: as computed in float32, and again on the picture rounded to 8 bits as a file holds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featviz.adversarial import balls
from featviz.adversarial.found import Found, Progress, find
from featviz.adversarial.inputs import check_norm
from featviz.adversarial.losses import cross_entropy
from featviz.adversarial.search import Classifier, Look, Seats, Settings, Walk
from featviz.errors import UserError


def fgsm(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    targeted: bool = False,
    eight_bit: bool = False,
    margin: float = 0.0,
    clean: Tensor | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """One step of size eps along the gradient (its sign in L-infinity, its direction in L2).

    Arguments as for `pgd`. Goodfellow et al. 2015, section 4.
    """
    check_settings(Settings(norm=norm))
    walk = Ascent(norm, 1, 1.0, random_start=False, targeted=targeted)
    return find(
        model, walk, pictures, labels, attack="fgsm", eps=eps, targeted=targeted,
        eight_bit=eight_bit, margin=margin, clean=clean, slots=slots, progress=progress,
    )  # fmt: skip


def pgd(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    targeted: bool = False,
    eight_bit: bool = False,
    margin: float = 0.0,
    clean: Tensor | None = None,
    seed: int = 0,
    slots: int | None = None,
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Found:
    """Projected gradient ascent of the cross-entropy within a ball round each picture.

    model: pictures in [0, 1] to logits; a module is used in eval mode and left as it was
    pictures: (N, 3, H, W) in [0, 1]; labels: (N,) the true classes, or the classes to reach
    eps: radius of the ball, one number or (N,) numbers; norm: "linf" or "l2"
    steps: gradient steps of a restart. More find more, up to a plateau; the audit says when not
    step_size: in units of eps; default 2.5 / steps in L-infinity (the walk can cross the ball) and
        5 / steps in L2 (it can turn from any direction to any other)
    restarts: walks per picture; it stops at the first success
    random_start: begin at a random point of the ball (drawn from the picture's own values, the
        seed and the number of the restart); otherwise the first walk begins at the picture
    targeted: reach the labels instead of leaving them
    eight_bit: look at pictures only as 8 bits hold them, so that what is found can be saved;
        the pictures themselves are rounded first, and eps is counted in whole levels of 1/255
    margin: how far the wrong logit must be ahead; above 0 the answer survives the last-bit
        differences between batch sizes and devices
    clean: (N, classes) logits of the pictures, if they are known: saves the pass that judges them
    slots: how many pictures the model sees at once (default 16, on CUDA 128). At equal slots a
        result does not depend on the order, the number or the content of the other pictures
    precision: "fp32", or "bf16" to search in bf16 (faster on processors that compute in it) and
        judge in fp32

    The projection in L2 is that on the ball within the box; the common "rescale, then clip" is
    not. Raises UserError for arguments out of range.
    """
    check_settings(Settings(norm=norm, steps=steps, step_size=step_size, restarts=restarts))
    walk = Ascent(norm, steps, step_size, random_start=random_start, targeted=targeted)
    return find(
        model, walk, pictures, labels, attack="pgd", eps=eps, targeted=targeted,
        restarts=restarts, eight_bit=eight_bit, margin=margin, clean=clean, seed=seed,
        slots=slots, precision=precision, progress=progress,
    )  # fmt: skip


def check_settings(settings: Settings) -> None:
    """Raise UserError for a setting that makes no sense."""
    check_norm(settings.norm)
    if settings.steps < 1 or settings.restarts < 1:
        raise UserError("steps and restarts must be 1 or more")
    if settings.step_size is not None and not 0 < settings.step_size < float("inf"):
        raise UserError(f"step_size {settings.step_size:g} must be above 0, in units of eps")


class Ascent(Walk):
    """Steepest ascent of the cross-entropy, projected back into the ball after each step."""

    def __init__(
        self, norm: str, steps: int, step_size: float | None = None, *,
        random_start: bool = True, targeted: bool = False,
    ):  # fmt: skip
        # In L-infinity 2.5 eps cross the ball. On the L2 sphere all steps together, of length L
        # in units of eps, turn tan(angle / 2) down by exp(-L): 2.5 would leave 9 degrees of 90,
        # 5 none.
        length = 2.5 if norm == "linf" else 5.0
        self.norm, self.looks = norm, steps + 1
        self.fraction = step_size if step_size is not None else length / steps
        self.random_start, self.targeted = random_start, targeted
        self.starts_at_picture = not random_start

    def prepare(self, seats: Seats) -> None:
        self.x = torch.zeros_like(seats.pictures)
        self.low, self.high = torch.zeros_like(self.x), torch.zeros_like(self.x)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        pictures, eps = seats.pictures[rows], seats.eps[rows]
        self.low[rows], self.high[rows] = bounds(pictures, eps, self.norm)
        for c in rows.tolist():
            job = seats.job(c)
            if job.start is not None and seats.restarts[c] == 0:
                self.x[c] = job.start
            elif self.random_start or seats.restarts[c] > 0:
                self.x[c] = balls.random_start(job.picture, job.eps, self.norm, seats.stream(c))
            else:
                self.x[c] = job.picture

    def propose(self, seats: Seats) -> Tensor:
        return self.x

    def advance(self, look: Look, seats: Seats) -> None:
        _, weights = cross_entropy(
            look.logits, seats.labels, targeted=self.targeted, scale=seats.scale
        )
        gradient = look.gradient(weights)
        length = self.fraction * seats.eps
        self.x = _step(seats.pictures, self.x, gradient, length, seats.eps, self.low, self.high,
                       self.norm)  # fmt: skip


def bounds(pictures: Tensor, eps: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """What `_step` wants as low and high: of the picture in L-infinity, else of the change."""
    return balls.linf_bounds(pictures, eps) if norm == "linf" else (-pictures, 1 - pictures)


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
    """One step along the gradient and back into the ball."""
    if norm == "linf":
        moved = x + balls.column(length).to(x.dtype) * gradient.sign()
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
    low, high = bounds(pictures, eps, norm)
    return _step(pictures, pictures, gradient, eps, eps, low, high, norm)
