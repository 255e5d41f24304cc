"""`deepdream` and `caricature`: what a layer sees in a photograph, exaggerated.

deepdream     the photograph is changed until the layer answers more strongly, whatever it answers:
              the mean of its squares is climbed, first on a small copy and then on larger ones
              ("octaves"), so that what is imagined comes in all sizes. Mordvintsev, Olah and Tyka
              2015, "Inceptionism: going deeper into neural networks"
caricature    a new picture is drawn from noise whose answer points the way of the photograph's, as
              far as it goes: dot * cosine^p. What the layer holds for important grows, what it
              does not see is gone. Of the photograph's answer the values above 0 count, which
              are those that a ReLU passes on. Olah et al. 2018, "The building blocks of
              interpretability" (Distill); Mahendran and Vedaldi 2016, "Visualizing deep
              convolutional neural networks using natural pre-images", section 5
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz import films, images, results
from featviz.errors import UserError
from featviz.from_picture.driver import (
    Redrawing,
    as_batch,
    check_counts,
    chosen_layers,
    each_alone,
    picture_names,
    ranks_kept,
    stacked,
)
from featviz.from_picture.result import Measure, Redrawn
from featviz.maximization import objectives
from featviz.maximization.evaluation import clean_scores
from featviz.maximization.loop import Optimized
from featviz.maximization.objectives import Objective
from featviz.maximization.parametrizations import Fourier
from featviz.maximization.settings import Settings, settings_for, with_changes
from featviz.maximization.transforms import Transforms
from featviz.models.frozen import frozen
from featviz.models.model import Layer
from featviz.models.units import parse_units
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from featviz.models.model import Model


_RANK = Measure("of the photograph's class in the picture's logits; 1 is kept")
_PIXELS = Measure("root mean square of the pixels' differences from the photograph, of 1")
# The smallest octave still shows this many pixels.
_SMALLEST = 48


@dataclass(frozen=True, kw_only=True, repr=False)
class Dreamed(Redrawn):
    """Photographs, changed until layers answered more strongly."""

    kind: ClassVar[str] = "deepdream"
    measures: ClassVar[dict[str, Measure]] = {
        "strength": Measure(
            "root mean square of the layer's answer, over that to the photograph",
            label="answer {:.1f} times as strong",
        ),
        "pixel distance": _PIXELS,
        "class rank": _RANK,
    }

    @property
    def title(self) -> str:
        return f"What layers of {self.model_name} would like to see in {self.of_what}"

    def caption(self) -> str:
        return (
            "Each row begins with a photograph; then come copies of it, changed from coarse to "
            f"fine until one layer of {self.model_name} ({', '.join(self.columns)}) answered more "
            "strongly, whatever it answered. Below each, how many times as strong the answer has "
            "become. Colours are not rescaled."
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Caricatured(Redrawn):
    """Photographs, drawn from noise as layers would exaggerate them."""

    kind: ClassVar[str] = "caricature"
    measures: ClassVar[dict[str, Measure]] = {
        "exaggeration": Measure(
            "length of the answer (its values above 0) along the photograph's, over its own",
            label="{:.1f} times",
        ),
        "cosine": Measure("between the two answers", label="cosine {:.2f}"),
        "class rank": _RANK,
    }

    @property
    def title(self) -> str:
        return f"Caricatures of {self.of_what} by layers of {self.model_name}"

    def caption(self) -> str:
        return (
            "Each row begins with a photograph; then come pictures made from noise so that the "
            f"answer of one layer of {self.model_name} ({', '.join(self.columns)}) points the way "
            "of its answer to the photograph, as far as possible. Below each, how many times as "
            "far as the photograph's, and the cosine between the two. Colours are not rescaled."
        )


def deepdream(
    model: Model,
    pictures: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    units: str | Sequence[int | str] | None = None,
    octaves: int = 3,
    zoom: float = 1.4,
    steps: int = 40,
    rate: float = 0.03,
    seed: int = 0,
    names: Sequence[str] | None = None,
    film: int = 0,
    film_kind: str = "gif",
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Dreamed:
    """The given pictures, changed so that a layer answers more strongly: (P, K, 1, 3, H, W).

    pictures: (P, 3, H, W) or (3, H, W) in [0, 1]; layers of maps take any size
    layers: one or several; default: the last three convolutions
    units: of the only layer, whose squares count; default: all of them
    octaves: sizes in which the picture is worked on; zoom: from one to the next
    steps: at each octave; rate: of each step, the larger the wilder
    options: see `Settings` (`smooth`, `even`, `transforms`, `calm` ...)

    A picture depends on its photograph, its layer and the seed alone.

    Raises UserError for an unknown layer, unit or option, and pictures that are none.

        featviz.deepdream(model, photograph, "conv4").save("run/dream")
    """
    started = time.perf_counter()
    given = as_batch(model, pictures)
    names = picture_names(names, len(given))
    places = [model.layer(name) for name in chosen_layers(model, layers)]
    if layers is None:
        places = [place for place in places if place.spatial][-3:] or places[-1:]
    check_counts(octaves=octaves, steps=steps)
    films.check_kind(film_kind)
    if not 1 < zoom <= 4 and octaves > 1:
        raise UserError(f"zoom is {zoom:g}; from one octave to the next it is above 1, at most 4")
    if "parametrization" in options:
        raise UserError("deepdream works at several sizes; leave the parametrization to it")
    if units is not None and len(places) > 1:
        raise UserError("units belong to one layer; name a single one")
    chosen = None if units is None else parse_units(model, places[0].name, units)
    rows = None if chosen is None else tuple(unit.index for unit in chosen)
    goals = [_squares(place, rows) for place in places]
    sizes = _octave_sizes(given.shape[-2:], octaves, zoom)
    own = {
        "transforms": Transforms(shift=max(2.0, given.shape[-1] / 28)),
        "lr": rate,
        "contrast_weight": 0.0,
        "saturation_weight": 0.0,
        "coarse_to_fine": 0.0,
        "checks": 1,
        "roughness_weight": 0.5 * clean_scores.first_stride(model),
    } | options
    settings = [
        with_changes(
            settings_for(model, place, steps=steps, size=given.shape[-1], precision=precision), own
        )
        for place in places
    ]
    run = Redrawing(model, given, 1, film, batch_size, progress)
    measured = []
    with frozen(model):
        for number, (place, goal, how) in enumerate(zip(places, goals, settings, strict=True)):
            climb = _through_octaves(run, goal, how, place, sizes, seed, (number, len(places)))
            drawn = run.keep(climb)
            before = _strength(goal, model, given)
            after = _strength(goal, model, drawn[:, 0])
            measured.append(
                {
                    "strength": (after / before.clamp(min=1e-12))[:, None],
                    "pixel distance": _pixel_distance(given, drawn),
                    "class rank": ranks_kept(model, given, drawn),
                }
            )
    made = run.made()
    columns = [place.name for place in places]
    if chosen is not None:
        columns = [", ".join(str(unit) for unit in chosen)]
    return Dreamed(
        origin=results.origin(
            model,
            seed=seed,
            started=started,
            parameters={
                "method": "deepdream",
                "pictures": list(names),
                "layer": [place.name for place in places],
                "units": None if chosen is None else [str(unit) for unit in chosen],
                "size": given.shape[-1],
                "octaves": octaves,
                "zoom": zoom,
                **settings[-1].record(),
            },
        ),
        model_name=model.name,
        names=names,
        columns=tuple(columns),
        units=tuple(map(str, chosen)) if chosen is not None and len(chosen) == 1 else (),
        given=given.cpu(),
        measured=stacked(measured),
        film=film_kind,
        images=made.images,
        trace=made.trace,
        frames=made.frames,
    )


def _octave_sizes(size: Sequence[int], octaves: int, zoom: float) -> list[tuple[int, int]]:
    """(H, W) of each octave, smallest first; those that would show too little are left out."""
    height, width = size
    sizes = [(round(height / zoom**k), round(width / zoom**k)) for k in reversed(range(octaves))]
    return [one for one in sizes if min(one) >= min(_SMALLEST, *size)]


def _squares(layer: Layer, units: Sequence[int] | None) -> Objective:
    """The mean of squares of a layer, or of some of its units alone."""
    if units is None:
        return objectives.deepdream(layer.name)
    goal, rows = objectives.deepdream(layer.name), list(units)

    def score(acts: Any, targets: Sequence[int]) -> Tensor:
        values = acts[layer.name]
        own = values[..., rows] if values.dim() == 3 else values[:, rows]
        return goal.score({layer.name: own}, targets)

    return replace(goal, text=f"{goal.text}, {len(rows)} units", score=score)


def _through_octaves(
    run: Redrawing,
    goal: Objective,
    settings: Settings,
    layer: Layer,
    sizes: Sequence[tuple[int, int]],
    seed: int,
    part: tuple[int, int],
) -> Optimized:
    """Work on a small copy first, and take what was imagined over to the next size."""
    imagined = torch.zeros_like(run.given)
    traces, frames = [], []
    for octave, size in enumerate(sizes):
        plain = _resized(run.given, size)
        begun = (plain + _resized(imagined, size)).clamp(0, 1)
        here = replace(settings, parametrization=Fourier(*size))
        climb = run.climb(
            goal,
            here,
            [f"{layer.path}/{octave}"],
            seed=seed,
            start=begun,
            text=f"dreaming of {layer.name}",
            part=(part[0] * len(sizes) + octave, part[1] * len(sizes)),
        )
        imagined = climb.images - plain
        traces.append(climb.trace)
        if climb.frames.numel():
            shown = climb.frames.flatten(0, 1).float() / 255
            shown = images.to_uint8(_resized(shown, tuple(run.given.shape[-2:])))
            frames.append(shown.unflatten(0, climb.frames.shape[:2]))
    whole = torch.cat(frames, 1) if frames else climb.frames
    return replace(climb, trace=torch.cat(traces, 1), frames=whole)


def _resized(pictures: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)


def _strength(goal: Objective, model: Model, pictures: Tensor) -> Tensor:
    """The root of the goal's mean of squares, (P,), one picture at a time."""
    (layer,) = goal.layers
    values = each_alone(model, pictures, layer)
    return goal({layer: values}, range(len(values))).clamp(min=0).sqrt()


def _pixel_distance(given: Tensor, pictures: Tensor) -> Tensor:
    """(P, T) of given (P, 3, H, W) and pictures (P, T, 3, H, W)."""
    return (pictures - given[:, None]).square().mean((2, 3, 4)).sqrt()


def caricature(
    model: Model,
    pictures: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    power: float = 2.0,
    tries: int = 1,
    steps: int = 256,
    seed: int = 0,
    names: Sequence[str] | None = None,
    film: int = 0,
    film_kind: str = "gif",
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    progress: Progress | None = None,
    **options: Any,
) -> Caricatured:
    """Pictures that exaggerate what a layer answers to the given ones: (P, K, T, 3, H, W).

    pictures: (P, 3, H, W) or (3, H, W) in [0, 1]
    layers: one or several; default: every convolution and fully connected layer
    power: 0 lets what is strongest run away, more keeps to the photograph's mixture
    tries: pictures of each, from seeds of their own
    options: see `Settings`

    A picture depends on its photograph, its layer, the seed and its try alone.

    Raises UserError for an unknown layer or option, and pictures that are none.

        featviz.caricature(model, photograph, ["conv3", "conv5"]).save("run/caricature")
    """
    started = time.perf_counter()
    given = as_batch(model, pictures)
    names = picture_names(names, len(given))
    places = [model.layer(name) for name in chosen_layers(model, layers)]
    check_counts(steps=steps, tries=tries)
    films.check_kind(film_kind)
    own = {
        "parametrization": Fourier(*given.shape[-2:]),
        # A few pixels only: the answer is to come at the photograph's own places.
        "transforms": Transforms(shift=max(1.0, given.shape[-1] / 56), rotate=3.0, scale=0.03),
        "roughness_weight": 2.0 * clean_scores.first_stride(model),
        "contrast_weight": 0.02,
        "saturation_weight": 0.2,
        "local_normalization": 0.9,
        "coarse_to_fine": 0.25,
    } | options
    settings = [
        with_changes(
            settings_for(model, place, steps=steps, size=given.shape[-1], precision=precision), own
        )
        for place in places
    ]
    run = Redrawing(model, given, tries, film, batch_size, progress)
    measured = []
    with frozen(model):
        for number, (place, how) in enumerate(zip(places, settings, strict=True)):
            # What was answered: most units are far below zero on every picture, and silence is
            # nothing to exaggerate.
            wanted = each_alone(model, given, place.name).clamp(min=0)  # (P, ...)
            aims = wanted.repeat_interleave(tries, 0)
            goal = _of_answers(objectives.caricature(place.name, aims, power=power), aims > 0)
            climb = run.climb(
                goal,
                how,
                [f"{place.path}/{t}" for t in range(tries)],
                seed=seed,
                text=f"caricatures of {place.name}",
                part=(number, len(places)),
            )
            drawn = run.keep(climb)
            shape = drawn.shape[:2]
            found = each_alone(model, drawn.flatten(0, 1), place.name).unflatten(0, shape)
            found, aim = found.clamp(min=0).flatten(2), wanted.flatten(1)[:, None]
            measured.append(
                {
                    "exaggeration": (found * aim).sum(2) / aim.square().sum(2).clamp(min=1e-12),
                    "cosine": torch.cosine_similarity(found, aim.expand_as(found), dim=2),
                    "class rank": ranks_kept(model, given, drawn),
                }
            )
    made = run.made()
    return Caricatured(
        origin=results.origin(
            model,
            seed=seed,
            started=started,
            parameters={
                "method": "caricature",
                "pictures": list(names),
                "layer": [place.name for place in places],
                "size": given.shape[-1],
                "power": power,
                "tries": tries,
                **settings[-1].record(),
            },
        ),
        model_name=model.name,
        names=names,
        columns=tuple(place.name for place in places),
        units=(),
        given=given.cpu(),
        measured=stacked(measured),
        film=film_kind,
        images=made.images,
        trace=made.trace,
        frames=made.frames,
    )


def _of_answers(goal: Objective, wanted: Tensor) -> Objective:
    """The goal of what its layer answers: below 0 all the same, but for what is `wanted` (K, ...).

    What the photograph called up must have a way up from silence; what it did not may be silent.
    """
    (layer,) = goal.layers

    def score(acts: Any, targets: Sequence[int]) -> Tensor:
        values = acts[layer]
        heard = torch.where(wanted[list(targets)], values, values.clamp(min=0))
        return goal.score({layer: heard}, targets)

    return replace(goal, score=score)
