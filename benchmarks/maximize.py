"""How much of the time of an optimization is not the model's: featviz against the bare torch loop.

    python benchmarks/maximize.py [--quick] [--model alexnet --weights FILE] [--layer conv5]

The bare loop runs the model up to the layer and back to the picture, frozen weights, the same
number of pictures at a time, and nothing else: no parametrization, transforms or optimizer. It is
run channels-last in float32 and, where the processor computes in it, with all weights and values in
bfloat16 (a cast copy of the net, without autocast), and once with contiguous pictures and weights,
as one writes it. The ratios are seconds of featviz over theirs; "best" is the
faster of the channels-last two. Rounds alternate. featviz's seconds are those of its steps: the
difference between a longer and a shorter run. One image-step is one step of one picture. The rows
that begin with "part" split a step of featviz. With `--clock cpu` seconds are the processor's, for
one thread on a machine that others use.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import _rounds
import torch
from torch import Tensor, nn

import featviz
from featviz.maximization.loop import optimize
from featviz.maximization.maximize import unit_objective
from featviz.maximization.objectives import Objective
from featviz.maximization.reading import reading
from featviz.maximization.regularizers import shaped_gradient
from featviz.maximization.settings import Settings, settings_for
from featviz.models.frozen import frozen
from featviz.models.layers import StopForward
from featviz.models.model import Layer, Model
from featviz.types import AutoPrecision


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0],
        model="alexnet-mini",
        weights="",
        layer="conv5",
        units=8,
        precision="auto",
        clock="wall",
    )
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    rounds, steps = (3, 6) if given.quick else (5, 12)
    model = featviz.load(given.model, weights=given.weights or None)
    layer = model.layer(given.layer)
    precision: AutoPrecision = given.precision
    settings = settings_for(model, layer, steps=steps, precision=precision)
    settings = replace(settings, checks=1)
    side = settings.parametrization.height
    objective, regularizer = unit_objective(model, layer, range(given.units))
    rows_of = range(given.units)

    def run(steps: int) -> None:
        optimize(
            model,
            objective,
            rows_of,
            rows_of,
            replace(settings, steps=steps),
            regularizer=regularizer,
            batch_size=given.units,
        )
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    works: dict[str, Callable[[], object]] = {
        "short": lambda: run(2),
        "featviz": lambda: run(2 + steps),
    }
    last, plain = torch.channels_last, torch.contiguous_format
    kinds = [("float32", torch.float32, last), ("float32, contiguous", torch.float32, plain)]
    if settings.precision == "bfloat16":
        kinds = [kinds[0], ("bfloat16", torch.bfloat16, last)]
        kinds.append(("bfloat16, contiguous", torch.bfloat16, plain))
    for kind, dtype, layout in kinds:
        passes = Bare(model, layer, given.units, side, dtype, layout)
        works[f"bare passes, {kind}"] = partial(passes, steps)
    seconds = _rounds.measure(works, rounds, clock)
    short = seconds.pop("short")
    seconds["featviz"] = [a - b for a, b in zip(seconds["featviz"], short, strict=True)]
    where = f"{given.model}, {layer.name}, {side} pixels, {given.units} at a time"
    count = given.units * steps
    rows = [
        _rounds.row(f"{what} ({where})", "image-steps/s", [count / s for s in values])
        for what, values in seconds.items()
    ]
    for what, part in parts(model, objective, regularizer, given.units, settings).items():
        milliseconds = [1e3 * s for s in _rounds.measure({what: part}, rounds, clock)[what]]
        rows.append(_rounds.row(f"part: {what}", "ms", milliseconds))

    def ratio(other: str) -> float:
        pairs = zip(seconds["featviz"], seconds[other], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    ratios = {f"featviz/{other}": ratio(other) for other in seconds if other != "featviz"}
    best = max(value for name, value in ratios.items() if "contiguous" not in name)
    ratios["featviz/best bare passes"] = best
    device = platform.machine() if model.device.type == "cpu" else torch.cuda.get_device_name()
    device = f"{device}, {torch.get_num_threads()} threads, {given.clock} seconds"
    _rounds.report("maximize", rows, ratios, device)


class Bare:
    """The model forward to the layer and back to the pictures."""

    def __init__(
        self,
        model: Model,
        layer: Layer,
        units: int,
        side: int,
        dtype: torch.dtype,
        layout: torch.memory_format,
    ) -> None:
        self.model, self.dtype = model, dtype
        net: Any = copy.deepcopy(model.net).requires_grad_(False)
        self.net: nn.Module = net.to(dtype=dtype, memory_format=layout)
        x = torch.rand(units, 3, side, side, device=model.device)
        self.x = x.contiguous(memory_format=layout).requires_grad_()
        self.net.get_submodule(layer.path).register_forward_hook(self.stop)

    def stop(self, module: object, inputs: object, output: Tensor) -> None:
        self.value = output
        raise StopForward

    def __call__(self, steps: int) -> None:
        with frozen(self.net):
            for _ in range(steps):
                self.step()
        if self.x.is_cuda:
            torch.cuda.synchronize()

    def step(self) -> Tensor:
        with suppress(StopForward):
            self.net(self.model.normalize(self.x).to(self.dtype))
        score = self.value.unflatten(1, (-1, 1)).flatten(2).mean(2).diagonal()
        return torch.autograd.grad(score.float().sum(), self.x)[0]


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
