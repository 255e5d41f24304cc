"""`draw_facets`: several different pictures of one unit, for a unit may have several reasons.

A single maximum shows one of the things that activate a unit. Two ways to more of them:

    diversity       the pictures of a unit are optimized together, and their textures (Gram
                    matrices) are pushed to differ. Olah, Mordvintsev and Schubert 2017, "Feature
                    Visualization" (Distill), "Diversity"
    from examples   the unit's top activating pictures are clustered (`facet_examples`). The mean of
                    each cluster's central ones is where an optimization starts: Nguyen, Yosinski
                    and Clune 2016, "Multifaceted feature visualization". A long optimization soon
                    loses its start, so each picture is also drawn to what sets its cluster apart
                    from the others

Each facet is compared with the picture that the same seed gives without either (the baseline): how
alike the pictures of a unit are, and what they score.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from featviz import results
from featviz.checkpoints import Checkpoint
from featviz.data.from_python import Data, as_pictures
from featviz.errors import UserError, public
from featviz.maximization import objectives
from featviz.maximization.batches import Stopped, Task, optimize_tasks
from featviz.maximization.diversity import resemblance, scaled_by_score, texture_layer
from featviz.maximization.evaluation.clean_scores import clean_scores
from featviz.maximization.facet_examples import Clusters, cluster_examples
from featviz.maximization.facets_result import Facets
from featviz.maximization.maximize import unit_objective
from featviz.maximization.objectives import Objective
from featviz.maximization.optimized import Optimized
from featviz.maximization.settings import Settings, settings_for
from featviz.models.frozen import frozen
from featviz.models.layers import read_layer
from featviz.models.model import Model
from featviz.models.units import parse_units, unit_name
from featviz.pictures import films
from featviz.types import (
    AutoPrecision,
    BatchSize,
    Canvas,
    Engine,
    Examples,
    FacetCount,
    Frames,
    Progress,
    Seed,
    Steps,
    Weight,
)

if TYPE_CHECKING:
    pass


@public
def draw_facets(
    model: Model,
    layer: str,
    *,
    units: str | Sequence[int | str],
    count: FacetCount = 4,
    pictures: Data | None = None,
    diversity: Weight = 1.0,
    examples: Examples = 96,
    objective: str = "auto",
    steps: Steps | None = None,
    size: Canvas | None = None,
    precision: AutoPrecision = "auto",
    settings: Settings | None = None,
    seed: Seed = 0,
    frames: Frames = 0,
    film_kind: Literal["gif", "mp4"] = "gif",
    batch_size: BatchSize | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Facets:
    """`count` different pictures of each unit: `.images` (U, G, 3, S, S).

    A unit's facets depend on the seed, the unit and the examples, not on other units.

    Args:
        model: A classifier.
        layer: An alias or module path.
        units: As of `maximize`, without positions.
        count: Pictures of each unit, 2 or more.
        pictures: A data set in which to look for the units' top activating pictures; each facet
            then starts from the mean of a cluster of them, and is drawn to what sets it apart.
        diversity: How hard the pictures of a unit are pushed apart, or drawn to their clusters, as
            a share of their score (`diversity.scaled_by_score`).
        examples: How many top pictures are clustered, fewer where the rest activates the unit less
            than a third as much as the first.
        frames: Stages of each picture to keep.
        film_kind: "gif", or "mp4" for both kinds.
        checkpoint: As of `maximize`, like all other options.

    Raises:
        UserError: A layer, unit or option is unknown, count is below 2, or the data has too few
            pictures.
        Stopped: After Ctrl-C.

    Example:
        >>> featviz.draw_facets(model, "conv5", units=[3, 12], pictures=photographs).save("run/f")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    found = parse_units(model, layer, units)
    films.check_kind(film_kind)
    pictures = None if pictures is None else as_pictures(pictures)
    _check(len(pictures) if pictures is not None else None, count, diversity, examples)
    if any(unit.position for unit in found):
        raise UserError("facets are of units; leave the positions out (conv5:12)")
    settings = settings or settings_for(model, place, steps=steps, size=size, precision=precision)
    clusters: list[Clusters] = []
    if pictures is not None:
        side = settings.parametrization.height
        with frozen(model):
            clusters = cluster_examples(
                model, place, found, pictures, side, count, examples, seed, progress
            )
    rows = [unit.index for unit in found for _ in range(count)]
    wanted, regularizer = unit_objective(model, place, rows, objective)
    compared = texture_layer(model, place)
    apart = objectives.diversity(compared.name, count)
    driven = regularizer
    if diversity:
        drive = scaled_by_score(wanted, _toward(clusters, count) if clusters else apart, diversity)
        driven = drive if regularizer is None else regularizer + drive
    keys = tuple(f"{place.key}/{unit.index}/{g}" for unit in found for g in range(count))
    starts = [one.start for unit in clusters for one in unit.clusters]
    finished, stopped = optimize_tasks(
        model,
        [
            Task(place, wanted, settings, keys, driven, torch.stack(starts) if starts else None),
            Task(place, wanted, settings, keys, regularizer),
        ],
        seed=seed,
        frames=frames,
        batch_size=batch_size,
        checkpoint=checkpoint,
        engine=engine,
        progress=progress,
        text=f"facets of {place.name}",
    )
    if stopped is not None:
        raise Stopped(stopped)
    facets, baseline = (one.made for one in finished if one is not None)
    shape = (len(found), count)
    with frozen(model):
        (scores, likeness, own), (baseline_scores, baseline_likeness, baseline_own) = (
            (
                clean_scores(model, wanted, made.images).view(shape),
                _likeness(model, apart, made.images.split(count)),
                _nearest_is_own(model, clusters, made.images.split(count)),
            )
            for made in (facets, baseline)
        )
    titles = tuple(unit_name(model, unit) for unit in found)
    parameters = {
        "layer": place.name,
        "units": [str(unit) for unit in found],
        "facets": count,
        "diversity": diversity,
        "examples": examples if pictures is not None else None,
        "objective": wanted.text,
        "size": settings.parametrization.height,
        **settings.record(),
    }
    return Facets(
        origin=results.origin(
            model, seed=seed, started=started, data=pictures, parameters=parameters
        ),
        warnings=(
            *_warnings(titles, facets, count),
            *(pictures.left_out.notes if pictures is not None else ()),
        ),
        model_name=model.name,
        layer=place.name,
        objective=wanted.text,
        units=tuple(found),
        titles=titles,
        images=facets.images.unflatten(0, shape),
        scores=scores,
        likeness=likeness,
        baseline=baseline.images.unflatten(0, shape),
        baseline_scores=baseline_scores,
        baseline_likeness=baseline_likeness,
        clusters=tuple(unit.clusters for unit in clusters),
        own_cluster=own,
        baseline_own_cluster=baseline_own,
        compared_at=compared.name,
        frames=facets.frames.unflatten(0, shape) if facets.frames.numel() else facets.frames,
        film_kind=film_kind,
    )


def _toward(clusters: Sequence[Clusters], count: int) -> Objective:
    """How much more each picture resembles its own cluster than all of its unit's examples."""
    centers = torch.cat([unit.centers for unit in clusters])
    means = torch.stack([unit.mean for unit in clusters]).repeat_interleave(count, 0)
    return resemblance(clusters[0].layer.name, centers, means)


def _likeness(model: Model, apart: Objective, groups: Sequence[Tensor]) -> Tensor:
    """(U,): how alike the textures of each unit's pictures (G, 3, S, S) are."""
    (layer,) = apart.layers
    maps = (read_layer(model, pictures.to(model.device), layer) for pictures in groups)
    return (1 - torch.stack([apart({layer: values}) for values in maps])).cpu().mean(1)


def _nearest_is_own(model: Model, clusters: Sequence[Clusters], groups: Sequence[Tensor]) -> Tensor:
    """(U, G): whether each picture is nearest to the center of its own cluster; or empty."""
    pairs = zip(clusters, groups, strict=False)
    nearest = [unit.nearest_is_own(model, pictures) for unit, pictures in pairs]
    return torch.stack(nearest) if nearest else torch.empty(0)


def _check(pictures: int | None, count: int, diversity: float, examples: int) -> None:
    if pictures is not None and min(pictures, examples) < 2 * count:
        raise UserError(
            f"{min(pictures, examples)} pictures cannot be put into {count} groups; "
            "give more, or ask for fewer facets"
        )


def _warnings(titles: Sequence[str], made: Optimized, count: int) -> tuple[str, ...]:
    alive = [bool(part.all()) for part in made.alive.split(count)]
    still = [title for title, one in zip(titles, alive, strict=True) if not one]
    if not still:
        return ()
    return (
        f"no gradient reaches {', '.join(still[:8])}: dead, or blocked by ReLUs; those pictures "
        "are starts and show nothing",
    )
