"""The command line that would make a result again, as far as its parameters tell.

A table says which parameter of which kind is which option; what has no option is named in a note.
A test holds the table against the commands themselves.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from featviz.gallery.reader import Entry

BUNDLED_MODEL = "alexnet-mini"
BUNDLED_PICTURES = "featviz-samples"


@dataclass(frozen=True)
class Recipe:
    """How one kind of result is asked for."""

    command: str
    options: Mapping[str, str] = field(default_factory=dict)
    """parameter to option; "" for an argument, which comes first"""
    data: bool = False
    """takes --data"""
    seed: bool = False
    """takes --seed"""
    of_model: bool = True
    """takes --model and --weights"""


_TRAINING = ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "schedule", "workers",
             "precision")

_REDRAWN = {
    "pictures": "", "method": "--method", "layer": "--layer", "size": "--size", "steps": "--steps",
}

RECIPES = {
    "layers": Recipe("layers", {"all_modules": "--all"}),
    "train": Recipe(
        "train", {name: f"--{name.replace('_', '-')}" for name in _TRAINING}, data=True, seed=True
    ),
    "eval": Recipe("eval", {"precision": "--precision"}, data=True),
    "kernels": Recipe(
        "kernels", {"layer": "--layer", "units": "--units", "shared_scale": "--shared-scale"}
    ),
    "maximize": Recipe(
        "maximize",
        {
            "layer": "--layer", "units": "--units", "words": "--objective", "preset": "--preset",
            "tries": "--tries", "size": "--size", "steps": "--steps", "precision": "--precision",
            "other": "--other",
        },
        data=True, seed=True,
    ),
    "facets": Recipe(
        "maximize",
        {
            "layer": "--layer", "units": "--units", "facets": "--facets",
            "diversity": "--diversity", "size": "--size", "steps": "--steps",
        },
        data=True, seed=True,
    ),
    "interpolation": Recipe(
        "maximize",
        {
            "layer": "--layer", "units": "--units", "count": "--between", "size": "--size",
            "steps": "--steps",
        },
        seed=True,
    ),
    "inversion": Recipe("redraw", _REDRAWN | {"tries": "--tries"}, data=True, seed=True),
    "caricature": Recipe("redraw", _REDRAWN | {"tries": "--tries", "power": "--power"}, seed=True),
    "deepdream": Recipe(
        "redraw", _REDRAWN | {"units": "--units", "octaves": "--octaves"}, seed=True
    ),
    "accentuation": Recipe(
        "redraw", _REDRAWN | {"units": "--units", "anchor": "--anchor", "weight": "--weight"},
        seed=True,
    ),
    "examples": Recipe(
        "maps", {"layer": "--layer", "units": "--units", "k": "--top"}, data=True
    ),
    "maps": Recipe("maps", {"picture": "", "layer": "--layer", "units": "--units"}),
    "patch": Recipe("maps", {"picture": "", "unit": "--unit"}),
    "attribute": Recipe(
        "attribute",
        {
            "pictures": "", "targets": "--target", "methods": "--methods", "layer": "--layer",
            "baseline": "--baseline", "steps": "--steps",
        },
        seed=True,
    ),
    "embed": Recipe("embed", {"layer": "--layer", "batch_size": "--batch-size"}, data=True),
    "neighbors": Recipe(
        "neighbors", {"k": "--k", "metric": "--metric", "layer": "--layer"}, data=True, seed=True
    ),
    "atlas": Recipe(
        "atlas",
        {
            "icons": "--icons", "sides": "--sides", "icon_side": "--icon-side",
            "icon_steps": "--icon-steps", "icon_power": "--icon-power", "class": "--class",
            "among": "--among", "beside": "--beside", "how": "--align",
            "perplexity": "--perplexity", "method": "--method", "seeds": "--seeds",
            "most": "--most", "layer": "--layer",
        },
        data=True, seed=True,
    ),
    "attack": Recipe(
        "attack",
        {
            "pictures": "", "eps": "--eps", "norm": "--norm", "method": "--method",
            "steps": "--steps", "restarts": "--restarts",
        },
        seed=True,
    ),
    "audit": Recipe(
        "audit",
        {
            "norms": "--norm", "eps_linf": "--eps", "eps_l2": "--eps-l2", "eps_l1": "--eps-l1",
            "eps_l0": "--eps-l0", "count": "--count", "steps": "--steps",
            "check": "--check", "check_steps": "--check-steps", "queries": "--queries",
            "sections": "--sections",
        },
        data=True, seed=True,
    ),
    "universal": Recipe(
        "universal",
        {
            "eps": "--eps", "norm": "--norm", "target": "--target", "steps": "--steps",
            "count": "--count",
        },
        data=True, seed=True,
    ),
    "adversarial-patch": Recipe(
        "universal --patch", {"target": "--target", "steps": "--steps", "count": "--count"},
        data=True, seed=True,
    ),
    "corruptions": Recipe(
        "corrupt",
        {
            "names": "--names", "severities": "--severities", "count": "--count", "jpeg": "--jpeg",
        },
        data=True, seed=True,
    ),
}

_SAID_ELSEWHERE = frozenset(
    {
        "seed",
        "out",
        "pictures",
        "position",
        "batch_size",
        "batch_size",
        "shard_bytes",
        "store",
        "backend",
        "other_sha256",
    }
)
"""parameters that the line carries by other means, or that change nothing in the result"""


@dataclass(frozen=True)
class Command:
    """A line to paste into a terminal, and what it does not carry."""

    line: str
    note: str


def command_line(entry: Entry) -> Command | None:
    """The command of a result, or None if no command makes such a result."""
    recipe = RECIPES.get(entry.kind)
    if recipe is None:
        return None
    given = _flat(entry.parameters)
    arguments: list[str] = []
    options: list[str] = []
    for parameter, option in recipe.options.items():
        value = given.get(parameter)
        if value is None or value is False or value == []:
            continue
        if not option:
            arguments += [str(v) for v in value] if isinstance(value, list) else [str(value)]
        elif value is True:
            options.append(option)
        else:
            options += [option, _written(value, given.get("layer"))]
    if not all(PurePath(word).suffix for word in arguments):
        return None  # a picture that was no file: handed over in Python, or bundled
    notes = []
    places = bool(arguments)
    if recipe.of_model and entry.model is not None and entry.model.name != BUNDLED_MODEL:
        options += ["--model", entry.model.name]
        if entry.kind != "train":
            options += ["--weights", "WEIGHTS"]
            notes.append("WEIGHTS is the file that holds the weights named below.")
    if recipe.data and entry.data is not None and entry.data.name != BUNDLED_PICTURES:
        options += ["--data", entry.data.name]
        places = True
    if places:
        notes.append("Write pictures and folders as they lie on your disk.")
    if recipe.seed and entry.seed is not None:
        options += ["--seed", str(entry.seed)]
    untold = [
        name for name, value in given.items()
        if name not in recipe.options and name not in _SAID_ELSEWHERE and value is not None
    ]
    if untold:
        notes.append(f"The line leaves to the command's own choice: {', '.join(untold)}.")
    line = " ".join(["featviz", recipe.command, *map(shlex.quote, arguments + options)])
    return Command(line, " ".join(notes))


def _flat(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters; the audit's grids {"linf": [...]} as eps_linf."""
    flat: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "eps" and isinstance(value, dict):
            flat |= {f"eps_{norm}": grid for norm, grid in value.items()}
        else:
            flat[name] = value
    grids = [name for name in flat if name.startswith("eps_l")]
    if len(grids) == 1:  # --eps is the grid of the only norm
        flat["eps_linf"] = flat.pop(grids[0])
    return flat


def _written(value: Any, layer: object) -> str:
    """A value as an option takes it: 0-15 for a run of units, commas for a list."""
    if not isinstance(value, list):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    words = [_written(v, layer).removeprefix(f"{layer}:") for v in value]
    if len(words) > 2 and all(w.isdecimal() for w in words):
        first = int(words[0])
        if [int(w) for w in words] == list(range(first, first + len(words))):
            return f"{first}-{first + len(words) - 1}"
    return ",".join(words)
