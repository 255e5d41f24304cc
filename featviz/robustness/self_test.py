"""Do the attacks find what is known? The audit's attacks on a linear model, before every audit.

For logits w.x + b the smallest change that turns the answer is known in closed form, with the box
[0, 1] too. The search for the smallest change must come close to it in every norm; the attack of
the check must fool no picture below it and all above it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featviz.attacks.apgd import apgd
from featviz.attacks.minimal import minimal
from featviz.attacks.options import AttackOptions
from featviz.attacks.projections import NORM_NAMES

_TOLERANCE = 1.02
"""found over exact: above it the self-test fails"""
_BELOW, _ABOVE = 0.95, 1.05
_SIDE, _COUNT, _STEPS = 5, 6, 40


@dataclass(frozen=True)
class SelfTest:
    """What came of it."""

    worst: Mapping[str, float]
    """norm -> largest ratio of the distance found to the exact one"""
    below: Mapping[str, int]
    """norm -> pictures that the check fools at 0.95 of the exact distance: must be 0"""
    above: Mapping[str, int]
    """norm -> pictures that it fools at 1.05 of it: must be all"""
    count: int
    seconds: float

    @property
    def passed(self) -> bool:
        near = all(1 - 1e-5 <= ratio <= _TOLERANCE for ratio in self.worst.values())
        sharp = not any(self.below.values()) and all(k == self.count for k in self.above.values())
        return near and sharp

    @property
    def line(self) -> str:
        """The outcome on one line."""
        found = ", ".join(
            f"{NORM_NAMES[norm]} {100 * (ratio - 1):.2g}%" for norm, ratio in self.worst.items()
        )
        checks = ", ".join(
            f"{NORM_NAMES[norm]} {self.below[norm]} and {self.above[norm]} of {self.count}"
            for norm in self.above
        )
        return (
            f"self-test {'passed' if self.passed else 'FAILED'}: on a linear model the search "
            f"ends at most {found} above the exact distance; the check fools at {_BELOW:g} and "
            f"{_ABOVE:g} of it {checks} ({self.seconds:.1f} s)"
        )


class _Linear(nn.Module):
    """Three classes; the third never wins."""

    w: Tensor
    b: Tensor

    def __init__(self, w: Tensor, b: Tensor):
        super().__init__()
        self.register_buffer("w", w)
        self.register_buffer("b", b)

    def forward(self, pictures: Tensor) -> Tensor:
        z = pictures.flatten(1) @ self.w + self.b  # (N,) by how much class 0 is ahead
        return torch.stack([z / 2, -z / 2, torch.full_like(z, -1e4)], 1)


def self_test(*, seed: int = 0) -> SelfTest:
    """Run the attacks of the audit where their answers are known; takes about a second."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    n = 3 * _SIDE * _SIDE
    w = torch.randn(n, generator=generator)
    pictures = (1.4 * torch.rand(_COUNT, 3, _SIDE, _SIDE, generator=generator) - 0.2).clamp(0, 1)
    b = 0.06 * w.abs().sum() - (pictures.flatten(1) @ w).min()
    model = _Linear(w, b)
    labels = torch.zeros(_COUNT, dtype=torch.long)
    clean = model(pictures)
    margins = (clean[:, 0] - clean[:, 1]).double().tolist()
    options = AttackOptions(seed=seed, batch_size=_COUNT, clean=clean)
    worst: dict[str, float] = {}
    below: dict[str, int] = {}
    above: dict[str, int] = {}
    for norm in ("linf", "l2", "l1", "l0"):
        exact = [
            smallest(w.double(), p.flatten().double(), m, norm)
            for p, m in zip(pictures, margins, strict=True)
        ]
        found = minimal(
            model,
            pictures,
            labels,
            norm=norm,
            steps=_STEPS,
            options=options,
        )
        ratios = found.distance / torch.tensor(exact, dtype=torch.float64)
        worst[norm] = float(ratios.max()) if norm != "l0" or ratios.min() >= 1 else 0.0
        if norm == "l0":
            continue
        for factor, hits in ((_BELOW, below), (_ABOVE, above)):
            eps = factor * torch.tensor(exact, dtype=torch.float64)
            tried = apgd(
                model,
                pictures,
                labels,
                eps=eps,
                norm=norm,
                steps=_STEPS,
                options=options,
            )
            hits[norm] = int(tried.success.sum())
    return SelfTest(worst, below, above, _COUNT, time.perf_counter() - started)


def smallest(w: Tensor, x: Tensor, margin: float, norm: str) -> float:
    """The smallest change of x (n,) within [0, 1] that brings w.x down by `margin`, in float64.

    Component i has room r_i in the direction -sign(w_i). L-infinity: sum |w| min(eps, r) = margin.
    L2: the change is min(lambda |w|, r). L1: the largest |w| first, each as far as it goes. L0:
    the largest |w| r first. Infinite where even the far corner does not reach.
    """
    a, room = w.abs(), torch.where(w > 0, x, 1 - x)
    if float((a * room).sum()) < margin:
        return float("inf")
    if norm in {"l1", "l0"}:
        gain = a if norm == "l1" else a * room
        order = gain.argsort(descending=True)
        reached = (a * room)[order].cumsum(0)
        k = int((reached < margin).sum())  # components that are used up before the last one
        if norm == "l0":
            return float(k + 1)
        before = float(reached[k - 1]) if k else 0.0
        return float(room[order[:k]].sum()) + (margin - before) / float(a[order[k]])
    slope, breaks = (a, room) if norm == "linf" else (a.square(), room / a.clamp(min=1e-300))
    order = breaks.argsort()
    filled, left = 0.0, float(slope.sum())
    for j in order.tolist():
        if filled + left * float(breaks[j]) >= margin:
            break
        filled += float(a[j] * room[j])
        left -= float(slope[j])
    unknown = (margin - filled) / left
    return unknown if norm == "linf" else float(torch.minimum(unknown * a, room).norm())
