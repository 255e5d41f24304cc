"""The sets an attack may move in: an L-infinity, L2 or L1 ball round each picture, within [0, 1].

In: pictures (N, 3, H, W) and one radius eps a picture, (N,) in float64. Out: pictures that are
inside exactly, measured in float64, and not up to a rounding error.

The projections are those on the ball within the box. In L2 each component is clip(s * v, low,
high) with the one s in (0, 1] for which the norm is eps; in L1 it is v drawn towards 0 by the one
threshold t, and clipped (Croce & Hein 2021, arXiv:2103.01208). Projecting on the ball first and
clipping afterwards stays inside both sets, but is not the nearest point of their intersection.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

NORMS = ("linf", "l2", "l1")
_ORDERS = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}
NORM_NAMES = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}
LEVELS = 255


def unit_l2(gradient: Tensor) -> Tensor:
    """Each picture's gradient scaled to length 1; a gradient of 0 stays 0."""
    flat = gradient.flatten(1)
    flat = flat / flat.abs().amax(1)[:, None].clamp(min=1e-30)  # squares cannot underflow
    return (flat / flat.square().sum(1).sqrt()[:, None].clamp(min=1e-30)).view_as(gradient)


def column(values: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1), to be combined with pictures."""
    return values.view(-1, 1, 1, 1)


def linf_bounds(pictures: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest allowed value of every pixel: [x - eps, x + eps] within [0, 1]."""
    x, radius = pictures.double(), column(eps.double())
    low, high = (x - radius).to(pictures.dtype), (x + radius).to(pictures.dtype)
    # Rounding may have gone outwards: one step back towards the picture.
    low = torch.where(x - low.double() > radius, torch.nextafter(low, pictures), low)
    high = torch.where(high.double() - x > radius, torch.nextafter(high, pictures), high)
    return low.clamp(min=0), high.clamp(max=1)


def project_l2(delta: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Tensor:
    """The nearest perturbation with L2 norm at most eps and low <= delta <= high.

    delta, low, high: (N, ...) with low <= 0 <= high; eps: (N,). The scale s is found by active
    sets: it grows from eps/norm, and each round fixes the components that have met their bound;
    a handful of rounds end it.
    """
    v, lower, upper = delta.flatten(1), low.flatten(1), high.flatten(1)
    radius = (eps * (1 - _reserve(v))).to(v.dtype)
    squares = v.square()
    inside = torch.clamp(v, lower, upper).square().sum(1).sqrt() <= eps
    scale = torch.where(inside, 1, radius / squares.sum(1).sqrt().clamp(min=1e-30)).clamp(max=1)
    before: Tensor | None = None
    for _ in range(100):
        straight = scale[:, None] * v
        projected = torch.clamp(straight, lower, upper)
        clipped = projected != straight
        if before is not None and torch.equal(clipped, before):
            break
        before = clipped
        fixed = torch.where(clipped, projected, 0).square().sum(1)
        free = torch.where(clipped, 0, squares).sum(1)
        left = (radius.square() - fixed).clamp(min=0)
        grown = (left / free.clamp(min=1e-30)).sqrt().clamp(max=1)
        scale = torch.where(inside | (free == 0), scale, grown)
    return torch.clamp(scale[:, None] * v, lower, upper).view_as(delta)


def project_l1(delta: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Tensor:
    """The nearest perturbation with L1 norm at most eps and low <= delta <= high.

    As `project_l2`. The threshold t is the root of sum min(max(|v| - t, 0), room) = eps, which is
    piecewise linear: Newton's method, kept between two sides, reaches it in a few rounds.
    """
    v = delta.flatten(1)
    room = torch.where(v > 0, high.flatten(1), -low.flatten(1))
    size = v.abs()
    radius = (eps * (1 - _reserve(v))).to(v.dtype)
    near = 0.5 * _reserve(v) * radius
    inside = torch.minimum(size, room).sum(1) <= eps
    below, above = torch.zeros_like(radius), size.amax(1)
    threshold = below
    for _ in range(100):
        short = size - threshold[:, None]
        excess = torch.minimum(short.clamp(min=0), room).sum(1) - radius
        settled = inside | (excess.abs() <= near)
        if bool(settled.all()):
            break
        below = torch.where(excess > 0, threshold, below)
        above = torch.where(excess > 0, above, threshold)
        aim = threshold + excess / ((short > 0) & (short < room)).sum(1)
        between = (aim > below) & (aim < above)  # false for nan, too
        moved = torch.where(between, aim, (below + above) / 2)
        threshold = torch.where(settled, threshold, moved)
    return (v.sign() * torch.minimum((size - threshold[:, None]).clamp(min=0), room)).view_as(delta)


def _reserve(values: Tensor) -> float:
    """The share of a radius that sums and differences of this type may lose by rounding."""
    return 16 * torch.finfo(values.dtype).eps


def project(
    pictures: Tensor, moved: Tensor, eps: Tensor, norm: str, *, exactly: bool = True
) -> Tensor:
    """The pictures nearest to `moved` that lie within eps of `pictures` and in [0, 1].

    exactly: make sure of it in float64; otherwise rounding may lead out by a millionth of eps
    """
    if norm == "linf":
        return torch.clamp(moved, *linf_bounds(pictures, eps))
    onto = {"l2": project_l2, "l1": project_l1}[norm]
    delta = onto(moved - pictures, -pictures, 1 - pictures, eps)
    return inside(pictures, pictures + delta, eps, norm) if exactly else pictures + delta


def farthest(pictures: Tensor, gradient: Tensor, eps: Tensor, norm: str) -> Tensor:
    """The pictures within eps and [0, 1] that are farthest along the gradient.

    They maximise the sum of gradient * (result - pictures): in L-infinity every component moves
    by eps, in L1 the components of largest gradient move as far as the box lets them until eps is
    spent, in L2 all move in proportion to the gradient, those that meet the box less. On a linear
    model no other picture of the ball does better.
    """
    if norm == "linf":
        low, high = linf_bounds(pictures, eps)
        return torch.where(gradient > 0, high, torch.where(gradient < 0, low, pictures))
    g = gradient.double()
    g = g / column(g.flatten(1).abs().amax(1).clamp(min=1e-300))
    if norm == "l2":
        # Far out along the gradient, the nearest point of the set is the farthest one along it.
        x = pictures.double()
        far = 1e6 * column(eps) * g / column(g.flatten(1).norm(dim=1).clamp(min=1e-300))
        moved = x + project_l2(far, -x, 1 - x, eps)
        return inside(pictures, moved.to(pictures.dtype), eps, norm)
    flat, x = g.flatten(1), pictures.flatten(1).double()
    room = torch.where(flat > 0, 1 - x, torch.where(flat < 0, x, 0))
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    spent = room.gather(1, order).cumsum(1)
    left = (eps[:, None] - (spent - room.gather(1, order))).clamp(min=0)
    change = torch.zeros_like(room).scatter_(1, order, torch.minimum(room.gather(1, order), left))
    moved = (x + flat.sign() * change).to(pictures.dtype).view_as(pictures)
    return inside(pictures, moved, eps, norm)


def inside(pictures: Tensor, moved: Tensor, eps: Tensor, norm: str) -> Tensor:
    """`moved`, drawn towards `pictures` by what rounding put it outside the ball."""
    moved = moved.clamp(0, 1)
    shrink = 1.0 - 1e-7
    while True:
        outside = distance(pictures, moved, norm) > eps
        if not outside.any():
            return moved
        nearer = pictures + shrink * (moved - pictures)
        moved = torch.where(column(outside), nearer.clamp(0, 1), moved)
        shrink = shrink * shrink if shrink > 1e-6 else 0.0


def vector_norm(change: Tensor, norm: str) -> Tensor:
    """(N,) float64: the size of changes (N, ...) in "linf", "l2", "l1" or "l0" (how many)."""
    size: Tensor = torch.linalg.vector_norm(change.flatten(1).double(), _ORDERS[norm], 1)
    return size


def places(values: Tensor) -> Tensor:
    """The place of each value in its row (N, n), the largest first; equal ones keep their order."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)


def distance(one: Tensor, other: Tensor, norm: str) -> Tensor:
    """(N,) in float64, in the norm named: linf, l2, l1 or l0 (values of one channel)."""
    return vector_norm(one.double() - other.double(), norm)


def l2_distance(one: Tensor, other: Tensor) -> Tensor:
    """(N,) in float64."""
    return distance(one, other, "l2")


def dual_size(gradient: Tensor, norm: str) -> Tensor:
    """(N,) float64: what a change of size 1 in the norm can gain along the gradient."""
    return vector_norm(gradient, {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])


def on_levels(pictures: Tensor, moved: Tensor, eps: Tensor, norm: str) -> Tensor:
    """`moved` as 8 bits can hold it, still within eps of `pictures` (which are 8-bit themselves).

    Distances are counted in levels of 1/255. In L2 and L1 plain rounding may lead outside; then
    fewer components are rounded away from the picture, those with the smallest fraction first.
    """
    start = (pictures.double() * LEVELS).round()
    change = moved.double() * LEVELS - start
    if norm == "linf":
        most = column((eps.double() * LEVELS + 1e-6).floor())
        levels = change.round().clamp(min=-most, max=most)
    else:
        radius = eps.double() * LEVELS + 1e-6
        # A component counts as one level more when its fraction is above the threshold.
        low, high = torch.full_like(radius, 0.5), torch.full_like(radius, 1.0)
        levels = _rounded(change, low)
        if (vector_norm(levels, norm) > radius).any():
            for _ in range(12):
                middle = (low + high) / 2
                outside = vector_norm(_rounded(change, middle), norm) > radius
                low = torch.where(outside, middle, low)
                high = torch.where(outside, high, middle)
            fits = vector_norm(levels, norm) <= radius
            levels = torch.where(column(fits), levels, _rounded(change, high))
    return ((start + levels).clamp(0, LEVELS).to(pictures.dtype)).div_(LEVELS)


def in_levels(pictures: Tensor) -> Tensor:
    """Pictures as 8 bits hold them, in their own precision."""
    return (pictures.clamp(0, 1) * LEVELS).round() / LEVELS


def _rounded(change: Tensor, threshold: Tensor) -> Tensor:
    return change.sign() * (change.abs() + 1 - column(threshold)).floor()


def picture_key(picture: Tensor, seed: int) -> int:
    """A number made of a picture's own values and the seed.

    Random starts drawn from it do not depend on the order, the batch or the neighbours.
    """
    values = picture.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(values + str(seed).encode()).digest()[:7], "big")


def generator(key: int, *numbers: int) -> torch.Generator:
    """The stream of random numbers for a picture's key and, say, the number of the restart."""
    text = ",".join(map(str, (key, *numbers)))
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


def picture_streams(pictures: Tensor, seed: int, *numbers: int) -> list[torch.Generator]:
    """A stream of random numbers for each picture, made from its own values."""
    return [generator(picture_key(picture, seed), *numbers) for picture in pictures]


def random_signs(shape: Sequence[int], stream: torch.Generator) -> Tensor:
    """Whole numbers, -1 and 1 with equal chances."""
    return torch.randint(0, 2, tuple(shape), generator=stream).mul_(2).sub_(1)


def random_start(picture: Tensor, eps: float, norm: str, stream: torch.Generator) -> Tensor:
    """A uniform point of the ball round one picture (3, H, W), brought into [0, 1]."""
    shape, n = picture.shape, picture.numel()
    if norm == "linf":
        noise = torch.rand(shape, generator=stream, dtype=torch.float64) * 2 - 1
    elif norm == "l2":
        noise = torch.randn(shape, generator=stream, dtype=torch.float64)
        u = torch.rand((), generator=stream, dtype=torch.float64)
        noise *= u ** (1 / n) / noise.norm()
    else:  # n exponentials over the sum of n + 1 are uniform in the simplex
        shares = -torch.log1p(-torch.rand(n + 1, generator=stream, dtype=torch.float64))
        noise = (shares[:-1] / shares.sum()).view(shape) * random_signs(shape, stream)
    return _shifted(picture, noise, eps, norm)


def random_noise(picture: Tensor, eps: float, norm: str, stream: torch.Generator) -> Tensor:
    """Noise as large as the ball allows, in [0, 1]: ±eps in each component in L-infinity, a random
    direction of length eps in L2, and in L1 (Laplace's noise, brought to that length)."""
    if norm == "linf":
        noise = random_signs(picture.shape, stream)
    elif norm == "l2":
        noise = torch.randn(picture.shape, generator=stream, dtype=torch.float64)
        noise /= noise.norm()
    else:
        draws = torch.rand(picture.shape, generator=stream, dtype=torch.float64) - 0.5
        noise = -draws.sign() * torch.log1p(-2 * draws.abs())
        noise /= noise.abs().sum()
    return _shifted(picture, noise, eps, norm)


def _shifted(picture: Tensor, noise: Tensor, eps: float, norm: str) -> Tensor:
    """The picture plus eps times noise of size 1 or less, within ball and box exactly."""
    radius = torch.tensor([eps], dtype=torch.float64, device=picture.device)
    moved = (picture + (eps * noise).to(picture.device, picture.dtype))[None]
    into = project if norm == "linf" else inside
    return into(picture[None], moved, radius, norm)[0]


def eps_text(eps: float, norm: str) -> str:
    """An eps as people write it: 8/255 or 0.5/255 in L-infinity, 0.25 in L2."""
    levels = eps * LEVELS
    round_ones = (math.isclose(k * levels, round(k * levels), abs_tol=1e-6) for k in (8, 10))
    if norm == "linf" and eps > 0 and any(round_ones):
        return f"{levels:.4g}/255"
    return f"{eps:.4g}"
