"""`universal`: one perturbation for all pictures, learned from some and judged on others.

The perturbation v ascends a loss over batches of training pictures and is brought back into its
ball after every step:

    v <- project(v + step * direction of the averaged gradient of mean min(m(clip(x + v)), clip))

with m the logit of all other classes together less that of the clean prediction. x + v is clipped
to [0, 1] where the model sees it; v itself is not, so a saturated picture contributes nothing.

Two rates that are often confused are both given: the fooling rate counts predictions that differ
from the model's own clean ones, accuracy counts right ones. Both on pictures that v was not made
from, beside a v with its pixels shuffled and beside random noise of the same size: what those reach
is due to the size of the change, what v reaches beyond them to its pattern.

    Moosavi-Dezfooli et al., "Universal adversarial perturbations", 2017 (arXiv:1610.08401)
    Shafahi et al., "Universal adversarial training", 2018 (arXiv:1811.11304)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.attacks import projections
from featviz.attacks.held_out import (
    HeldOut,
    batches_of,
    clipped_gradient,
    hold_out,
    resumed_steps,
)
from featviz.attacks.held_out_result import fooling_rate
from featviz.attacks.options import Classifier, check_eps, check_norm, choose_precision
from featviz.attacks.universal_result import UniversalPerturbation
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.data.from_python import Data, Labels
from featviz.errors import public
from featviz.models.frozen import frozen
from featviz.models.precision import in_bfloat16
from featviz.pictures import images
from featviz.types import AutoPrecision, BatchSize, Count, Progress, Seed, Steps

if TYPE_CHECKING:
    from featviz.models.model import Model

SHOWN = 6
"""held-out pictures in the figure"""
_LARGEST_STEP, _SMALLEST_STEP = 0.25, 0.01  # of eps; a half cosine between them


@public
def universal(
    model: Model,
    pictures: Data,
    labels: Labels | None = None,
    *,
    eps: Annotated[float, Bounds(0, 1e6)] = 10 / 255,
    norm: str = "linf",
    target: int | str | None = None,
    steps: Steps = 200,
    pictures_per_step: BatchSize = 32,
    momentum: Annotated[float, Bounds(0, 0.999)] = 0.9,
    clip: Annotated[float, Bounds(0, 1e6, above=True)] = 9.0,
    held_out: Annotated[float, Bounds(0.01, 0.99)] = 0.5,
    count: Count | None = None,
    seed: Seed = 0,
    batch_size: BatchSize | None = None,
    precision: AutoPrecision = "auto",
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> UniversalPerturbation:
    """One perturbation that changes the model's prediction on as many pictures as possible.

    Args:
        pictures: What `as_pictures` takes; a float tensor (N, C, H, W) keeps its
            size. A part of them, drawn with `seed`,
            is held out to judge the result.
        labels: For accuracy only; the perturbation is made from the model's own clean predictions.
        eps: Radius of the ball that the perturbation lies in; the field's sizes are 10/255 in
            L-infinity and 2000/255 in L2 at 224 pixels.
        norm: "linf" or "l2".
        target: A class that all pictures are to become; None is away from their own.
        steps: Of the ascent.
        pictures_per_step: Each costs a forward and a backward pass.
        momentum: How much of the earlier gradients remains in the average.
        clip: Pictures fooled by more logits than this no longer contribute.
        held_out: Share of the pictures kept for judging.
        count: At most so many pictures in all, evenly spread.
        seed: Of the split, the batches, the shuffling and the noise.
        batch_size: Pictures that the model sees at once.
        precision: "bfloat16" ascends in bfloat16, "auto" does so on processors that are faster at
            it; what is reported is judged in float32.
        checkpoint: A folder for unfinished work; the same call goes on from there.
        progress: Called with (steps made, steps, text).

    Raises:
        UserError: An argument is out of range.
    """
    check_norm(norm, ("linf", "l2"))
    check_eps(eps, norm, 1)
    task = hold_out(
        model,
        pictures,
        labels,
        target=target,
        share=held_out,
        count=count,
        seed=seed,
        batch_size=batch_size,
    )
    precision = choose_precision(model, task.x, precision)
    parameters = {
        "eps": eps,
        "norm": norm,
        "target": target,
        "steps": steps,
        "pictures_per_step": pictures_per_step,
        "momentum": momentum,
        "clip": clip,
        "held_out": held_out,
        "count": count,
        "batch_size": task.batch_size,
        "precision": precision,
    }
    stream = projections.generator(seed, 2)
    lower = in_bfloat16(model) if precision == "bfloat16" else nullcontext(model)
    opened = open_checkpoint(checkpoint, task.job(parameters), total=steps, unit="steps")
    with frozen(model), torch.no_grad(), opened as kept:
        clean = task.predict(task.x)
        order = batches_of(task.training, pictures_per_step, steps if eps > 0 else 0, stream)
        with lower as fast:
            v, trace = _learn(
                fast, task, clean, order, kept, eps, norm, momentum, clip, progress=progress
            )
        predicted = _judge(task, v, eps, norm, stream)
        training = task.training
        share = fooling_rate(
            clean[training].cpu(), task.predict(task.x[training] + v).cpu(), task.target
        )
    spent = sum(map(len, order))
    held, own = task.held, task.data.labels
    result = UniversalPerturbation(
        **task.fields(parameters, clean, SHOWN, spent),
        perturbation=v.cpu(),
        eps=eps,
        norm=norm,
        labels=None if own is None else own[held],
        predicted=predicted,
        training_share=share,
        trace=trace,
        examples=task.data.pictures[held[task.shown(SHOWN)]],
        forwards=len(clean) + spent + len(predicted) * len(held) + len(training),
    )
    return replace(result, warnings=(*result.warnings, *result.caveats()))


def _learn(
    model: Classifier,
    task: HeldOut,
    clean: Tensor,
    order: Sequence[Tensor],
    kept: Checkpoint,
    eps: float,
    norm: str,
    momentum: float,
    clip: float,
    *,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """The perturbation after a step on each batch of rows, and (steps,) shares fooled."""
    v, steps = torch.zeros_like(task.x[0]), len(order)
    average, trace = torch.zeros_like(v), task.x.new_zeros(steps)
    labels = task.labels(clean)
    state = {"v": v, "average": average, "trace": trace}
    for step in resumed_steps(kept, state, steps):
        rows = order[step]
        gradient, trace[step] = perturbation_gradient(
            model,
            task.x[rows],
            v,
            labels[rows],
            targeted=task.target is not None,
            clip=clip,
            batch_size=task.batch_size,
        )
        average.mul_(momentum).add_(gradient / gradient.abs().sum().clamp(min=1e-30))
        turn = 0.5 + 0.5 * math.cos(math.pi * step / max(1, steps - 1))
        size = eps * (_SMALLEST_STEP + (_LARGEST_STEP - _SMALLEST_STEP) * turn)
        v.copy_(into_ball(v + size * _direction(average, norm), eps, norm))
        if progress is not None:
            progress(step + 1, steps, "making one perturbation for all")
    return v, trace.cpu()


def _judge(
    task: HeldOut, v: Tensor, eps: float, norm: str, stream: torch.Generator
) -> dict[str, Tensor]:
    """Predictions for the held-out pictures with the perturbation and with what it is compared."""
    x = task.x[task.held]
    changes = {
        "universal": v,
        "shuffled": _shuffled(v, stream),
        "noise": _noise(v.shape, eps, norm, stream).to(v),
    }
    changed = {what: x + change for what, change in changes.items()}
    changed["8 bits"] = images.quantize((x + v).clamp(0, 1)).to(x.dtype)
    return {what: task.predict(pictures).cpu() for what, pictures in changed.items()}


def perturbation_gradient(
    model: Classifier,
    pictures: Tensor,
    v: Tensor,
    labels: Tensor,
    *,
    targeted: bool = False,
    clip: float = math.inf,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Gradient (3, H, W) at v of the clipped loss summed over pictures, and the share fooled."""
    total, fooled = torch.zeros_like(v), torch.zeros((), device=v.device)
    for part, own in zip(pictures.split(batch_size), labels.split(batch_size), strict=True):
        moved = part + v
        gradient, hits = clipped_gradient(
            model, moved.clamp(0, 1), own, targeted=targeted, clip=clip
        )
        total += (gradient * ((moved >= 0) & (moved <= 1))).sum(0)  # where the clip lets v through
        fooled += hits.sum()
    return total, fooled / len(pictures)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    length = max(float(gradient.double().norm()), 1e-300)
    return (gradient.double() / length).to(gradient.dtype)


def into_ball(v: Tensor, eps: float, norm: str) -> Tensor:
    """v brought to within eps of 0, exactly as measured in float64."""
    if norm == "linf":
        limit = torch.tensor(eps, dtype=v.dtype, device=v.device)
        if float(limit) > eps:
            limit = torch.nextafter(limit, torch.zeros_like(limit))
        return v.clamp(-limit, limit)
    while (size := float(v.double().norm())) > eps:
        v = (v.double() * (eps / size * (1 - 1e-9))).to(v.dtype)
        if float(v.double().norm()) > eps:  # rounding went outwards
            v = v * (1 - 2**-22)
    return v


def _shuffled(v: Tensor, stream: torch.Generator) -> Tensor:
    """The same pixels at other places, colors kept together."""
    flat = v.flatten(1)
    order = torch.randperm(flat.shape[1], generator=stream).to(v.device)
    return flat[:, order].view_as(v)


def _noise(shape: torch.Size, eps: float, norm: str, stream: torch.Generator) -> Tensor:
    """Random signs of size eps, or a random direction of length eps."""
    if norm == "linf":
        return into_ball(eps * projections.random_signs(shape, stream).float(), eps, norm)
    drawn = torch.randn(shape, generator=stream, dtype=torch.float64)
    return into_ball((eps * drawn / drawn.norm()).float(), eps, norm)
