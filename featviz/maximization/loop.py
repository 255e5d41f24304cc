"""The optimization loop: pictures that maximize an objective, each from its own seed.

    parameters -> picture -> transforms -> network -> objective -> gradient -> optimizer

Comes in: a model, an objective, some of its targets, a seed for each, and `Settings`. Goes out:
`Optimized`. Olah, Mordvintsev and Schubert 2017, "Feature Visualization" (Distill).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from featviz import images
from featviz.errors import UserError
from featviz.maximization.objectives import PICTURE, Objective
from featviz.maximization.regularizers import shaped_gradient
from featviz.maximization.relu_gradients import RedirectedReLUs
from featviz.maximization.settings import Settings
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.precision import in_bfloat16
from featviz.types import Precision, Progress

if TYPE_CHECKING:
    from featviz.models.model import Model

# Pictures in a batch by default: CPUs gain nothing from more, GPUs do.
BATCH, BATCH_ON_CUDA = 16, 256


@dataclass(frozen=True)
class Optimized:
    """Pictures and how they came about; a row for each target."""

    images: Tensor
    """(N, 3, H, W) float32 in [0, 1], rounded to 8 bits: the best of those that were checked"""
    scores: Tensor
    """(N,): the objective of `images`, without transforms; NaN where it is not finite"""
    trace: Tensor
    """(N, steps): the objective at each step, with the transforms of that step"""
    best_steps: Tensor
    """(N,): after how many steps `images` were taken"""
    alive: Tensor
    """(N,) bool: whether there ever was a gradient that no ReLU had to be redirected for"""
    failed: Tensor
    """(N,): the first step with a score or gradient that is not finite, or -1"""
    frames: Tensor
    """(N, F, 3, H, W) uint8: stages of the optimization"""
    transparency: Tensor
    """(N, H, W): sum over the steps of |d score / d pixel|, mean over colors; else (N, 0, 0)"""
    parameters: Tensor
    """(N, ...): free parameters after the last step"""

    def without_parameters(self) -> Optimized:
        """The same without the free parameters, for a file."""
        return replace(self, parameters=self.parameters.new_zeros(len(self.scores), 0))

    @property
    def steps(self) -> Tensor:
        """(N,): how many steps had a finite score."""
        return self.trace.isfinite().sum(1)

    def rows(self, rows: Sequence[int]) -> Optimized:
        """Some of the pictures."""
        return Optimized(**{f.name: getattr(self, f.name)[list(rows)] for f in fields(self)})


class Reader(Protocol):
    def __call__(self, pictures: Tensor, *, exact: bool = False) -> dict[str, Tensor]: ...


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
        progress: Counts steps of single pictures.

    Raises:
        UserError: There is not enough memory for one group.
    """
    group = math.lcm(objective.group, regularizer.group if regularizer is not None else 1)
    if len(targets) % group:
        raise ValueError(f"{len(targets)} targets are not whole groups of {group}")
    size = batch_size or (BATCH if model.device.type == "cpu" else BATCH_ON_CUDA)
    size = max(group, min(size, len(targets)) // group * group)
    layers = objective.layers + (regularizer.layers if regularizer is not None else ())
    parts: list[Optimized] = []
    first, total = 0, len(targets) * settings.steps

    def report(more: int) -> None:
        if progress is not None:
            progress(first * settings.steps + more, total, "optimizing")

    with frozen(model), reading(model, layers, settings.precision) as read:
        while first < len(targets):
            rows = slice(first, first + size)
            begun = None if start is None else start[rows]
            batch = _Batch(list(targets[rows]), seeds[rows], begun)
            try:
                made = _optimize_batch(
                    model, objective, regularizer, batch, settings, read, frames, report
                )
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if size == group:
                    raise UserError(
                        f"not enough memory for {group} picture{'s' * (group > 1)} at a time; make "
                        "pictures smaller (size), or take an earlier layer"
                    ) from None
                size = max(group, size // 2 // group * group)
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            parts.append(made)
            first += size
    return joined(parts)


@dataclass(frozen=True)
class _Batch:
    targets: list[int]
    seeds: Sequence[int]
    start: Tensor | None


def _optimize_batch(
    model: Model,
    objective: Objective,
    regularizer: Objective | None,
    batch: _Batch,
    settings: Settings,
    read: Reader,
    frames: int,
    report: Callable[[int], None],
) -> Optimized:
    form, transforms = settings.parametrization, settings.transforms
    steps, views, targets, N = settings.steps, settings.views, batch.targets, len(batch.targets)
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    start = form.start(generators) if batch.start is None else form.fit(batch.start)
    parameters = start.to(model.device).requires_grad_()
    draws = [transforms.draw(steps * views, generator) for generator in generators]
    moves = torch.stack(draws).to(model.device)  # (N, steps * views, 5)
    optimizer, scheduler = settings.optimizer.build(parameters, settings.lr, steps)
    check_after = {steps - round(i * steps / (2 * settings.checks)) for i in range(settings.checks)}
    frame_after = {round(i * steps / max(1, frames - 1)) for i in range(frames)}

    best = _eight_bits(form.picture(parameters))
    best_scores = best.new_full((N,), -math.inf)
    best_steps, failed = best_scores.new_zeros(N).long(), best_scores.new_full((N,), -1).long()
    alive, moved, stalled = torch.zeros(3, N, dtype=torch.bool, device=best.device)
    trace, stages = best.new_full((N, steps), math.nan), []
    transparency = best.new_zeros(N, *(best.shape[-2:] if settings.transparency else (0, 0)))
    for step in range(steps + 1):
        picture = form.picture(parameters)  # (N, 3, H, W)
        if step in frame_after:
            stages += [images.to_uint8(picture.detach())]
        if step in check_after:
            with torch.no_grad():
                rounded = _eight_bits(picture)
                scores = objective(read(rounded, exact=True), targets)
            better = scores > best_scores
            best = torch.where(better.view(-1, 1, 1, 1), rounded, best)
            best_scores = torch.where(better, scores, best_scores)
            best_steps = torch.where(better, step, best_steps)
        if step == steps:
            break

        x = picture.detach().requires_grad_()
        views_of = [transforms.apply(x, moves[:, step * views + view]) for view in range(views)]
        seen = torch.cat(views_of)  # (views * N, 3, H, W)
        if transforms.noisy:
            shape = (views, *seen.shape[1:])
            noise = [transforms.draw_noise(shape, generator) for generator in generators]
            seen = seen + torch.stack(noise, 1).flatten(0, 1).to(seen)
        help_stalled = RedirectedReLUs(stalled.repeat(views)) if bool(stalled.any()) else None
        with help_stalled or nullcontext():
            values = read(seen) | {PICTURE: x.repeat(views, 1, 1, 1)}
        scores = objective(values, targets * views)
        total = scores if regularizer is None else scores + regularizer(values, targets * views)
        (gradient,) = torch.autograd.grad(total.sum() / views, x)

        trace[:, step] = scores.detach().view(views, N).mean(0)
        strength = gradient.abs().amax((1, 2, 3))
        finite = trace[:, step].isfinite() & strength.isfinite()
        failed = torch.where((failed < 0) & ~finite, step, failed)
        own = finite & (strength > 0)
        moved |= own
        if help_stalled is not None:
            own = own & ~help_stalled.redirected.view(views, N).any(0)
        alive |= own
        stalled = finite & ~own
        if settings.transparency:
            transparency += gradient.abs().mean(1)

        if settings.optimizer.shaped:
            gradient = shaped_gradient(gradient, x.detach(), settings)
        (parameters.grad,) = torch.autograd.grad(picture, parameters, gradient)
        before = parameters.detach().clone()
        optimizer.step()
        scheduler.step()
        free = (moved & (failed < 0)).view(-1, *(1,) * (parameters.dim() - 1))
        if step + 1 < settings.coarse_to_fine * steps:
            share = (step + 1) / (settings.coarse_to_fine * steps)
            free = free & form.detail(share).to(free.device)
        with torch.no_grad():
            parameters.copy_(torch.where(free, parameters, before))
        report((step + 1) * N)

    none = torch.empty(N, 0, dtype=torch.uint8)
    return Optimized(
        images=best.float(),
        scores=torch.where(best_scores.isfinite(), best_scores, math.nan),
        trace=trace,
        best_steps=best_steps,
        alive=alive,
        failed=failed,
        frames=torch.stack(stages, 1) if stages else none,
        transparency=transparency,
        parameters=parameters.detach(),
    )


def joined(parts: Sequence[Optimized]) -> Optimized:
    """Several results as one."""
    names = [field.name for field in fields(Optimized)]
    return Optimized(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


@contextmanager
def reading(model: Model, layers: Sequence[str], precision: Precision) -> Iterator[Reader]:
    """Within the block, a function from pictures to float32 activations by layer.

    Under the name `PICTURE` it gives the pictures themselves. `exact` reads in float32 whatever the
    precision is.
    """
    names = [name for name in dict.fromkeys(layers) if name != PICTURE]
    low = precision == "bfloat16" and bool(names)
    probe = torch.zeros(1, 3, model.input_size, model.input_size, device=model.device)
    # With the colors of a pixel side by side, convolutions of CPUs and tensor cores are faster.
    last = low or model.device.type == "cpu"
    layout = torch.channels_last if last else torch.contiguous_format
    with in_bfloat16(model.net, probe) if low else nullcontext(model.net) as forward:

        def read(pictures: Tensor, *, exact: bool = False) -> dict[str, Tensor]:
            found = {PICTURE: pictures}
            if names:
                x, net = pictures.contiguous(memory_format=layout), model.net if exact else forward
                values = activations(model, model.normalize(x), names, forward=net)
                found |= {
                    n: v.float() if v.dtype == torch.bfloat16 else v for n, v in values.items()
                }
            return found

        yield read


def _eight_bits(pictures: Tensor) -> Tensor:
    """Pictures as they come back from a file with 8 bits."""
    return pictures.detach().mul(255).round().clamp(0, 255).div(255)


def _out_of_memory(error: BaseException) -> bool:
    words = ("not enough memory", "out of memory", "can't allocate")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error) for word in words
    )
