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

from featviz.attacks.loop import Classifier, Look, Seats, Walk
from featviz.attacks.losses import margin
from featviz.attacks.minimal import search_from_clean
from featviz.attacks.options import AttackOptions
from featviz.attacks.projections import column
from featviz.attacks.result import AttackResult
from featviz.errors import UserError

_SIGMA = 1e-3
_THRESHOLD, _SPEED = 0.3, 0.01  # at the beginning, and how fast it moves, in units of the step
_BETAS = (0.9, 0.999)


def sigma_zero(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    steps: int = 1000,
    first_step: float = 1.0,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """The changes of fewest components (a pixel has three) by sigma-zero.

    steps: gradient steps; one more pass looks at where the last one led
    first_step: Adam's step at first; a tenth of it at the end

    Other arguments and what comes back as for `minimal`; `changed_pixels` counts pixels. Raises
    UserError for arguments out of range.
    """
    if steps < 1 or not 0 < first_step < float("inf"):
        raise UserError("steps must be 1 or more, and first_step above 0")
    walk = _SmoothCount(steps, first_step, targeted=options.targeted)
    return search_from_clean(
        model,
        walk,
        pictures,
        labels,
        attack="sigma-zero",
        options=options,
    )


def changed_pixels(pictures: Tensor, adversarial: Tensor) -> Tensor:
    """(N,) how many pixels differ in any of their three components."""
    return (pictures != adversarial).any(1).flatten(1).sum(1)


class _SmoothCount(Walk):
    norm = "l0"
    starts_at_picture = True
    leaves_at_hit = False

    def __init__(self, steps: int, length: float, *, targeted: bool):
        self.steps, self.looks = steps, steps + 1
        self.length, self.targeted = length, targeted

    def prepare(self, seats: Seats) -> None:
        self.change = torch.zeros_like(seats.pictures)
        self.mean, self.square = torch.zeros_like(self.change), torch.zeros_like(self.change)
        self.threshold = torch.zeros_like(seats.eps)

    def seat(self, rows: Tensor, seats: Seats) -> None:
        self.change[rows] = self.mean[rows] = self.square[rows] = 0.0
        self.threshold[rows] = _THRESHOLD

    def propose(self, seats: Seats) -> Tensor:
        return (seats.pictures + self.change).clamp(0, 1)

    def advance(self, look: Look, seats: Seats) -> None:
        ahead, weights = margin(look.logits, seats.labels, targeted=self.targeted)
        # What has won needs no further push.
        gradient = look.gradient(-weights * (ahead < 0)[:, None])
        d = self.change
        count = 2 * _SIGMA * d / (d.square() + _SIGMA).square() / d[0].numel()
        gradient = gradient + count
        largest = gradient.flatten(1).abs().amax(1).clamp(min=1e-12)
        gradient = gradient / column(largest)
        first, second = _BETAS
        self.mean = torch.lerp(self.mean, gradient, 1 - first)
        self.square = second * self.square + (1 - second) * gradient.square()
        made = (seats.step + 1).double()
        step = self._length(seats.step)
        forward = column(step / (1 - first**made)).to(d.dtype)
        spread = (self.square / column(1 - second**made).to(d.dtype)).sqrt() + 1e-8
        x = seats.pictures
        moved = (x + d - forward * self.mean / spread).clamp(0, 1) - x
        up = torch.where(look.hit, 1.0, -1.0)
        after = self._length(seats.step + 1)
        self.threshold = (self.threshold + _SPEED * up * after).clamp(0, 1)
        self.change = torch.where(moved.abs() < column(self.threshold).to(d.dtype), 0, moved)

    def _length(self, step: Tensor) -> Tensor:
        """Adam's step at each step of a walk, along a cosine down to a tenth."""
        turn = torch.cos(math.pi * (step.double() - 1).clamp(min=0) / self.steps)
        return self.length * (0.1 + 0.9 * (1 + turn) / 2)
