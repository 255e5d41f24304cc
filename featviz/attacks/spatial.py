"""`spatial`: is a model still right when the picture is turned and shifted a little?

Every picture is tried at all points of a grid of angles and shifts, in the order of how far they
move it, farthest first; as soon as one fools the model the picture leaves. Beside the worst case
stand the ten random moves that a benchmark can afford, the average of those (what an unlucky
camera costs), and what the black corners alone do, without any motion: they hide pixels, and part
of the damage is theirs.

One resampler does it all (bilinear, black beyond the border). Without turn and shift it gives
back the same bits.

    Engstrom et al., "Exploring the landscape of spatial robustness", 2019 (arXiv:1712.02779)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.checks import check_batch_size, check_labels
from featviz.attacks.loop import classify
from featviz.errors import UserError
from featviz.images import check_pictures
from featviz.models.frozen import frozen
from featviz.resampling import bilinear, pixel_grid
from featviz.statistics import Share, share
from featviz.types import Progress

if TYPE_CHECKING:
    from featviz.models.model import Model


class Motion(NamedTuple):
    """A turn about the middle, then a shift."""

    degrees: float
    """anticlockwise"""
    right: float
    """pixels"""
    down: float


STILL = Motion(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Spatial:
    """What turning and shifting did to each picture."""

    labels: Tensor
    """(N,)"""
    clean: Tensor
    """(N,) answers to the pictures as they are"""
    grid: tuple[Motion, ...]
    """every motion of the grid, in the order tried"""
    fooled_by: Tensor
    """(N, 3) float64: degrees, right, down of the first motion that fooled; nan where none did,
    and 0 for pictures that are wrong by themselves"""
    predicted: Tensor
    """(N,) the answer then; the clean answer where no motion fooled"""
    random_answers: Tensor
    """(draws, N) answers under each picture's own random motions"""
    padding_answers: Tensor
    """(draws, N) answers to the unmoved pictures under the black corners of the same motions"""
    forwards: Tensor
    """(N,) passes spent on each picture"""

    @property
    def clean_accuracy(self) -> Share:
        return self._accuracy(self.clean == self.labels)

    @property
    def worst_of_grid(self) -> Share:
        """Right under every motion of the grid and every random one."""
        return self._accuracy(self.fooled_by.isnan().any(1))

    @property
    def worst_of_random(self) -> Share:
        """Right as it is and under all random motions."""
        right = (self.random_answers == self.labels).all(0) & (self.clean == self.labels)
        return self._accuracy(right)

    @property
    def average_of_random(self) -> float:
        """Mean accuracy under one random motion."""
        return float((self.random_answers == self.labels).double().mean())

    @property
    def average_of_padding(self) -> float:
        """Mean accuracy on unmoved pictures under the black corners alone."""
        return float((self.padding_answers == self.labels).double().mean())

    def _accuracy(self, right: Tensor) -> Share:
        return share(int(right.sum()), len(right))


def spatial(
    model: Model,
    pictures: Tensor,
    labels: Tensor,
    *,
    degrees: float = 30.0,
    shift: float = 0.1,
    angles: int = 31,
    shifts: int = 5,
    draws: int = 10,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Spatial:
    """Every picture under turns and shifts: worst of a grid, worst and mean of random ones.

    pictures: (N, 3, S, S) in [0, 1]; labels: (N,)
    degrees: largest turn either way; shift: largest shift each way, as a share of the side
    angles, shifts: points of the grid, angles x shifts x shifts of them (775 as in the paper)
    draws: random motions a picture, uniform within the same bounds
    seed: of those, drawn per picture: neither order nor neighbours matter; slots: see `pgd`

    A picture that is wrong by itself, or under a random motion, is not tried on the grid. With
    degrees and shift 0 the pictures the model sees are the given ones, bit for bit.

    Returns a `Spatial`. Raises UserError for arguments out of range.
    """
    x = check_pictures(pictures)
    side = x.shape[-1]
    if x.shape[-2] != side:
        raise UserError(f"pictures must be square to be turned, got {x.shape[-2]} x {side}")
    y = check_labels(labels, len(x)).to(x.device)
    if not 0 <= degrees <= 180 or not 0 <= shift <= 1:
        raise UserError(
            f"degrees is {degrees:g} and shift {shift:g}; take an angle of 0 to 180 and a share "
            "of the side"
        )
    if angles < 1 or shifts < 1 or draws < 1:
        raise UserError("angles, shifts and draws must be 1 or more")
    batch_size = check_batch_size(batch_size, model.device)
    x, y = x.to(model.device), y.to(model.device)
    grid = motion_grid(degrees, shift * side, angles, shifts)
    n = len(x)
    with frozen(model), torch.no_grad():

        def judge(batch: Tensor) -> Tensor:
            return classify(model, batch, batch_size=batch_size).argmax(1)

        clean = judge(x)
        predicted = clean.clone()
        fooled_by = torch.full((n, 3), math.nan, dtype=torch.float64)
        forwards = torch.ones(n, dtype=torch.long)
        standing = (clean == y).nonzero()[:, 0]
        fooled_by[(clean != y).cpu()] = 0.0

        keys = [projections.picture_key(picture, seed) for picture in x]
        own = _random_motions(keys, draws, degrees, shift * side)
        random_answers, padding_answers = [], []
        for k in range(draws):
            motions = own[:, k]
            random_answers.append(judge(moved(x, motions)))
            padding_answers.append(judge(x * moved(torch.ones_like(x[:, :1]), motions)))
            forwards += 2
            hit = (random_answers[-1][standing] != y[standing]).nonzero()[:, 0]
            rows = standing[hit]
            fooled_by[rows.cpu()] = motions[rows.cpu()]
            predicted[rows] = random_answers[-1][rows]
            standing = _without(standing, hit)
        for k, motion in enumerate(grid):
            if not len(standing):
                break
            if progress is not None:
                progress(k, len(grid), f"turning and shifting, {len(standing)} pictures stand")
            if motion == STILL:
                continue
            motions = torch.tensor([motion], dtype=torch.float64).expand(len(standing), 3)
            answers = judge(moved(x[standing], motions))
            forwards[standing.cpu()] += 1
            hit = (answers != y[standing]).nonzero()[:, 0]
            rows = standing[hit]
            fooled_by[rows.cpu()] = motions[: len(rows)]
            predicted[rows] = answers[hit]
            standing = _without(standing, hit)
        if progress is not None:
            progress(len(grid), len(grid), "turning and shifting")
    return Spatial(
        labels=y.cpu(),
        clean=clean.cpu(),
        grid=grid,
        fooled_by=fooled_by,
        predicted=predicted.cpu(),
        random_answers=torch.stack(random_answers).cpu(),
        padding_answers=torch.stack(padding_answers).cpu(),
        forwards=forwards,
    )


def _without(rows: Tensor, positions: Tensor) -> Tensor:
    keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    keep[positions] = False
    return rows[keep]


def motion_grid(degrees: float, pixels: float, angles: int, shifts: int) -> tuple[Motion, ...]:
    """All motions of the grid, those that move the most first (the likeliest to fool)."""
    turns = _line(degrees, angles)
    steps = _line(pixels, shifts)
    motions = [Motion(a, r, d) for a in turns for r in steps for d in steps]

    def reach(motion: Motion) -> float:
        turned = abs(motion.degrees) / degrees if degrees else 0.0
        gone = math.hypot(motion.right, motion.down) / pixels if pixels else 0.0
        return turned + gone

    return tuple(sorted(dict.fromkeys(motions), key=lambda m: (-reach(m), m)))


def _line(most: float, points: int) -> list[float]:
    if points == 1:
        return [0.0]
    return [most * (2 * k - (points - 1)) / (points - 1) for k in range(points)]


def _random_motions(keys: Sequence[int], draws: int, degrees: float, pixels: float) -> Tensor:
    """(N, draws, 3), uniform within the bounds."""
    bounds = torch.tensor([degrees, pixels, pixels], dtype=torch.float64)
    drawn = [
        torch.rand(draws, 3, generator=projections.generator(key, 40), dtype=torch.float64)
        for key in keys
    ]
    return (2 * torch.stack(drawn) - 1) * bounds


def moved(pictures: Tensor, motions: Tensor) -> Tensor:
    """The pictures (N, C, S, S) turned and shifted, black where nothing is.

    motions: (N, 3) degrees (anticlockwise), pixels to the right, pixels down.
    """
    side = pictures.shape[-1]
    y, x = pixel_grid(side, pictures.device)
    middle = (side - 1) / 2
    turn = motions[:, 0].to(pictures.device).deg2rad()[:, None, None]
    right = motions[:, 1].to(pictures.device)[:, None, None]
    down = motions[:, 2].to(pictures.device)[:, None, None]
    dx, dy = x - middle - right, y - middle - down
    from_x = turn.cos() * dx - turn.sin() * dy + middle
    from_y = turn.sin() * dx + turn.cos() * dy + middle
    return bilinear(pictures, from_y, from_x).clamp(0, 1)
