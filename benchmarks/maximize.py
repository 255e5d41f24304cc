"""How much of the time of an optimization is not the model's: featviz against the bare torch loop.

    python benchmarks/maximize.py [--quick] [--model alexnet --weights FILE] [--layer conv5]

The bare loop runs the model up to the layer and back to the picture, frozen weights, the same
number of pictures at a time, in float32 or with autocast to bfloat16 (as `in_bfloat16` has it), and
nothing else: no parametrization, transforms or optimizer. Once with contiguous pictures and once
channels-last, as featviz has them; both ratios are given. Rounds alternate. One image-step is one
step of one picture. The rows that begin with "part" split a step of featviz.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import _rounds
import torch

import featviz
from featviz.maximization.loop import optimize
from featviz.maximization.maximize import unit_objective
from featviz.maximization.objectives import Objective
from featviz.maximization.reading import reading
from featviz.maximization.regularizers import shaped_gradient
from featviz.maximization.settings import Settings, settings_for
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.precision import in_bfloat16
from featviz.types import AutoPrecision


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0],
        model="alexnet-mini",
        weights="",
        layer="conv5",
        units=8,
        precision="auto",
    )
    rounds, steps = (3, 4) if given.quick else (9, 16)
    model = featviz.load(given.model, weights=given.weights or None)
    layer = model.layer(given.layer)
    precision: AutoPrecision = given.precision
    settings = settings_for(model, layer, steps=steps, precision=precision)
    settings = replace(settings, checks=1)
    side = settings.parametrization.height
    objective, regularizer = unit_objective(model, layer, range(given.units))
    rows_of = range(given.units)
    work = (model, layer.name, given.units, side, steps, settings.precision == "bfloat16")
    loops: dict[str, Callable[[], object]] = {
        "featviz": lambda: optimize(
            model, objective, rows_of, rows_of, settings, regularizer=regularizer
        ),
        "bare torch": lambda: bare(*work, torch.contiguous_format),
        "bare torch, channels last": lambda: bare(*work, torch.channels_last),
    }

    def timed(loop: Callable[[], object]) -> Callable[[], object]:
        def work() -> None:
            loop()
            if model.device.type == "cuda":
                torch.cuda.synchronize()

        return work

    seconds = _rounds.measure({what: timed(loop) for what, loop in loops.items()}, rounds)
    where = f"{given.model}, {layer.name}, {side} pixels, {given.units} at a time"
    count = given.units * steps
    rows = [
        _rounds.row(
            f"{what} ({where}, {settings.precision})", "image-steps/s", [count / s for s in values]
        )
        for what, values in seconds.items()
    ]
    for what, part in parts(model, objective, regularizer, given.units, settings).items():
        milliseconds = [1e3 * s for s in _rounds.measure({what: timed(part)}, rounds)[what]]
        rows.append(_rounds.row(f"part: {what}", "ms", milliseconds))

    def ratio(other: str) -> float:
        pairs = zip(seconds[other], seconds["featviz"], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    ratios = {
        "featviz/bare": ratio("bare torch"),
        "featviz/bare, channels last": ratio("bare torch, channels last"),
    }
    device = platform.machine() if model.device.type == "cpu" else torch.cuda.get_device_name()
    device = f"{device}, {torch.get_num_threads()} threads"
    _rounds.report("maximize", rows, ratios, device)


def bare(
    model: Model,
    layer: str,
    units: int,
    side: int,
    steps: int,
    low: bool,
    layout: torch.memory_format,
) -> None:
    """The model forward to the layer and back to the pictures, `steps` times."""
    x = torch.rand(units, 3, side, side, device=model.device, requires_grad=True)
    with frozen(model), in_bfloat16(model.net) if low else nullcontext() as fast:
        for _ in range(steps):
            normal = model.normalize(x).contiguous(memory_format=layout)
            value = activations(model, normal, [layer], forward=fast or model.net)[layer].float()
            score = value.unflatten(1, (-1, 1)).flatten(2).mean(2)[range(units), range(units)]
            torch.autograd.grad(score.sum(), x)


def parts(
    model: Model,
    objective: Objective,
    regularizer: Objective | None,
    units: int,
    settings: Settings,
) -> dict[str, Callable[[], object]]:
    """What a step of featviz consists of, piece by piece."""
    form, transforms = settings.parametrization, settings.transforms
    generators = [torch.Generator().manual_seed(i) for i in range(units)]
    parameters = (10 * form.start(generators)).to(model.device).requires_grad_(True)
    x = form.picture(parameters).detach().requires_grad_(True)
    moves = torch.cat([transforms.draw(1, g) for g in generators]).to(model.device)
    seen = transforms.apply(x, moves).detach().requires_grad_(True)
    gradient = torch.randn_like(x)
    both = objective if regularizer is None else objective + regularizer
    parameters.grad = torch.randn_like(parameters)
    optimizer, _ = settings.optimizer.build(parameters, settings.lr, settings.steps)

    def read() -> None:
        with frozen(model), reading(model, both.layers, settings.precision) as reader:
            for _ in range(4):  # the cast of the weights is done once for hundreds of steps
                torch.autograd.grad(both(reader(seen), range(units)).sum(), seen)

    def step() -> None:  # keeps the optimizer alive
        optimizer.step()

    return {
        "picture, forward and back": lambda: torch.autograd.grad(
            form.picture(parameters), parameters, gradient
        ),
        "transforms, forward and back": lambda: torch.autograd.grad(
            transforms.apply(x, moves), x, torch.ones_like(seen)
        ),
        "model and objective, forward and back, 4 times": read,
        "normalization and penalties": lambda: shaped_gradient(gradient, x.detach(), settings),
        "optimizer": step,
    }


if __name__ == "__main__":
    main()
