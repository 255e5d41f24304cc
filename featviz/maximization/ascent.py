"""The one loop: `ascend` climbs an objective for several pictures at once, each on its own.

Comes in: a model, an objective, which of its targets, a seed for each, and `Settings`. Goes out: a
`Climb`, the pictures with the history of their scores.

The gradient with respect to the picture is not followed raw, but

    evened      divided by its own strength in the neighbourhood, so that the surroundings of an
                object are drawn as eagerly as its middle, which otherwise burns out in flat grey
    restrained  by what no photograph has: fine ripples, and contrast without bound

As the evened gradient has strength 1 at every layer of every model, the restraints mean the same
everywhere. `plan` cuts many targets into blocks so that no picture depends on its company.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from featviz import images
from featviz.maximization.judge import soften
from featviz.maximization.objectives import Objective
from featviz.maximization.parametrizations import Parametrization
from featviz.maximization.transforms import Transforms
from featviz.models.layers import _Reached, tap

if TYPE_CHECKING:
    from featviz.models.load import Model

# Blocks of the CPU: kernels round by the number of pictures, so a block is either known to give
# the bits of this many slots, or filled up to it.
_SLOTS = 4
# Most pictures in one block, by default.
BLOCK = 16
# A picture without any gradient for so many steps stays without.
_PATIENCE = 16


@dataclass(frozen=True)
class Settings:
    """How `ascend` climbs."""

    steps: int
    parametrization: Parametrization
    transforms: Transforms
    rate: float = 0.1
    """of Adam at the start; it falls along half a cosine to a tenth"""
    smooth: float = 8.0
    """restraint of ripples: weight of what a 3x3 mean removes, against a gradient of strength 1"""
    calm: float = 0.02
    """restraint of contrast: weight of the distance from grey"""
    plain: float = 0.2
    """restraint of colour: weight of the distance from the grey of the same brightness"""
    even: float = 0.9
    """0: one strength for the whole picture; towards 1: the same strength everywhere in it"""
    reach: int = 16
    """pixels to each side over which the gradient's strength is measured for that"""
    coarse: float = 0.25
    """share of the steps in which detail is let in, from coarse to fine: shapes come first"""
    precision: str = "fp32"
    """of the model during the ascent: "fp32" or "bf16"; scores are always of fp32"""
    checks: int = 4
    """how often, in the last half, a picture's clean score is taken to find the best"""


@dataclass
class Climb:
    """Where the ascent of some pictures came to."""

    pictures: Tensor
    """(N, 3, H, W) float32 with values of 8 bits"""
    trace: Tensor
    """(N, steps): the score at each step, transforms and all"""
    best_steps: Tensor
    """(N,): after how many steps each picture was taken"""
    alive: Tensor
    """(N,): whether there ever was a gradient"""
    broken: Tensor
    """(N,): the first step with a score or gradient that is no number, or -1"""
    frames: Tensor
    """(N, F, 3, H, W) uint8: stages of the ascent"""
    parameters: Tensor
    """(N, ...): free parameters after the last step"""


def ascend(
    model: Model,
    goal: Objective,
    targets: Sequence[int],
    seeds: Sequence[int],
    settings: Settings,
    *,
    besides: Objective | None = None,
    film: int = 0,
    stop_after: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Climb:
    """Climb `goal` for some of its targets at once, each from its own seed: the one loop.

    The inner function of `maximize`, for whoever puts an objective together; it expects a model in
    eval mode whose weights need no gradients. `besides` is climbed with the goal, but not counted
    in any score. `stop_after` ends a long climb early, as it stands.
    """
    form, moved = settings.parametrization, settings.transforms
    generators = [Generator().manual_seed(seed) for seed in seeds]
    parameters = form.start(generators).to(model.device)  # (N, ...)
    moves = torch.stack([moved.draw(settings.steps, g) for g in generators], 1)
    moves = moves.to(model.device)  # (steps, N, 4)
    last = min(settings.steps, stop_after or settings.steps)
    check_after = _checkpoints(settings.steps, settings.checks)
    film_after = {round(i * settings.steps / max(1, film - 1)) for i in range(film)}

    count, device = len(targets), model.device
    mean, square = torch.zeros_like(parameters), torch.zeros_like(parameters)
    trace = torch.full((count, settings.steps), math.nan, device=device)
    alive = torch.zeros(count, dtype=torch.bool, device=device)
    broken = torch.full((count,), -1, device=device)
    best_scores = torch.full((count,), -math.inf, device=device)
    best_steps = torch.full((count,), last, device=device)
    with torch.no_grad():
        pictures = images.quantise(form.picture(parameters))
    best = pictures
    frames = [images.to_uint8(pictures)] if film else []

    layers = goal.layers if besides is None else (goal + besides).layers
    with reading(model, layers, settings.precision) as read:
        for step in range(last):
            parameters = parameters.detach().requires_grad_(True)
            picture = form.picture(parameters)
            x = picture.detach().requires_grad_(True)
            seen = moved.apply(x, moves[step])
            if moved.noise:
                draws = [torch.randn(x.shape[1:], generator=g) for g in generators]
                seen = seen + moved.noise * torch.stack(draws).to(device)
            seen_by_model = read(seen)
            scores = goal(seen_by_model, targets)  # (N,)
            climbed = scores if besides is None else scores + besides(seen_by_model, targets)
            (gradient,) = torch.autograd.grad(climbed.sum(), x)
            peak = _each(gradient, lambda g: g.abs().amax())  # no number, if one is none
            whole = scores.isfinite() & peak.isfinite()
            steered = _steered(gradient, x.detach(), settings)
            (slope,) = torch.autograd.grad(picture, parameters, steered)

            # Adam (Kingma and Ba 2015), upwards, with a short memory: the gradient of a moved
            # picture turns from step to step. Every picture on its own.
            mean.mul_(0.5).add_(slope, alpha=0.5)
            square.mul_(0.99).addcmul_(slope, slope, value=0.01)
            fall = 0.1 + 0.45 * (1 + math.cos(math.pi * step / settings.steps))
            rate = settings.rate * fall / (1 - 0.5 ** (step + 1))
            root = square.sqrt().mul_(1 / math.sqrt(1 - 0.99 ** (step + 1))).add_(1e-12)
            change = torch.div(mean, root, out=root).mul_(rate)
            if step + 1 < settings.coarse * settings.steps:
                share = (step + 1) / (settings.coarse * settings.steps)
                change.mul_(form.detail(share).to(device))

            trace[:, step] = scores.detach()
            broken = torch.where((broken < 0) & ~whole, step, broken)
            alive = alive | (whole & (peak > 0))
            going = (broken < 0) & alive
            with torch.no_grad():
                if not going.all():
                    change[~going] = 0
                parameters = parameters + change
                if step + 1 in check_after or step + 1 in film_after or step + 1 == last:
                    pictures = images.quantise(form.picture(parameters))
                if step + 1 in film_after:
                    frames.append(images.to_uint8(pictures))
                if step + 1 in check_after:
                    clean = torch.cat(
                        [
                            goal(read(one[None], exact=True), [target])
                            for one, target in zip(pictures, targets, strict=True)
                        ]
                    )
                    better = clean > best_scores
                    best = torch.where(better.view(-1, 1, 1, 1), pictures, best)
                    best_scores = torch.where(better, clean, best_scores)
                    best_steps = torch.where(better, step + 1, best_steps)
            if progress is not None:
                progress(step + 1)
    return Climb(
        pictures=best if stop_after is None else pictures,
        trace=trace.cpu(),
        best_steps=best_steps.cpu(),
        alive=alive.cpu(),
        broken=broken.cpu(),
        frames=torch.stack(frames, 1) if frames else torch.empty(0, dtype=torch.uint8),
        parameters=parameters.detach(),
    )


@contextmanager
def reading(model: Model, layers: tuple[str, ...], precision: str) -> Iterator[Callable[..., Any]]:
    """Within the block, a function from pictures to float32 activations by layer."""
    cast: dict[str, Tensor] = {}
    if precision == "bf16":
        behind = _behind(model, layers)
        state = [*model.net.named_parameters(), *model.net.named_buffers()]
        cast = {
            name: value.bfloat16() if value.is_floating_point() else value
            for name, value in state
            if name.rpartition(".")[0] not in behind
        }

    def read(pictures: Tensor, *, exact: bool = False) -> dict[str, Tensor]:
        try:
            if cast and not exact:
                with _SteadyRows():
                    functional_call(model.net, cast, (model.normalize(pictures).bfloat16(),))
            else:
                model(pictures)
        except _Reached:
            pass
        return {name: value.float() for name, value in taken.items()}

    with tap(model, layers, stop=True) as taken:
        yield read


def _behind(model: Model, layers: Sequence[str]) -> set[str]:
    """The paths of leaf modules that run only after the deepest of the layers."""
    order = [layer.path for layer in model.layers.values()]
    deepest = max(order.index(model.layer(name).path) for name in layers)
    paths = {path for path, module in model.net.named_modules() if not any(module.children())}
    return paths & set(order[deepest + 1 :])


class _SteadyRows(TorchFunctionMode):
    """Fully connected layers always see eight rows, so that they round alike for any batch."""

    rows = 8

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear or not args or args[0].dim() != 2:
            return func(*args, **kwargs)
        blocks = []
        for block in args[0].split(self.rows):
            padded = F.pad(block, (0, 0, 0, self.rows - len(block)))
            blocks.append(func(padded, *args[1:], **kwargs)[: len(block)])
        return torch.cat(blocks)


def _each(values: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
    """(N,) answers, one a picture: a reduction over a batch may round by the batch's size."""
    return torch.stack([ask(value) for value in values])


def _checkpoints(steps: int, checks: int) -> set[int]:
    """After which steps of the last half clean scores are taken; the last one always."""
    return {steps - round(i * steps / (2 * max(1, checks))) for i in range(max(1, checks))}


def _steered(gradient: Tensor, pictures: Tensor, settings: Settings) -> Tensor:
    """The direction to take: the gradient evened out, less what restrains the picture."""
    strength = _each(gradient, lambda g: g.square().mean()).view(-1, 1, 1, 1)
    if settings.even:
        near = _neighbourhood(gradient.square().mean(1, keepdim=True), settings.reach)
        strength = (1 - settings.even) * strength + settings.even * near
    steered = gradient / strength.clamp(min=1e-30).sqrt()
    if settings.smooth:
        ripples = pictures - soften(pictures)
        steered = steered - settings.smooth * (ripples - soften(ripples))
    if settings.calm:
        steered = steered - settings.calm * (pictures - 0.5)
    if settings.plain:
        steered = steered - settings.plain * (pictures - pictures.mean(1, keepdim=True))
    return steered


def _neighbourhood(values: Tensor, reach: int) -> Tensor:
    """A smooth local mean of (N, 1, H, W): two box means of 2 * reach + 1 pixels, reflected.

    Taken at an eighth of the reach, which nobody can tell from the full size.
    """
    size = values.shape[-2:]
    coarse = max(1, reach // 8)
    values = F.avg_pool2d(values, coarse, ceil_mode=True)
    reach = round(reach / coarse)
    down, right = min(reach, values.shape[-2] - 1), min(reach, values.shape[-1] - 1)
    for _ in range(2):
        values = F.avg_pool2d(
            F.pad(values, (right, right, 0, 0), mode="reflect"), (1, 2 * right + 1), 1
        )
        values = F.avg_pool2d(
            F.pad(values, (0, 0, down, down), mode="reflect"), (2 * down + 1, 1), 1
        )
    if coarse == 1:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


def plan(
    model: Model,
    goal: Objective,
    seeds: Sequence[int],
    settings: Settings,
    most: int,
    besides: Objective | None = None,
) -> Iterator[list[int]]:
    """The blocks to climb in, as lists of targets; a repeated target fills a slot, nothing more.

    Kernels of the CPU may round by the number of pictures. The first steps of a block are therefore
    compared, bit by bit, with those of blocks of `_SLOTS`: where they agree the block is taken as
    it is, where they do not its pictures climb in filled blocks of `_SLOTS`, and one at a time
    where even the slots disagree. So a picture has the same bits in any company.
    """
    count = len(seeds)
    blocks = [list(range(i, min(i + most, count))) for i in range(0, count, most)]
    if model.device.type != "cpu":
        yield from blocks
        return

    def climb(block: list[int]) -> Tensor:
        own = [seeds[i] for i in block]
        return ascend(model, goal, block, own, settings, besides=besides, stop_after=2).parameters

    def filled(block: list[int]) -> list[int]:
        return [block[i % len(block)] for i in range(_SLOTS)]

    verdicts: dict[int, int] = {}  # size of a block: the size in which its pictures climb
    for block in blocks:
        size, ends = len(block), min(len(block), _SLOTS)
        if size not in verdicts:
            front, back = filled(block[:ends]), filled(block[-ends:])
            slots = climb(front)
            if not torch.equal(slots, climb(front[::-1]).flip(0)):
                verdicts[size] = 1
            else:
                free, last = climb(block), climb(back)
                agree = torch.equal(free[:ends], slots[:ends])
                agree &= torch.equal(free[-ends:], last[:ends])
                verdicts[size] = size if agree else _SLOTS
        step = verdicts[size]
        parts = [block[i : i + step] for i in range(0, size, step)]
        yield from (filled(part) if step == _SLOTS else part for part in parts)


def joined(blocks: Sequence[list[int]], climbs: Sequence[Climb]) -> tuple[list[int], Climb]:
    """Which targets were climbed, in order, and their climbs as one, without the fillings."""
    order: list[int] = []
    parts: list[Climb] = []
    for block, climb in zip(blocks, climbs, strict=False):
        own = list(dict.fromkeys(block))
        order += own
        parts.append(_first(climb, len(own)))
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return order, Climb(**fields)


def _first(climb: Climb, count: int) -> Climb:
    return Climb(**{name: value[:count] for name, value in vars(climb).items()})
