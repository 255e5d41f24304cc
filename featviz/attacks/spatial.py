"""`spatial`: is a model still right when the picture is turned and shifted a little?

Every picture is tried at all points of a grid of angles and shifts, in the order of how far they
move it, farthest first; it leaves at the first that fools the model. Beside the worst case the
result has ten random motions, their average, and what the black corners alone do, without any
motion: they hide pixels, and part of the damage is theirs.

One resampler does it all (bilinear, black beyond the border). Without turn and shift it gives
back the same bits.

    Engstrom et al., "Exploring the landscape of spatial robustness", 2019 (arXiv:1712.02779)
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from featviz import results
from featviz.arguments import Bounds
from featviz.attacks import projections
from featviz.attacks.evaluation import classify
from featviz.attacks.options import check_batch_size, check_labels
from featviz.attacks.spatial_result import Motion, SpatialRobustness
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.pictures.images import check_pictures
from featviz.pictures.resampling import bilinear, pixel_grid
from featviz.types import BatchSize, Progress, Seed
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.models.model import Model

STILL = Motion(0.0, 0.0, 0.0)


@public
def spatial(
    model: Model,
    pictures: Tensor,
    labels: Tensor,
    *,
    degrees: Annotated[float, Bounds(0, 180)] = 30.0,
    shift: Annotated[float, Bounds(0, 1)] = 0.1,
    angles: Annotated[int, Bounds(1, 1000)] = 31,
    shifts: Annotated[int, Bounds(1, 100)] = 5,
    draws: Annotated[int, Bounds(1, 1_000_000)] = 10,
    seed: Seed = 0,
    batch_size: BatchSize | None = None,
    progress: Progress | None = None,
) -> SpatialRobustness:
    """Every picture under turns and shifts: worst of a grid, worst and mean of random ones.

    A picture that is wrong by itself, or under a random motion, is not tried on the grid. With
    degrees and shift 0 the pictures the model sees are the given ones, bit for bit.

    Args:
        pictures: (N, 3, S, S) in [0, 1].
        labels: (N,).
        degrees: Largest turn either way.
        shift: Largest shift each way, as a share of the side.
        angles: Angles of the grid, which has angles x shifts x shifts points (775 in the paper).
        shifts: Shifts of the grid in each of the two directions.
        draws: Random motions a picture, uniform within the same bounds.
        seed: Of those, drawn per picture.
        batch_size: Pictures that the model sees at once.
        progress: Called with (motions tried, motions, text).

    Raises:
        UserError: An argument is out of range.
    """
    started = time.perf_counter()
    parameters = {
        "degrees": degrees,
        "shift": shift,
        "angles": angles,
        "shifts": shifts,
        "draws": draws,
        "batch_size": batch_size,
    }
    x = check_pictures(pictures, channels=None)
    side = x.shape[-1]
    if x.shape[-2] != side:
        raise UserError(f"pictures must be square to be turned, got {x.shape[-2]} x {side}")
    y = check_labels(labels, len(x)).to(x.device)
    batch_size = check_batch_size(batch_size, model.device)
    x, y = x.to(model.device), y.to(model.device)
    grid = motion_grid(degrees, shift * side, angles, shifts)
    n = len(x)
    with frozen(model), torch.no_grad():

        def judge(batch: Tensor) -> Tensor:
            return classify(model, batch, batch_size=batch_size).argmax(1)

        clean = judge(x)
        bounds = torch.tensor([degrees, shift * side, shift * side], dtype=torch.float64)
        streams = projections.picture_streams(x, seed, 40)
        drawn = [torch.rand(draws, 3, generator=s, dtype=torch.float64) for s in streams]
        own = (2 * torch.stack(drawn) - 1) * bounds  # (N, draws, 3)
        random = torch.stack([judge(moved(x, motions)) for motions in own.unbind(1)])
        corners = [moved(torch.ones_like(x[:, :1]), motions) for motions in own.unbind(1)]
        padding = torch.stack([judge(x * mask) for mask in corners])
        forwards = torch.full((n,), 1 + 2 * draws)

        # What fools first: nothing at all, a random motion, one of the grid.
        tried = torch.cat([clean[None], random])
        first, number = (tried != y).long().argmax(0), torch.arange(n)
        predicted = tried[first, number.to(first.device)]
        fooled_by = torch.cat([torch.zeros(n, 1, 3, dtype=torch.float64), own], 1)
        fooled_by = fooled_by[number, first.cpu()]
        right = (predicted == y).nonzero()[:, 0]
        fooled_by[right.cpu()] = math.nan
        for k, motion in enumerate(grid):
            if not len(right):
                break
            if progress is not None:
                progress(
                    k, len(grid), f"turning and shifting, right: {counted(len(right), 'picture')}"
                )
            if motion != STILL:
                motions = torch.tensor([motion], dtype=torch.float64)
                found = judge(moved(x[right], motions.expand(len(right), 3)))
                forwards[right.cpu()] += 1
                wrong = found != y[right]
                predicted[right[wrong]] = found[wrong]
                fooled_by[right[wrong].cpu()] = motions
                right = right[~wrong]
        if progress is not None:
            progress(len(grid), len(grid), "turning and shifting")
    return SpatialRobustness(
        origin=results.origin(model, parameters=parameters, started=started, seed=seed),
        model_name=model.name,
        class_names=model.class_names,
        labels=y.cpu(),
        clean=clean.cpu(),
        grid=grid,
        fooled_by=fooled_by,
        predicted=predicted.cpu(),
        random_predicted=random.cpu(),
        padding_predicted=padding.cpu(),
        forwards=forwards,
    )


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


def moved(pictures: Tensor, motions: Tensor) -> Tensor:
    """The pictures (N, C, S, S) turned and shifted, black where nothing is.

    motions: (N, 3) degrees (anticlockwise), pixels to the right, pixels down.
    """
    side = pictures.shape[-1]
    y, x = pixel_grid(side, side, pictures.device)
    middle = (side - 1) / 2
    turn, right, down = motions.to(pictures.device).T[:, :, None, None]
    turn = turn.deg2rad()
    dx, dy = x - middle - right, y - middle - down
    from_x = turn.cos() * dx - turn.sin() * dy + middle
    from_y = turn.sin() * dx + turn.cos() * dy + middle
    return bilinear(pictures, from_y, from_x).clamp(0, 1)
