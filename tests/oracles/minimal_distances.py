"""Smallest changes that turn an answer, in closed form, in float64 and one picture at a time.

Linear models: the margin w.x + b of the true class over another one has to come down by m. Along
-sign(w) component i gains a_i = |w_i| a unit and has room r_i: down to 0 or up to 1, or no end
without the box. The nearest point of the half-space is then a knapsack whose items may be cut:

    L0    the fewest components whose whole gains a_i r_i reach m
    L1    components by a_i, largest first, each filled, the last one in part
    L2    min(t a_i, r_i) with the one t that reaches m
    Linf  min(t, r_i) with the one t that reaches m

Without the box L0 is 1 (one component may move at will) and the others are m over the dual norm
of w. Of several other classes the nearest counts: leaving means entering any of the half-spaces.

Ball models answer by a sphere, f(x) = R^2 - |x - a|^2: closed forms to leave it from inside.

Plain loops over sorted break points; scipy's solvers check them in test_oracles_minimal.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def room(w: Vector, x: Vector, *, box: bool) -> Vector:
    """How far each component may go against the sign of w."""
    if not box:
        return np.full(x.shape, np.inf)
    return np.where(w > 0, x, 1 - x)


def half_space(w: Vector, x: Vector, margin: float, norm: str, *, box: bool = True) -> float:
    """The distance at which w.x has come down by `margin` (> 0); inf if it cannot."""
    a, r = np.abs(w), room(w, x, box=box)
    keep = a > 0
    a, r = a[keep], r[keep]
    gain = a * r
    if gain.sum() < margin:
        return math.inf
    if norm == "l0":
        reached = np.cumsum(np.sort(gain)[::-1])
        return int(np.searchsorted(reached, margin)) + 1
    if norm == "l1":
        left, spent = margin, 0.0
        for i in np.argsort(-a):
            if gain[i] >= left:
                return float(spent + left / a[i])
            left, spent = left - gain[i], spent + r[i]
    slope = a if norm == "linf" else a * a
    breaks = r if norm == "linf" else r / a
    filled, steepness, t = 0.0, slope.sum(), math.inf
    for i in np.argsort(breaks):
        if filled + steepness * breaks[i] >= margin:
            t = (margin - filled) / steepness
            break
        filled, steepness = filled + gain[i], steepness - slope[i]
    if norm == "linf":
        return float(t)
    return float(np.linalg.norm(np.minimum(t * a, r)))


def linear(
    weights: Vector, bias: Vector, x: Vector, label: int, norm: str, *, box: bool = True
) -> float:
    """The smallest change that makes another class of W x + b win (or draw); 0 if one has won."""
    z = weights @ x + bias
    if z.argmax() != label:
        return 0.0
    return min(
        half_space(weights[label] - weights[k], x, float(z[label] - z[k]), norm, box=box)
        for k in range(len(z))
        if k != label
    )


def leave_ball(x: Vector, centre: Vector, radius: float, norm: str) -> float:
    """The smallest change that brings x (inside) onto the sphere round `centre`; no box."""
    d = x - centre
    inside = radius**2 - float(d @ d)
    if norm == "l2":
        return radius - float(np.linalg.norm(d))
    if norm == "linf":
        total, n = float(np.abs(d).sum()), len(d)
        return (math.sqrt(total**2 + n * inside) - total) / n
    if norm == "l1":  # all on the component that is farthest out already
        j = int(np.abs(d).argmax())
        return math.sqrt(inside + d[j] ** 2) - abs(float(d[j]))
    raise ValueError(norm)
