"""`invert`: what a layer keeps of a picture.

From noise, the picture is sought whose activation at the layer is that of the given one: the
squared distance, as a share of the given activation's squared length, is minimized. What the layer
discards is free, so the result shows what it keeps, filled in where it keeps nothing; several
restarts show what is free.

Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them" (CVPR),
equation 2. Their priors are the total variation and the 6th power of the pixels; ours are the
penalties of `Settings` (roughness, contrast, saturation) and Fourier coefficients with the spectrum
of natural images, optimized from coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.checkpoints import Checkpoint
from featviz.data.datasets import read_all
from featviz.data.from_python import Data
from featviz.data.labeled import opened, read_batch
from featviz.data.samples import sample_pictures
from featviz.errors import public
from featviz.from_picture.driver import (
    Batch,
    Column,
    Redrawing,
    chosen_layers,
)
from featviz.from_picture.result import Inverted
from featviz.from_picture.settings import STEPS
from featviz.maximization import objectives
from featviz.models.layers import read_layer
from featviz.types import AutoPrecision, BatchSize, Engine, Frames, Progress, Restarts, Seed, Steps

if TYPE_CHECKING:
    from featviz.maximization.optimized import Optimized
    from featviz.maximization.settings import Settings
    from featviz.models.model import Model

_OTHERS = 32  # unrelated pictures


@public
def invert(
    model: Model,
    pictures: Data,
    layers: str | Sequence[str] | None = None,
    *,
    restarts: Restarts = 1,
    steps: Steps = STEPS["invert"],
    settings: Settings | None = None,
    others: Data | None = None,
    seed: Seed = 0,
    names: Sequence[str] | None = None,
    frames: Frames = 0,
    film: str = "gif",
    batch_size: BatchSize | None = None,
    precision: AutoPrecision = "auto",
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Inverted:
    """Pictures with nearly the activations of the given ones: `.images` (P, K, T, 3, H, W).

    Args:
        model: The model.
        pictures: What `as_pictures` takes; float tensors are (P, C, H, W) or (C, H, W) of
            the model's input size.
        layers: One or several (K); default: every convolution and fully connected layer.
        restarts: Reconstructions of each picture (T), from different noise.
        steps: 100 for a sketch, 500 where every detail counts.
        settings: How to optimize, in place of `steps` and `precision`; default: `method_settings`.
        others: Unrelated pictures, whose distances are given for comparison; default: the bundled
            samples.
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
        The pictures, with the distance of each from the given activation, and other numbers.

    Raises:
        UserError: A layer is unknown, or the pictures or a number are out of range.

    Example:
        featviz.invert(model, picture, ["conv1", "conv5", "fc7"]).save("run/inversion")
    """
    run = Redrawing(
        model=model,
        pictures=read_batch(model, pictures).pictures,
        method="invert",
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
    given = sample_pictures() if others is None else opened(others)
    data = None if isinstance(given, Tensor) else given.spread(_OTHERS)
    if isinstance(given, Tensor):
        unrelated = model.check(given[:_OTHERS])
    else:
        assert data is not None
        unrelated = read_all(data, model.preprocessing)[1]
    unrelated = unrelated.to(model.std)

    def column(layer: str) -> Column:
        how = run.settings(layer)

        def draw(batch: Batch) -> Optimized:
            objective = -objectives.distance(layer, read_layer(model, batch.originals, layer))
            return run.optimize(objective, how, batch, layer)

        def measure(originals: Tensor, drawn: Tensor) -> dict[str, Tensor]:
            target, found, far = (
                read_layer(model, x, layer).flatten(1) for x in (originals, drawn, unrelated)
            )
            length = target.norm(dim=1).clamp(min=1e-12)
            chance = [(far - one).norm(dim=1).median() for one in target]
            return {
                "distance": (found - target).norm(dim=1) / length,
                "distance of others": torch.stack(chance) / length,
                "cosine": torch.cosine_similarity(found, target, dim=1),
            }

        return Column(layer, how.steps, how, draw, measure)

    return run.result(Inverted, [column(layer) for layer in places], {"layer": places}, data=data)
