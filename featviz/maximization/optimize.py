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

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featviz import results
from featviz.errors import UserError
from featviz.maximization import judge, objectives, panel
from featviz.maximization.ascent import BLOCK, Climb, Settings, ascend_all, reading, together
from featviz.maximization.flags import gathered
from featviz.maximization.objectives import Objective
from featviz.maximization.parametrizations import Fourier, Pixels
from featviz.maximization.result import Maximized
from featviz.maximization.transforms import Transforms
from featviz.models.frozen import frozen
from featviz.models.layers import Layer, Unit, parse_units

if TYPE_CHECKING:
    from featviz.datasets import Pictures
    from featviz.models.load import Model

Progress = Callable[[int, int, str], None]


# Beside the middle of a map its mean is climbed, with this weight, so that the surroundings of a
# part are of the unit's making too. It is not counted in the score.
_SURROUNDINGS = 0.5


class Stopped(KeyboardInterrupt):
    """Ctrl-C during `maximize`; `result` holds what was finished, or None."""

    def __init__(self, result: Maximized | None):
        super().__init__("stopped")
        self.result = result


def maximize(
    model: Model,
    layer: str,
    *,
    units: str | Sequence[int | str] = "all",
    objective: str = "auto",
    steps: int = 256,
    seed: int = 0,
    size: int | None = None,
    natural: Pictures | Tensor | None = None,
    film: int = 0,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Maximized:
    """Pictures that maximise units of a layer: `.images` (N, 3, H, W) and `.scores` (N,).

    layer: an alias or module path; of a ReLU the value before it is maximised
    units: "all", "3,12", "0-15", classes by name, neurons as "12@6,6", or a sequence of these
    objective: "centre" is the mean over the positions in the middle of the map and draws one thing;
        "channel" is the mean over all positions and draws a texture; "auto" takes "centre" for
        layers that see much of the picture and "channel" for those that see little
    steps: of the ascent; 128 is enough for a first look, 512 for print
    size: side of the pictures in pixels; default: what the layer's receptive field asks for,
        never above the model's input
    natural: pictures whose highest scores the scores are compared with
    film: how many stages of the ascent to keep for each picture
    batch_size: most pictures at a time, default 16; less needs less memory
    precision: of the model during the ascent, "fp32", "bf16" or "auto": bf16 on CPUs that
        compute with it, else fp32; scores are of fp32 always
    options: see `Settings` (`rate`, `smooth`, `calm`, `even`, `transforms`, `parametrization` ...)

    Raises UserError for an unknown layer, unit, objective or option; `Stopped` on Ctrl-C.

        featviz.maximize(model, "conv5", units=[3, 12]).save("run/conv5")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    found = parse_units(model, layer, units)
    check_objective(objective)
    if any(unit.position for unit in found) and not all(unit.position for unit in found):
        raise UserError("give a position to every unit or to none (conv5:12@6,6 or conv5:12)")
    indices = [unit.index for unit in found]
    whole_map = bool(found[0].position)
    side = size or (model.input_size if whole_map else canvas(model, place))
    besides = None
    if whole_map:
        goal = objectives.neuron(place.name, indices, [u.position for u in found if u.position])
    else:
        goal, besides = unit_goal(model, place, indices, objective)
    return _maximize(
        model, place, goal, besides,
        names=[str(unit) for unit in found],
        titles=[model.unit_name(unit) for unit in found],
        keys=[f"{place.path}/{unit.index}/{unit.position}" for unit in found],
        units=tuple(found),
        steps=steps, seed=seed, side=side, natural=natural, film=film, batch_size=batch_size,
        precision=precision, progress=progress, options=options, started=started,
        parameters={"layer": place.name, "units": [str(u) for u in found], "objective": goal.text},
    )  # fmt: skip


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
        return objectives.centre(place.name, indices), (None if _is_kernel(place) else surroundings)
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
    precision: str = "auto",
    progress: Progress | None = None,
    **options: Any,
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
    return _maximize(
        model, place, objectives.direction(place.name, aims, power=power, width=width), None,
        names=labels, titles=labels,
        keys=[f"{place.path}/{row.numpy().tobytes().hex()}" for row in aims],
        units=(),
        steps=steps, seed=seed, side=size or canvas(model, place), natural=None, film=0,
        batch_size=batch_size, precision=precision, progress=progress, options=options,
        started=started,
        parameters={"layer": place.name, "directions": len(aims), "power": power, "width": width},
    )  # fmt: skip


def canvas(model: Model, layer: Layer) -> int:
    """The side of the picture that a layer's units are drawn on, in pixels.

    For a first layer's kernel the kernel and what centres one position on it; otherwise room for
    several receptive fields where they are small, for one and a stride where they are large, a
    multiple of 8. Never more than the model's input.
    """
    field = layer.receptive_field
    if field is None or layer.whole:
        return model.input_size
    seen, stride, start = max(field.size), max(field.stride), max(field.offset)
    if _is_kernel(layer):
        side, position = 0, 0
        while side < max(seen, 8):  # position p is in the middle of seen + 2 (start + p stride)
            side = seen + 2 * (start + position * stride)
            position += 1
        return min(model.input_size, side)
    side = max(seen + stride, min(4 * seen, max(64, model.input_size // 2)))
    return min(model.input_size, 8 * round(side / 8))


def transforms_for(layer: Layer, side: int) -> Transforms:
    """How far pictures of a layer are moved: at least its stride, but not out of sight.

    Shifts span a period of the layer's lattice (twice the stride in all, 32 pixels for an AlexNet
    at conv3 to conv5); units that see the whole picture are shifted by a fourteenth of it. Kernels
    of a first layer are not moved: for a linear unit that only blurs the answer.
    """
    if _is_kernel(layer):
        return Transforms()
    field = layer.receptive_field
    stride = max(field.stride) if field is not None and not layer.whole else side / 14
    return Transforms(shift=min(stride, side / 8), rotate=15.0, scale=0.2)


def _is_kernel(layer: Layer) -> bool:
    """Whether the layer sees so little that a unit's picture is a kernel, not a texture."""
    return layer.receptive_field is not None and max(layer.receptive_field.size) < 16


def _draws_one_thing(model: Model, layer: Layer) -> bool:
    field = layer.receptive_field
    return field is not None and (_is_kernel(layer) or max(field.size) >= 0.5 * model.input_size)


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
    layer: Layer,
    goal: Objective,
    besides: Objective | None,
    *,
    names: Sequence[str],
    titles: Sequence[str],
    keys: Sequence[str],
    units: tuple[Unit, ...],
    steps: int,
    seed: int,
    side: int,
    natural: Pictures | Tensor | None,
    film: int,
    batch_size: int | None,
    precision: str,
    progress: Progress | None,
    options: dict[str, Any],
    started: float,
    parameters: dict[str, Any],
) -> Maximized:
    if steps < 1 or side < 8 or film < 0 or (batch_size is not None and batch_size < 1):
        raise UserError(
            f"steps {steps}, size {side}, film {film}, batch_size {batch_size}: steps and "
            "batch_size are 1 or more, size 8 or more, film 0 or more"
        )
    settings = settings_for(model, layer, steps, side, precision, options)
    seeds = [_seed(seed, key) for key in keys]
    climbs: dict[int, Climb] = {}
    stopped = False

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, f"maximising {layer.name}")

    with frozen(model), _before_relu(model, layer, goal):
        try:
            for row, climb in ascend_all(
                model, goal, range(len(keys)), seeds, settings, besides=besides,
                slots=batch_size or BLOCK, film=film, progress=report,
            ):  # fmt: skip
                climbs[row] = climb
        except KeyboardInterrupt:
            if not climbs:
                raise Stopped(None) from None
            stopped = True
        order = sorted(climbs)
        climb = together([climbs[row] for row in order])
        judged = panel.judge(
            model, layer, goal, order, climb.pictures, alive=climb.alive, natural=natural,
            units=[units[i] for i in order] if units else (),
            seconds=(time.perf_counter() - started) / len(order), progress=progress,
        )  # fmt: skip
    shown = [names[i] for i in order]
    result = Maximized(
        origin=results.origin(
            model, seed=seed, started=started,
            data=natural if not isinstance(natural, Tensor) else None,
            parameters=parameters | {"size": side, "steps": steps} | _plain(settings),
        ),
        warnings=(
            *_warnings(shown, climb, missing=len(keys) - len(order)),
            *gathered(shown, judged.flags),
            *judged.notes,
        ),
        model_name=model.name,
        layer=layer.name,
        objective=goal.text,
        units=tuple(units[i] for i in order) if units else (),
        names=tuple(shown),
        titles=tuple(titles[i] for i in order),
        images=climb.pictures,
        scores=judged.scores,
        panel=judged,
        trace=climb.trace,
        best_steps=climb.best_steps,
        alive=climb.alive & (climb.broken < 0),
        frames=climb.frames,
    )  # fmt: skip
    if stopped:
        raise Stopped(result)
    return result


def settings_for(
    model: Model, layer: Layer, steps: int, side: int, precision: str, options: dict[str, Any]
) -> Settings:
    """The settings of a layer: what its geometry asks for, and the options given.

    Raises UserError for an unknown option or precision.
    """
    known = {field.name for field in fields(Settings)} - {"steps", "precision"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UserError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    if precision not in {"auto", "fp32", "bf16"}:
        raise UserError(f"unknown precision {precision!r}; take auto, fp32 or bf16")
    if precision == "auto":
        fast = model.device.type == "cpu" and cpu_computes_bf16()
        precision = "bf16" if fast and _has_bf16_kernels(model, layer, side) else "fp32"
    # How fine a model looks is set by its first stride, and so is what counts as a ripple: 8 for
    # the 4 pixels of an AlexNet, 4 for 2 pixels.
    settings = Settings(
        steps=steps,
        parametrization=Fourier(side, side),
        transforms=transforms_for(layer, side),
        smooth=2.0 * judge.first_stride(model),
        reach=max(2, side // 7),
        precision=precision,
    )
    if _is_kernel(layer):
        # A linear unit needs no prior, only a bound: the answer is its kernel.
        settings = replace(settings, smooth=0.0, plain=0.0, even=0.0, coarse=0.0, calm=4.0)
    if options.get("parametrization") == "pixels":
        options = options | {"parametrization": Pixels(side, side)}
    return replace(settings, **options)


def _has_bf16_kernels(model: Model, layer: Layer, side: int) -> bool:
    """Whether every operation up to the layer exists in bf16 (local response norm's does not)."""
    picture = torch.zeros(1, 3, side, side, requires_grad=True)
    try:
        with reading(model, (layer.name,), "bf16") as read:
            torch.autograd.grad(read(picture)[layer.name].sum(), picture)
    except (NotImplementedError, RuntimeError) as error:
        if "not implemented" in str(error):
            return False
        raise
    return True


def cpu_computes_bf16() -> bool:
    """Whether the CPU has instructions for bf16, so that it is faster than fp32."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())


def _seed(seed: int, key: str) -> int:
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _plain(settings: Settings) -> dict[str, Any]:
    form = settings.parametrization
    return asdict(settings) | {
        "parametrization": {"name": type(form).__name__} | asdict(form)  # type: ignore[call-overload]
    }


@contextmanager
def _before_relu(model: Model, layer: Layer, goal: Objective) -> Iterator[None]:
    """Let taps of a ReLU read what goes into it: a silent unit still has a gradient there."""
    if layer.kind not in {"ReLU", "ReLU6"} or goal.layers != (layer.name,):
        yield
        return
    module = model.net.get_submodule(layer.path)
    entered: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entered[:] = [inputs[0]]
        return (inputs[0].clone(),)  # an in-place ReLU must not reach what is kept

    def give(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return entered.pop()

    handles = [module.register_forward_pre_hook(keep), module.register_forward_hook(give)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _warnings(
    names: Sequence[str], climb: Climb, missing: int
) -> tuple[str, ...]:
    """The doubts about these pictures, in words."""
    texts = []
    rows = list(zip(names, climb.alive.tolist(), climb.broken.tolist(), strict=True))
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
