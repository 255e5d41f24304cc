"""The nearest point of a half-space within the box: the solution of one linearization.

At a point of a search the margin f of the true class is linear to first order, with gradient g. To
bring it down to the boundary the change d has to meet g.d <= c. `nearest` gives the smallest such
change within low <= d <= high, exactly, in L2, L-infinity and L1; `fewest` the one with fewest
components. All rows are solved side by side; each is a knapsack with one unknown number:

    L2    clip(-t g, low, high)           t by active sets: what has met its bound is fixed
    Linf  clip(-t sign g, low, high)      t by Newton's steps up a convex function
    L1    largest |g| first, each as far as it may go, the last one in part
    L0    largest |g_i| * room_i first, each as far as it may go

A linearization is trusted only near its point. In L-infinity and L1 it keeps every component
within `trust` of where it is (sequential linear programming); in L2 it solves for the direction
v = d - step * g in place of -g, which is the same problem with a quadratic price for moving.

    Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
        2020 (arXiv:1907.02044), for the projections within the box
"""

from __future__ import annotations

import torch
from torch import Tensor

from featviz.attacks import projections

_ROUNDS = 14
_LADDER = 33  # factors from 1 to 256
_NEWTON = 40  # at most; some 6 as a rule
_FEW = 1024  # components that are put in order first


def nearest(
    norm: str,
    gradient: Tensor,
    bound: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    change: Tensor | None = None,
    trust: Tensor | None = None,
) -> Tensor:
    """The smallest change d with gradient.d <= bound and low <= d <= high.

    gradient, low, high: (N, n) with low <= 0 <= high; bound: (N,)
    change, trust: (N, n) the present change and (N,) how far to trust the linearization round it:
        in L-infinity and L1 the largest move of a component; in L2 the length of the step along
        the gradient that is made first, in units of the change's own. Without them everywhere.
    Where the bound is out of reach: the change that comes nearest to it.
    """
    if norm == "l2":
        return _nearest_l2(gradient, bound, low, high, change, trust)
    if change is not None and trust is not None:
        low = torch.maximum(low, change - trust[:, None])
        high = torch.minimum(high, change + trust[:, None])
    if norm == "linf":
        return _nearest_linf(gradient, bound, low, high)
    return _nearest_l1(gradient, bound, low, high)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(1, dtype=torch.float64)


def _nearest_l2(
    g: Tensor, bound: Tensor, low: Tensor, high: Tensor, change: Tensor | None, trust: Tensor | None
) -> Tensor:
    size = g.norm(dim=1).clamp(min=1e-30)
    unit = g / size[:, None]
    c = bound / size.double()
    direction = -unit
    if change is not None and trust is not None:
        length = change.norm(dim=1)
        v = change - (trust * length)[:, None] * unit
        direction = torch.where((length > 0)[:, None], v / length.clamp(min=1e-30)[:, None], -unit)
    free = torch.ones_like(g, dtype=torch.bool)
    t = torch.zeros_like(c)
    for k in range(_ROUNDS):
        moved = t[:, None].to(g.dtype) * direction
        free = (moved > low) & (moved < high) | (t == 0)[:, None]
        held = _dot(torch.where(free, 0, torch.clamp(moved, low, high)), unit)
        slope = _dot(torch.where(free, direction, 0), unit)
        before = t
        t = torch.where(slope < -1e-12, (c - held) / slope.clamp(max=-1e-12), t).clamp(0, 1e12)
        # A card would wait for each comparison.
        if (g.device.type == "cpu" or k % 4 == 3) and torch.equal(t, before):
            break
    return torch.clamp(t[:, None].to(g.dtype) * direction, low, high)


def _nearest_linf(g: Tensor, bound: Tensor, low: Tensor, high: Tensor) -> Tensor:
    way = -g.sign()
    room = torch.where(g > 0, -low, high)  # how far each component may go its way
    # The size cannot be below that of the component nearest to 0 among its bounds. From there on
    # g.d is convex in it and falls, so that Newton's steps never pass the solution.
    size = torch.clamp(torch.zeros_like(g), low, high).abs().amax(1).double()
    most = torch.maximum(high, -low).amax(1).double()
    steep = g.abs()
    open_ = torch.ones_like(size, dtype=torch.bool)
    for _ in range(_NEWTON):
        reached = size[:, None].to(g.dtype)
        over = _dot(torch.clamp(reached * way, low, high), g) - bound
        slope = torch.where(reached < room, steep, 0).sum(1, dtype=torch.float64)
        after = torch.where(slope > 0, size + over / slope.clamp(min=1e-300), most).clamp(max=most)
        open_ = open_ & (over > 0) & (after > size * (1 + 1e-7))
        size = torch.where(open_, after, size)
        if not bool(open_.any()):
            break
    return torch.clamp(size[:, None].to(g.dtype) * way, low, high)


def _nearest_l1(g: Tensor, bound: Tensor, low: Tensor, high: Tensor) -> Tensor:
    near = torch.clamp(torch.zeros_like(g), low, high)  # as near to no change as trust allows
    far = torch.where(g > 0, low, high)
    gain, price = g * (near - far), far.abs() - near.abs()
    # A component on the wrong side of 0 gains by coming back: it costs less than nothing.
    given = (price <= 0) & (gain > 0)
    base = torch.where(given, far, near)
    need = _dot(g, base) - bound
    worth = torch.where(given, 0, gain)
    order = _steepest(torch.where(worth > 0, g.abs(), -1), worth, need)
    items = worth.gather(1, order)
    before = items.cumsum(1, dtype=torch.float64) - items
    part = ((need[:, None] - before) / items.clamp(min=1e-30)).clamp(0, 1) * (items > 0)
    share = torch.zeros_like(g).scatter_(1, order, part.to(g.dtype))
    return base + share * (far - base)


def _steepest(steep: Tensor, worth: Tensor, need: Tensor) -> Tensor:
    """(N, k) the steepest components in order, equal ones by place, enough for what is needed.

    A few are chosen much faster than all are put in order.
    """
    size = steep.shape[1]
    k = _FEW if steep.device.type == "cpu" else size  # a card would wait for each comparison
    while k < size:
        best, order = steep.topk(k, dim=1)
        # Which of those that are as steep as the last one were chosen is not defined.
        sure = torch.where(best > best[:, -1:], worth.gather(1, order), 0)
        if bool((sure.sum(1, dtype=torch.float64) >= need).all()):
            order = order.sort(1).values
            return order.gather(
                1, steep.gather(1, order).argsort(dim=1, descending=True, stable=True)
            )
        k *= 8
    return steep.argsort(dim=1, descending=True, stable=True)


def fewest(
    gradient: Tensor, bound: Tensor, low: Tensor, high: Tensor, *, change: Tensor, keep: Tensor
) -> Tensor:
    """The change of fewest components with gradient.d <= bound, each moved as far as it may.

    keep: (N,) how much dearer (0: not at all) it is to change a component that `change` leaves
        alone than one that it has changed already, so that the choice does not flicker. A
        component that is changed, and rightly, keeps its value where that is the larger.
    """
    g = gradient
    edge = torch.where(g > 0, low, high)
    right = change * g < 0
    value = torch.where(right & (change.abs() > edge.abs()), change, edge)
    gain = -(g * value)
    score = torch.where(change != 0, gain * (1 + keep[:, None]), gain)
    order = score.argsort(dim=1, descending=True, stable=True)
    reached = gain.gather(1, order).cumsum(1, dtype=torch.float64)
    count = (reached < -bound[:, None]).sum(1, keepdim=True) + 1
    return torch.where((order.argsort(dim=1) < count) & (gain > 0), value, 0)


def beyond_rounding(change: Tensor, gradient: Tensor, bound: Tensor, clean: Tensor) -> Tensor:
    """The change, made longer until what 8 bits keep of it meets gradient.d <= bound.

    change, gradient, clean: (N, n), the clean pictures held by 8 bits. The smallest factor of a
    ladder of 2^(1/4) is taken; 1 where rounding does no harm, and where no factor helps.
    """
    best = torch.ones_like(bound)
    met = torch.zeros_like(bound, dtype=torch.bool)
    for rung in range(_LADDER):
        factor = 2.0 ** (rung / 4)
        kept = projections.in_levels(clean + factor * change) - clean
        now = _dot(kept, gradient) <= bound
        best = torch.where(now & ~met, factor, best)
        met = met | now
        if bool(met.all()):
            break
    return change * best[:, None].to(change.dtype)
