"""The optimization loop: pictures that maximize an objective, each from its own seed.

    parameters -> picture -> transforms -> network -> objective -> gradient -> optimizer

Comes in: a model, an objective, some of its targets, a seed for each, and `Settings`. Goes out:
`Optimized`. Olah, Mordvintsev and Schubert 2017, "Feature Visualization" (Distill).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from featviz.errors import fitting_batch, halved_batch
from featviz.maximization.objectives import PICTURE, Objective, common_units
from featviz.maximization.optimized import Optimized, Record, eight_bits, joined
from featviz.maximization.optimizers import step_where
from featviz.maximization.reading import Reader, reading
from featviz.maximization.regularizers import shaped_gradient
from featviz.maximization.relu_gradients import RedirectedReLUs
from featviz.maximization.settings import Settings
from featviz.maximization.transforms import sent
from featviz.models.frozen import frozen
from featviz.models.graphed import graphed, need_cuda
from featviz.models.model import Model
from featviz.pictures import images
from featviz.types import Progress
from featviz.wording import counted

# Pictures in a batch by default: CPUs gain nothing from more, GPUs do.
BATCH, BATCH_ON_CUDA = 16, 256


def optimize(
    model: Model,
    objective: Objective,
    targets: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    *,
    regularizer: Objective | None = None,
    start: Tensor | None = None,
    batch_size: int | None = None,
    frames: int = 0,
    entering: Collection[str] = (),
    progress: Progress | None = None,
) -> Optimized:
    """Maximize an objective for some of its targets, each picture from its own seed.

    Pictures of a batch do not influence one another, except within a group of an objective that
    compares them.

    Args:
        targets: (N) indices of the objective's targets; whole groups where it compares pictures.
        seeds: (N) seeds of start, transforms and noise.
        regularizer: Maximized with the objective, but not part of any score.
        start: Pictures (N, 3, H, W) to begin at, in place of noise.
        batch_size: Most pictures at a time, default 16 on the CPU and 256 on CUDA; consecutive
            targets, rounded down to whole groups. Halved where memory does not suffice.
        frames: Number of stages of each picture to keep, from the start to the end.
        entering: Layers that the steps read as they enter their module; scores read what leaves it.
        progress: Counts steps of single pictures.

    Raises:
        UserError: There is not enough memory for one group, or `settings.cuda_graph` without CUDA.
    """
    if settings.cuda_graph:
        need_cuda(model.device)
    group = math.lcm(objective.group, regularizer.group if regularizer is not None else 1)
    if len(targets) % group:
        raise ValueError(f"{counted(len(targets), 'target')}: not whole groups of {group}")
    size = batch_size or (BATCH if model.device.type == "cpu" else BATCH_ON_CUDA)
    size = max(group, min(size, len(targets)) // group * group)
    form = settings.parametrization
    if model.device.type == "cpu":  # picture, gradient, two moments, views: float32
        size = fitting_batch(size, group, 12 * (4 + settings.views) * form.height * form.width)
    layers = objective.layers + (regularizer.layers if regularizer is not None else ())
    parts: list[Optimized] = []
    first, total = 0, len(targets) * settings.steps

    def report(done: int, _: int, text: str) -> None:
        if progress is not None:
            progress(first * settings.steps + done, total, text)

    with (
        frozen(model),
        reading(model, layers, settings.precision, entering=entering) as read,
    ):
        while first < len(targets):
            rows = slice(first, first + size)
            begun = None if start is None else start[rows].to(model.device)
            batch = (objective, regularizer, list(targets[rows]), seeds[rows], begun)
            try:
                parts.append(_optimize_batch(model, *batch, settings, read, frames, report))
                first += size
            except (MemoryError, RuntimeError) as error:
                size = halved_batch(size, group, error)
    return joined(parts)


def _optimize_batch(
    model: Model,
    objective: Objective,
    regularizer: Objective | None,
    targets: list[int],
    seeds: Sequence[int],
    start: Tensor | None,
    settings: Settings,
    read: Reader,
    frames: int,
    report: Progress,
) -> Optimized:
    form, transforms = settings.parametrization, settings.transforms
    steps, views, N = settings.steps, settings.views, len(targets)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    begun = form.start(generators) if start is None else form.fit(start)
    parameters = begun.to(model.std).requires_grad_()  # (N, ...)
    draws = [transforms.draw(steps * views, generator) for generator in generators]
    moves = torch.stack(draws).unflatten(1, (steps, views)).to(model.device)  # (N, steps, V, 5)
    optimizer, scheduler = settings.optimizer.build(parameters, settings.lr, steps)
    record = Record(form.picture(parameters), steps, transparency=settings.transparency)
    check_after = {steps - round(i * steps / (2 * settings.checks)) for i in range(settings.checks)}
    frame_after = {round(i * steps / max(1, frames - 1)) for i in range(frames)}
    stages: list[Tensor] = []

    def scored(x: Tensor, moves: Tensor, *noise: Tensor) -> Tensor:
        moved = transforms.views(x, moves, *noise)  # (views * N, 3, H, W)
        return _scores(objective, regularizer, read, x, moved, targets * views)

    shaped = partial(shaped_gradient, settings=settings)
    with (
        graphed(scored, wanted=settings.cuda_graph, device=parameters.device) as score,
        graphed(shaped, wanted=settings.cuda_graph, device=parameters.device) as shape,
    ):
        for step in range(steps + 1):
            picture = form.picture(parameters)  # (N, 3, H, W)
            if step in frame_after:
                stages.append(images.to_uint8(picture))
            if step in check_after:
                with torch.no_grad():
                    rounded = eight_bits(picture)
                    record.check(step, rounded, objective(read(rounded, exact=True), targets))
            if step == steps:
                break

            x = picture.detach().requires_grad_()
            noise = transforms.noise_of(x, views, generators)
            stalled = record.stalled.repeat(views)
            redirected = RedirectedReLUs(stalled) if bool(stalled.any()) else None
            with redirected or nullcontext():
                scores = (score if redirected is None else scored)(x, moves[:, step], *noise)
            (gradient,) = torch.autograd.grad(scores.sum() / views, x)
            helped = None if redirected is None else redirected.redirected.view(views, N).any(0)
            record.note(step, scores[0].detach().view(views, N).mean(0), gradient, helped)
            if settings.optimizer.shaped:
                gradient = shape(gradient, x.detach())
            (parameters.grad,) = torch.autograd.grad(picture, parameters, gradient)

            free = record.free.view(-1, *(1,) * (parameters.dim() - 1))
            if step + 1 < settings.coarse_to_fine * steps:  # shapes come before detail
                share = (step + 1) / (settings.coarse_to_fine * steps)
                free = free & sent(form.detail(share), free.device)
            step_where(free, parameters, optimizer)
            scheduler.step()
            report((step + 1) * N, steps * N, "optimizing")
    return record.result(parameters, stages)


def _scores(
    objective: Objective,
    regularizer: Objective | None,
    read: Reader,
    x: Tensor,
    moved: Tensor,
    targets: list[int],
) -> Tensor:
    """Scores of pictures as they were moved, and those of the regularizer, (1 or 2, views * N)."""
    goals = [objective] if regularizer is None else [objective, regularizer]
    units = common_units(goals)
    values = None if units is None else read.own(moved, [units[t] for t in targets])
    if values is not None:
        scores = [goal.own(values, targets) for goal in goals if goal.own is not None]
    else:
        views = len(moved) // len(x)
        activations = read(moved) | {PICTURE: x if views == 1 else x.repeat(views, 1, 1, 1)}
        scores = [goal(activations, targets) for goal in goals]
    return torch.stack(scores)
