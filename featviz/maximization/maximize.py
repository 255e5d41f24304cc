"""`maximize`: pictures that activate a unit, a neuron, a class or a direction most.

Free parameters make a picture (`parametrizations`), random transforms move it (`transforms`), the
network reads it up to a layer, an objective scores it (`objectives`), and Adam follows the gradient
back (`loop`). Here are the public functions around that loop: the settings of a layer, batches and
restarts (`batches`), and the numbers beside each picture (`evaluation`).

Erhan et al. 2009, "Visualizing higher-layer features of a deep network"; Yosinski et al. 2015,
"Understanding neural networks through deep visualization"; Olah, Mordvintsev and Schubert 2017,
"Feature Visualization" (Distill).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from featviz import results
from featviz.arguments import Bounds
from featviz.checkpoints import Checkpoint
from featviz.data.from_python import Data
from featviz.data.labeled import opened
from featviz.errors import UserError, public
from featviz.maximization import objectives
from featviz.maximization.batches import Finished, Stopped, Task, optimize_tasks
from featviz.maximization.evaluation.flags import summarize
from featviz.maximization.evaluation.measure import measure_panel
from featviz.maximization.functions import from_function
from featviz.maximization.image_statistics import Statistics
from featviz.maximization.objectives import Activations, Objective
from featviz.maximization.optimized import Optimized
from featviz.maximization.parametrizations import Parametrization
from featviz.maximization.result import LayerResults, Maximized
from featviz.maximization.settings import DEFAULT_PRESET, Settings, is_kernel, settings_for
from featviz.models.frozen import frozen
from featviz.models.model import Layer, Model
from featviz.models.units import Unit, parse_units, unit_name
from featviz.types import (
    AutoPrecision,
    BatchSize,
    Canvas,
    Count,
    Engine,
    Frames,
    Power,
    Progress,
    Restarts,
    Seed,
    Steps,
)
from featviz.wording import counted, not_one_each

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures

OBJECTIVES = ("auto", "center", "channel")
"""how `maximize` reads a unit from its map"""

# Beside the middle of a map its mean is maximized, with this weight, so that the surroundings of a
# part are of the unit's making too. It is not counted in the score.
_SURROUNDINGS = 0.5


@public
def maximize(
    model: Model,
    layer: str | None = None,
    *,
    units: str | Sequence[int | str] = "all",
    objective: str | Objective | Callable[[Activations], Tensor] = "auto",
    preset: str = DEFAULT_PRESET,
    steps: Steps | None = None,
    size: Canvas | None = None,
    parametrization: str | Parametrization | None = None,
    statistics: Statistics | str | Path | None = None,
    precision: AutoPrecision = "auto",
    cuda_graph: bool = False,
    settings: Settings | None = None,
    restarts: Restarts = 1,
    seed: Seed = 0,
    pictures: Data | None = None,
    other: Model | None = None,
    frames: Frames = 0,
    batch_size: BatchSize | None = None,
    engine: Engine = "here",
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Maximized:
    """Pictures that maximize units of a layer: `.images` (N, 3, H, W) and `.scores` (N,).

    A picture depends on the seed, the layer and its own unit, not on the others in its batch.

    Args:
        model: A classifier.
        layer: An alias or module path. Of a ReLU the steps follow the value before it, where a
            silent unit has a gradient; scores are what leaves it, as of every layer.
        units: "all", "3,12", "0-15", classes by name, neurons as "12@6,6", or a sequence of these.
        objective: "center" is the mean over the positions in the middle of the map and draws one
            thing; "channel" is the mean over all positions and draws a texture; "auto" takes
            "center" for layers that see much of the picture and "channel" for those that see
            little. Without a layer: anything that `maximize_objective` takes, such as a function
            from activations by layer, (N, ...) each, to scores (N,).
        preset: One of `settings.PRESETS`; the default is our own.
        steps: Default: the preset's, 256. 128 is enough for a first look, 512 for print.
        size: Side of the pictures in pixels, or (height, width); default: what the layer's
            receptive field asks for, never above the model's input.
        parametrization: In place of the preset's, by name (`settings.PARAMETRIZATIONS`) or itself.
        statistics: Measured colors and spectrum, or their file (`measure_statistics`).
        precision: Of the network in the steps; "auto" is bfloat16 on CPUs that compute in it.
            Scores are of float32.
        cuda_graph: On CUDA, launch the passes of a step as CUDA graphs: fewer launches, which bind
            batches of few pictures. It has never run on a GPU.
        settings: In place of the seven options before it; see `settings.settings_for`.
        restarts: Pictures made of each unit, from different starts; the one with the highest
            clean score is kept.
        seed: The same seed gives the same pictures.
        pictures: Photographs to compare with; see `evaluation`.
        other: Another classifier, to see whether it recognizes the classes, too.
        frames: Stages of the optimization to keep of each picture.
        batch_size: Most pictures at a time, default 16 on the CPU, 256 on CUDA; less needs less
            memory.
        engine: "here", or "ray" to spread the batches over a Ray cluster.
        checkpoint: A folder in which finished batches are kept, and from which the same call goes
            on after it was stopped; the caller removes it.
        progress: Called with steps done, steps in all and what is being done.

    Returns:
        The pictures with their scores, the numbers beside them and their flags.

    Raises:
        UserError: A layer, unit, objective, preset or other option is unknown or out of range.
        Stopped: After Ctrl-C, with what is finished.

    Example:
        >>> featviz.maximize(model, "conv5", units=[3, 12]).save("run/conv5")
        >>> both = lambda acts: acts["conv5"][:, 3].mean((1, 2)) - acts["fc6"][:, 8]
        >>> featviz.maximize(model, objective=both)
    """
    if layer is None or not isinstance(objective, str):
        if layer is not None or units != "all" or pictures is not None or other is not None:
            raise UserError(
                "an objective of your own names its layers and units itself; leave layer, units, "
                "pictures and other out"
            )
        if isinstance(objective, str) and objective in OBJECTIVES:
            raise UserError("no layer was named; give maximize a layer, or an objective")
        return maximize_objective(
            model,
            objective,
            preset=preset,
            steps=steps,
            size=size,
            parametrization=parametrization,
            statistics=statistics,
            precision=precision,
            cuda_graph=cuda_graph,
            settings=settings,
            restarts=restarts,
            seed=seed,
            frames=frames,
            batch_size=batch_size,
            engine=engine,
            checkpoint=checkpoint,
            progress=progress,
        )
    shown = None if pictures is None else opened(pictures)
    work = _Work(
        model, seed, restarts, frames, batch_size, engine, checkpoint, progress, shown, other
    )
    ((place, found),) = _grouped(model, [layer], units)
    chosen = settings or settings_for(
        model,
        place,
        preset=preset,
        steps=steps,
        size=_side(model, found, size),
        parametrization=parametrization,
        statistics=statistics,
        precision=precision,
        cuda_graph=cuda_graph,
    )
    named = preset if settings is None else None
    return work.one(_unit_request(model, place, found, objective, chosen, named))


@public
def maximize_layers(
    model: Model,
    layers: Sequence[str],
    *,
    units: str | Sequence[int | str] = "all",
    objective: str = "auto",
    preset: str = DEFAULT_PRESET,
    steps: Steps | None = None,
    size: Canvas | None = None,
    parametrization: str | None = None,
    statistics: Statistics | str | Path | None = None,
    precision: AutoPrecision = "auto",
    cuda_graph: bool = False,
    settings: Mapping[str, Settings] | None = None,
    restarts: Restarts = 1,
    seed: Seed = 0,
    pictures: Data | None = None,
    other: Model | None = None,
    frames: Frames = 0,
    batch_size: BatchSize | None = None,
    engine: Engine = "here",
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> LayerResults:
    """Pictures that maximize units of several layers, with one part for each layer.

    Args:
        model: A classifier.
        layers: Layers, or units of any layers: ["conv3:5", "conv5:12", "logits:tabby"].
        units: Of each layer that is named without units.
        settings: By layer, in place of those that the other options give.

    All else is as in `maximize`.

    Raises:
        UserError: As in `maximize`.
        Stopped: After Ctrl-C, with what is finished.

    Example:
        >>> featviz.maximize_layers(model, ["conv3:5", "logits:tabby"]).parts["conv3"].scores
    """
    shown = None if pictures is None else opened(pictures)
    work = _Work(
        model, seed, restarts, frames, batch_size, engine, checkpoint, progress, shown, other
    )
    own_settings = {model.layer(name).name: one for name, one in (settings or {}).items()}
    requests = []
    for place, found in _grouped(model, layers, units):
        chosen = own_settings.get(place.name) or settings_for(
            model,
            place,
            preset=preset,
            steps=steps,
            size=_side(model, found, size),
            parametrization=parametrization,
            statistics=statistics,
            precision=precision,
            cuda_graph=cuda_graph,
        )
        named = None if place.name in own_settings else preset
        requests.append(_unit_request(model, place, found, objective, chosen, named))
    made, stopped = work.all(requests)
    if stopped is not None and not made:
        raise Stopped(stopped)
    wanted = sum(len(one.names) for one in requests)
    parameters = {"layers": {part.layer: dict(part.origin.parameters) for part in made}}
    warnings = [f"{part.layer}: {text}" for part in made for text in part.warnings]
    result = LayerResults(
        origin=results.origin(model, seed=seed, started=work.started, parameters=parameters),
        warnings=(*warnings, *_unmade(wanted - sum(len(part.names) for part in made), wanted)),
        model_name=model.name,
        layers=tuple(made),
    )
    if stopped is not None:
        raise Stopped(stopped, result)
    return result


@public
def maximize_directions(
    model: Model,
    layer: str,
    directions: Tensor,
    *,
    names: Sequence[str] | None = None,
    power: Power = 2.0,
    width: Annotated[int, Bounds(1, 4096)] | Literal["auto"] | None = None,
    steps: Steps | None = None,
    size: Canvas | None = None,
    precision: AutoPrecision = "auto",
    cuda_graph: bool = False,
    settings: Settings | None = None,
    restarts: Restarts = 1,
    seed: Seed = 0,
    pictures: Data | None = None,
    frames: Frames = 0,
    batch_size: BatchSize | None = None,
    engine: Engine = "here",
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Maximized:
    """Pictures whose activations at a layer point along given directions of its channels.

    The score is dot * max(.1, cosine)^power, mean over positions (`objectives.direction`).

    Args:
        model: A classifier.
        layer: An alias or module path.
        directions: (N, C); only their direction counts.
        names: For captions; default: the row numbers.
        power: 0 rewards the projection alone, more rewards pointing nowhere else.
        width: Only the `width` x `width` positions in the middle of the map; default all. "auto":
            2 where `maximize` maximizes the middle of a unit's map, else all.

    All else is as in `maximize`.

    Raises:
        UserError: A direction has the wrong length, is zero or not finite.
        Stopped: After Ctrl-C, with what is finished.
    """
    shown = None if pictures is None else opened(pictures)
    work = _Work(model, seed, restarts, frames, batch_size, engine, checkpoint, progress, shown)
    place = model.layer(layer)
    _check_directions(place, directions)
    if width == "auto":
        width = 2 if place.spatial and _has_middle(model, place) else None
    aims = directions.detach().cpu().float()
    labels = tuple(names or [f"direction {i}" for i in range(len(aims))])
    rectified = place.kind in {"ReLU", "ReLU6"}
    task = Task(
        place,
        objectives.direction(place.name, aims, power=power, width=width, rectified=rectified),
        settings
        or settings_for(
            model, place, steps=steps, size=size, precision=precision, cuda_graph=cuda_graph
        ),
        tuple(f"{place.key}/{row.numpy().tobytes().hex()}" for row in aims),
    )
    parameters = {"layer": place.name, "directions": len(aims), "power": power, "width": width}
    return work.one(_Request(task, _checked(labels, len(aims)), parameters))


@public
def maximize_objective(
    model: Model,
    objective: Objective | Callable[[Activations], Tensor] | str | Sequence[str],
    *,
    count: Count = 1,
    names: Sequence[str] | None = None,
    preset: str = DEFAULT_PRESET,
    steps: Steps | None = None,
    size: Canvas | None = None,
    parametrization: str | Parametrization | None = None,
    statistics: Statistics | str | Path | None = None,
    precision: AutoPrecision = "auto",
    cuda_graph: bool = False,
    settings: Settings | None = None,
    restarts: Restarts = 1,
    seed: Seed = 0,
    frames: Frames = 0,
    batch_size: BatchSize | None = None,
    engine: Engine = "here",
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Maximized:
    """Pictures that maximize any objective: `.images` (N, 3, H, W), one a target.

    Size, transforms and penalties are those of the deepest layer that is read. A layer's value is
    read as it leaves the layer: "relu5:12" is what the ReLU lets through, "conv5:12" what enters it
    (`maximize` takes the latter for both).

    Args:
        model: A classifier.
        objective: An objective with as many targets as pictures are wanted (`objectives`); texts
            such as "conv5:12 - 0.5*conv4:7", one picture each; or a function from activations by
            layer, (N, ...) each, to scores (N,), one a picture (`functions`).
        count: Pictures of a function, from different starts.
        names: For captions; default: the texts, or the targets' numbers.

    All else is as in `maximize`.

    Raises:
        UserError: A text is no objective; a function gives no score for each picture alone; an
            objective has no targets of its own, or compares pictures (`objectives.diversity`;
            `draw_facets` takes such).
        Stopped: After Ctrl-C, with what is finished.

    Example:
        >>> both = lambda values: values["conv5"][:, 3].mean((1, 2)) + values["fc6"][:, 8]
        >>> featviz.maximize_objective(model, both, count=4)
    """
    work = _Work(model, seed, restarts, frames, batch_size, engine, checkpoint, progress)
    texts: tuple[str, ...] = ()
    if isinstance(objective, Objective):
        wanted = objective
    elif callable(objective):
        wanted = from_function(model, objective, count)
    else:
        texts = (objective,) if isinstance(objective, str) else tuple(objective)
        wanted = objectives.parse_objectives(model, texts)
    targets = wanted.count or (1 if wanted.group == 1 else 0)
    read = [model.layer(name) for name in wanted.layers if name != objectives.PICTURE]
    if not targets or wanted.group > 1 or not read:
        raise UserError(
            f"the objective {wanted.text!r} reads no layer or compares pictures with each other, "
            "so it has no picture of its own; add a unit to it, or draw facets"
        )
    order = list(model.layers)
    place = max(read, key=lambda layer: order.index(layer.name))
    settings = settings or settings_for(
        model,
        place,
        preset=preset,
        steps=steps,
        size=size,
        parametrization=parametrization,
        statistics=statistics,
        precision=precision,
        cuda_graph=cuda_graph,
    )
    labels = _checked(tuple(names or texts or [f"target {i}" for i in range(targets)]), targets)
    keys = texts or tuple(f"{wanted.text}/{i}" for i in range(targets))
    parameters = {"layer": place.name, "objective": wanted.text, "preset": preset}
    if texts:
        parameters["words"] = "; ".join(texts)
    task = Task(place, wanted, settings, keys, after_relu=True)
    return work.one(_Request(task, labels, parameters))


def _checked(labels: tuple[str, ...], count: int) -> tuple[str, ...]:
    if len(labels) != count:
        raise UserError(not_one_each(len(labels), "name", count))
    return labels


def _check_directions(layer: Layer, directions: Tensor) -> None:
    if directions.dim() != 2 or directions.shape[1] != layer.units:
        raise UserError(
            f"directions of shape {tuple(directions.shape)} for {layer.name}, which has "
            f"{layer.units} channels; give (N, {layer.units})"
        )
    if not torch.isfinite(directions).all() or (directions.norm(dim=1) == 0).any():
        raise UserError("a direction is zero or not finite; leave it out")


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


def _side(model: Model, units: Sequence[Unit], size: Canvas | None) -> Canvas | None:
    """The size of the pictures: a neuron is drawn where it is in the whole input."""
    return model.input_size if size is None and units[0].position else size


@dataclass(frozen=True)
class _Request:
    """A task with the names of its pictures."""

    task: Task
    names: tuple[str, ...]
    parameters: dict[str, Any]
    titles: tuple[str, ...] = ()
    units: tuple[Unit, ...] = ()


def _unit_request(
    model: Model,
    place: Layer,
    units: Sequence[Unit],
    objective: str,
    settings: Settings,
    preset: str | None,
) -> _Request:
    indices = [unit.index for unit in units]
    positions = [unit.position for unit in units if unit.position]
    if positions:
        wanted, regularizer = objectives.neuron(place.name, indices, positions), None
    else:
        wanted, regularizer = unit_objective(model, place, indices, objective)
    keys = tuple(f"{place.key}/{unit.index}/{unit.position}" for unit in units)
    names = tuple(map(str, units))
    return _Request(
        Task(place, wanted, settings, keys, regularizer),
        names,
        {"layer": place.name, "units": names, "objective": wanted.text, "preset": preset},
        tuple(unit_name(model, unit) for unit in units),
        tuple(units),
    )


def unit_objective(
    model: Model, place: Layer, indices: Sequence[int], objective: str = "auto"
) -> tuple[Objective, Objective | None]:
    """What `maximize` maximizes for units of a layer: the objective that is scored, a regularizer.

    Raises:
        UserError: The objective is unknown.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"unknown objective {objective!r}; take auto, center or channel")
    if objective == "auto":
        objective = "center" if _has_middle(model, place) else "channel"
    if objective == "center" and place.spatial:
        surroundings = _SURROUNDINGS * objectives.channel(place.name, indices)
        return objectives.center(place.name, indices), (None if is_kernel(place) else surroundings)
    channel = objectives.channel(place.name, indices)
    # Of one value there is no mean to speak of.
    return (channel if place.spatial else replace(channel, text=place.name)), None


def _has_middle(model: Model, place: Layer) -> bool:
    """Whether a picture is of one thing in the middle."""
    return is_kernel(place) or sees_half(model, place)


def sees_half(model: Model, place: Layer) -> bool:
    """Whether the receptive field of a layer is half of a picture's side or more."""
    field = place.receptive_field
    return field is not None and max(field.size) >= 0.5 * max(model.input_size)


@dataclass(frozen=True)
class _Work:
    """How the batches are made, and what the pictures are compared with."""

    model: Model
    seed: int
    restarts: int
    frames: int
    batch_size: int | None
    engine: Engine
    checkpoint: str | Path | Checkpoint | None
    progress: Progress | None
    pictures: Pictures | Tensor | None = None
    other: Model | None = None
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if isinstance(self.pictures, Tensor):
            self.model.check(self.pictures)

    def one(self, request: _Request) -> Maximized:
        """The result of a request. Raises Stopped, with what is finished."""
        made, stopped = self.all([request])
        if stopped is not None:
            raise Stopped(stopped, made[0] if made else None)
        return made[0]

    def all(self, requests: Sequence[_Request]) -> tuple[list[Maximized], str | None]:
        """The results of requests of which something is finished; after Ctrl-C what was made."""
        finished, stopped = optimize_tasks(
            self.model,
            [one.task for one in requests],
            seed=self.seed,
            restarts=self.restarts,
            frames=self.frames,
            batch_size=self.batch_size,
            checkpoint=self.checkpoint,
            engine=self.engine,
            progress=self.progress,
            text=f"maximizing {', '.join(one.task.layer.name for one in requests)}",
        )
        pairs = zip(requests, finished, strict=True)
        return [self._evaluated(one, done) for one, done in pairs if done is not None], stopped

    def _evaluated(self, request: _Request, finished: Finished) -> Maximized:
        """Finished pictures with the numbers beside them."""
        task, made, rows = request.task, finished.made, finished.rows
        names = tuple(request.names[i] for i in rows)
        units = tuple(request.units[i] for i in rows) if request.units else ()
        with frozen(self.model):
            panel = measure_panel(
                self.model,
                task.layer,
                task.objective,
                rows,
                made.images,
                alive=made.alive,
                data=self.pictures,
                other=self.other,
                units=units,
                seconds=finished.seconds,
                progress=self.progress,
                restart_scores=finished.restart_scores,
                precision=task.settings.precision,
            )
        parameters = request.parameters | {"size": made.images.shape[-1], "restarts": self.restarts}
        if self.other is not None:
            parameters |= {"other": self.other.name, "other_sha256": self.other.sha256}
        return Maximized(
            origin=results.origin(
                self.model,
                seed=self.seed,
                started=self.started,
                data=None if isinstance(self.pictures, Tensor) else self.pictures,
                parameters=parameters | task.settings.record(),
            ),
            warnings=(
                *_warnings(names, made),
                *_unmade(len(request.names) - len(rows), len(request.names)),
                *summarize(names, panel.flags),
                *panel.notes,
            ),
            model_name=self.model.name,
            layer=task.layer.name,
            objective=task.objective.text,
            units=units,
            names=names,
            titles=tuple(request.titles[i] for i in rows) if request.titles else names,
            images=made.images,
            scores=panel.scores,
            panel=panel,
            trace=made.trace,
            best_steps=made.best_steps,
            alive=made.alive & (made.failed < 0),
            frames=made.frames,
            transparency=made.transparency if task.settings.transparency else None,
        )


def _warnings(names: Sequence[str], made: Optimized) -> list[str]:
    texts = []
    rows = list(zip(names, made.alive.tolist(), made.failed.tolist(), strict=True))
    silent = [name for name, alive, failed in rows if not alive and failed < 0]
    if silent:
        texts.append(
            f"no gradient reaches {_listed(silent)}: dead, or blocked by ReLUs before it; "
            "its picture is the start and shows nothing"
        )
    failed = [(name, step) for name, _, step in rows if step >= 0]
    if failed:
        name, step = failed[0]
        texts.append(
            f"the score of {_listed([n for n, _ in failed])} was no number from step {step} on "
            f"({name}); its picture is that of the step before"
        )
    return texts


def _unmade(missing: int, total: int) -> list[str]:
    if not missing:
        return []
    return [f"stopped early: {missing} of {counted(total, 'picture')} not made"]


def _listed(names: Sequence[str]) -> str:
    """ "conv5:1, conv5:2 and 7 more" """
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
