"""`maximize`: pictures that a unit, a neuron, a class or a direction answers to most.

Free parameters make a picture (`parametrizations`), it is moved a little (`transforms`), the model
reads it up to the layer in question, an objective scores it (`objectives`), and Adam follows the
gradient back (`ascent`). Around that loop stand, here, the choice of settings for a layer, the
numbers beside each picture (`judge`) and the doubts in words.

Each picture depends on the seed, the layer and its own target alone, whatever is made beside it;
on the CPU to the last bit.

Erhan et al. 2009, "Visualizing higher-layer features of a deep network"; Yosinski et al. 2015,
"Understanding neural networks through deep visualization"; Olah, Mordvintsev and Schubert 2017,
"Feature Visualization" (Distill).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featviz import results
from featviz.engine import check_engine
from featviz.errors import UserError
from featviz.maximization import objectives
from featviz.maximization.evaluation.flags import summarize
from featviz.maximization.evaluation.measure import measure_panel
from featviz.maximization.layer_results import Several, several
from featviz.maximization.loop import Optimized
from featviz.maximization.objectives import Objective
from featviz.maximization.parametrizations import Parametrization
from featviz.maximization.result import Maximized
from featviz.maximization.settings import DEFAULT_PRESET, Settings, is_kernel, settings_for
from featviz.maximization.shards import Task, before_relu, climb_tasks
from featviz.models.frozen import frozen
from featviz.models.model import Layer
from featviz.models.units import Unit, parse_units, unit_name
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from featviz.datasets import Pictures
    from featviz.maximization.image_statistics import Statistics
    from featviz.models.model import Model


# Beside the middle of a map its mean is climbed, with this weight, so that the surroundings of a
# part are of the unit's making too. It is not counted in the score.
_SURROUNDINGS = 0.5


class Stopped(KeyboardInterrupt):
    """Ctrl-C during `maximize`; `result` holds what was finished, or None."""

    def __init__(self, result: Maximized | Several | None):
        super().__init__("stopped")
        self.result = result


def maximize(
    model: Model,
    layer: str | Sequence[str],
    *,
    units: str | Sequence[int | str] = "all",
    objective: str = "auto",
    preset: str = DEFAULT_PRESET,
    steps: int | None = None,
    tries: int = 1,
    seed: int = 0,
    size: int | None = None,
    natural: Pictures | Tensor | None = None,
    other: Model | None = None,
    film: int = 0,
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    engine: str = "here",
    partial: str | Path | None = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
    parametrization: str | Parametrization | None = None,
    statistics: Statistics | str | Path | None = None,
) -> Any:
    """Pictures that maximise units of a layer: `.images` (N, 3, H, W) and `.scores` (N,).

    layer: an alias or module path; of a ReLU the value before it is maximised. Or several of them,
        or units of any layers: ["conv3:5", "conv5:12", "logits:tabby"]; the result then has one
        part for each layer
    units: "all", "3,12", "0-15", classes by name, neurons as "12@6,6", or a sequence of these
    objective: "centre" is the mean over the positions in the middle of the map and draws one thing;
        "channel" is the mean over all positions and draws a texture; "auto" takes "centre" for
        layers that see much of the picture and "channel" for those that see little
    preset: whose settings to take (`presets`); the default is our own
    steps: of the ascent; default: the preset's, 256. 128 is enough for a first look, 512 for print
    tries: how many pictures to make of each, from different starts; the one with the highest clean
        score is kept
    size: side of the pictures in pixels; default: what the layer's receptive field asks for,
        never above the model's input
    natural: photographs that the pictures are compared with, in many ways; see `panel`
    other: another classifier, to see whether classes are recognised by it too
    film: how many stages of the ascent to keep for each picture
    batch_size: most pictures at a time, default 16 on the CPU, 256 on CUDA; less needs less memory
    precision: of the model during the ascent, "fp32", "bf16" or "auto": bf16 on CPUs that
        compute with it, else fp32; scores are of fp32 always
    engine: "here", or "ray" to spread the pictures over a Ray cluster
    partial: a folder in which finished pictures are kept, and from which the same call goes on
        after it was killed; the caller removes it
    settings: in place of preset, steps, size, precision, parametrization and statistics; see
        `settings.settings_for`

    Raises UserError for an unknown layer, unit, objective, preset or option; `Stopped` on Ctrl-C.

        featviz.maximize(model, "conv5", units=[3, 12]).save("run/conv5")
    """
    started = time.perf_counter()
    check_objective(objective)
    check_engine(engine)
    if tries < 1:
        raise UserError(f"tries {tries}: it is 1 or more")
    single = isinstance(layer, str)
    asked = [
        _asked(
            model,
            place,
            found,
            objective,
            settings
            or settings_for(
                model,
                place,
                preset=preset,
                steps=steps,
                size=model.input_size if size is None and found[0].position else size,
                parametrization=parametrization,
                statistics=statistics,
                precision=precision,
            ),
            preset if settings is None else None,
        )
        for place, found in _grouped(model, [layer] if isinstance(layer, str) else layer, units)
    ]
    return _maximize(
        model,
        asked,
        single=single,
        seed=seed,
        tries=tries,
        natural=natural,
        other=other,
        film=film,
        batch_size=batch_size,
        engine=engine,
        progress=progress,
        started=started,
        partial=None if partial is None else Path(partial),
    )


def _grouped(
    model: Model, items: Sequence[str], units: str | Sequence[int | str]
) -> list[tuple[Layer, list[Unit]]]:
    """Layers, each with its units, from names of layers ("conv3") and of units ("conv3:5")."""
    if not items:
        raise UserError("no layer and no unit was named; give conv5, or conv5:12")
    groups: dict[str, list[Unit]] = {}
    for item in items:
        name, colon, one = item.partition(":")
        place = model.layer(name)
        found = parse_units(model, name, [one] if colon else units)
        groups.setdefault(place.name, []).extend(found)
    for name, found in groups.items():
        if any(unit.position for unit in found) and not all(unit.position for unit in found):
            raise UserError(
                f"give a position to every unit of {name} or to none ({name}:12@6,6 or {name}:12)"
            )
    return [(model.layer(name), list(dict.fromkeys(found))) for name, found in groups.items()]


@dataclass(frozen=True)
class _Asked:
    """Pictures of one layer that are to be made: the work, and what is said of it."""

    task: Task
    names: list[str]
    titles: list[str]
    units: tuple[Unit, ...]
    parameters: dict[str, Any]


def _asked(
    model: Model,
    place: Layer,
    found: list[Unit],
    objective: str,
    settings: Settings,
    preset: str | None,
) -> _Asked:
    indices = [unit.index for unit in found]
    besides = None
    if found[0].position:
        goal = objectives.neuron(place.name, indices, [u.position for u in found if u.position])
    else:
        goal, besides = unit_goal(model, place, indices, objective)
    keys = tuple(f"{place.path}/{unit.index}/{unit.position}" for unit in found)
    names = [str(unit) for unit in found]
    return _Asked(
        Task(place, goal, besides, settings, keys),
        names=names,
        titles=[unit_name(model, unit) for unit in found],
        units=tuple(found),
        parameters={"layer": place.name, "units": names, "objective": goal.text, "preset": preset},
    )


def check_objective(objective: str) -> None:
    """Raise UserError unless it is one that `maximize` knows."""
    if objective not in {"auto", "centre", "channel"}:
        raise UserError(f"unknown objective {objective!r}; take auto, centre or channel")


def unit_goal(
    model: Model, place: Layer, indices: Sequence[int], objective: str = "auto"
) -> tuple[Objective, Objective | None]:
    """What `maximize` climbs for units of a layer: the goal that is scored, and what besides."""
    check_objective(objective)
    if objective == "auto":
        objective = "centre" if _draws_one_thing(model, place) else "channel"
    if objective == "centre" and place.spatial:
        surroundings = _SURROUNDINGS * objectives.channel(place.name, indices)
        return objectives.centre(place.name, indices), (None if is_kernel(place) else surroundings)
    goal = objectives.channel(place.name, indices)
    # Of one value there is no mean to speak of.
    return (goal if place.spatial else replace(goal, text=place.name)), None


def maximize_directions(
    model: Model,
    layer: str,
    directions: Tensor,
    *,
    names: Sequence[str] | None = None,
    power: float = 2.0,
    width: int | None = None,
    steps: int = 256,
    seed: int = 0,
    size: int | None = None,
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Maximized:
    """Pictures that drive a layer along the given directions of its channels (N, C).

    The score is dot * max(.1, cosine)^power, mean over the map (or over `width` x `width`
    positions in its middle); see `objectives.direction`. A picture depends on its direction and the
    seed alone. `names` are for captions; default: the row numbers.

    Raises UserError if a direction has the wrong length, is zero or not finite.
    """
    started = time.perf_counter()
    place = model.layer(layer)
    _check_directions(place, directions)
    aims = directions.detach().cpu().float()
    labels = list(names) if names is not None else [f"direction {i}" for i in range(len(aims))]
    goal = objectives.direction(place.name, aims, power=power, width=width)
    settings = settings or settings_for(model, place, steps=steps, size=size, precision=precision)
    keys = tuple(f"{place.path}/{row.numpy().tobytes().hex()}" for row in aims)
    parameters = {"layer": place.name, "directions": len(aims), "power": power, "width": width}
    asked = _Asked(Task(place, goal, None, settings, keys), labels, labels, (), parameters)
    result = _maximize(
        model,
        [asked],
        single=True,
        seed=seed,
        tries=1,
        natural=None,
        other=None,
        film=0,
        batch_size=batch_size,
        engine="here",
        progress=progress,
        started=started,
        partial=None,
    )
    assert isinstance(result, Maximized)
    return result


def maximize_objective(
    model: Model,
    goal: Objective | str | Sequence[str],
    *,
    names: Sequence[str] | None = None,
    preset: str = DEFAULT_PRESET,
    steps: int | None = None,
    tries: int = 1,
    seed: int = 0,
    size: int | None = None,
    film: int = 0,
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    settings: Settings | None = None,
    parametrization: str | Parametrization | None = None,
    statistics: Statistics | str | Path | None = None,
    progress: Progress | None = None,
) -> Maximized:
    """Pictures that maximise any objective: `.images` (N, 3, H, W), one a target.

    goal: an objective with as many targets as pictures are wanted (see `objectives`), or in words
        such as "conv5:12 - 0.5*conv4:7", one picture each (`objectives.parse_objective`)
    names: for captions; default: the words, or the targets' numbers

    Canvas, transforms and restraints are those of the deepest layer that is read. A layer's value
    is read as it leaves the layer: "relu5:12" is what the ReLU lets through, "conv5:12" what enters
    it (`maximize` takes the latter for both). All else is as in `maximize`.

    Raises UserError for words that are no objective, for an objective without targets of its own
    and for one that compares pictures (`objectives.diversity`): facets have a command.
    """
    started = time.perf_counter()
    words = None
    if not isinstance(goal, Objective):
        words = [goal] if isinstance(goal, str) else list(goal)
        goal = objectives.parse_objectives(model, words)
    wanted: Objective = goal
    count = wanted.count or (1 if wanted.group == 1 else 0)
    read = [model.layer(name) for name in wanted.layers if name != objectives.PICTURE]
    if not count or wanted.group > 1 or not read:
        raise UserError(
            f"the objective {wanted.text!r} reads no layer or compares pictures with each other, "
            "so it has no picture of its own; add a unit to it, or draw facets"
        )
    order = [layer.path for layer in model.layers.values()]
    place = max(read, key=lambda layer: order.index(layer.path))
    settings = settings or settings_for(
        model,
        place,
        preset=preset,
        steps=steps,
        size=size,
        parametrization=parametrization,
        statistics=statistics,
        precision=precision,
    )
    labels = list(names or words or [f"target {i}" for i in range(count)])
    if len(labels) != count:
        raise UserError(f"{len(labels)} names for {count} pictures; give one each")
    keys = tuple(f"{wanted.text}/{i}" for i in range(count)) if words is None else tuple(words)
    parameters = {"layer": place.name, "objective": wanted.text, "preset": preset}
    if words is not None:
        parameters["words"] = "; ".join(words)
    task = Task(place, wanted, None, settings, keys, as_it_leaves=True)
    asked = _Asked(task, labels, labels, (), parameters)
    result = _maximize(
        model,
        [asked],
        single=True,
        seed=seed,
        tries=tries,
        natural=None,
        other=None,
        film=film,
        batch_size=batch_size,
        engine="here",
        progress=progress,
        started=started,
        partial=None,
    )
    assert isinstance(result, Maximized)
    return result


def _draws_one_thing(model: Model, layer: Layer) -> bool:
    field = layer.receptive_field
    return field is not None and (is_kernel(layer) or max(field.size) >= 0.5 * model.input_size)


def _check_directions(layer: Layer, directions: Tensor) -> None:
    if directions.dim() != 2 or directions.shape[1] != layer.units:
        raise UserError(
            f"directions of shape {tuple(directions.shape)} for {layer.name}, which has "
            f"{layer.units} channels; give (N, {layer.units})"
        )
    if not torch.isfinite(directions).all() or (directions.norm(dim=1) == 0).any():
        raise UserError("a direction is zero or not finite; leave it out")


def _maximize(
    model: Model,
    asked: Sequence[_Asked],
    *,
    single: bool,
    seed: int,
    tries: int,
    natural: Pictures | Tensor | None,
    other: Model | None,
    film: int,
    batch_size: int | None,
    engine: str,
    progress: Progress | None,
    started: float,
    partial: Path | None,
) -> Maximized | Several:
    if film < 0 or (batch_size is not None and batch_size < 1):
        raise UserError(
            f"film {film}, batch_size {batch_size}: film is 0 or more, batch_size 1 or more"
        )
    climbed, stopped = climb_tasks(
        model,
        [one.task for one in asked],
        seed=seed,
        tries=tries,
        film=film,
        batch_size=batch_size,
        partial=partial,
        engine=engine,
        progress=progress,
    )
    count = sum(len(of.order) for of in climbed if of is not None)
    if not count:
        raise Stopped(None)
    parts = []
    for one, of in zip(asked, climbed, strict=True):
        if of is None:
            continue
        task, order, climb = one.task, of.order, of.climb
        units = [one.units[i] for i in order] if one.units else []
        with frozen(model), before_relu(model, task.layer, task.goal, task.as_it_leaves):
            judged = measure_panel(
                model,
                task.layer,
                task.goal,
                order,
                climb.images,
                alive=climb.alive,
                data=natural,
                other=other,
                units=units,
                seconds=of.seconds,
                progress=progress,
                restart_scores=of.tries,
                precision=task.settings.precision,
            )
        names = [one.names[i] for i in order]
        parts.append(
            Maximized(
                origin=results.origin(
                    model,
                    seed=seed,
                    started=started,
                    data=natural if not isinstance(natural, Tensor) else None,
                    parameters=one.parameters
                    | {"size": climb.images.shape[-1], "tries": tries}
                    | ({} if other is None else {"other": other.name, "other_sha256": other.sha256})
                    | task.settings.record(),
                ),
                warnings=(
                    *_warnings(names, climb, missing=len(one.names) - len(order)),
                    *summarize(names, judged.flags),
                    *judged.notes,
                ),
                model_name=model.name,
                layer=task.layer.name,
                objective=task.goal.text,
                units=tuple(units),
                names=tuple(names),
                titles=tuple(one.titles[i] for i in order),
                images=climb.images,
                scores=judged.scores,
                panel=judged,
                trace=climb.trace,
                best_steps=climb.best_steps,
                alive=climb.alive & (climb.failed < 0),
                frames=climb.frames,
                transparency=climb.transparency if task.settings.transparency else None,
            )
        )
    missing = sum(len(one.names) for one in asked) - count
    result = parts[0] if single else several(model, parts, missing, seed=seed, started=started)
    if stopped:
        raise Stopped(result)
    return result


def _warnings(names: Sequence[str], climb: Optimized, missing: int) -> tuple[str, ...]:
    """The doubts about these pictures, in words."""
    texts = []
    rows = list(zip(names, climb.alive.tolist(), climb.failed.tolist(), strict=True))
    silent = [name for name, alive, broken in rows if not alive and broken < 0]
    if silent:
        texts.append(
            f"no gradient reaches {_listed(silent)}: dead, or blocked by ReLUs before it; "
            "its picture is the start and shows nothing"
        )
    broken = [(name, step) for name, _, step in rows if step >= 0]
    if broken:
        name, step = broken[0]
        texts.append(
            f"the score of {_listed([n for n, _ in broken])} was no number from step {step} on "
            f"({name}); its picture is that of the step before"
        )
    if missing:
        texts.append(f"stopped early: {missing} of {missing + len(names)} pictures were not made")
    return tuple(texts)


def _listed(names: Sequence[str]) -> str:
    """ "conv5:1, conv5:2 and 7 more" """
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
