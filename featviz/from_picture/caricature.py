"""`caricature`: what a layer represents of a picture, exaggerated.

A new picture is drawn from noise whose activation has the direction of the given one's, as far as
possible: dot * cosine^power. What contributes much to the activation grows, what the layer discards
is gone. Of the given activation the values above 0 count, which are those that a ReLU passes on.
Olah et al. 2018, "The building blocks of interpretability" (Distill); Mahendran and Vedaldi 2016,
"Visualizing deep convolutional neural networks using natural pre-images", section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.checkpoints import Checkpoint
from featviz.data.from_python import Data
from featviz.data.labeled import read_batch
from featviz.errors import public
from featviz.from_picture.driver import (
    Batch,
    Column,
    Redrawing,
    chosen_layers,
)
from featviz.from_picture.result import Caricatured
from featviz.from_picture.settings import STEPS
from featviz.maximization import objectives
from featviz.models.layers import read_layer
from featviz.types import (
    AutoPrecision,
    BatchSize,
    Engine,
    Frames,
    Power,
    Progress,
    Restarts,
    Seed,
    Steps,
)

if TYPE_CHECKING:
    from featviz.maximization.objectives import Activations, Objective, Targets
    from featviz.maximization.optimized import Optimized
    from featviz.maximization.settings import Settings
    from featviz.models.model import Model


@public
def caricature(
    model: Model,
    pictures: Data,
    layers: str | Sequence[str] | None = None,
    *,
    power: Power = 2.0,
    restarts: Restarts = 1,
    steps: Steps = STEPS["caricature"],
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
) -> Caricatured:
    """Pictures that exaggerate a layer's activations on the given ones: (P, K, T, 3, H, W).

    Args:
        model: The model.
        pictures: What `as_pictures` takes; float tensors (P, C, H, W) or (C, H, W) keep their size.
        layers: One or several (K); default: every convolution and fully connected layer.
        power: Of the cosine; 0 lets the largest activation grow alone, more keeps the mixture.
        restarts: Pictures of each (T), from different noise.
        steps: Of the optimization.
        settings: How to optimize, in place of `steps` and `precision`; default: `method_settings`.
        seed: Of the noise.
        names: Of the pictures, for captions and files.
        frames: Number of stages of each picture to keep.
        film: How they are saved: "gif", or "mp4" for both.
        batch_size: Pictures at a time, and in a piece of the checkpoint; default 4 on a CPU, 64 on
            CUDA.
        precision: Of the network in the steps: "auto", "float32" or "bfloat16".
        checkpoint: A folder that keeps finished pictures; the same call goes on from there.
        engine: "here", or "ray": batches of pictures are made by a Ray cluster.
        progress: Called with steps done, steps in all and what is being done.

    Returns:
        The pictures, with the exaggeration and the cosine of each.

    Raises:
        UserError: A layer is unknown, or the pictures or a number are out of range.

    Example:
        featviz.caricature(model, picture, ["conv3", "conv5"]).save("run/caricature")
    """
    run = Redrawing(
        model=model,
        pictures=read_batch(model, pictures).pictures,
        method="caricature",
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
        restarts=restarts,
    )
    places = chosen_layers(model, layers)

    def column(layer: str) -> Column:
        how = run.settings(layer)

        def draw(batch: Batch) -> Optimized:
            target = read_layer(model, batch.originals, layer).clamp(min=0)
            objective = _rectified(
                objectives.caricature(layer, target, power=power), layer, target > 0
            )
            return run.optimize(objective, how, batch, layer)

        def measure(originals: Tensor, drawn: Tensor) -> dict[str, Tensor]:
            target, found = (
                read_layer(model, x, layer).clamp(min=0).flatten(1) for x in (originals, drawn)
            )
            return {
                "exaggeration": (found * target).sum(1) / target.square().sum(1).clamp(min=1e-12),
                "cosine": torch.cosine_similarity(found, target, dim=1),
            }

        return Column(layer, how.steps, how, draw, measure)

    return run.result(
        Caricatured, [column(layer) for layer in places], {"layer": places, "power": power}
    )


def _rectified(objective: Objective, layer: str, active: Tensor) -> Objective:
    """The objective of activations above 0, and below 0 of those that are `active` (N, ...) in the
    given picture, which need a gradient."""

    def score(acts: Activations, targets: Targets) -> Tensor:
        values = acts[layer]
        values = torch.where(active[list(targets)], values, values.clamp(min=0))
        return objective.score({layer: values}, targets)

    return replace(objective, score=score)
