"""Which settings draw the best pictures: the sweep behind the defaults of `featviz maximize`.

    python recipes/sweep_maximize.py --weights alexnet.safetensors --data PHOTOGRAPHS --out run/s
    python recipes/sweep_maximize.py --model alexnet-mini --data PHOTOGRAPHS --out run/m

One change from the defaults at a time, and the published presets, on the same units of each layer
from the same seeds. Every picture is judged alike, whatever made it: by the mean of its unit over
the middle of the map, of the 8-bit picture. One line a run in OUT/rows.jsonl; a run whose line is
there is not made again, so a sweep that was stopped goes on. OUT/table.md is the table of the docs
and OUT/sheets/ has the pictures, to be looked at.

    score      clean, over the default's; median of the units' ratios
    held out   the same after six shifts it has not seen, behind a 3x3 mean
    photo      score over the unit's highest on the photographs; median
    path       natural-path similarity; median
    slope      of log amplitude against log frequency; photographs have about -1.25
    high       share of the energy above 1/4 cycle a pixel
    lattice    energy at the multiples of 1/period over their surroundings; 1 is none; the worst of
               the layer's periods
    flagged    share of the pictures that raise a flag
    s          seconds a picture on the machine of the sweep
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _tables import read_arguments
from torch import Tensor

import featviz
from featviz.data.datasets import Pictures
from featviz.maximization import objectives
from featviz.maximization.evaluation import clean_scores, spectrum
from featviz.maximization.parametrizations import Fourier, LaplacianPyramid, Pixels
from featviz.maximization.result import Maximized
from featviz.maximization.settings import (
    DEFAULT_PRESET,
    PRESETS,
    canvas,
    settings_for,
    transforms_for,
)
from featviz.models.first_layer import input_strides
from featviz.models.model import Model
from featviz.pictures import images

STEPS = 128
# What `maximize` chooses for AlexNet's middle layers is what these are changes of.
SIZES = {"canvas x 0.75": 0.75, "canvas x 1.25": 1.25}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr 0.03": {"lr": 0.03},
    "lr 0.06": {"lr": 0.06},
    "lr 0.2": {"lr": 0.2},
    "lr 0.15": {"lr": 0.15},
    "lr 0.15, roughness 12": {"lr": 0.15, "roughness_weight": 12.0},
    "lr 0.15, coarse to fine 0.1": {"lr": 0.15, "coarse_to_fine": 0.1},
    "steps 64": {"steps": 64},
    "steps 128": {"steps": 128},
    "steps 512": {"steps": 512},
    "roughness 0": {"roughness_weight": 0.0},
    "roughness 2": {"roughness_weight": 2.0},
    "roughness 4": {"roughness_weight": 4.0},
    "roughness 16": {"roughness_weight": 16.0},
    "normalization 0": {"local_normalization": 0.0},
    "normalization 0.5": {"local_normalization": 0.5},
    "contrast 0": {"contrast_weight": 0.0},
    "contrast 0.1": {"contrast_weight": 0.1},
    "saturation 0": {"saturation_weight": 0.0},
    "saturation 0.5": {"saturation_weight": 0.5},
    "saturation 1": {"saturation_weight": 1.0},
    "coarse to fine 0": {"coarse_to_fine": 0.0},
    "coarse to fine 0.5": {"coarse_to_fine": 0.5},
    "all penalties 0": {
        "roughness_weight": 0.0,
        "contrast_weight": 0.0,
        "saturation_weight": 0.0,
        "local_normalization": 0.0,
        "coarse_to_fine": 0.0,
    },
}
DECAYS = (0.5, 1.5, 2.0)
MOVES: dict[str, dict[str, Any]] = {
    "not moved": {"shift": 0.0, "rotate": 0.0, "scale": 0.0},
    "shift x 0.25": {"shift": 0.25},
    "shift x 2": {"shift": 2.0},
    "rotate 0": {"rotate": 0.0},
    "rotate 5": {"rotate": 5.0},
    "rotate 30": {"rotate": 30.0},
    "scale 1": {"scale": 0.0},
    "scale to 1.1": {"scale": math.log(1.1)},
    "noise 0.05": {"noise": 0.05},
}


def main() -> None:
    given, model, photographs = read_arguments(
        __doc__,
        out=Path("run/sweep"),
        layers="conv2,conv3,conv4,conv5,logits",
        units=8,
        photographs=100,
        only="",
    )
    photographs = photographs.spread(given.photographs)
    (given.out / "sheets").mkdir(parents=True, exist_ok=True)
    kept = given.out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["layer"], row["run"]) for row in rows}
    with kept.open("a") as lines:
        for layer in given.layers.split(","):
            for run, options in runs(model, layer).items():
                wanted = not given.only or any(part in run for part in given.only.split("|"))
                if (layer, run) in done or not wanted:
                    continue
                row = one(
                    model, layer, run, given.units, photographs, options, given.out / "sheets"
                )
                rows.append(row)
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                print(f"{layer} {run}: {row['seconds']:.2f} s a picture", file=sys.stderr)
    (given.out / "table.md").write_text(table(rows))
    print(f"table: {given.out / 'table.md'}")


def runs(model: Model, layer: str) -> dict[str, dict[str, Any]]:
    """The arguments of `maximize` for each run, by name."""
    place = model.layer(layer)
    side = canvas(model, place)[0]
    moves = transforms_for(place, side)
    listed: dict[str, dict[str, Any]] = dict(OPTIONS)
    for name, factor in SIZES.items():
        size = 8 * round(factor * side / 8)
        if not place.whole and 32 <= size <= model.input_size[0]:
            listed[name] = {"size": size}
    listed |= {f"decay {d}": {"parametrization": Fourier(side, side, decay=d)} for d in DECAYS}
    listed["pixels"] = {"parametrization": Pixels(side, side)}
    listed["Laplacian pyramid"] = {"parametrization": LaplacianPyramid(side, side)}
    for name, change in MOVES.items():
        if "shift" in change:
            change = change | {"shift": change["shift"] * moves.shift}
        listed[name] = {"transforms": moves.__class__(**(vars_of(moves) | change))}
    if place.spatial:
        listed["objective channel"] = {"objective": "channel"}
        listed["objective center"] = {"objective": "center"}
    listed |= {f"preset {name}": {"preset": name} for name in PRESETS if name != DEFAULT_PRESET}
    return listed


def vars_of(transforms: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are."""
    return {name: getattr(transforms, name) for name in transforms.__dataclass_fields__}


def one(
    model: Model,
    layer: str,
    run: str,
    count: int,
    photographs: Pictures,
    options: dict[str, Any],
    sheets: Path,
) -> dict[str, Any]:
    """The row of one run: its numbers for each unit."""
    chosen = {"steps": STEPS} | options if "preset" not in options else dict(options)
    objective = str(chosen.pop("objective", "auto"))
    named = {name: chosen.pop(name) for name in ("preset", "steps", "size") if name in chosen}
    result = featviz.maximize(
        model,
        layer,
        units=list(range(count)),
        objective=objective,
        pictures=photographs,
        settings=replace(settings_for(model, layer, **named), **chosen),
    )
    images.write_png(result.sheet(count), sheets / f"{layer}-{run.replace(' ', '-')}.png")
    return {
        "model": model.name,
        "layer": layer,
        "run": run,
        "options": {key: str(value) for key, value in options.items()},
        "size": result.size,
        "seconds": middle(result.metrics["seconds"].tolist()),
        **alike(model, layer, result),
        "flags": [len(flags) > 0 for flags in result.panel.flags],
        "numbers": {name: values.tolist() for name, values in result.metrics.items()},
    }


def alike(model: Model, layer: str, result: Maximized) -> dict[str, list[float]]:
    """What can be compared between all runs of a layer."""
    count = len(result.images)
    goal = objectives.center(layer, [unit.index for unit in result.units])

    def score(pictures: Tensor) -> Tensor:
        targets = list(range(count)) * (len(pictures) // count)
        with torch.no_grad():
            return goal(featviz.activations(model, pictures, [layer]), targets)

    periods = input_strides(model, model.layer(layer))
    combs = spectrum.lattices(result.images, periods).values()
    worst = torch.stack([c.nan_to_num(0) for c in combs]).amax(0) if combs else torch.zeros(1)
    return {
        "clean": score(result.images).tolist(),
        "held": clean_scores.held_out(score, result.images).tolist(),
        "lattice": worst.tolist(),
    }


COLUMNS = (
    "run",
    "size",
    "score",
    "held out",
    "photo",
    "path",
    "slope",
    "high",
    "lattice",
    "flagged",
    "s",
)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one table a layer, runs in order of their held-out score."""
    parts = []
    for model, layer in dict.fromkeys((row["model"], row["layer"]) for row in rows):
        own = [r for r in rows if (r["model"], r["layer"]) == (model, layer)]
        base = next(row for row in own if row["run"] == "default")
        lines = [(row["run"], row["size"], *measured(row, base)) for row in own]
        lines.sort(key=lambda line: -line[3])
        parts.append(f"### {model}, {layer}\n")
        parts.append("| " + " | ".join(COLUMNS) + " |")
        parts.append("|---" + "|---:" * (len(COLUMNS) - 1) + "|")
        parts += ["| " + " | ".join(map(written, line)) + " |" for line in lines]
        parts.append("")
    return "\n".join(parts)


def measured(row: dict[str, Any], base: dict[str, Any]) -> tuple[float, ...]:
    """The numbers of a row, from `score` to `s`."""

    def over_default(name: str) -> float:
        return middle([a / b for a, b in zip(row[name], base[name], strict=True) if b > 0])

    numbers = row["numbers"]
    return (
        over_default("clean"),
        over_default("held"),
        middle(numbers.get("of natural", [])),
        middle(numbers.get("path", [])),
        middle(numbers["slope"]),
        middle(numbers["high share"]),
        middle(row["lattice"]),
        statistics.mean(row["flags"]),
        row["seconds"],
    )


def middle(values: list[float]) -> float:
    """The median of those that are numbers; NaN without any."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return statistics.median(known) if known else math.nan


def written(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    main()
