"""The pictures of a data set that activate a unit most, cut out where they do.

Comes in: a model, a data set, some units of a layer. Goes out: `TopPatches`, for each unit its k
highest activations, at most one a picture (as in Zeiler and Fergus 2014, "Visualizing and
understanding convolutional networks", figure 2), and what the unit reaches on natural pictures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from featviz import results
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.data.from_python import Data, as_pictures
from featviz.errors import UserError, public, visible
from featviz.maps.top_patches_result import Place, TopPatches
from featviz.models.layers import activations
from featviz.models.model import Layer
from featviz.models.units import parse_unit, parse_units, unit_name
from featviz.pictures import images
from featviz.top_scores import ImageCache, TopScores, scan
from featviz.types import BatchSize, Engine, Progress, Top
from featviz.wording import counted, unread

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.models.model import Model

PATCH_PIXELS = 112
"""Patches of larger receptive fields are kept shrunk to this side."""


@public
def top_patches(
    model: Model,
    pictures: Data,
    layer: str,
    *,
    units: str | Sequence[int | str] | None = None,
    k: Top = 9,
    batch_size: BatchSize = 64,
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> TopPatches:
    """For each unit the k patches of a data set that activate it most, at most one a picture.

    The data set is read once. The percentile is exact up to 50,000 values above it a unit; of
    larger data every second (third ...) picture is used for it.

    Args:
        model: The model.
        pictures: What `as_pictures` takes.
        layer: A layer of maps gives patches as large as its receptive field; a layer without
            positions (fc7, logits) gives whole pictures.
        units: "0-7", "3,12", "all", class names of logits, or a sequence; default: the first 16.
        k: Patches a unit; of equal activations the picture that comes first is taken.
        batch_size: Pictures at a time.
        checkpoint: A folder for finished pieces, from which the same call goes on.
        engine: "here", or "ray": pieces of the data set are read by a Ray cluster.
        progress: Called with pictures done, pictures in all and what is being done.

    Returns:
        Patches, their places and activations, and each unit's largest activation and percentile.

    Raises:
        UserError: The layer or a unit is unknown, or none of the pictures can be read.

    Example:
        pictures = featviz.open_pictures("photos")
        featviz.top_patches(model, pictures, "conv5", units=[3, 12]).save("run/examples-conv5")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    if len(place.shape) == 2:
        raise UserError(f"{place.name} is a layer of tokens; top patches need maps or vectors")
    wanted = f"0-{min(16, place.units) - 1}" if units is None else units
    which = [unit.index for unit in parse_units(model, place.name, wanted)]

    def score(batch: Tensor) -> Tensor:
        values = activations(model, batch.to(model.device), [place.name])[place.name][:, which]
        return values if values.dim() == 4 else values[:, :, None, None]

    pictures = as_pictures(pictures)
    cache = ImageCache(model, pictures)
    parameters = {"layer": place.name, "units": which, "k": k, "batch_size": batch_size}
    job = parameters | {"model": model.record(), "data": [pictures.sha256, pictures.state]}
    opened = open_checkpoint(checkpoint, job, total=len(pictures), unit="pictures", engine=engine)
    with opened as kept:
        top = scan(
            cache,
            score,
            k=k,
            batch_size=batch_size,
            kept=kept,
            progress=progress,
            text=f"top patches of {place.name}",
        )
    places, patches, size = cut_patches(cache, pictures, place, top)
    return TopPatches(
        origin=results.origin(
            model,
            started=started,
            data=pictures,
            parameters=parameters,
        ),
        warnings=(*_warnings(place, which, top), *pictures.left_out.notes),
        model_name=model.name,
        layer=place.name,
        units=tuple(which),
        names=tuple(unit_name(model, parse_unit(model, f"{place.name}:{unit}")) for unit in which),
        places=places,
        patches=patches,
        field=size,
        largest=top.values[:, 0],
        percentile=top.percentile,
        active=top.active,
        count=top.count,
        sampled=top.sampled,
        skipped=top.skipped,
    )


def cut_patches(
    cache: ImageCache, pictures: Pictures, layer: Layer, top: TopScores
) -> tuple[tuple[tuple[Place, ...], ...], Tensor, tuple[int, int]]:
    """The places (U, k), their patches (U, k, 3, P, P) uint8, and the pixels that each shows."""
    field = layer.receptive_field if layer.spatial else None
    units, k = top.rows.shape
    patches: dict[tuple[int, int], Tensor] = {}
    size = (0, 0)
    for row in sorted(set(top.rows.flatten().tolist())):
        picture = cache.read(row)
        size = field.size if field else (picture.shape[1], picture.shape[2])
        shrink = min(1.0, PATCH_PIXELS / max(size))
        shape = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
        for unit, rank in (top.rows == row).nonzero().tolist():
            y, x = top.positions[unit, rank].tolist()
            patch = images.crop_box(picture, field.box(y, x) if field else (0, 0, *size))
            if patch.shape[-2:] != shape:
                patch = F.interpolate(
                    patch[None], shape, mode="bilinear", antialias=True, align_corners=False
                )[0]
            patches[unit, rank] = images.to_uint8(patch)

    def place(unit: int, rank: int) -> Place:
        row, (y, x) = int(top.rows[unit, rank]), top.positions[unit, rank].tolist()
        return Place(
            row=row,
            path=visible(pictures.paths[row]),
            position=(y, x) if layer.spatial else None,
            box=field.box(y, x) if field else (0, 0, *size),
            value=float(top.values[unit, rank]),
        )

    places = tuple(tuple(place(unit, rank) for rank in range(k)) for unit in range(units))
    stacked = torch.stack([patches[unit, rank] for unit in range(units) for rank in range(k)])
    return places, stacked.unflatten(0, (units, k)), size


def _warnings(layer: Layer, units: Sequence[int], top: TopScores) -> tuple[str, ...]:
    found = []
    inactive = [str(unit) for unit, a in zip(units, top.active, strict=True) if a == 0]
    if inactive:
        more = f" and {len(inactive) - 8} more" if len(inactive) > 8 else ""
        found.append(
            f"{counted(len(inactive), 'unit')} never above 0, so that patches say little: "
            f"{', '.join(inactive[:8])}{more}"
        )
    if top.skipped:
        found.append(f"{unread(len(top.skipped))} (skipped.csv)")
    if layer.spatial and layer.receptive_field is None:
        found.append(f"the receptive field of {layer.name} is not known: whole pictures are shown")
    return tuple(found)
