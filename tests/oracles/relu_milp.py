"""The exact smallest change for a small ReLU net, as a mixed integer program (scipy, HiGHS).

Tjeng et al., "Evaluating Robustness of Neural Networks with Mixed Integer Programming", 2019
(arXiv:1711.07356). A unit a = max(s, 0) with bounds l <= s <= u that contain 0 is written with one
binary b: a >= s, a >= 0, a <= s - l (1 - b), a <= u b. Bounds come from intervals over the whole
box [0, 1], so that they hold wherever the picture may go.

    minimise t or sum t_i or sum b_i    with |x_i - x0_i| <= t (Linf), t_i (L1), c_i (L0, c binary)

One program for each other class k with z_k >= z_label; the least of them is the answer. L2 would
make the objective quadratic, which HiGHS' integer solver does not take: for L2 the half-spaces of
all activation patterns are out of reach, so its oracle is the linear and the ball model alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

Array = NDArray[np.float64]


def smallest_change(
    layers: Sequence[tuple[Array, Array]], x0: Array, label: int, norm: str
) -> float:
    """Smallest distance in `norm` ("l0", "l1", "linf") at which another class draws level.

    layers: (W, b) of each layer; ReLU between them, none after the last.
    """
    classes = len(layers[-1][1])
    found = [_towards(layers, x0, label, k, norm) for k in range(classes) if k != label]
    return min(found)


def _towards(
    layers: Sequence[tuple[Array, Array]], x0: Array, label: int, other: int, norm: str
) -> float:
    n = len(x0)
    hidden = [len(b) for _, b in layers[:-1]]
    # Variables: x (n), cost (n for l0 and l1, 1 for linf), then for each hidden layer a and b.
    costs = 1 if norm == "linf" else n
    total = n + costs + 2 * sum(hidden)
    low, high = np.zeros(total), np.ones(total)
    integrality = np.zeros(total)
    if norm == "l0":
        integrality[n : n + costs] = 1
    rows: list[Array] = []
    upper: list[float] = []

    def at_most(row: Array, bound: float) -> None:
        rows.append(row)
        upper.append(bound)

    for i in range(n):
        c = n if norm == "linf" else n + i
        for sign in (1.0, -1.0):
            row = np.zeros(total)
            row[i] = sign
            row[c] = -1.0
            at_most(row, sign * x0[i])
    start, width = 0, n  # where the layer's inputs are among the variables
    below_low, below_high = np.zeros(n), np.ones(n)
    free = n + costs
    for weights, bias in layers[:-1]:
        m = len(bias)
        plus, minus = np.maximum(weights, 0), np.minimum(weights, 0)
        s_low = plus @ below_low + minus @ below_high + bias
        s_high = plus @ below_high + minus @ below_low + bias
        a0, b0 = free, free + m
        free += 2 * m
        integrality[b0 : b0 + m] = 1
        high[a0 : a0 + m] = np.maximum(s_high, 0)
        for j in range(m):
            s = np.zeros(total)
            s[start : start + width] = weights[j]
            if s_high[j] <= 0:
                continue  # never on: a is 0 by its bound
            on = s.copy()
            on[a0 + j] -= 1.0
            at_most(on, -bias[j])  # s + bias - a <= 0
            off = -s
            off[a0 + j] += 1.0
            if s_low[j] >= 0:
                at_most(off, bias[j])  # a - s <= bias: always on
                continue
            off[b0 + j] -= s_low[j]
            at_most(off, bias[j] - s_low[j])  # a <= s + bias - l (1 - b)
            cap = np.zeros(total)
            cap[a0 + j], cap[b0 + j] = 1.0, -s_high[j]
            at_most(cap, 0.0)
        start, width = a0, m
        below_low, below_high = np.maximum(s_low, 0), np.maximum(s_high, 0)
    weights, bias = layers[-1]
    row = np.zeros(total)
    row[start : start + width] = weights[label] - weights[other]
    at_most(row, float(bias[other] - bias[label]))
    objective = np.zeros(total)
    objective[n : n + costs] = 1.0
    solved = milp(
        objective,
        constraints=LinearConstraint(np.array(rows), -np.inf, np.array(upper)),
        bounds=Bounds(low, high),
        integrality=integrality,
        options={"mip_rel_gap": 1e-9},
    )
    if solved.status == 2:
        return math.inf
    assert solved.status == 0, solved.message
    return float(solved.fun)
