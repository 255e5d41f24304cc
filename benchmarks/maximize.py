"""How much of the time of an ascent is not the model's: featviz against the bare torch loop.

    python benchmarks/maximize.py [--quick] [--model alexnet --weights FILE] [--layer conv5]

The bare loop runs the model up to the layer and back to the picture, frozen weights, the same
precision, the same number of pictures at a time, and nothing else: no parametrisation, no
transforms, no step. Rounds alternate. One image-step is one step of one picture.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable

import _rounds
import torch

import featviz
from featviz.maximization import ascent, objectives, optimize
from featviz.models.load import Model


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0],
        model="alexnet-mini", weights="", layer="conv5", units=8, precision="auto",
    )  # fmt: skip
    rounds, steps = (3, 4) if given.quick else (9, 16)
    model = featviz.load(given.model, weights=given.weights or None)
    layer = model.layer(given.layer)
    side = optimize.canvas(model, layer)
    settings = optimize.settings_for(model, layer, 256, side, given.precision, {})
    goal = objectives.channel(layer.name, range(given.units))
    loops: dict[str, Callable[[], object]] = {
        "featviz": lambda: ascent.ascend(
            model, goal, range(given.units), range(given.units), settings, stop_after=steps
        ),
        "bare torch": lambda: bare(model, layer.name, given.units, side, steps, settings.precision),
    }

    def timed(loop: Callable[[], object]) -> Callable[[], object]:
        def work() -> None:
            loop()
            if model.device.type == "cuda":
                torch.cuda.synchronize()

        return work

    seconds = _rounds.measure({what: timed(loop) for what, loop in loops.items()}, rounds)
    where = f"{given.model}, {layer.name}, {side} pixels, {given.units} at a time"
    work = given.units * steps
    rows = [
        _rounds.row(
            f"{what} ({where}, {settings.precision})", "image-steps/s", [work / s for s in values]
        )
        for what, values in seconds.items()
    ]
    pairs = zip(seconds["bare torch"], seconds["featviz"], strict=True)
    ratio = statistics.median(bare_seconds / ours for bare_seconds, ours in pairs)
    device = platform.machine() if model.device.type == "cpu" else torch.cuda.get_device_name()
    device = f"{device}, {torch.get_num_threads()} threads"
    _rounds.report("maximize", rows, {"featviz/bare": ratio}, device)


def bare(model: Model, layer: str, units: int, side: int, steps: int, precision: str) -> None:
    """The model forward to the layer and back to the pictures, `steps` times."""
    x = torch.rand(units, 3, side, side, device=model.device, requires_grad=True)
    with ascent.reading(model, (layer,), precision) as read:
        for _ in range(steps):
            value = read(x)[layer].unflatten(1, (-1, 1)).flatten(2).mean(2)
            torch.autograd.grad(value[range(units), range(units)].sum(), x)


if __name__ == "__main__":
    main()
