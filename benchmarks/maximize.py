"""How much of the time of an ascent is not the model's: featviz against the bare torch loop.

    python benchmarks/maximize.py [--quick] [--model alexnet --weights FILE] [--layer conv5]

The bare loop runs the model up to the layer and back to the picture, frozen weights, the same
precision, the same number of pictures at a time, and nothing else: no parametrisation, no
transforms, no step. Rounds alternate. One image-step is one step of one picture.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

import featviz
from featviz.maximization import ascent, objectives, optimize
from featviz.models.load import Model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ends within a minute on two cores")
    parser.add_argument("--model", default="alexnet-mini")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--layer", default="conv5")
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    given = parser.parse_args()
    rounds, steps = (3, 4) if given.quick else (9, 16)
    model = featviz.load(given.model, weights=given.weights)
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
    speeds: dict[str, list[float]] = {what: [] for what in loops}
    for one_round in range(rounds + 1):
        for what, loop in loops.items():
            started = time.perf_counter()
            loop()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            if one_round:  # the first is for warming up
                speeds[what].append(given.units * steps / (time.perf_counter() - started))
    where = f"{given.model}, {layer.name}, {side} pixels, {given.units} at a time"
    rows = [
        {
            "what": f"{what} ({where}, {settings.precision})",
            "unit": "image-steps/s",
            "median": round(statistics.median(values), 2),
            "min": round(min(values), 2),
            "max": round(max(values), 2),
            "rounds": len(values),
        }
        for what, values in speeds.items()
    ]
    for row in rows:
        print(f"{row['what']}: {row['median']} {row['unit']} ({row['min']} to {row['max']})")
    ratio = statistics.median(
        a / b for a, b in zip(speeds["featviz"], speeds["bare torch"], strict=True)
    )
    device = platform.machine() if model.device.type == "cpu" else torch.cuda.get_device_name()
    print(
        json.dumps(
            {
                "benchmark": "maximize",
                "device": f"{device}, {torch.get_num_threads()} threads",
                "rows": rows,
                "ratios": {"featviz/bare": round(ratio, 3)},
            }
        )
    )


def bare(model: Model, layer: str, units: int, side: int, steps: int, precision: str) -> None:
    """The model forward to the layer and back to the pictures, `steps` times."""
    x = torch.rand(units, 3, side, side, device=model.device, requires_grad=True)
    with ascent.reading(model, (layer,), precision) as read:
        for _ in range(steps):
            value = read(x)[layer].unflatten(1, (-1, 1)).flatten(2).mean(2)
            torch.autograd.grad(value[range(units), range(units)].sum(), x)


if __name__ == "__main__":
    main()
