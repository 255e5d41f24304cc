"""Two spaces of the same pictures, two layers or two models, as maps that can be compared.

t-SNE's maps are not canonical: rotated, mirrored or started elsewhere they are as good. So the
second map starts from the first ("start"), or is made on its own and then aligned to the first
("procrustes": shift, scale, rotation and reflection only). The agreement of the two spaces does not
depend on any map: it is the fraction of a picture's nearest neighbors that they share.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import results
from featviz.atlas.aligned_result import AlignedMaps, How, Side
from featviz.atlas.graph import build_graph, neighbors_wanted
from featviz.atlas.layout import Layout, LayoutSettings, lay_out, to_unit_square
from featviz.atlas.metrics import NEIGHBORS, is_among, map_neighbors, map_quality, procrustes
from featviz.checkpoints import open_checkpoint
from featviz.data.datasets import evenly
from featviz.errors import UserError, public
from featviz.neighbors.exact import build_index
from featviz.types import Most, Progress, Seed
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.embedding.store import Store

MOST = 20_000
"""pictures on the maps; of more an even sample is shown"""


@public
def align_maps(
    first: Store,
    second: Store,
    *,
    how: How = "start",
    layout: LayoutSettings = LayoutSettings(),
    most: Most = MOST,
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> AlignedMaps:
    """Lay out two stores of the same pictures so that their maps can be compared.

    Args:
        first: A store of one layer or model.
        second: A store of another. Pictures are matched by their paths, and those that only one
            store has are left out.
        how: "start": the second layout starts from the first and is aligned to it; "procrustes": it
            is only aligned. Both distances are measured.
        layout: How both are laid out.
        most: Of more common pictures an even sample is shown.
        seed: Of both layouts.
        checkpoint: As in `featviz.build_atlas`, for neighbors and layouts.
        progress: Called as (done, total, text).

    Raises:
        UserError: The stores have fewer than 3 pictures in common.
    """
    started = time.perf_counter()
    if how not in ("start", "procrustes"):
        raise UserError(f"unknown alignment {how!r}; take start or procrustes")
    rows, warnings = _matched(first, second, most)
    k = min(NEIGHBORS, len(rows[0]) - 1)
    indices = [
        build_index(store.take(some)) for store, some in zip((first, second), rows, strict=True)
    ]
    parameters = {
        "how": how,
        "perplexity": layout.perplexity,
        "exaggeration": layout.exaggeration,
        "method": layout.method,
        "most": most,
    }
    job = {
        **parameters,
        "steps": layout.steps,
        "seed": seed,
        "rows": [rows, first.digest, second.digest],
    }
    with open_checkpoint(checkpoint, job) as kept:
        graphs = [
            build_graph(
                index,
                neighbors_wanted(len(index), layout.perplexity),
                progress,
                kept=kept.part(f"graph-{number}"),
            )
            for number, index in enumerate(indices)
        ]

        def laid_out(number: int, name: str, init: Tensor | None = None) -> Layout:
            return lay_out(
                indices[number],
                layout,
                graph=graphs[number],
                init=init,
                seed=seed,
                kept=kept.part(name),
                progress=progress,
            )

        maps = [laid_out(0, "first"), laid_out(1, "second")]
        apart, aligned = procrustes(maps[0].xy, maps[1].xy)
        distance = apart
        if how == "start":
            maps[1] = laid_out(1, "second-from-first", maps[0].raw)
            distance, aligned = procrustes(maps[0].xy, maps[1].xy)
    xy = _in_one_square(maps[0].xy.double(), aligned)
    sides = [
        Side(
            store=store,
            rows=tuple(some),
            quality=map_quality(index, laid.xy, graph=graph),
            xy=points,
        )
        for store, some, laid, graph, index, points in zip(
            (first, second), rows, maps, graphs, indices, xy, strict=True
        )
    ]
    near = [graph.nearest(k).rows for graph in graphs]
    shown = [map_neighbors(laid.xy, k) for laid in maps]
    made = results.origin(
        None,
        parameters={
            **parameters,
            "steps": list(maps[0].steps),
            "layer": first.layer,
            "beside_layer": second.layer,
            "store": first.folder,
            "beside": second.folder,
            "beside_model": second.origin.model,
        },
        started=started,
        seed=seed,
        base=first.origin,
    )
    return AlignedMaps(
        origin=made,
        warnings=(*warnings, *maps[0].warnings, *maps[1].warnings),
        first=sides[0],
        second=sides[1],
        k=k,
        how=how,
        distance=distance,
        apart=apart,
        shared=is_among(near[0], near[1]).double().mean(1),
        shared_map=is_among(shown[0], shown[1]).double().mean(1),
        moved=(xy[0] - xy[1]).norm(dim=1),
    )


def _matched(
    first: Store, second: Store, most: int
) -> tuple[tuple[list[int], list[int]], tuple[str, ...]]:
    """Rows of both stores that show the same pictures, in the first's order, and warnings."""
    there = {path: row for row, path in enumerate(second.pictures.paths)}
    pairs = [(row, there[path]) for row, path in enumerate(first.pictures.paths) if path in there]
    if len(pairs) < 3:
        raise UserError(
            f"the stores have {counted(len(pairs), 'picture')} in common (by their paths); embed "
            "the same data with both layers or models"
        )
    warnings = []
    alone = len(first) + len(second) - 2 * len(pairs)
    if alone:
        warnings.append(f"left out: {counted(alone, 'picture')} that only one of the stores has")
    if len(pairs) > most:
        warnings.append(f"an even sample is shown: {most} of {counted(len(pairs), 'picture')}")
        pairs = [pairs[i] for i in evenly(len(pairs), most)]
    return ([a for a, _ in pairs], [b for _, b in pairs]), tuple(warnings)


def _in_one_square(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (N, 2), the second scaled to the size of the first, both in [0, 1].

    Procrustes shrinks a map that has little in common with the other, beyond what can be read.
    """
    left, right = (points - points.mean(0) for points in (first, second))
    right = right * (left.norm() / right.norm().clamp_min(1e-30))
    both = to_unit_square(torch.cat([left, right])).double()
    return both[: len(first)], both[len(first) :]
