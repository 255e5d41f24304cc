"""A unit's top activating pictures in clusters: the starts of its facets.

Comes in: a data set and units of a layer. Goes out: for each unit `Clusters`, by k-means on what a
layer encodes of the pictures (`diversity.codes`). Nguyen, Yosinski and Clune 2016, "Multifaceted
feature visualization".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.maximization.batches import seed_of
from featviz.maximization.diversity import codes, texture_layer
from featviz.models.layers import activations, read_layer
from featviz.models.model import Layer, Model
from featviz.models.units import Unit
from featviz.pictures import images
from featviz.top_scores import ImageCache, scan
from featviz.types import Progress

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures

# An example activates the unit at least this share of what the strongest does.
_STRONG = 1 / 3
# So many of a cluster's examples, nearest its center, are averaged and shown.
_NEAREST = 9
_EXAMPLE_SIDE = 96  # pixels of the examples that a result keeps


@dataclass(frozen=True)
class Cluster:
    """A cluster of a unit's top activating pictures."""

    size: int
    """how many examples it has"""
    paths: tuple[str, ...]
    """of those nearest its center"""
    examples: Tensor
    """(M, 3, P, P) uint8: the same, as the unit saw them"""
    start: Tensor
    """(3, S, S): their mean, where the optimization began"""


@dataclass(frozen=True)
class Clusters:
    """The clusters of a unit's examples."""

    clusters: tuple[Cluster, ...]
    centers: Tensor
    """(G, D): the mean code of each"""
    mean: Tensor
    """(D,): that of all examples"""
    layer: Layer
    """whose codes are clustered"""

    def nearest_is_own(self, model: Model, pictures: Tensor) -> Tensor:
        """(G,) bool: whether picture i (of G) is nearest to the center of cluster i."""
        nearest = torch.cdist(_codes(model, self.layer, pictures), self.centers).argmin(1)
        return nearest == torch.arange(len(pictures))


def cluster_examples(
    model: Model,
    place: Layer,
    units: Sequence[Unit],
    pictures: Pictures,
    side: int,
    count: int,
    examples: int,
    seed: int,
    progress: Progress | None,
) -> list[Clusters]:
    """Each unit's top activating pictures in `count` clusters, the largest first."""
    from sklearn.cluster import KMeans

    indices = [unit.index for unit in units]
    cache = ImageCache(model, pictures)

    def score(batch: Tensor) -> Tensor:
        values = activations(model, batch.to(model.device), [place.name])[place.name]
        if values.dim() == 3:  # tokens: (N, T, C)
            values = values.transpose(1, 2).unsqueeze(2)
        values = values[:, indices]
        return values if values.dim() == 4 else values[:, :, None, None]

    top = scan(cache, score, k=examples, progress=progress, text=f"examples of {place.name}")
    layer = _cluster_layer(model, place)
    out = []
    for u, unit in enumerate(units):
        strong = max(2 * count, int((top.values[u] >= _STRONG * top.values[u, 0]).sum()))
        rows, positions = top.rows[u, :strong].tolist(), top.positions[u, :strong].tolist()
        crops = torch.stack(
            [
                crop_example(cache.read(row), place, (y, x), side)
                for row, (y, x) in zip(rows, positions, strict=True)
            ]
        )
        found = _codes(model, layer, crops)
        means = KMeans(
            count, n_init=4, random_state=seed_of(seed, f"groups/{unit.index}") % 2**32
        ).fit(found.numpy())
        labels = torch.from_numpy(np.asarray(means.labels_)).long()
        # The largest first; of equals the one with the strongest example.
        first = {g: int((labels == g).nonzero()[0]) for g in range(count)}
        order = sorted(range(count), key=lambda g: (-int((labels == g).sum()), first[g]))
        members = [(labels == g).nonzero()[:, 0] for g in order]
        centers = torch.stack([found[rows_of].mean(0) for rows_of in members])
        clusters = []
        for rows_of, center in zip(members, centers, strict=True):
            distances = (found[rows_of] - center).square().sum(1)
            near = rows_of[distances.argsort(stable=True)][:_NEAREST]
            small = images.resize(crops[near], min(side, _EXAMPLE_SIDE))
            paths = tuple(pictures.paths[rows[i]] for i in near.tolist())
            start = crops[near].mean(0)
            clusters.append(Cluster(len(rows_of), paths, images.to_uint8(small), start))
        out.append(Clusters(tuple(clusters), centers, found.mean(0), layer))
    return out


def crop_example(picture: Tensor, place: Layer, position: tuple[int, int], side: int) -> Tensor:
    """The `side` x `side` pixels of (3, H, W) nearest around a position's receptive field."""
    field = place.receptive_field
    height, width = picture.shape[-2:]
    if not place.spatial or field is None or side >= min(height, width):
        return images.resize(picture[None], side)[0]
    top, left, bottom, right = field.box(*position)
    y = min(max(0, (top + bottom - side) // 2), height - side)
    x = min(max(0, (left + right - side) // 2), width - side)
    return picture[:, y : y + side, x : x + side]


def _cluster_layer(model: Model, place: Layer) -> Layer:
    """Whose codes are clustered: a map's own, for others the last layer before the logits."""
    vectors = [
        one
        for one in model.layers.values()
        if len(one.shape) == 1 and one.kind == "Linear" and one.name != "logits"
    ]
    return vectors[-1] if vectors and not place.spatial else texture_layer(model, place)


def _codes(model: Model, layer: Layer, pictures: Tensor) -> Tensor:
    """(N, D)."""
    return codes(read_layer(model, pictures.to(model.device), layer.name)).cpu()
