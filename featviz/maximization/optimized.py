"""What the loop returns, and what it keeps of a batch on the way there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Optimized:
    """Pictures and how they came about; a row for each target."""

    images: Tensor
    """(N, 3, H, W) float32 in [0, 1], rounded to 8 bits: the best of those that were checked"""
    scores: Tensor
    """(N,): the objective of `images`, without transforms; NaN where it is not finite"""
    trace: Tensor
    """(N, steps): the objective at each step, with the transforms of that step"""
    best_steps: Tensor
    """(N,): after how many steps `images` were taken"""
    alive: Tensor
    """(N,) bool: whether there ever was a gradient that no ReLU had to be redirected for"""
    failed: Tensor
    """(N,): the first step with a score or gradient that is not finite, or -1"""
    frames: Tensor
    """(N, F, 3, H, W) uint8: stages of the optimization"""
    transparency: Tensor
    """(N, H, W): sum over the steps of |d score / d pixel|, mean over colors; else (N, 0, 0)"""
    parameters: Tensor
    """(N, ...): free parameters after the last step"""

    @property
    def steps(self) -> Tensor:
        """(N,): how many steps had a finite score."""
        return self.trace.isfinite().sum(1)

    def rows(self, rows: Sequence[int]) -> Optimized:
        """Some of the pictures."""
        return Optimized(**{f.name: getattr(self, f.name)[list(rows)] for f in fields(self)})


def joined(parts: Sequence[Optimized]) -> Optimized:
    """Several results as one."""
    names = [field.name for field in fields(Optimized)]
    return Optimized(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


class Record:
    """What is kept of N pictures while they are optimized."""

    def __init__(self, pictures: Tensor, steps: int, *, transparency: bool):
        N, device = len(pictures), pictures.device
        self.best = eight_bits(pictures)
        self.scores = self.best.new_full((N,), -math.inf)
        self.best_steps = torch.zeros(N, dtype=torch.long, device=device)
        self.failed = torch.full((N,), -1, device=device)
        self.alive, self.moved, self.stalled = torch.zeros(3, N, dtype=torch.bool, device=device)
        self.trace = self.best.new_full((N, steps), math.nan)
        size = pictures.shape[-2:] if transparency else (0, 0)
        self.transparency = self.best.new_zeros(N, *size)

    def check(self, step: int, images: Tensor, scores: Tensor) -> None:
        """Keep those of the rounded `images` whose clean scores are the best so far."""
        better = scores > self.scores
        self.best = torch.where(better.view(-1, 1, 1, 1), images, self.best)
        self.scores = torch.where(better, scores, self.scores)
        self.best_steps = torch.where(better, step, self.best_steps)

    def note(self, step: int, scores: Tensor, gradient: Tensor, redirected: Tensor | None) -> None:
        """Scores (N,) and gradients (N, 3, H, W) of a step; whether ReLUs were redirected (N,)."""
        self.trace[:, step] = scores
        strength = gradient.abs().amax((1, 2, 3))
        finite = scores.isfinite() & strength.isfinite()
        self.failed = torch.where((self.failed < 0) & ~finite, step, self.failed)
        pulled = finite & (strength > 0)
        self.moved |= pulled
        self.alive |= pulled if redirected is None else pulled & ~redirected
        # A picture that was helped is tried without help before it is helped again.
        self.stalled = finite & ~pulled
        if self.transparency.numel():
            self.transparency += gradient.abs().mean(1)

    @property
    def free(self) -> Tensor:
        """(N,): which pictures may change; others have had no gradient yet, or no numbers."""
        free: Tensor = self.moved & (self.failed < 0)
        return free

    def result(self, parameters: Tensor, frames: Sequence[Tensor]) -> Optimized:
        none = torch.empty(len(self.best), 0, dtype=torch.uint8)
        return Optimized(
            images=self.best.float(),
            scores=torch.where(self.scores.isfinite(), self.scores, math.nan),
            trace=self.trace,
            best_steps=self.best_steps,
            alive=self.alive,
            failed=self.failed,
            frames=torch.stack(list(frames), 1) if frames else none,
            transparency=self.transparency,
            parameters=parameters.detach(),
        )


def eight_bits(pictures: Tensor) -> Tensor:
    """Pictures as they come back from a file with 8 bits, in their own precision."""
    return pictures.detach().mul(255).round().clamp(0, 255).div(255)
