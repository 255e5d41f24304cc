"""How much of the time of an ascent is not the model's: featviz against the bare torch loop.

    python benchmarks/maximize.py [--quick] [--model alexnet --weights FILE] [--layer conv5]

The bare loop runs the model up to the layer and back to the picture, frozen weights, the same
precision, the same number of pictures at a time, and nothing else: no parametrisation, no
transforms, no step. It is written as one writes it, and once more with its pictures in the order in
memory that featviz gives them (channels last); both ratios are told. Rounds alternate. One
image-step is one step of one picture. The rows that begin with "part" split a step of featviz.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from contextlib import suppress

import _rounds
import torch
from torch.func import functional_call

import featviz
from featviz.maximization import loop, maximize
from featviz.maximization.loop import Settings
from featviz.maximization.objectives import Objective
from featviz.maximization.optimizers import Adam
from featviz.models.layers import StopForward, tap
from featviz.models.model import Model


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
    side = maximize.canvas(model, layer)
    settings = maximize.settings_for(model, layer, 256, side, given.precision, {})
    goal, besides = maximize.unit_goal(model, layer, range(given.units))
    kind = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    work = (model, layer.name, given.units, side, steps, kind)
    loops: dict[str, Callable[[], object]] = {
        "featviz": climb(model, goal, besides, given.units, settings, steps),
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
    for what, part in parts(model, goal, besides, given.units, settings).items():
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


def climb(
    model: Model,
    goal: Objective,
    besides: Objective | None,
    units: int,
    settings: Settings,
    steps: int,
) -> Callable[[], None]:
    """`steps` steps in the midst of an ascent, as often as it is called; it begins again at times.

    What is done once for hundreds of steps (starts, checks of clean scores) is left out.
    """
    moments = iter(())

    def work() -> None:
        nonlocal moments
        for _ in range(steps):
            if next(moments, None) is None:
                moments = loop.climbing(
                    model,
                    goal,
                    range(units),
                    range(units),
                    settings,
                    besides=besides,
                    stop_after=settings.steps // 2,
                )
                next(moments)

    return work


def bare(
    model: Model,
    layer: str,
    units: int,
    side: int,
    steps: int,
    kind: torch.dtype,
    layout: torch.memory_format,
) -> None:
    """The model forward to the layer and back to the pictures, `steps` times."""
    behind = loop._behind(model, (layer,))
    state = {**dict(model.net.named_parameters()), **dict(model.net.named_buffers())}
    weights = {
        name: value.to(kind, memory_format=layout) if value.dim() == 4 else value.to(kind)
        for name, value in state.items()
        if value.is_floating_point() and name.rpartition(".")[0] not in behind
    }
    x = torch.rand(units, 3, side, side, device=model.device, requires_grad=True)
    with tap(model, (layer,), stop=True) as taken:
        for _ in range(steps):
            normal = model.normalize(x).to(kind).contiguous(memory_format=layout)
            with suppress(StopForward):
                functional_call(model.net, weights, (normal,))
            value = taken[layer].float().unflatten(1, (-1, 1)).flatten(2).mean(2)
            torch.autograd.grad(value[range(units), range(units)].sum(), x)


def parts(
    model: Model, goal: Objective, besides: Objective | None, units: int, settings: Settings
) -> dict[str, Callable[[], object]]:
    """What a step of featviz consists of, piece by piece."""
    form, moved = settings.parametrization, settings.transforms
    generators = [torch.Generator().manual_seed(i) for i in range(units)]
    parameters = (10 * form.start(generators)).to(model.device).requires_grad_(True)
    x = form.picture(parameters).detach().requires_grad_(True)
    moves = torch.cat([moved.draw(1, g) for g in generators]).to(model.device)
    seen = moved.apply(x, moves).detach().requires_grad_(True)
    slope, gradient = torch.randn_like(parameters), torch.randn_like(x)
    rule, taken = Adam(), torch.full((units,), 9)
    memory = rule.begin(parameters)
    layers = goal.layers if besides is None else (goal + besides).layers

    def read() -> None:
        with loop.reading(model, layers, settings.precision) as reader:
            for _ in range(4):  # the cast of the weights is done once for hundreds of steps
                acts = reader(seen)
                scores = goal(acts, range(units))
                scores = scores if besides is None else scores + besides(acts, range(units))
                torch.autograd.grad(scores.sum(), seen)

    return {
        "picture, forward and back": lambda: torch.autograd.grad(
            form.picture(parameters), parameters, gradient
        ),
        "moved, forward and back": lambda: torch.autograd.grad(
            moved.apply(x, moves), x, torch.ones_like(seen)
        ),
        "model and objective, forward and back, 4 times": read,
        "evening and restraints": lambda: loop._steered(gradient, x.detach(), settings, True),
        "Adam": lambda: rule.change(parameters.detach(), slope, memory, taken, settings.steps),
    }


if __name__ == "__main__":
    main()
