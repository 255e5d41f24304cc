"""`interpolate`: the pictures on the way from one unit to another.

At the ends are the pictures of the two units; between them both are maximized, the share of the
first falling from 1 to 0 as that of the second rises. All begin at the same noise, have the same
transforms, and are kept alike with their neighbors (`alignment`), so that what both units share
stays where it is and one can see what turns into what.

Olah, Mordvintsev and Schubert 2017, "Feature Visualization" (Distill), "Interaction between
neurons".
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from featviz import results
from featviz.checkpoints import Checkpoint
from featviz.errors import UserError, public
from featviz.maximization.batches import Stopped, Task, optimize_tasks
from featviz.maximization.diversity import relative_alignment, scaled_by_score
from featviz.maximization.evaluation.clean_scores import clean_scores
from featviz.maximization.interpolation_result import Interpolation
from featviz.maximization.maximize import unit_objective
from featviz.maximization.objectives import Activations, Objective, Targets, layers_of
from featviz.maximization.settings import Settings, settings_for
from featviz.models.frozen import frozen
from featviz.models.model import Layer, Model
from featviz.models.units import parse_units, unit_name
from featviz.pictures import films
from featviz.types import AutoPrecision, Canvas, Progress, Seed, Steps, WayCount, Weight
from featviz.wording import counted


@public
def interpolate(
    model: Model,
    layer: str,
    units: str | Sequence[int | str],
    *,
    count: WayCount = 7,
    alignment: Weight = 1.0,
    objective: str = "auto",
    steps: Steps | None = None,
    size: Canvas | None = None,
    precision: AutoPrecision = "auto",
    settings: Settings | None = None,
    seed: Seed = 0,
    film_kind: Literal["gif", "mp4"] | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Interpolation:
    """`count` pictures from the first of two units to the second: `.images` (K, 3, S, S).

    Args:
        model: A classifier.
        layer: An alias or module path.
        units: Two of the layer: "3,12", [3, 12], or classes by name.
        count: Pictures, the two ends among them; 3 or more.
        alignment: How strongly neighbors are kept alike, as a share of the score
            (`diversity.scaled_by_score`); 0 optimizes each picture on its own.
        film_kind: "gif" for a film there and back, "mp4" for both kinds.
        checkpoint: As of `maximize`, like all other options.

    Raises:
        UserError: A layer, unit or option is unknown, or there are not two units.
        Stopped: After Ctrl-C.

    Example:
        >>> featviz.interpolate(model, "conv5", [3, 12]).save("run/interpolation")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    ends = parse_units(model, layer, units)
    if len(ends) != 2 or any(unit.position for unit in ends):
        raise UserError(
            f"named: {counted(len(ends), 'unit')}; a way leads between two units of one layer, "
            "without positions (3,12)"
        )
    if film_kind is not None:
        films.check_kind(film_kind)
    settings = settings or settings_for(model, place, steps=steps, size=size, precision=precision)
    shares = torch.linspace(0, 1, count)
    first, second = (unit_objective(model, place, [u.index] * count, objective) for u in ends)
    wanted = mixed(first[0], second[0], shares)
    regularizer = None
    if first[1] is not None and second[1] is not None:
        regularizer = mixed(first[1], second[1], shares)
    if alignment:
        aligned = relative_alignment(_aligned_layer(model, place), count)
        alike = scaled_by_score(wanted, aligned, alignment)
        regularizer = alike if regularizer is None else regularizer + alike
    # One key for all: the same start and the same transforms.
    keys = (f"{place.key}/{ends[0].index}-{ends[1].index}",) * count
    (finished,), stopped = optimize_tasks(
        model,
        [Task(place, wanted, settings, keys, regularizer)],
        seed=seed,
        batch_size=count,
        checkpoint=checkpoint,
        progress=progress,
        text=f"from {ends[0]} to {ends[1]}",
    )
    if stopped is not None or finished is None:
        raise Stopped(stopped or "stopped")
    made = finished.made.images
    with frozen(model):
        scores = torch.stack([clean_scores(model, one, made) for one in (first[0], second[0])], 1)
    return Interpolation(
        origin=results.origin(
            model,
            seed=seed,
            started=started,
            parameters={
                "layer": place.name,
                "units": [str(unit) for unit in ends],
                "count": count,
                "alignment": alignment,
                "objective": first[0].text,
                "size": made.shape[-1],
                **settings.record(),
            },
        ),
        model_name=model.name,
        layer=place.name,
        objective=first[0].text,
        units=(ends[0], ends[1]),
        titles=(unit_name(model, ends[0]), unit_name(model, ends[1])),
        shares=shares,
        images=made,
        scores=scores,
        steps_apart=(made[1:] - made[:-1]).square().mean((1, 2, 3)).sqrt(),
        ends_apart=(made[-1] - made[0]).square().mean().sqrt().item(),
        film_kind=film_kind,
    )


def mixed(first: Objective, second: Objective, shares: Tensor) -> Objective:
    """Of picture i the share 1 - shares[i] of the first objective and shares[i] of the second."""

    def score(acts: Activations, targets: Targets) -> Tensor:
        one, two = first.score(acts, targets), second.score(acts, targets)
        share = shares[list(targets)].to(one)
        return (1 - share) * one + share * two

    text = f"from one {first.text} to another"
    return Objective(layers_of((first, second)), len(shares), text, score, width=first.width)


def _aligned_layer(model: Model, place: Layer) -> str:
    """Where neighbors are compared: the first map whose neurons see a shape, conv2 of an AlexNet.

    A layer's own map encodes too little of where things are, pixels too little of what they are.
    """
    order = list(model.layers)
    before = [model.layers[name] for name in order[: order.index(place.name) + 1]]
    maps = [(one, one.receptive_field) for one in before if one.kind == "Conv2d" and one.spatial]
    seeing = [one for one, field in maps if field is not None and max(field.size) >= 24]
    return (seeing or [one for one, field in maps if field is not None] or [place])[0].name
