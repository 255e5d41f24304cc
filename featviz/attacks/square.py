"""Attacks that ask for answers only, never for a gradient: `square` and `noise`.

    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
        search", 2020 (arXiv:1912.00049), algorithms 1 to 3

They are weaker than gradient ascent where gradients can be trusted, and are run as evidence that
they can: a picture that falls here and not there says that the gradient is hidden.

Every picture has windows and signs of its own, drawn from its own random numbers (the authors draw
one window for the whole batch), and a window may touch every side of the picture (there the last
row and the last column are never reached).
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.checks import check_norm
from featviz.attacks.loop import Classifier, Look, Seats, Walk
from featviz.attacks.options import AttackOptions
from featviz.attacks.result import AttackResult, find
from featviz.errors import UserError

SQUARE_NORMS = ("linf", "l2")
# Up to which query the share of the picture that a window covers is divided by 2, 4, 8, ...
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_CLOCK = 10_000  # queries that the schedule is laid out for


def square(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    queries: int = 1000,
    covered: float = 0.8,
    stretched: bool = True,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Random search with square windows: a change is kept if it brings the label's logit down.

    norm: "linf" or "l2"; queries: forward passes a picture at most
    covered: the share of the picture that the first windows cover; it falls with time
    stretched: let it fall as fast as the queries allow; otherwise by a clock of 10,000 queries, of
        which a short run sees the beginning only (as AutoAttack runs it)

    Other arguments as for `pgd`. Raises UserError for arguments out of range.
    """
    check_norm(norm, SQUARE_NORMS)
    if queries < 1:
        raise UserError(f"queries is {queries}; take 1 or more")
    if not 0 < covered <= 1:
        raise UserError(f"covered {covered:g} is out of range; it is a share above 0, at most 1")
    walk: Walk
    if norm == "linf":
        walk = Squares(queries, covered, stretched=stretched)
    else:
        walk = Blobs(queries, covered, stretched=stretched)
    return find(
        model,
        walk,
        pictures,
        labels,
        attack="square",
        eps=eps,
        options=options,
    )


def noise(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    draws: int = 10,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Random noise as large as the ball allows, up to `draws` times: what every attack must beat.

    Signs times eps in L-infinity, a direction of length eps in L2 and L1. Arguments as for `pgd`.
    """
    check_norm(norm)
    if draws < 1:
        raise UserError(f"draws is {draws}; take 1 or more")
    return find(
        model,
        Draws(norm, draws),
        pictures,
        labels,
        attack="noise",
        eps=eps,
        options=options,
    )


class Draws(Walk):
    """Independent random pictures of the ball."""

    starts_at_picture = False
    uses_gradient = False

    def __init__(self, norm: str, draws: int):
        self.norm, self.looks = norm, draws

    def prepare(self, seats: Seats) -> None:
        self.x = torch.zeros_like(seats.pictures)
        self.streams: dict[int, torch.Generator] = {}

    def seat(self, rows: Tensor, seats: Seats) -> None:
        for c in rows.tolist():
            self.streams[c] = seats.stream(c)
            self._draw(c, seats)

    def propose(self, seats: Seats) -> Tensor:
        return self.x

    def advance(self, look: Look, seats: Seats) -> None:
        self.x = self.x.clone()
        for c in look.climbing:
            self._draw(c, seats)

    def _draw(self, c: int, seats: Seats) -> None:
        job = seats.job(c)
        self.x[c] = projections.random_noise(job.picture, job.eps, self.norm, self.streams[c])


class _RandomSearch(Walk):
    """Keep a change if the attack is nearer to winning with it."""

    starts_at_picture = False
    uses_gradient = False

    def __init__(self, queries: int, covered: float, *, stretched: bool):
        self.looks, self.covered, self.stretched = queries, covered, stretched

    def share(self, query: int) -> float:
        """The share of the picture that the window of a query covers."""
        clock = query * _CLOCK // self.looks if self.stretched else query
        return float(self.covered / 2 ** sum(clock > mark for mark in _HALVED_AT))

    def prepare(self, seats: Seats) -> None:
        self.best = torch.zeros_like(seats.pictures)
        self.x = torch.zeros_like(seats.pictures)
        self.value = torch.zeros_like(seats.eps)
        draws = self.draws(seats)
        shape = (seats.batch_size, self.looks, draws)
        self.numbers = torch.zeros(shape, dtype=torch.float64, device=self.x.device)
        self.low, self.high = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.down = torch.arange(self.x.shape[2], device=self.x.device).view(1, -1, 1)
        self.right = torch.arange(self.x.shape[3], device=self.x.device).view(1, 1, -1)

    @abstractmethod
    def draws(self, seats: Seats) -> int:
        """Random numbers that a query needs."""

    @abstractmethod
    def first(self, row: int, seats: Seats, stream: torch.Generator) -> Tensor:
        """(3, H, W): where the walk of a slot begins."""

    @abstractmethod
    def change(self, numbers: Tensor, seats: Seats) -> Tensor:
        """(slots, 3, H, W): the best pictures, changed in a window; numbers (slots, draws)."""

    def seat(self, rows: Tensor, seats: Seats) -> None:
        pictures, eps = seats.pictures[rows], seats.eps[rows]
        self.low[rows], self.high[rows] = projections.linf_bounds(pictures, eps)
        for c in rows.tolist():
            stream = seats.stream(c)
            self.x[c] = self.first(c, seats, stream)
            shape = self.numbers.shape[1:]
            drawn = torch.rand(shape, generator=stream, dtype=torch.float64)
            self.numbers[c] = drawn.to(self.x.device)

    def propose(self, seats: Seats) -> Tensor:
        return self.x

    def advance(self, look: Look, seats: Seats) -> None:
        accept = (seats.step == 0) | (look.margin > self.value)
        self.value = torch.where(accept, look.margin, self.value)
        self.best = torch.where(projections.column(accept), self.x, self.best)
        at = seats.step.clamp(max=self.looks - 1)[:, None, None]
        numbers = self.numbers.gather(1, at.expand(-1, 1, self.numbers.shape[2]))[:, 0]
        self.x = self.change(numbers, seats)

    def sides(self, seats: Seats, least: int = 1) -> Tensor:
        """(slots,) the side of the window of the next query."""
        height, width = self.x.shape[2:]
        found = []
        for walked in seats.walked:
            side = round(math.sqrt(self.share(walked + 1) * height * width))
            found.append(min(max(side, least), height, width))
        return torch.tensor(found, device=self.x.device)

    def places(self, numbers: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (slots, H, 1), (slots, 1, W) counted from a window's upper left corner.

        numbers: (slots, 2) in [0, 1). Every place where the window fits is as likely.
        """
        height, width = self.x.shape[2:]
        top = (numbers[:, 0] * (height - sides + 1)).long()
        left = (numbers[:, 1] * (width - sides + 1)).long()
        return self.down - top.view(-1, 1, 1), self.right - left.view(-1, 1, 1)


def _within(rows: Tensor, columns: Tensor, sides: Tensor) -> Tensor:
    """(slots, 1, H, W) bool: the window."""
    side = sides.view(-1, 1, 1)
    window = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return window[:, None]


class Squares(_RandomSearch):
    """L-infinity: in a window each channel goes to one side of the ball."""

    norm = "linf"

    def draws(self, seats: Seats) -> int:
        return 2 + seats.pictures.shape[1]

    def first(self, row: int, seats: Seats, stream: torch.Generator) -> Tensor:
        picture, eps = seats.pictures[row], seats.job(row).eps
        stripes = torch.rand(picture.shape[0], 1, picture.shape[2], generator=stream)
        signs = torch.where(stripes < 0.5, -1.0, 1.0).to(picture.device, picture.dtype)
        return torch.clamp(picture + eps * signs, self.low[row], self.high[row])

    def change(self, numbers: Tensor, seats: Seats) -> Tensor:
        sides = self.sides(seats)
        window = _within(*self.places(numbers[:, :2], sides), sides)
        up = numbers[:, 2:, None, None] >= 0.5
        side = torch.where(up, self.high, self.low)
        return torch.where(window, side, self.best)


class Blobs(_RandomSearch):
    """L2: mass moves from one window to a bump in another."""

    norm = "l2"

    def prepare(self, seats: Seats) -> None:
        super().prepare(seats)
        height, width = self.x.shape[2:]
        self.bumps = {side: bump(side) for side in range(1, min(height, width) + 1)}

    def draws(self, seats: Seats) -> int:
        return 5 + seats.pictures.shape[1]

    def first(self, row: int, seats: Seats, stream: torch.Generator) -> Tensor:
        """A grid of five by five bumps, each channel of each with its own sign."""
        picture, eps = seats.pictures[row], seats.eps[row : row + 1]
        height, width = picture.shape[1:]
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        signs = torch.rand(picture.shape[0], down, across, generator=stream)
        turned = torch.rand(down, across, generator=stream) < 0.5
        grid = torch.zeros(picture.shape, dtype=torch.float64)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        shape = self.bumps[side]
        for i in range(down):
            for j in range(across):
                here = shape.T if turned[i, j] else shape
                sign = torch.where(signs[:, i, j] < 0.5, -1.0, 1.0).view(-1, 1, 1)
                y, x = top + i * side, left + j * side
                grid[:, y : y + side, x : x + side] = sign * here
        moved = picture + (eps * (grid / grid.norm()).to(picture.device)).to(picture.dtype)
        return projections.inside(picture[None], moved[None], eps, "l2")[0]

    def change(self, numbers: Tensor, seats: Seats) -> Tensor:
        sides = self.sides(seats, least=3)
        sides = torch.where(sides % 2 == 0, sides + 1, sides)
        sides = sides.clamp(max=min(self.x.shape[2:]))
        rows, columns = self.places(numbers[:, :2], sides)
        window = _within(rows, columns, sides)
        other = _within(*self.places(numbers[:, 2:4], sides), sides)
        shape = self._bumps(rows, columns, sides, numbers[:, 4] < 0.5)
        signs = torch.where(numbers[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]

        delta = self.best.double() - seats.pictures.double()
        own = torch.where(window, delta, 0)
        new = own / _length(own) + torch.where(window, signs * shape[:, None], 0)
        mass = torch.where(window | other, delta, 0).flatten(1).square().sum(1)
        spare = (seats.eps.square() - delta.flatten(1).square().sum(1)).clamp(min=0)
        channels = delta.shape[1]
        each = projections.column((spare / channels + mass / channels).sqrt())
        new = new / _length(new) * each
        delta = torch.where(window, new, torch.where(other, 0, delta))
        delta = delta * projections.column(
            seats.eps / delta.flatten(1).square().sum(1).sqrt().clamp(min=1e-300)
        )
        moved = seats.pictures + delta.to(self.best.dtype)
        return projections.inside(seats.pictures, moved, seats.eps, "l2")

    def _bumps(self, rows: Tensor, columns: Tensor, sides: Tensor, turned: Tensor) -> Tensor:
        """(slots, H, W): each slot's bump at its window, 0 elsewhere."""
        found = torch.zeros(len(sides), *self.x.shape[2:], dtype=torch.float64)
        at = zip(
            sides.tolist(),
            rows[:, 0, 0].tolist(),
            columns[:, 0, 0].tolist(),
            turned.tolist(),
            strict=True,
        )
        for c, (side, row, column, turn) in enumerate(at):
            shape = self.bumps[side]
            found[c, -row : side - row, -column : side - column] = shape.T if turn else shape
        return found.to(self.x.device)


def _length(values: Tensor) -> Tensor:
    """(slots, 3, 1, 1) L2 norm of each channel; never 0."""
    return values.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)


def bump(side: int) -> Tensor:
    """(side, side) float64 of L2 norm 1: a hill above a hollow, falling off from their centres."""
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
