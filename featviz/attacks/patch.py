"""`patch`: a sticker that determines the prediction wherever it lies in the picture.

The patch is learned on training pictures, each time at a random place, size and turn, and judged on
held-out pictures at places of their own. A patch of random noise of the same shape at the same
places is judged too: what that reaches is due to occlusion, what the patch reaches beyond it to its
pattern. Nothing bounds the patch but its outline; its pixels take any value in [0, 1].

    A(p, x) = x (1 - m) + p m, with patch p and outline m resampled by one affine map

    Brown et al., "Adversarial Patch", 2017 (arXiv:1712.09665)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from torch import Tensor, nn

from featviz.arguments import Bounds
from featviz.attacks import projections
from featviz.attacks.held_out import (
    HeldOut,
    batches_of,
    clipped_gradient,
    hold_out,
    resumed_steps,
)
from featviz.attacks.patch_result import AdversarialPatch, outline
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.data.from_python import Data
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.types import BatchSize, Count, Progress, Rate, Seed, Steps

if TYPE_CHECKING:
    from featviz.models.model import Model

SHAPES = ("circle", "square")
SHOWN = 7


class Places(NamedTuple):
    """Where a patch lies in each picture, (N,) each."""

    size: Tensor
    """side (or diameter) as a share of the picture's side"""
    angle: Tensor
    """degrees"""
    x: Tensor
    """of the middle, as a share of the side"""
    y: Tensor


@public
def patch(
    model: Model,
    pictures: Data,
    *,
    target: int | str | None = None,
    shape: str = "circle",
    sizes: tuple[float, float] = (0.25, 0.45),
    rotation: Annotated[float, Bounds(0, 180)] = 22.5,
    steps: Steps = 150,
    pictures_per_step: BatchSize = 16,
    lr: Rate = 0.05,
    clip: Annotated[float, Bounds(0, 1e6, above=True)] = 9.0,
    held_out: Annotated[float, Bounds(0.01, 0.99)] = 0.5,
    count: Count | None = None,
    seed: Seed = 0,
    batch_size: BatchSize | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> AdversarialPatch:
    """A patch that makes the model predict the target (or anything else) wherever it lies.

    It is judged at five sizes.

    Args:
        pictures: What `as_pictures` takes; a float tensor (N, C, H, W) keeps its
            size. A part is held out to judge on.
            Labels are not needed: the model's own clean predictions are what is to be left.
        target: The class to be predicted; None is any other than before.
        shape: "circle" or "square".
        sizes: Smallest and largest side (or diameter) in training, as shares of the picture's side.
        rotation: At most so many degrees either way.
        steps: Of Adam, with a cosine schedule.
        pictures_per_step: Each costs a forward and a backward pass.
        lr: Adam's learning rate at first, of pixels in [0, 1].
        clip: Pictures fooled by more logits than this no longer contribute.
        held_out: Share of the pictures kept for judging.
        count: At most so many pictures in all, evenly spread.
        seed: Of the split, the batches and the places.
        batch_size: Pictures that the model sees at once.
        checkpoint: A folder for unfinished work; the same call goes on from there.
        progress: Called with (steps made, steps, text).

    Raises:
        UserError: An argument is out of range.
    """
    smallest, largest = _check_outline(shape, sizes)
    task = hold_out(
        model,
        pictures,
        None,
        target=target,
        share=held_out,
        count=count,
        seed=seed,
        batch_size=batch_size,
    )
    parameters = {
        "target": target,
        "shape": shape,
        "sizes": [smallest, largest],
        "rotation": rotation,
        "steps": steps,
        "pictures_per_step": pictures_per_step,
        "lr": lr,
        "clip": clip,
        "held_out": held_out,
        "count": count,
        "batch_size": task.batch_size,
    }
    stream = projections.generator(seed, 3)
    opened = open_checkpoint(checkpoint, task.job(parameters), total=steps, unit="steps")
    with frozen(model), torch.no_grad(), opened as kept:
        clean = task.predict(task.x)
        pixels = max(4, round(largest * task.x.shape[-1]))
        noise = torch.rand(3, pixels, pixels, generator=stream).to(task.x)
        order = batches_of(task.training, pictures_per_step, steps, stream)
        placed = [
            drawn_places(len(rows), smallest, largest, rotation, shape, [stream]) for rows in order
        ]
        sticker, trace = _learn(
            task, clean, torch.full_like(noise, 0.5), order, placed, kept, shape, lr, clip, progress
        )
        judged = judged_sizes(smallest, largest)
        shown = min(range(len(judged)), key=lambda k: abs(judged[k] - (smallest + largest) / 2))
        predicted: dict[str, list[Tensor]] = {"patch": [], "noise": []}
        x, examples = task.x[task.held], task.x[:0]
        for k, size in enumerate(judged):
            streams = projections.picture_streams(x, seed, 30 + k)
            places = drawn_places(len(x), size, size, rotation, shape, streams)
            for what, sheet in (("noise", noise), ("patch", sticker)):
                covered = lay(x, sheet, shape, places)
                predicted[what].append(task.predict(covered).cpu())
            if k == shown:
                examples = covered[task.shown(SHOWN)].cpu()
    spent = sum(map(len, order))
    result = AdversarialPatch(
        **task.fields(parameters, clean, SHOWN, spent),
        patch=sticker.cpu(),
        noise=noise.cpu(),
        shape=shape,
        sizes=judged,
        trained_sizes=(smallest, largest),
        rotation=rotation,
        predicted=torch.stack(predicted["patch"]),
        noise_predicted=torch.stack(predicted["noise"]),
        trace=trace,
        examples=examples,
        shown_size=shown,
        forwards=len(clean) + spent + 2 * len(judged) * len(x),
    )
    return replace(result, warnings=(*result.warnings, *result.caveats()))


def _learn(
    task: HeldOut,
    clean: Tensor,
    sticker: Tensor,
    order: Sequence[Tensor],
    placed: Sequence[Places],
    kept: Checkpoint,
    shape: str,
    lr: float,
    clip: float,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """The patch after a step on each batch of rows and places, and (steps,) shares fooled."""
    mean, square = torch.zeros_like(sticker), torch.zeros_like(sticker)
    labels, steps = task.labels(clean), len(order)
    trace = sticker.new_zeros(steps)
    state = {"sticker": sticker, "mean": mean, "square": square, "trace": trace}
    for step in resumed_steps(kept, state, steps):
        rows = order[step]
        gradient, trace[step] = _sticker_gradient(
            task, task.x[rows], sticker, shape, placed[step], labels[rows], clip
        )
        turn = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        _adam_step(sticker, gradient, mean, square, step + 1, lr * turn)
        if progress is not None:
            progress(step + 1, steps, "making a patch")
    return sticker, trace.cpu()


def _adam_step(
    sticker: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, lr: float
) -> None:
    """One step of Adam up the gradient, in place; its state is kept in plain tensors."""
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    spread = (square / (1 - 0.999**step)).sqrt().add_(1e-8)
    sticker.addcdiv_(mean, spread, value=lr / (1 - 0.9**step)).clamp_(0, 1)


def _check_outline(shape: str, sizes: tuple[float, float]) -> tuple[float, float]:
    if shape not in SHAPES:
        raise UserError(f"unknown shape {shape!r}; take circle or square")
    smallest, largest = (float(size) for size in sizes)
    if not 0 < smallest <= largest <= 0.7:
        raise UserError(
            f"sizes are {smallest:g} to {largest:g}; give shares of the picture's side above 0, "
            "the smaller first, at most 0.7 (turned by 45 degrees more does not fit)"
        )
    return smallest, largest


def judged_sizes(smallest: float, largest: float) -> tuple[float, ...]:
    """Five sizes: half the smallest, and four from the smallest to the largest."""
    inner = [smallest + k * (largest - smallest) / 3 for k in range(4)]
    return tuple(dict.fromkeys(round(size, 4) for size in (smallest / 2, *inner)))


def drawn_places(
    count: int,
    smallest: float,
    largest: float,
    rotation: float,
    shape: str,
    streams: Sequence[torch.Generator],
) -> Places:
    """Random places at which the whole patch lies within the picture.

    streams: one for each picture, or a single one for all in turn.
    """
    drawn = torch.stack(
        [
            torch.rand(4, generator=streams[i % len(streams)], dtype=torch.float64)
            for i in range(count)
        ]
    )
    size = smallest + (largest - smallest) * drawn[:, 0]
    angle = rotation * (2 * drawn[:, 1] - 1)
    reach = size / 2
    if shape == "square":
        turned = angle.deg2rad()
        reach = reach * (turned.cos().abs() + turned.sin().abs())
    return Places(size, angle, *(reach + (1 - 2 * reach) * drawn[:, k] for k in (2, 3)))


def lay(pictures: Tensor, sticker: Tensor, shape: str, places: Places) -> Tensor:
    """The pictures (N, 3, S, S) with the patch (3, P, P) at each one's place."""
    mask = outline(shape, sticker.shape[-1]).to(sticker)
    sheet = torch.cat([sticker * mask, mask])
    size, turn = places.size, places.angle.deg2rad()
    cos, sin = turn.cos() / size, turn.sin() / size
    x, y = 2 * places.x - 1, 2 * places.y - 1
    maps = torch.stack(
        [
            torch.stack([cos, sin, -(cos * x + sin * y)], 1),
            torch.stack([-sin, cos, sin * x - cos * y], 1),
        ],
        1,
    ).to(pictures)
    grid = nn.functional.affine_grid(maps, list(pictures.shape), align_corners=False)
    laid = nn.functional.grid_sample(
        sheet.expand(len(pictures), -1, -1, -1), grid, padding_mode="zeros", align_corners=False
    )
    return (pictures * (1 - laid[:, 3:]) + laid[:, :3]).clamp(0, 1)


def _sticker_gradient(
    task: HeldOut,
    pictures: Tensor,
    sticker: Tensor,
    shape: str,
    places: Places,
    labels: Tensor,
    clip: float,
) -> tuple[Tensor, Tensor]:
    """The gradient of the mean clipped loss at the patch, and the share of pictures fooled."""
    total, fooled = torch.zeros_like(sticker), torch.zeros((), device=sticker.device)
    for start in range(0, len(pictures), task.batch_size):
        part = slice(start, start + task.batch_size)
        with torch.enable_grad():
            leaf = sticker.detach().requires_grad_(True)
            laid = lay(pictures[part], leaf, shape, Places(*(p[part] for p in places)))
        gradient, hits = clipped_gradient(
            task.model,
            laid.detach(),
            labels[part],
            targeted=task.target is not None,
            clip=clip,
        )
        (own,) = torch.autograd.grad(laid, leaf, gradient)
        total += own / len(pictures)
        fooled += hits.sum()
    return total, fooled / len(pictures)
