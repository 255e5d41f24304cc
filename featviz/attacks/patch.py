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
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from featviz import results
from featviz.attacks import projections
from featviz.attacks.checks import check_batch_size
from featviz.attacks.evaluation import classify
from featviz.attacks.held_out import (
    batches_of,
    check_training,
    clipped_gradient,
    digest,
    resumed_steps,
    shown_rows,
    split,
)
from featviz.attacks.patch_result import AdversarialPatch, outline
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.datasets import Pictures, read_labeled
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.types import Progress

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
    pictures: Pictures | Tensor,
    *,
    target: int | str | None = None,
    shape: str = "circle",
    sizes: tuple[float, float] = (0.25, 0.45),
    rotation: float = 22.5,
    steps: int = 150,
    pictures_per_step: int = 16,
    lr: float = 0.05,
    clip: float = 9.0,
    held_out: float = 0.5,
    count: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> AdversarialPatch:
    """A patch that makes the model predict the target (or anything else) wherever it lies.

    It is judged at five sizes.

    Args:
        pictures: A data set, or a tensor (N, 3, S, S) in [0, 1]; a part is held out to judge on.
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
    started = time.perf_counter()
    check_training(steps, pictures_per_step, held_out)
    smallest, largest = _check_outline(shape, sizes, rotation)
    batch_size = check_batch_size(batch_size, model.device)
    aim = None if target is None else model.class_index(target)
    given = read_labeled(model, pictures, count=count)
    training, held = split(given, held_out, seed)
    stream = projections.generator(seed, 3)
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
        "batch_size": batch_size,
    }
    job = {"model": model.record(), "pictures": digest(given.pictures), "seed": seed, **parameters}
    judged = judged_sizes(smallest, largest)
    shown = min(range(len(judged)), key=lambda k: abs(judged[k] - (smallest + largest) / 2))
    with frozen(model), torch.no_grad():
        x = given.pictures.to(model.device)
        clean = classify(model, x, batch_size=batch_size).argmax(1)
        pixels = max(4, round(largest * given.pictures.shape[-1]))
        noise = torch.rand(3, pixels, pixels, generator=stream).to(x)
        sticker = torch.full_like(noise, 0.5)
        mean, square = torch.zeros_like(noise), torch.zeros_like(noise)
        state = {"sticker": sticker, "mean": mean, "square": square, "trace": x.new_zeros(steps)}
        order = batches_of(training, pictures_per_step, steps, stream)
        placed = [
            drawn_places(len(rows), smallest, largest, rotation, shape, [stream]) for rows in order
        ]
        with open_checkpoint(checkpoint, job, total=steps, unit="steps") as kept:
            for step in resumed_steps(kept, state, steps):
                rows = order[step]
                gradient, fooled = _sticker_gradient(
                    model,
                    x[rows],
                    sticker,
                    shape,
                    placed[step],
                    clean[rows] if aim is None else torch.full_like(clean[rows], aim),
                    aim is not None,
                    clip,
                    batch_size,
                )
                turn = 0.5 + 0.5 * math.cos(math.pi * step / steps)
                _adam_step(sticker, gradient, mean, square, step + 1, lr * turn)
                state["trace"][step] = fooled
                if progress is not None:
                    progress(step + 1, steps, "making a patch")
        keys = [projections.picture_key(picture, seed) for picture in given.pictures[held]]
        predicted: dict[str, list[Tensor]] = {"patch": [], "noise": []}
        laid = x[:0]
        for k, size in enumerate(judged):
            streams = [projections.generator(key, 30 + k) for key in keys]
            places = drawn_places(len(held), size, size, rotation, shape, streams)
            for what, sheet in (("noise", noise), ("patch", sticker)):
                covered = lay(x[held], sheet, shape, places)
                found = classify(model, covered, batch_size=batch_size).argmax(1)
                predicted[what].append(found.cpu())
            if k == shown:
                laid = covered[shown_rows(len(held), SHOWN)]
    spent = steps * min(pictures_per_step, len(training))
    result = AdversarialPatch(
        origin=results.origin(
            model, parameters=parameters, started=started, data=given.data, seed=seed
        ),
        warnings=given.warnings,
        model_name=model.name,
        data_name=given.data_name,
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        patch=sticker.cpu(),
        noise=noise.cpu(),
        shape=shape,
        sizes=judged,
        trained_sizes=(smallest, largest),
        rotation=rotation,
        target=aim,
        names=tuple(given.names[i] for i in held.tolist()),
        clean=clean[held].cpu(),
        predicted=torch.stack(predicted["patch"]),
        noise_predicted=torch.stack(predicted["noise"]),
        trained_on=len(training),
        trace=state["trace"].cpu(),
        examples=laid.cpu(),
        shown=tuple(shown_rows(len(held), SHOWN)),
        shown_size=shown,
        forwards=len(x) + spent + 2 * len(judged) * len(held),
        backwards=spent,
        seconds=time.perf_counter() - started,
    )
    return replace(result, warnings=(*result.warnings, *result.doubts()))


def _adam_step(
    sticker: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, lr: float
) -> None:
    """One step of Adam up the gradient, in place; its state is kept in plain tensors."""
    mean.lerp_(gradient, 0.1)
    square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    spread = (square / (1 - 0.999**step)).sqrt().add_(1e-8)
    sticker.addcdiv_(mean, spread, value=lr / (1 - 0.9**step)).clamp_(0, 1)


def _check_outline(shape: str, sizes: tuple[float, float], rotation: float) -> tuple[float, float]:
    if shape not in SHAPES:
        raise UserError(f"unknown shape {shape!r}; take circle or square")
    smallest, largest = (float(size) for size in sizes)
    if not 0 < smallest <= largest <= 0.7:
        raise UserError(
            f"sizes are {smallest:g} to {largest:g}; give shares of the picture's side above 0, "
            "the smaller first, at most 0.7 (turned by 45 degrees more does not fit)"
        )
    if not 0 <= rotation <= 180:
        raise UserError(f"rotation is {rotation:g}; it is an angle of 0 to 180 degrees")
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
    model: Model,
    pictures: Tensor,
    sticker: Tensor,
    shape: str,
    places: Places,
    labels: Tensor,
    targeted: bool,
    clip: float,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """The gradient of the mean clipped loss at the patch, and the share of pictures fooled."""
    total, fooled = torch.zeros_like(sticker), torch.zeros((), device=sticker.device)
    for start in range(0, len(pictures), batch_size):
        part = slice(start, start + batch_size)
        with torch.enable_grad():
            leaf = sticker.detach().requires_grad_(True)
            laid = lay(pictures[part], leaf, shape, Places(*(p[part] for p in places)))
        gradient, hits = clipped_gradient(
            model, laid.detach(), labels[part], targeted=targeted, clip=clip
        )
        (own,) = torch.autograd.grad(laid, leaf, gradient)
        total += own / len(pictures)
        fooled += hits.sum()
    return total, fooled / len(pictures)
