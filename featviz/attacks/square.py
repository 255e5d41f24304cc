"""Attacks that use the logits only, never a gradient: `square` and `noise`.

    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
        search", 2020 (arXiv:1912.00049), algorithms 1 to 3

They are weaker than gradient ascent where gradients can be trusted, and are run as evidence that
they can: a picture that is fooled here and not there shows that the gradient is hidden.

Every picture has windows and signs of its own, drawn from its own random numbers (the authors draw
one window for the whole batch), and a window may touch every side of the picture (there the last
row and the last column are never reached).
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import projections
from featviz.attacks.evaluation import Attack, Batch, Evaluation
from featviz.attacks.loop import run_attack
from featviz.attacks.options import AttackOptions, Classifier, check_norm
from featviz.attacks.pgd import BallAttack
from featviz.attacks.result import AttackResult
from featviz.errors import public

SQUARE_NORMS = ("linf", "l2")
# Up to which query the share of the picture that a window covers is divided by 2, 4, 8, ...
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_CLOCK = 10_000  # queries that the schedule is laid out for


@public
def square(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    queries: Annotated[int, Bounds(1, 1_000_000)] = 1000,
    p_init: Annotated[float, Bounds(0, 1, above=True)] = 0.8,
    rescale_schedule: bool = True,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Random search with square windows: a change is kept if the attack comes nearer to success.

    Args:
        norm: "linf" or "l2".
        queries: Forward passes of an attempt at most.
        p_init: The share of the picture that the first windows cover; it shrinks with time.
        rescale_schedule: Let it shrink as fast as the queries allow; otherwise as for 10,000
            queries, of which a short run sees the beginning only (as AutoAttack runs it).

    Other arguments as for `pgd`.

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm, SQUARE_NORMS)
    kind = SquareLinf if norm == "linf" else SquareL2
    attack = kind(queries, p_init, rescale_schedule=rescale_schedule)
    return run_attack(model, attack, pictures, labels, name="square", eps=eps, options=options)


@public
def noise(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    draws: Annotated[int, Bounds(1, 1_000_000)] = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Random noise as large as the ball allows, up to `draws` times: what every attack must beat.

    Signs times eps in L-infinity, a direction of length eps in L2 and L1. Arguments as for `pgd`.
    """
    check_norm(norm)
    attack = RandomNoise(norm, draws)
    return run_attack(model, attack, pictures, labels, name="noise", eps=eps, options=options)


class RandomNoise(Attack):
    """Independent random pictures of the ball."""

    starts_at_picture = False
    uses_gradient = False

    def __init__(self, norm: str, draws: int):
        self.norm, self.passes = norm, draws

    def start(self, batch: Batch) -> None:
        self._draw(batch, 0)

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        self._draw(batch, step + 1)

    def _draw(self, batch: Batch, draw: int) -> None:
        given = zip(batch.pictures, batch.eps.tolist(), batch.streams(draw), strict=True)
        drawn = [projections.random_noise(x, eps, self.norm, stream) for x, eps, stream in given]
        self.x = torch.stack(drawn)


class _RandomSearch(BallAttack):
    """Keep a change if the attack is nearer to success with it."""

    starts_at_picture = False
    uses_gradient = False

    def __init__(self, queries: int, p_init: float, *, rescale_schedule: bool):
        self.passes, self.p_init, self.rescale_schedule = queries, p_init, rescale_schedule

    def share(self, query: int) -> float:
        """The share of the picture that the window of a query covers."""
        clock = query * _CLOCK // self.passes if self.rescale_schedule else query
        return float(self.p_init / 2 ** sum(clock > mark for mark in _HALVED_AT))

    @abstractmethod
    def first(self, batch: Batch, streams: list[torch.Generator]) -> Tensor:
        """(n, 3, H, W): where the search begins."""

    @abstractmethod
    def change(self, numbers: Tensor, batch: Batch, side: int) -> Tensor:
        """(n, 3, H, W): the best pictures, changed in a window; numbers (n, 8) in [0, 1)."""

    def start(self, batch: Batch) -> None:
        super().start(batch)
        streams = batch.streams()
        self.x = self.best = self.first(batch, streams)
        self.value = torch.full_like(batch.eps, -torch.inf)
        # Beside five for windows, one for each channel: three of the eight where there are three.
        shape = (self.passes, max(8, 5 + batch.pictures.shape[1]))
        drawn = [torch.rand(shape, generator=s, dtype=torch.float64) for s in streams]
        self.numbers = torch.stack(drawn).to(self.x.device)

    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        accept = seen.margin > self.value
        self.value = torch.where(accept, seen.margin, self.value)
        self.best = torch.where(projections.column(accept), self.x, self.best)
        height, width = self.x.shape[2:]
        side = round(math.sqrt(self.share(step + 1) * height * width))
        self.x = self.change(self.numbers[:, step], batch, min(max(side, 1), height, width))

    def window(self, numbers: Tensor, side: int) -> Tensor:
        """(n, 1, H, W) bool: windows at random places; numbers (n, 2) in [0, 1)."""
        return window_at(*corners(numbers, side, self.x), side, self.x)


def corners(numbers: Tensor, side: int, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and left edges (n,) of windows; every place where a window fits is as likely."""
    height, width = pictures.shape[2:]
    top = (numbers[:, 0] * (height - side + 1)).long()
    return top, (numbers[:, 1] * (width - side + 1)).long()


def window_at(top: Tensor, left: Tensor, side: int, pictures: Tensor) -> Tensor:
    """(n, 1, H, W) bool: square windows with these edges."""
    height, width = pictures.shape[2:]
    rows = torch.arange(height, device=top.device) - top[:, None]
    columns = torch.arange(width, device=top.device) - left[:, None]
    down, across = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (down[:, :, None] & across[:, None])[:, None]


def placed(shapes: Tensor, second: Tensor, top: Tensor, left: Tensor, pictures: Tensor) -> Tensor:
    """(n, 1, H, W): of two shapes (2, side, side) one a picture, put where its window is.

    Outside the window the shape's edge is continued.
    """
    height, width = pictures.shape[2:]
    rows = torch.arange(height, device=top.device) - top[:, None]
    columns = torch.arange(width, device=top.device) - left[:, None]
    last = shapes.shape[1] - 1
    rows, columns = rows.clamp(0, last)[:, :, None], columns.clamp(0, last)[:, None]
    return shapes[second.long()[:, None, None], rows, columns][:, None]


class SquareLinf(_RandomSearch):
    """L-infinity: in a window each channel goes to one side of the ball."""

    norm = "linf"

    def first(self, batch: Batch, streams: list[torch.Generator]) -> Tensor:
        shape = (batch.pictures.shape[1], 1, batch.pictures.shape[3])
        stripes = torch.stack([torch.rand(shape, generator=stream) for stream in streams])
        return torch.where(stripes.to(self.low.device) < 0.5, self.low, self.high)

    def change(self, numbers: Tensor, batch: Batch, side: int) -> Tensor:
        up = numbers[:, 2 : 2 + self.x.shape[1], None, None] >= 0.5
        bound = torch.where(up, self.high, self.low)
        return torch.where(self.window(numbers[:, :2], side), bound, self.best)


class SquareL2(_RandomSearch):
    """L2: mass moves from one window to a bump in another."""

    norm = "l2"

    def first(self, batch: Batch, streams: list[torch.Generator]) -> Tensor:
        """A grid of five by five bumps, each channel of each with its own sign."""
        height, width = batch.pictures.shape[2:]
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        top, left = (height - down * side) // 2, (width - across * side) // 2
        grids = []
        for stream in streams:
            signs = torch.rand(batch.pictures.shape[1], down, across, generator=stream)
            turned = torch.rand(down, across, generator=stream) < 0.5
            shapes = torch.where(turned[:, :, None, None], bump(side).T, bump(side))
            tiles = torch.where(signs < 0.5, -1.0, 1.0)[:, :, :, None, None] * shapes
            grid = torch.zeros(batch.pictures.shape[1:], dtype=torch.float64)
            inner = grid[:, top : top + down * side, left : left + across * side]
            inner.copy_(tiles.transpose(2, 3).reshape(inner.shape))
            grids.append(grid / grid.norm())
        change = projections.column(batch.eps) * torch.stack(grids).to(batch.eps.device)
        moved = batch.pictures + change.to(batch.pictures.dtype)
        return projections.inside(batch.pictures, moved, batch.eps, "l2")

    def change(self, numbers: Tensor, batch: Batch, side: int) -> Tensor:
        side = max(side, 3)
        side = min(side + 1 - side % 2, *self.x.shape[2:])
        top, left = corners(numbers[:, :2], side, self.x)
        window, other = window_at(top, left, side, self.x), self.window(numbers[:, 2:4], side)
        signs = torch.where(numbers[:, 5 : 5 + self.x.shape[1]] < 0.5, -1.0, 1.0)[:, :, None, None]
        turned = placed(bumps(side, self.x.device), numbers[:, 4] < 0.5, top, left, self.x)
        added, channels = torch.where(window, signs * turned, 0), self.x.shape[1]

        delta = self.best.double() - batch.pictures.double()
        own = torch.where(window, delta, 0)
        new = own / _length(own) + added
        mass = torch.where(window | other, delta, 0).flatten(1).square().sum(1)
        spare = (batch.eps.square() - delta.flatten(1).square().sum(1)).clamp(min=0)
        new = new / _length(new) * projections.column(((spare + mass) / channels).sqrt())
        delta = torch.where(window, new, torch.where(other, 0, delta))
        size = delta.flatten(1).square().sum(1).sqrt().clamp(min=1e-300)
        delta = delta * projections.column(batch.eps / size)
        moved = batch.pictures + delta.to(self.best.dtype)
        return projections.inside(batch.pictures, moved, batch.eps, "l2")


def _length(values: Tensor) -> Tensor:
    """(n, 3, 1, 1) L2 norm of each channel; never 0."""
    return values.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)


@functools.lru_cache(maxsize=32)
def bumps(side: int, device: torch.device) -> Tensor:
    """(2, side, side): a bump and the same turned, on a device."""
    return torch.stack([bump(side), bump(side).T]).to(device)


@functools.cache
def bump(side: int) -> Tensor:
    """(side, side) float64 of L2 norm 1: a positive peak above a negative one."""
    upper = _hill(side // 2, side)
    lower = _hill(side - side // 2, side)
    whole = torch.cat([upper, -lower])
    return whole.div_(whole.square().sum().sqrt())


def _hill(height: int, width: int) -> Tensor:
    """(height, width): nested rectangles, the k-th adding 1 / k^2, of L2 norm 1."""
    found = torch.zeros(height, width, dtype=torch.float64)
    y, x = height // 2, width // 2
    for k in range(max(y, x) + 1):
        found[max(y - k, 0) : y + k + 1, max(x - k, 0) : x + k + 1] += 1 / (k + 1) ** 2
    return found.div_(found.square().sum().sqrt().clamp(min=1e-300))
