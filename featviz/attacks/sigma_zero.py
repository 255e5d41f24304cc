"""`sigma_zero`: the fewest changed components, by a smooth count of them.

    Cina et al., "sigma-zero: Gradient-based Optimization of l0-norm Adversarial Examples", 2025
        (arXiv:2402.01879)

The count of components that are not 0 is replaced by mean d^2 / (d^2 + sigma), which has a
gradient; Adam descends margin plus count, and components below a threshold go back to 0. The
threshold grows after a success and falls after a miss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featviz.attacks import losses
from featviz.attacks.evaluation import Attack, Batch, Evaluation
from featviz.attacks.loop import run_attack
from featviz.attacks.options import AttackOptions, Classifier
from featviz.attacks.projections import column
from featviz.attacks.result import AttackResult
from featviz.errors import public
from featviz.types import Rate, Steps

_SIGMA = 1e-3
_THRESHOLD, _SPEED = 0.3, 0.01  # at the beginning, and how fast it moves, in units of the step
_BETAS = (0.9, 0.999)


@public
def sigma_zero(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: Steps = 1000,
    first_step: Rate = 1.0,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The changes of fewest components (a pixel has three) by sigma-zero.

    Args:
        steps: Gradient steps; one more pass evaluates the last one.
        first_step: Adam's step at first; a tenth of it at the end.

    Other arguments and the result as for `minimal`; `changed_pixels` counts pixels.

    Raises:
        UserError: An argument is out of range.
    """
    options.refuse("sigma-zero", "restarts")
    attack = SmoothCount(steps, first_step)
    return run_attack(model, attack, pictures, labels, name="sigma-zero", eps=None, options=options)


def changed_pixels(pictures: Tensor, adversarial: Tensor) -> Tensor:
    """(N,) how many pixels differ in any of their three components."""
    return (pictures != adversarial).any(1).flatten(1).sum(1)


class SmoothCount(Attack):
    """The steps of sigma-zero."""

    norm = "l0"
    leaves_at_hit = False

    def __init__(self, steps: int, length: float):
        self.steps, self.passes, self.length = steps, steps + 1, length

    def start(self, batch: Batch) -> None:
        self.x = batch.pictures
        self.change = self.mean = self.square = torch.zeros_like(self.x)
        self.threshold = torch.full_like(batch.eps, _THRESHOLD)

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        value, weights = losses.margin(seen.logits, batch.labels, targeted=batch.targeted)
        return value, weights * (value < 0)[:, None]  # a success needs no further push

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        d = self.change
        count = 2 * _SIGMA * d / (d.square() + _SIGMA).square() / d[0].numel()
        gradient = count - seen.gradient
        largest = gradient.flatten(1).abs().amax(1).clamp(min=1e-12)
        gradient = gradient / column(largest)
        first, second = _BETAS
        self.mean = torch.lerp(self.mean, gradient, 1 - first)
        self.square = second * self.square + (1 - second) * gradient.square()
        forward = self._length(step) / (1 - first ** (step + 1))
        spread = (self.square / (1 - second ** (step + 1))).sqrt() + 1e-8
        moved = (batch.pictures + d - forward * self.mean / spread).clamp(0, 1) - batch.pictures
        up = torch.where(seen.hit, 1.0, -1.0)
        self.threshold = (self.threshold + _SPEED * up * self._length(step + 1)).clamp(0, 1)
        self.change = torch.where(moved.abs() < column(self.threshold).to(d.dtype), 0, moved)
        self.x = (batch.pictures + self.change).clamp(0, 1)

    def _length(self, step: int) -> float:
        """Adam's step at each step, along a cosine down to a tenth."""
        return self.length * (0.1 + 0.45 * (1 + math.cos(math.pi * max(step - 1, 0) / self.steps)))
