"""New rows on a map that is there: each by itself, the map as it was.

Poličar, Stražar and Zupan 2023, "Embedding to reference t-SNE space addresses batch effects in
single-cell classification" (Machine Learning 112:721): a new point starts at the median of its
neighbours' places and descends the divergence of its own 25 neighbours, perplexity 5, from the
fixed map. No new point acts on another, so where one lands does not depend on the company it
comes in, and each costs the same. The map repels by a potential that is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.atlas.affinities import conditional
from featviz.atlas.layout import FEWEST, Layout, frame
from featviz.atlas.tsne import Repulsion
from featviz.errors import UserError

if TYPE_CHECKING:
    from featviz.neighbors.exact import Excluded, Index

NEIGHBORS = 25
PERPLEXITY = 5.0
ITERATIONS = 250
EXAGGERATION = 1.5
LEARNING_RATE = 0.1
LONGEST_GRADIENT = 0.25
_MOMENTUM = 0.8
_MARGIN = 20.0
"""round the map, in t-SNE's units, where new points may still feel their way"""
_BLOCK = 4096


def place(
    layout: Layout,
    index: Index,
    vectors: Tensor,
    *,
    k: int = NEIGHBORS,
    perplexity: float = PERPLEXITY,
    iterations: int = ITERATIONS,
    exclude: Excluded = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Tensor:
    """Where new rows belong on a map: (M, 2) float32 on the terms of `layout.xy`.

    layout, index: the map, and the rows it shows
    vectors: the new rows (M, dim)
    k: neighbours on the map that draw a new point; more keep it nearer to the middle of its island
    perplexity: how many of them it tries to keep
    iterations: steps from the median of their places; 0 leaves it there
    exclude: for each new row one of the map that must not draw it (itself, if it is there), or -1

    A row that belongs to the rim may lie a little outside [0, 1]. Raises UserError for a layout of
    other rows than the index, and for vectors of another width.
    """
    count = len(index)
    if len(layout.raw) != count:
        raise UserError(f"a map of {len(layout.raw)} rows and an index of {count}; take its own")
    if not len(vectors):
        return torch.empty(0, 2)
    distances, rows = index.search(vectors, k, exclude=exclude, progress=progress)
    squares = 2 * distances if index.metric == "cosine" else distances.square()
    middle, side = frame(layout.raw)
    if count < FEWEST:
        found = layout.raw[rows].median(1).values
        return ((found - middle) / side + 0.5).float()
    held = conditional(squares, min(perplexity, rows.shape[1])) * EXAGGERATION
    fixed = layout.raw.T.double().contiguous()
    potential = Repulsion().potential(fixed, _MARGIN)
    parts = []
    for number, part in enumerate(torch.arange(len(rows)).split(_BLOCK)):
        anchors = fixed[:, rows[part]]  # (2, M, k)
        y = anchors.median(2).values
        gains, velocity = torch.ones_like(y), torch.zeros_like(y)
        for _ in range(iterations):
            apart = y[:, :, None] - anchors
            pull = (apart * (held[part] / (1 + apart.square().sum(0)))).sum(2)
            phi, away = potential.at(y)
            gradient = pull - away / phi
            gradient *= LONGEST_GRADIENT / gradient.norm(dim=0).clamp_min(LONGEST_GRADIENT)
            same = torch.sign(gradient) == torch.sign(velocity)
            gains = torch.where(same, gains * 0.8, gains + 0.2).clamp_min_(0.01)
            velocity = _MOMENTUM * velocity - LEARNING_RATE * gains * gradient
            y = y + velocity
        parts.append(y.T)
        if progress is not None:
            progress(min((number + 1) * _BLOCK, len(rows)), len(rows), "placing")
    return ((torch.cat(parts) - middle) / side + 0.5).float()
