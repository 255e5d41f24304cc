"""`deepdream`: a picture is changed until a layer's activations are larger, whatever they are.

The mean of their squares is maximized, first on a small copy and then on larger ones ("octaves"),
so that structures of all sizes appear. Mordvintsev, Olah and Tyka 2015, "Inceptionism: going deeper
into neural networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.arguments import Bounds
from featviz.checkpoints import Checkpoint
from featviz.data.from_python import Data
from featviz.data.labeled import read_batch
from featviz.errors import UserError, public
from featviz.from_picture.driver import (
    Batch,
    Column,
    Redrawing,
    chosen_layers,
)
from featviz.from_picture.result import Dreamed
from featviz.from_picture.settings import STEPS
from featviz.maximization import objectives
from featviz.maximization.parametrizations import Fourier, for_channels
from featviz.models.layers import read_layer, takes
from featviz.models.units import parse_units
from featviz.pictures import images
from featviz.types import (
    AutoPrecision,
    BatchSize,
    Engine,
    Frames,
    Octaves,
    Progress,
    Rate,
    Seed,
    Steps,
)
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.maximization.objectives import Activations, Objective, Targets
    from featviz.maximization.optimized import Optimized
    from featviz.maximization.settings import Settings
    from featviz.models.model import Model

_SMALLEST = 48  # pixels a side of the smallest octave


@public
def deepdream(
    model: Model,
    pictures: Data,
    layers: str | Sequence[str] | None = None,
    *,
    units: str | Sequence[int | str] | None = None,
    octaves: Octaves = 3,
    zoom: Annotated[float, Bounds(1.01, 4)] = 1.4,
    steps: Steps = STEPS["deepdream"],
    lr: Rate = 0.03,
    settings: Settings | None = None,
    seed: Seed = 0,
    names: Sequence[str] | None = None,
    frames: Frames = 0,
    film: str = "gif",
    batch_size: BatchSize | None = None,
    precision: AutoPrecision = "auto",
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Dreamed:
    """The given pictures, changed so that a layer's activations grow: (P, K, 1, 3, H, W).

    Args:
        model: The model.
        pictures: What `as_pictures` takes; float tensors (P, C, H, W) or (C, H, W) keep
            their size; layers of maps take any.
        layers: One or several (K); default: the last three convolutions.
        units: Of the only layer, whose squares count; default: all of them.
        octaves: Number of sizes in which the picture is optimized; those that the model does not
            take are left out, which of many transformers are all but one.
        zoom: From one size to the next, above 1 to 4.
        steps: At each octave.
        lr: Of the first step; larger values change the picture more.
        settings: How to optimize, in place of `steps`, `lr` and `precision`, with a `Fourier`
            parametrization; default: `method_settings`.
        seed: Of the random shifts.
        names: Of the pictures, for captions and files.
        frames: Number of stages of each octave to keep.
        film: How they are saved: "gif", or "mp4" for both.
        batch_size: Pictures at a time, and in a piece of the checkpoint; default 4 on a CPU, 64 on
            CUDA.
        precision: Of the network in the steps: "auto", "float32" or "bfloat16".
        checkpoint: A folder that keeps finished pictures; the same call goes on from there.
        engine: "here", or "ray": batches of pictures are made by a Ray cluster.
        progress: Called with steps done, steps in all and what is being done.

    Returns:
        The pictures, with the growth of the activations.

    Raises:
        UserError: A layer or unit is unknown, or the pictures or a number are out of range.

    Example:
        featviz.deepdream(model, picture, "conv4").save("run/deepdream")
    """
    run = Redrawing(
        model=model,
        pictures=read_batch(model, pictures).pictures,
        method="deepdream",
        steps=steps,
        chosen=settings,
        precision=precision,
        seed=seed,
        named=names,
        frames=frames,
        film=film,
        batch_size=batch_size,
        checkpoint=checkpoint,
        engine=engine,
        progress=progress,
        lr=lr,
    )
    if not 1 < zoom <= 4 and octaves > 1:
        raise UserError(f"zoom is {zoom:g}; from one octave to the next it is above 1, at most 4")
    if settings is not None and not isinstance(settings.parametrization, Fourier):
        raise UserError("deepdream works at several sizes; leave the parametrization Fourier")
    places = chosen_layers(model, layers)
    if layers is None:
        places = [name for name in places if model.layers[name].spatial][-3:] or places[-1:]
    if units is not None and len(places) > 1:
        raise UserError("units belong to one layer; name a single one")
    chosen = () if units is None else tuple(parse_units(model, places[0], units))
    height, width = run.pictures.shape[-2:]
    sizes = octave_sizes(height, width, octaves, zoom)
    sizes = [size for size in sizes if all(takes(model, size, layer) for layer in places)]

    def column(layer: str) -> Column:
        how = run.settings(layer)
        objective = _squares(layer, [unit.index for unit in chosen])

        def draw(batch: Batch) -> Optimized:
            return _through_octaves(run, objective, how, layer, sizes, batch)

        def measure(originals: Tensor, drawn: Tensor) -> dict[str, Tensor]:
            before, after = (
                objective({layer: read_layer(model, x, layer)}, range(len(x))).clamp(min=0).sqrt()
                for x in (originals, drawn)
            )
            return {
                "strength": after / before.clamp(min=1e-12),
            }

        return Column(
            name=", ".join(map(str, chosen)) or layer,
            steps=how.steps * len(sizes),
            settings=how,
            draw=draw,
            measure=measure,
            unit=str(chosen[0]) if len(chosen) == 1 else "",
        )

    parameters = {
        "layer": places,
        "units": [str(unit) for unit in chosen] or None,
        "octaves": octaves,
        "zoom": zoom,
    }
    return run.result(Dreamed, [column(layer) for layer in places], parameters)


def octave_sizes(height: int, width: int, octaves: int, zoom: float) -> list[tuple[int, int]]:
    """(H, W) of each octave, smallest first; those that would show too little are left out."""
    sizes = [(round(height / zoom**k), round(width / zoom**k)) for k in reversed(range(octaves))]
    return [size for size in sizes if min(size) >= min(_SMALLEST, height, width)]


def _squares(layer: str, units: Sequence[int]) -> Objective:
    """The mean of squares of a layer, or of some of its units alone."""
    whole = objectives.deepdream(layer)
    if not units:
        return whole

    def score(acts: Activations, targets: Targets) -> Tensor:
        values = acts[layer]
        own = values[..., list(units)] if values.dim() == 3 else values[:, list(units)]
        return whole.score({layer: own}, targets)

    return replace(whole, text=f"{whole.text}, {counted(len(units), 'unit')}", score=score)


def _through_octaves(
    run: Redrawing,
    objective: Objective,
    settings: Settings,
    layer: str,
    sizes: Sequence[tuple[int, int]],
    batch: Batch,
) -> Optimized:
    """Optimize a small copy first, and carry its change over to the next size."""
    change = torch.zeros_like(batch.originals)
    traces, frames = [], []
    for octave, size in enumerate(sizes):
        copy = _resized(batch.originals, size)
        made = run.optimize(
            objective,
            replace(settings, parametrization=for_channels(Fourier(*size), copy.shape[1])),
            batch,
            f"{layer}/{octave}",
            start=(copy + _resized(change, size)).clamp(0, 1),
        )
        change = made.images - copy
        traces.append(made.trace)
        if made.frames.numel():
            shown = made.frames.flatten(0, 1).float() / 255
            shown = images.to_uint8(_resized(shown, sizes[-1]))
            frames.append(shown.unflatten(0, made.frames.shape[:2]))
    whole = torch.cat(frames, 1) if frames else made.frames
    return replace(made, trace=torch.cat(traces, 1), frames=whole)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return F.interpolate(pictures, size, mode="bicubic", antialias=True, align_corners=False)
