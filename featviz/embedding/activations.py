"""`activations(model, pictures, layers)`: what layers give for pictures, the raw material of one's
own analysis; of a few pictures with gradients, of a data set in memory or streamed to stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import torch
from torch import Tensor

from featviz.data.datasets import Skipped, batches
from featviz.data.from_python import MEMORY, Data, Labels, as_pictures, label_values
from featviz.data.labeled import is_batch
from featviz.embedding.extract import embed_reduced
from featviz.embedding.reduction import How, Reduction
from featviz.errors import UserError, public
from featviz.models import layers as taps
from featviz.models.model import Layer, Model
from featviz.types import BatchSize, Count, Progress, Seed
from featviz.wording import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featviz.data.datasets import Pictures
    from featviz.embedding.store import Store

Reduce = Literal["map", "mean", "max", "positions"]
_HOW: dict[Reduce, How] = {"map": "map", "mean": "mean", "max": "max", "positions": "random"}


class Activations(dict[str, Tensor]):
    """Layer name to activations; and of a data set, which pictures they are of."""

    pictures: Pictures | None = None
    """those that could be read, in order; None for a tensor"""
    skipped: tuple[Skipped, ...] = ()
    """those that could not"""
    positions: dict[str, NDArray[np.int32]]
    """with `reduce="positions"`: row and column of each, layer name to (N, k, 2)"""

    def __init__(self, *values: dict[str, Tensor]) -> None:
        super().__init__(*values)
        self.positions = {}

    def __repr__(self) -> str:
        shapes = (f"{name} {tuple(values.shape)}" for name, values in self.items())
        return f"<Activations: {', '.join(shapes)}>"


@overload
def activations(
    model: Model,
    pictures: Data,
    layers: Sequence[str],
    *,
    labels: Labels | None = None,
    to: None = None,
    reduce: Reduce = "map",
    k: Count = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Activations: ...


@overload
def activations(
    model: Model,
    pictures: Data,
    layers: Sequence[str],
    *,
    labels: Labels | None = None,
    to: str | Path,
    reduce: Reduce = "map",
    k: Count = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Store]: ...


@public
def activations(
    model: Model,
    pictures: Data,
    layers: Sequence[str],
    *,
    labels: Labels | None = None,
    to: str | Path | None = None,
    reduce: Reduce = "map",
    k: Count = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Activations | dict[str, Store]:
    """Activations of pictures at the named layers; the forward pass ends at the deepest of them.

    Args:
        model: The model.
        pictures: What `as_pictures` takes. A float tensor (N, C, H, W) on the model's device is one
            batch, through which gradients flow if it requires them; all else is read at the model's
            size and streamed.
        layers: Aliases or module paths.
        labels: A class for each picture, for the stores; default: those of the data.
        to: A folder that will hold a store for each layer (`open_store`), as float16. Finished
            pieces are kept, and the same call goes on from there. Default: in memory, as float32.
        reduce: "map" keeps everything, (N, C, H, W), (N, C) or (N, tokens, C); "mean" and "max" are
            over positions, (N, C); "positions" keeps k random ones of each map, (N, k, C).
        k: How many positions; they are all different, and never at the border of a map.
        seed: Of the positions, which depend on nothing else but the picture's number.
        batch_size: Pictures a forward pass.
        overwrite: Replace stores that are there.
        progress: Called with (pictures done, all pictures, text).

    Returns:
        Layer name to tensor, or to store. Rows of a store with "map" are flat: its `shape` has the
        layer's own.

    Raises:
        UserError: An unknown layer, pictures of another shape, more than 4 GB in memory, or as
            `embed` for stores.

    Example:
        >>> maps = featviz.activations(model, pictures[:8], ["conv5"])["conv5"]
        >>> stores = featviz.activations(model, "photographs", ["conv3", "conv5"], to="run/raw",
        ...                              reduce="positions", k=4)
    """
    reduction = Reduction(_HOW[reduce], k if reduce == "positions" else 1, seed)
    places = tuple(model.layer(name) for name in layers)
    if to is not None:
        found = embed_reduced(
            model,
            pictures,
            [place.name for place in places],
            reduction,
            out=to,
            labels=labels,
            batch_size=batch_size,
            overwrite=overwrite,
            progress=progress,
        )
        return {name: found[place.name] for name, place in zip(layers, places, strict=True)}
    reduction.check(places)
    named = dict(zip(layers, places, strict=True))
    if is_batch(pictures):
        if labels is not None:
            label_values(labels, len(pictures))
        taken = taps.activations(model, pictures, layers)
        return _reduced(taken, range(len(pictures)), named, reduction)
    return _streamed(
        model, as_pictures(pictures, labels, model=model), named, reduction, batch_size, progress
    )


def _streamed(
    model: Model,
    data: Pictures,
    named: dict[str, Layer],
    reduction: Reduction,
    batch_size: int,
    progress: Progress | None,
) -> Activations:
    """The activations of a data set in memory."""
    each = sum(reduction.rows(place) * reduction.dim(place) for place in named.values())
    size = 4 * each * len(data)
    if size > MEMORY:
        raise UserError(
            f"the activations of {counted(len(data), 'picture')} take {size / 1e9:.0f} GB; give a "
            "folder (to), another reduce, or fewer layers"
        )
    skipped: list[Skipped] = []
    good: list[int] = []
    parts: list[dict[str, Tensor]] = []
    for batch in batches(data, model.preprocessing, batch_size=batch_size, skipped=skipped):
        with torch.no_grad():
            taken = taps.activations(model, batch.images.to(model.device), list(named))
        # Reduced at once, so that no more is held than is wanted.
        part = _reduced(taken, batch.rows, named, reduction)
        parts.append({name: values.float().cpu() for name, values in part.items()})
        good += batch.rows
        if progress is not None:
            progress(batch.rows[-1] + 1, len(data), "reading activations")
    found = Activations({name: torch.cat([part[name] for part in parts]) for name in named})
    found.positions = _positions(good, named, reduction)
    found.pictures, found.skipped = data.select(good), tuple(skipped)
    return found


def _reduced(
    taken: dict[str, Tensor],
    numbers: Sequence[int],
    named: dict[str, Layer],
    reduction: Reduction,
) -> Activations:
    """Each layer's activations of one batch, reduced."""
    made = Activations()
    for name, place in named.items():
        one = taken[name]
        if reduction.how != "map":
            one = reduction(one, place, numbers)
            if reduction.of_positions and place.spatial:
                one = one.unflatten(0, (-1, reduction.rows(place)))
        made[name] = one
    made.positions = _positions(numbers, named, reduction)
    return made


def _positions(
    numbers: Sequence[int], named: dict[str, Layer], reduction: Reduction
) -> dict[str, NDArray[np.int32]]:
    found = {}
    for name, place in named.items():
        at = reduction.positions(place, numbers)
        if at is not None:
            found[name] = at.reshape(len(numbers), -1, 2)
    return found
