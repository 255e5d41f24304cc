"""A class atlas: a map of the activations with the largest attribution to one class.

`build_class_atlas(model, store, "tabby")` takes one vector of each picture, lays these out, cuts
the map into cells with icons, and computes the attribution of each cell's mean to the class
(Carter, Armstrong, Schubert, Johnson and Olah 2019, "Activation Atlas", Distill, section "Focusing
on a single classification").

The attribution of a vector is first order (`effects`): its effect on the class's logit less the
mean effect on all logits, since what raises all alike changes no prediction.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from featviz import results
from featviz.arguments import Bounds
from featviz.atlas.build import Icons, build_atlas, cell_effects, check_model
from featviz.atlas.cells import cell_means
from featviz.atlas.class_result import ClassAtlas
from featviz.atlas.effects import attribution, logit_effects
from featviz.atlas.icons import IconSettings
from featviz.atlas.layout import LayoutSettings
from featviz.embedding.pieces import as_stored
from featviz.errors import BadPicture, UserError, public
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.types import Most, Progress, Seed
from featviz.wording import counted, unread

if TYPE_CHECKING:
    from featviz.embedding.store import Store
    from featviz.models.model import Model

Among = Literal["attribution", "class"]

CLASS_LAYOUT = LayoutSettings(perplexity=20.0)
"""fewer pictures, of one class, than a whole map has"""
SIDE = 8
"""squares a side, as published"""
MOST = 1000
"""pictures of a class atlas"""
FEWEST = 8
"""pictures without which there is no map"""
_BATCH = 32
_TEXT = "computing attributions"


@public
def build_class_atlas(
    model: Model,
    store: Store,
    target: int | str,
    *,
    among: Among = "attribution",
    side: Annotated[int, Bounds(1, 500)] = SIDE,
    most: Most = MOST,
    icons: Icons = "both",
    icon: IconSettings = IconSettings(),
    layout: LayoutSettings = CLASS_LAYOUT,
    seed: Seed = 0,
    links: bool = False,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> ClassAtlas:
    """An atlas of the activations of a layer with the largest attribution to one class.

    Args:
        model: A model with a head.
        store: Activations at the layer, made by this model. Of a layer without positions its rows
            are taken. Of a map the pictures are read again, and of each the position with the
            largest attribution is taken, whichever the store has.
        target: A class of the model, by index, synset or name.
        among: "attribution": of all pictures the `most` with the largest attribution, positive ones
            only; "class": the pictures labeled so, whatever their attribution.
        side: Squares a side of the map; icons are made for each.
        most: Pictures on the map.
        icons: As in `featviz.build_atlas`.
        icon: How synthetic icons are made.
        layout: How the map is laid out.
        seed: Of the layout and the icons.
        links: As in `featviz.build_atlas`.
        checkpoint: As in `featviz.build_atlas`.
        progress: Called as (done, total, text).

    Raises:
        UserError: An unknown class, a model without a head or with other weights than the store's,
            or fewer than 8 pictures.
    """
    started = time.perf_counter()
    if among not in ("attribution", "class"):
        raise UserError(f"unknown pictures {among!r}; take attribution or class")
    model.layer("logits")
    if len(store.shape) == 2:
        raise UserError(f"{store.layer} has tokens; a class atlas is of vectors or of a map")
    check_model(model, store)
    number = model.class_index(target)
    name = model.class_name(number)
    folders = {f for f in store.pictures.classes if model.find_class(f) == number}
    candidates = [
        row for row, label in enumerate(store.labels) if among != "class" or label in folders
    ]
    if len(candidates) < FEWEST:
        raise UserError(
            f"too few for a map: {counted(len(candidates), 'picture')} of {name} in "
            f"{store.source['name']} ({FEWEST} or more); take --among attribution, or more pictures"
        )
    read = _read_map if len(store.shape) == 3 else _read_rows
    rows, vectors, positions, attributions = read(model, store, candidates, number, progress)
    best = torch.sort(attributions, descending=True, stable=True).indices[:most]
    if among == "attribution":
        best = best[attributions[best] > 0]
    if len(best) < FEWEST:
        raise UserError(
            f"too few for a map: {counted(len(best), 'picture')} with a positive attribution to "
            f"{name} in {store.layer}; it needs {FEWEST}"
        )
    best = best.sort().values
    chosen = [rows[i] for i in best.tolist()]
    memory, exponents = as_stored(vectors[best], store.layer)
    some = replace(
        store,
        memory=memory,
        exponents=exponents,
        shards=(),
        folder=None,
        pictures=store.pictures.select(chosen),
        sizes=store.sizes[chosen],
        positions=None if positions is None else positions[best].int().numpy(),
        receptive_field=None if positions is None else model.layer(store.layer).receptive_field,
    )
    atlas = build_atlas(
        model,
        some,
        icons=icons,
        sides=[side],
        icon_side=side,
        icon=icon,
        layout=layout,
        most=len(some),
        seed=seed,
        links=links,
        checkpoint=checkpoint,
        progress=progress,
    )
    level = atlas.levels[0]
    effects = cell_effects(model, some, cell_means(some.matrix(), level.grid), level.samples)
    icon_logits = None
    if level.synthetic is not None:
        with torch.inference_mode():
            parts = level.synthetic.images.split(_BATCH)
            logits = torch.cat([model(part.to(model.device)).float().cpu() for part in parts])
        icon_logits = attribution(logits, number).clone()
    parameters = {"class": name, "among": among, "side": side, "most": most, "store": store.folder}
    made = results.origin(
        model,
        parameters={**atlas.origin.parameters, **parameters},
        started=started,
        seed=seed,
        base=store.origin,
    )
    missing = len(candidates) - len(rows)
    warnings = (unread(missing),) if missing else ()
    return ClassAtlas(
        origin=made,
        warnings=warnings + atlas.warnings,
        atlas=atlas,
        target=number,
        name=name,
        attributions=attributions[best],
        cell_attributions=attribution(effects, number),
        in_class=torch.tensor([label in folders for label in some.labels]),
        icon_logits=icon_logits,
    )


_Read = tuple[list[int], Tensor, Tensor | None, Tensor]
"""rows, their vectors (N, C), the positions of these (N, 2), their attributions (N,)"""


def _read_rows(
    model: Model, store: Store, rows: list[int], target: int, progress: Progress | None
) -> _Read:
    """The vectors of a layer without positions."""
    vectors, found = store.take(rows), []
    for part in vectors.split(1024):
        found.append(attribution(logit_effects(model, store.layer, part), target))
        if progress is not None:
            progress(sum(map(len, found)), len(rows), _TEXT)
    return rows, vectors, None, torch.cat(found)


def _read_map(
    model: Model, store: Store, rows: list[int], target: int, progress: Progress | None
) -> _Read:
    """The strongest position of each picture; pictures that cannot be read are left out."""
    read: list[int] = []
    parts = []
    for start in range(0, len(rows), _BATCH):
        pictures = []
        for row in rows[start : start + _BATCH]:
            with suppress(BadPicture):
                pictures.append(store.pictures.read(row, model.preprocessing))
                read.append(row)
        if pictures:
            parts.append(strongest_positions(model, store.layer, torch.stack(pictures), target))
        if progress is not None:
            progress(min(start + _BATCH, len(rows)), len(rows), _TEXT)
    if not read:
        raise UserError(f"no picture of {store.source['name']} can be read any more; give --data")
    vectors, positions, found = (torch.cat(column) for column in zip(*parts, strict=True))
    return read, vectors, positions, found


def strongest_positions(
    model: Model, layer: str, pictures: Tensor, target: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each picture the position of a layer with the largest attribution to a class.

    The attribution of a position is the gradient there of the class's logit less the mean logit,
    times the activation.

    Args:
        model: A model with a head.
        layer: A layer with a map.
        pictures: (N, 3, S, S).
        target: Index of the class.

    Returns:
        Activations (N, C), rows and columns (N, 2), attributions (N,).
    """
    place = model.layer(layer)
    with torch.enable_grad(), frozen(model):
        seen = pictures.to(model.device).requires_grad_(True)
        found = activations(model, seen, [place.name, "logits"])
        (slope,) = torch.autograd.grad(
            attribution(found["logits"], target).sum(), found[place.name]
        )
    h = found[place.name].detach()
    each = (h * slope).sum(1).flatten(1)  # (N, H * W)
    best = each.argmax(1)
    rows = torch.arange(len(h), device=h.device)
    return (
        h.flatten(2)[rows, :, best].float().cpu(),
        torch.stack([best // h.shape[3], best % h.shape[3]], 1).cpu(),
        each[rows, best].float().cpu(),
    )
