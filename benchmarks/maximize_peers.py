"""Activation maximization against the libraries people use: Lucent, and Horama's MACO.

    make peers
    .peers/bin/python benchmarks/maximize_peers.py --weights FILE [--quick] [--layer conv5]
        [--units 64] [--scored 16] [--model alexnet] [--score no] [--horama no] [--clock cpu]

Three questions, all in one process, rounds alternating:

1. Equal steps, equal canvas: image-steps a second. Lucent gets all units in one call, as its users
   do, on a copy of the net whose weights ask for gradients, as a loaded net's do. featviz's time
   is that of `maximize` whole, with the metrics of the pictures.
2. An equal or higher median clean score, canvas and steps ours: units a second. Lucent draws with
   its defaults (128 pixels, shown to the net at 224, 512 steps, objective `neuron`); its seconds a
   unit are those of question 1's rounds at its own size, times 512. The clean score is the unit's
   value before its ReLU in the middle of the map, of the picture rounded to 8 bits, without any
   transform. featviz's steps are the fewest of a fixed ladder whose median over the same units
   reaches Lucent's; the time is that of those steps. Twice: with our settings, which give score
   away for a natural spectrum, and with nothing that holds a picture back, as Lucent draws.
3. MACO: seconds a crop, each library at its own size, and both at 512 pixels.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _rounds
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import featviz
from featviz.maximization.settings import Settings, canvas, settings_for
from featviz.maximization.transforms import Transforms
from featviz.models import zoo
from featviz.models.model import Layer, Model
from featviz.pictures import images

LUCENT_SIDE, LUCENT_SEEN, LUCENT_STEPS = 128, 224, 512
HORAMA_SIDE, HORAMA_EQUAL = 1280, 512
LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256)
UNRESTRAINED: dict[str, Any] = {
    "roughness_weight": 0.0,
    "contrast_weight": 0.0,
    "saturation_weight": 0.0,
    "local_normalization": 0.0,
    "coarse_to_fine": 0.0,
    "lr": 0.2,
    "transforms": Transforms(shift=4.0, rotate=5.0, scale=0.05),
}


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0],
        model="alexnet",
        weights="",
        layer="conv5",
        units=64,
        scored=16,
        rounds=5,
        steps=64,
        score="yes",
        horama="yes",
        clock="wall",
    )
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    model = featviz.load(given.model, weights=given.weights or None)
    zoo.torchvision_names()  # the peers import torchvision, which must come through this door
    rounds = 2 if given.quick else given.rounds
    count = min(given.units, 8) if given.quick else given.units
    scored = min(given.scored, count)
    layer = model.layer(given.layer)
    side = canvas(model, layer)[0]
    net = copy.deepcopy(model.net).requires_grad_(True)
    path = layer.path.replace(".", "_")
    where = f"{given.model}, {layer.name}, {count} units"
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}

    # 1: the same canvas and the same steps.
    steps = 16 if given.quick else given.steps

    def featviz_run(steps: int) -> Tensor:
        units = list(range(count))
        return featviz.maximize(model, layer.name, units=units, steps=steps).images

    works: dict[str, Callable[[], object]] = {
        "featviz": lambda: featviz_run(steps),
        "lucent": lambda: lucent(net, path, range(count), steps, side, side),
        "lucent at its size": lambda: lucent(
            net, path, range(count), steps, LUCENT_SIDE, LUCENT_SEEN
        ),
    }
    seconds = _rounds.measure(works, rounds, clock)
    for what, values in seconds.items():
        size = f"{LUCENT_SIDE} shown at {LUCENT_SEEN}" if "its size" in what else str(side)
        rates = [count * steps / s for s in values]
        rows.append(_rounds.row(f"{what} ({where}, {size} pixels)", "image-steps/s", rates))
    ratios["lucent/featviz seconds, equal steps and canvas"] = paired(seconds, "lucent", "featviz")

    # 2: the same score, with our own settings and with nothing that holds a picture back.
    if given.score == "yes":
        lucent_steps = 64 if given.quick else LUCENT_STEPS
        spent = statistics.median(seconds["lucent at its size"]) / count / steps * lucent_steps
        rows.append(_rounds.row(f"lucent, {lucent_steps} steps", "s/unit", [spent]))
        theirs = lucent(net, path, range(scored), lucent_steps, LUCENT_SIDE, LUCENT_SEEN)
        for what, changes in {"default": {}, "unrestrained": UNRESTRAINED}.items():
            more = equal_score(model, layer, theirs, changes, count, rounds, clock)
            rows += [one | {"what": f"{what}: {one['what']}"} for one in more]
            if more[-1]["unit"] == "s/unit":
                name = f"lucent/featviz {what} seconds, equal clean score"
                ratios[name] = spent / more[-1]["median"]

    # 3: MACO.
    if given.horama == "yes":
        maco_rows, maco_ratios = maco(model, layer.name, net, rounds, clock)
        rows += maco_rows
        ratios |= maco_ratios
    threads = torch.get_num_threads()
    _rounds.report("maximize_peers", rows, ratios, f"cpu, {threads} threads, {given.clock} seconds")


def equal_score(
    model: Model,
    layer: Layer,
    theirs: Tensor,
    changes: dict[str, Any],
    count: int,
    rounds: int,
    clock: Callable[[], float],
) -> list[dict[str, Any]]:
    """Clean scores until that of the pictures `theirs` is reached, and then the seconds a unit."""
    seen = F.interpolate(theirs, size=LUCENT_SEEN, mode="bilinear", align_corners=True)
    goal = clean(model, layer.name, seen)
    rows = [_rounds.row("clean score, lucent", "", [goal])]
    for needed in LADDER:
        settings = replace(settings_for(model, layer, steps=needed), **changes)

        def run(units: int, settings: Settings = settings) -> Tensor:
            chosen = list(range(units))
            return featviz.maximize(model, layer.name, units=chosen, settings=settings).images

        reached = clean(model, layer.name, run(len(theirs)))
        rows.append(_rounds.row(f"clean score, featviz, {needed} steps", "", [reached]))
        if reached >= goal:
            seconds = _rounds.measure({"": lambda: run(count)}, rounds, clock)[""]
            return [
                *rows,
                _rounds.row("featviz at that score", "s/unit", [s / count for s in seconds]),
            ]
    print(f"featviz does not reach lucent's score in {LADDER[-1]} steps")
    return rows


def paired(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """The median of the rounds' ratios."""
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return statistics.median(a / b for a, b in pairs)


def lucent(
    net: torch.nn.Module, path: str, units: range, steps: int, side: int, seen: int
) -> Tensor:
    """Lucent's pictures (N, 3, side, side) of the middle of each unit's map, all in one call."""
    from lucent.optvis import objectives, param, render

    torch.manual_seed(0)  # it draws from the global generator
    total = objectives.Objective.sum(
        [objectives.neuron(path, unit, batch=i) for i, unit in enumerate(units)]
    )
    (pictures,) = render.render_vis(
        net.eval(),
        total,
        lambda: param.image(side, batch=len(units)),
        thresholds=(steps,),
        progress=False,
        show_image=False,
        fixed_image_size=seen,
    )
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def clean(model: Model, layer: str, pictures: Tensor) -> float:
    """The median over pictures of units 0, 1 ... of the value in the middle of the unit's map."""
    values = []
    for unit, picture in enumerate(images.quantize(pictures)):
        with torch.no_grad():
            value = featviz.activations(model, picture[None], [layer])[layer][0, unit]
        if value.dim() == 2:
            rows, columns = value.shape
            value = value[(rows - 1) // 2 : rows // 2 + 1, (columns - 1) // 2 : columns // 2 + 1]
        values.append(float(value.mean()))
    return statistics.median(values)


def windows_of(pictures: Tensor, boxes: Tensor, output_size: tuple[int, int]) -> Tensor:
    """Horama's windows in place of torchvision's `roi_align`, one sample a cell.

    Without torchvision's compiled part its stand-in asks for terabytes at Horama's sizes. This is
    the same sampling, and cheaper: what is measured is in Horama's favour.
    """
    side = pictures.shape[-1]
    rows = (torch.arange(output_size[0]) + 0.5) / output_size[0]
    grids = []
    for _, left, top, right, bottom in boxes.tolist():
        y = (top + rows * (bottom - top)) / side * 2 - 1
        x = (left + rows * (right - left)) / side * 2 - 1
        grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), 2))
    many = pictures.expand(len(boxes), -1, -1, -1)
    return F.grid_sample(many, torch.stack(grids), align_corners=False, padding_mode="border")


def maco(
    model: Model,
    layer: str,
    net: torch.nn.Module,
    rounds: int,
    clock: Callable[[], float],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Seconds a crop of Horama's MACO and of ours, of one unit each."""
    # Horama's objective is a function of the pictures; it stops at the layer as ours does.
    trunk: list[Tensor] = []
    module = dict(net.named_modules())[model.layer(layer).path]

    def objective(pictures: Tensor) -> Tensor:
        trunk.clear()
        handle = module.register_forward_hook(lambda m, i, out: trunk.append(out))
        try:
            net(model.normalize(pictures))
        finally:
            handle.remove()
        return trunk[0][:, 0].mean()

    steps, windows = 16, 6

    def theirs(side: int) -> None:
        from horama import common
        from horama import maco as horama_maco

        common.roi_align = windows_of
        horama_maco(
            objective,
            total_steps=steps,
            image_size=side,
            crops_per_iteration=windows,
            model_input_size=model.input_size[0],
            device="cpu",
        )

    def ours(side: int) -> None:
        featviz.maximize(model, layer, units=[0], preset="maco", steps=steps, size=side)

    own = model.input_size[0]  # what the preset takes
    works: dict[str, Callable[[], object]] = {
        f"featviz MACO, {own} pixels": lambda: ours(own),
        f"featviz MACO, {HORAMA_EQUAL} pixels": lambda: ours(HORAMA_EQUAL),
        f"horama MACO, {HORAMA_EQUAL} pixels": lambda: theirs(HORAMA_EQUAL),
        f"horama MACO, {HORAMA_SIDE} pixels": lambda: theirs(HORAMA_SIDE),
    }
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where Horama looks for its spectrum before it would download it
        try:
            # The values of the spectrum change no time: any in its shape will do.
            np.save("spectrum_decorrelated.npy", np.ones((3, 512, 257), np.float32))
            seconds = _rounds.measure(works, min(rounds, 2), clock)
        finally:
            os.chdir(before)
    crops = steps * windows
    rows = [
        _rounds.row(f"{what}, {layer}", "s/crop", [value / crops for value in values])
        for what, values in seconds.items()
    ]
    names = list(works)
    return rows, {
        "horama/featviz seconds a crop, each at its own size": paired(seconds, names[3], names[0]),
        "horama/featviz seconds a crop, equal size": paired(seconds, names[2], names[1]),
    }


if __name__ == "__main__":
    main()
