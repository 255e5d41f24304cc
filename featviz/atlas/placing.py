"""New rows on an existing map: each by itself, the map unchanged.

Poličar, Stražar and Zupan 2023, "Embedding to reference t-SNE space addresses batch effects in
single-cell classification" (Machine Learning 112:721): a new point starts at the median of its
neighbors' positions and minimizes the divergence of its own 25 neighbors, perplexity 5, from the
fixed map. New points do not act on one another, so their order and number do not matter. The
repulsion of the map is a potential that is computed once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.atlas.affinities import conditional
from featviz.atlas.layout import FEWEST, Layout, frame
from featviz.atlas.tsne import Repulsion, momentum_step
from featviz.errors import UserError
from featviz.neighbors.exact import Index

if TYPE_CHECKING:
    from featviz.neighbors.approximate import ApproximateIndex
    from featviz.neighbors.exact import Excluded
    from featviz.types import Progress

NEIGHBORS = 25
PERPLEXITY = 5.0
STEPS = 250
EXAGGERATION = 1.5
LEARNING_RATE = 0.1
LONGEST_GRADIENT = 0.25
_MARGIN = 20.0
"""around the map, in t-SNE's units, over which the potential is computed too"""
_BLOCK = 4096


def place_rows(
    layout: Layout,
    index: Index | ApproximateIndex,
    vectors: Tensor,
    *,
    k: int = NEIGHBORS,
    perplexity: float = PERPLEXITY,
    steps: int = STEPS,
    exclude: Excluded = None,
    progress: Progress | None = None,
) -> Tensor:
    """Positions of new rows on a map.

    Args:
        layout: The map.
        index: The rows that it shows; an approximate index where they are many.
        vectors: The new rows (M, dim).
        k: Neighbors on the map that attract a new point; with more it is nearer to the middle of
            its cluster.
        perplexity: How many of them it tries to keep.
        steps: Of gradient descent from the median of their positions; 0 leaves it there.
        exclude: For each new row one of the map that must not attract it (itself, if it is there),
            or -1.
        progress: Called with the rows placed.

    Returns:
        (M, 2) float32, scaled as `layout.xy`; a row may be a little outside [0, 1].

    Raises:
        UserError: The layout is of other rows than the index, or the vectors are of another width.
    """
    count = len(index)
    if len(layout.raw) != count:
        raise UserError(f"a map of {len(layout.raw)} rows and an index of {count}; take its own")
    if not len(vectors):
        return torch.empty(0, 2)
    distances, rows = index.search(vectors, k, exclude=exclude, progress=progress)
    if bool((rows < 0).any()):
        raise UserError(f"the index finds fewer than {k} neighbors of a row; take an exact one")
    metric = index.metric if isinstance(index, Index) else index.rows.metric
    squares = 2 * distances if metric == "cosine" else distances.square()
    middle, side = frame(layout.raw)
    if count < FEWEST:
        found = layout.raw[rows].median(1).values
        return ((found - middle) / side + 0.5).float()
    p = conditional(squares, min(perplexity, rows.shape[1])) * EXAGGERATION
    fixed = layout.raw.T.double().contiguous()
    potential = Repulsion().potential(fixed, _MARGIN)
    parts = []
    for number, part in enumerate(torch.arange(len(rows)).split(_BLOCK)):
        anchors = fixed[:, rows[part]]  # (2, M, k)
        y = anchors.median(2).values
        gains, velocity = torch.ones_like(y), torch.zeros_like(y)
        for _ in range(steps):
            apart = y[:, :, None] - anchors
            pull = (apart * (p[part] / (1 + apart.square().sum(0)))).sum(2)
            phi, away = potential.at(y)
            gradient = pull - away / phi
            gradient *= LONGEST_GRADIENT / gradient.norm(dim=0).clamp_min(LONGEST_GRADIENT)
            velocity, gains = momentum_step(velocity, gains, LEARNING_RATE, gradient)
            y = y + velocity
        parts.append(y.T)
        if progress is not None:
            progress(min((number + 1) * _BLOCK, len(rows)), len(rows), "placing")
    return ((torch.cat(parts) - middle) / side + 0.5).float()
