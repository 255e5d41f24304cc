"""`activation_grid`: one picture as a layer has it, position by position, and what follows for it.

grid        at some positions the picture that the layer's activation there asks for
concepts    maps of the concepts of a dictionary over the picture, or of the neuron groups that
            explain this picture's own activations (NMF)
dictionary  at the strongest positions the units of the largest values
attribution how much each position and each concept adds to each logit, gradient x activation

Olah et al., "The Building Blocks of Interpretability", Distill 2018
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from featviz import results
from featviz.arguments import Bounds
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.concepts.dictionary import Dictionary
from featviz.concepts.effects import concept_effects, logit_gradients
from featviz.concepts.grid_measured import Attribution, Spot
from featviz.concepts.grid_result import ActivationGrid
from featviz.concepts.parts import code_maps, like_layer, parts_of, rows_of
from featviz.concepts.result import Concepts, open_concepts
from featviz.errors import UserError, public
from featviz.maximization.maximize import maximize, maximize_directions
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.rest import rest_of
from featviz.types import BatchSize, Count, Engine, Progress, Seed, Steps, seed_32
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model

Cells = Annotated[int, Bounds(1, 64)]
"""of a grid, a side"""
_STEPS = 64
"""of the icons: a first look"""
_SPOTS, _UNITS, _LOGITS = 4, 5, 5


@public
def activation_grid(
    model: Model,
    picture: Tensor,
    layer: str,
    *,
    concepts: Concepts | str | Path | None = None,
    groups: Count = 6,
    cells: Cells = 7,
    classes: Sequence[int | str] | None = None,
    steps: Steps = _STEPS,
    name: str = "picture",
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    checkpoint: str | Path | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> ActivationGrid:
    """What each position of a layer has seen in a picture, and which logits it leads to.

    Args:
        model: The model.
        picture: (C, H, W) in [0, 1].
        layer: A layer of maps; of the values behind a ReLU ("relu5") all is positive.
        concepts: Directions that are shown as maps, found in many pictures (`find_concepts`), or
            their folder. Default: neuron groups of this picture.
        groups: So many neuron groups.
        cells: Rows and columns of the grid at most; of more positions they are evenly spread.
        classes: Whose logits are attributed, by name or index; default: the five largest.
        steps: Of the maximized pictures; 256 are finer.
        name: Of the picture, for titles.
        seed: Of the maximized pictures and the groups.
        batch_size: Versions of the activations that are computed at once.
        checkpoint: A folder in which finished pictures are kept, and from which the same call goes
            on after it was stopped; the caller removes it.
        engine: "here", or "ray": pictures are made by a Ray cluster.
        progress: Called with (done, total, text).

    Raises:
        UserError: The layer has no rows and columns, the concepts are of another layer or model, a
            class is unknown, or nothing in the layer is above zero.

    Example:
        >>> picture = featviz.read_picture("dog.jpg", model.preprocessing)
        >>> featviz.activation_grid(model, picture, "relu5").save("run/grid")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    if not place.spatial:
        raise UserError(
            f"{place.name} has no rows and columns, so there is no grid; name a layer of maps, as "
            "the convolutions are"
        )
    pictures = model.check(picture, single=True)
    if len(pictures) != 1:
        raise UserError(
            f"{counted(len(pictures), 'picture')}: a grid is of one; give them one by one"
        )
    chosen = None if classes is None else [model.class_index(one) for one in classes]
    found = open_concepts(concepts) if isinstance(concepts, str | Path) else concepts
    if found is not None:
        found.check_model(model)
        if found.layer != place.name:
            raise UserError(f"the concepts are of {found.layer}, the grid of {place.name}")
    with torch.no_grad():
        values = activations(model, pictures, [place.name])[place.name]
    if not bool((values > 0).any()):
        raise UserError(f"nothing in {place.name} is above zero for this picture")
    rows = rows_of(values, place)[0].cpu()
    dictionary = neuron_groups(rows, groups, seed) if found is None else found.dictionary
    names = (
        tuple(f"group {i + 1}" for i in range(len(dictionary))) if found is None else found.names
    )
    parameters = {"layer": place.name, "groups": groups if found is None else None, "cells": cells}
    parameters |= {"steps": steps, "picture": name}
    job = parameters | {"model": model.sha256, "seed": seed, "values": rows.sum(0).tolist()}
    job["directions"] = dictionary.directions.sum(0).tolist()
    at = _spread(place, cells)
    spots = _spots(values[0].cpu())
    with frozen(model), open_checkpoint(checkpoint, job, engine=engine) as kept:
        draw = _Icons(model, place, steps, seed, kept, progress)
        cell_icons = draw.directions("grid", rows[at.flatten()])
        icons = draw.directions("concepts", dictionary.directions)
        unit_icons = draw.units(sorted({unit for spot in spots for unit, _ in spot.units}))
        attribution = None
        if not model.headless:
            attribution = _attribution(
                model, place, pictures, values, dictionary, chosen, batch_size
            )
    maps = code_maps(values, place, dictionary)[0].cpu()
    left = rows - maps.flatten(1).T @ dictionary.directions
    return ActivationGrid(
        origin=results.origin(model, parameters=parameters, started=started, seed=seed),
        warnings=(
            *(
                [f"{place.name} has values below zero; groups and sizes are of those above"]
                if bool((rows < 0).any())
                else []
            ),
            *([] if attribution else [f"{model.name} has no logits: nothing is attributed"]),
        ),
        model_name=model.name,
        layer=place.name,
        name=name,
        picture=pictures[0].cpu(),
        field=place.receptive_field,
        strength=values[0].cpu().clamp(min=0).norm(dim=0),
        cells=at,
        cell_icons=cell_icons.unflatten(0, at.shape),
        concepts=names,
        maps=maps,
        icons=icons,
        explained=1 - float(left.square().sum() / rows.square().sum()),
        classes=model.class_names,
        attribution=attribution,
        spots=spots,
        unit_icons=unit_icons,
    )


def neuron_groups(rows: Tensor, count: int, seed: int) -> Dictionary:
    """Directions of which the rows (P, C) of one picture are sums: NMF of what is above zero."""
    from sklearn.decomposition import NMF

    above = rows.clamp(min=0).numpy()
    count = min(count, *above.shape)
    model = NMF(count, init="nndsvda", random_state=seed_32(seed), max_iter=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: the codes are computed anew
        weight = torch.from_numpy(model.fit_transform(above)).float()
    found = torch.from_numpy(model.components_).float()
    norms = found.norm(dim=1)
    kept = (norms > 0) & (weight.sum(0) > 0)
    order = (weight.norm(dim=0) * norms)[kept].argsort(descending=True, stable=True)
    directions = (found[kept] / norms[kept, None])[order]
    return Dictionary("nmf", directions, torch.zeros(rows.shape[1]))


def _spread(place: Layer, cells: int) -> Tensor:
    """(n, m): numbers of the positions that the grid shows, evenly spread over the map."""
    height, width = place.shape[1:]
    ys, xs = (
        torch.tensor(
            [(2 * i + 1) * side // (2 * min(cells, side)) for i in range(min(cells, side))]
        )
        for side in (height, width)
    )
    return ys[:, None] * width + xs


def _spots(values: Tensor) -> tuple[Spot, ...]:
    """The strongest positions of activations (C, h, w), no two of them neighbors."""
    strength = values.clamp(min=0).norm(dim=0)
    width = strength.shape[1]
    found: list[Spot] = []
    for number in strength.flatten().argsort(descending=True, stable=True).tolist():
        y, x = divmod(number, width)
        near = any(max(abs(y - one.y), abs(x - one.x)) < 2 for one in found)
        if near or float(strength[y, x]) <= 0 or len(found) == _SPOTS:
            continue
        best = values[:, y, x].topk(min(_UNITS, len(values)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found.append(Spot(y, x, tuple((unit, value) for unit, value in pairs if value > 0)))
    return tuple(found)


@dataclass(frozen=True)
class _Icons:
    """Makes maximized pictures of directions and of units, with the settings of units."""

    model: Model
    place: Layer
    steps: int
    seed: int
    kept: Checkpoint
    progress: Progress | None

    def directions(self, name: str, directions: Tensor) -> Tensor:
        """(N, 3, S, S); gray where a direction is zero."""
        some = directions.norm(dim=1) > 0
        made = maximize_directions(
            self.model,
            self.place.name,
            directions[some],
            width="auto",
            steps=self.steps,
            seed=self.seed,
            checkpoint=self.kept.part(name),
            progress=self.progress,
        ).images
        pictures = torch.full((len(directions), *made.shape[1:]), 0.5)
        pictures[some] = made
        return pictures

    def units(self, units: Sequence[int]) -> dict[int, Tensor]:
        """The picture of each unit."""
        made = maximize(
            self.model,
            self.place.name,
            units=list(units),
            steps=self.steps,
            seed=self.seed,
            checkpoint=self.kept.part("units"),
            progress=self.progress,
        ).images
        return dict(zip(units, made, strict=True))


def _attribution(
    model: Model,
    place: Layer,
    picture: Tensor,
    values: Tensor,
    dictionary: Dictionary,
    classes: Sequence[int] | None,
    batch_size: int,
) -> Attribution:
    """Of some logits: what each concept adds, what each position adds, and their sum."""
    with torch.no_grad():
        logits = model(picture)[0]
    top = logits.topk(min(_LOGITS, len(logits))).indices
    chosen = top if classes is None else torch.tensor(list(classes), device=top.device)
    rest = rest_of(model, place, picture)
    products = (logit_gradients(rest, values, chosen) * values).flatten(2)  # (L, C, P)
    codes = dictionary.encode(rows_of(values, place)[0])
    parts = like_layer(parts_of(codes, dictionary.directions.to(codes.device)), values, place)
    left = values - parts.sum(0, keepdim=True)
    effects = concept_effects(rest, values, torch.cat([parts, left]), batch_size=batch_size)
    gradient, removal = (one[:, chosen].T.cpu() for one in effects)
    return Attribution(
        targets=tuple(chosen.tolist()),
        logits=logits[chosen].cpu(),
        concepts=gradient[:, :-1],
        rest=gradient[:, -1],
        removal=removal[:, :-1],
        positions=products.sum(1).unflatten(1, place.shape[1:]).cpu(),
        total=products.double().sum((1, 2)).float().cpu(),
    )
