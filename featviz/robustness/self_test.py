"""The attacks of an audit on a linear model, where the smallest changes are known exactly.

For logits w.x + b the smallest change that crosses the decision boundary has a closed form, within
the box [0, 1] too. The minimal-distance search must come close to it in every norm; the second
attack must fool no picture within less and all within more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

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
    """What the attacks found on the linear model."""

    worst: Mapping[str, float]
    """norm -> largest ratio of the distance found to the exact one"""
    below: Mapping[str, int]
    """norm -> pictures that the second attack fools at 0.95 of the exact distance: must be 0"""
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
            f"ends at most {found} above the exact distance; the second attack fools at {_BELOW:g} "
            f"and {_ABOVE:g} of it {checks} ({self.seconds:.1f} s)"
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
    """Run the attacks of the audit on a linear model; takes about a second."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(3 * _SIDE * _SIDE, generator=generator)
    pictures = (1.4 * torch.rand(_COUNT, 3, _SIDE, _SIDE, generator=generator) - 0.2).clamp(0, 1)
    model = _Linear(w, 0.06 * w.abs().sum() - (pictures.flatten(1) @ w).min())
    labels = torch.zeros(_COUNT, dtype=torch.long)
    clean = model(pictures)
    margins = (clean[:, 0] - clean[:, 1]).tolist()
    pairs = list(zip(pictures.flatten(1).double(), margins, strict=True))
    options = AttackOptions(seed=seed, batch_size=_COUNT, clean=clean)
    given = (model, pictures, labels)
    worst: dict[str, float] = {}
    below: dict[str, int] = {}
    above: dict[str, int] = {}
    for norm in NORM_NAMES:
        known = [smallest(w.double(), x, margin, norm) for x, margin in pairs]
        exact = torch.tensor(known, dtype=torch.float64)
        found = minimal(*given, norm=norm, steps=_STEPS, options=options)
        ratios = found.distance / exact
        worst[norm] = float(ratios.max()) if norm != "l0" or ratios.min() >= 1 else 0.0
        if norm != "l0":
            for factor, fooled in ((_BELOW, below), (_ABOVE, above)):
                tried = apgd(*given, eps=factor * exact, norm=norm, steps=_STEPS, options=options)
                fooled[norm] = int(tried.success.sum())
    return SelfTest(worst, below, above, _COUNT, time.perf_counter() - started)


def smallest(w: Tensor, x: Tensor, margin: float, norm: str) -> float:
    """The smallest change of x (n,) within [0, 1] that brings w.x down by `margin`, in float64.

    Component i has room r_i in the direction -sign(w_i). L-infinity: sum |w| min(eps, r) = margin.
    L2: the change is min(lambda |w|, r). L1: the largest |w| first, each as far as it goes. L0:
    the largest |w| r first. Infinite where even the far corner does not reach.
    """
    from scipy.optimize import brentq

    a, room = w.abs(), torch.where(w > 0, x, 1 - x)
    if float((a * room).sum()) < margin:
        return inf
    if norm in {"l1", "l0"}:
        order = (a if norm == "l1" else a * room).argsort(descending=True)
        reached = (a * room)[order].cumsum(0)
        k = int((reached < margin).sum())  # components that are used up before the last one
        if norm == "l0":
            return float(k + 1)
        before = float(reached[k - 1]) if k else 0.0
        return float(room[order[:k]].sum()) + (margin - before) / float(a[order[k]])
    slope = torch.ones_like(a) if norm == "linf" else a

    def change(scale: float) -> Tensor:
        return torch.minimum(scale * slope, room)

    most = float((room / slope.clamp(min=1e-300)).max())
    found = brentq(lambda scale: float((a * change(scale)).sum()) - margin, 0, most, xtol=1e-15)
    return float(found) if norm == "linf" else float(change(found).norm())
