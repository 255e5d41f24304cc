"""How good a space's neighbors are: whether they share a class, hubs, and near-duplicates.

Measured on the exact neighbors of some rows, spread evenly over the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featviz.neighbors.exact import Index, block_scores, for_search, spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

DUPLICATE = 0.01
"""cosine distance below which two rows are named as near-duplicates"""
_SHUFFLES = 10
_RANKED = 500
"""rows over which mean average precision is taken; each is compared with all others"""


@dataclass(frozen=True)
class Quality:
    """How well neighbors share the class of a row, over the rows whose class has others."""

    precision: Mapping[int, float]
    """k to the share of the k nearest that are of the same class"""
    shuffled: Mapping[int, float]
    """the same with the classes shuffled over the rows: what chance gives"""
    average_precision: float
    """mean over rows of the average precision of the whole ranking (mAP)"""
    average_precision_shuffled: float
    by_class: Mapping[str, tuple[int, float, float]]
    """class folder to its rows, precision at the largest k, mean average precision (or NaN)"""
    rows: int
    ranked: int
    """rows over which average precision is taken"""
    classes: int
    k: int


@dataclass(frozen=True)
class Oddities:
    """Rows that are neighbors of far more others than the average, and near-duplicates."""

    hubs: tuple[tuple[int, int], ...]
    """(row, how many of the rows looked at have it among their k nearest), most first"""
    skewness: float
    """of that count over all rows; 0 is even, above 1 the space has hubs (Radovanović et al. 2010,
    "Hubs in space", eq. 1)"""
    duplicates: tuple[tuple[int, int, float], ...]
    """(row, its nearest, cosine distance) below `DUPLICATE`, each pair once, nearest first"""
    rows: int
    """that were looked at"""
    k: int


def measure_quality(
    index: Index, labels: Sequence[str], k: int, most: int, seed: int
) -> tuple[Quality | None, Oddities | None]:
    """Class agreement and oddities of the neighbors of `most` rows of an index.

    Quality is None where no class has two rows; both are None where there are no two rows.
    """
    k = min(k, len(index) - 1)
    if k < 1:
        return None, None
    looked = spread(len(index), most)
    distances, found = index.search(index.take(looked), k, exclude=looked)
    odd = _oddities(index, looked, distances.numpy(), found.numpy(), k)
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    sizes = np.bincount(codes)
    named = np.array([bool(label) for label in labels])
    able = np.flatnonzero(named & (sizes[codes] > 1))
    if not able.size:
        return None, odd
    measured = able[spread(able.size, most)]
    rows = (
        found.numpy()
        if np.array_equal(measured, looked)
        else index.search(index.take(measured), k, exclude=measured)[1].numpy()
    )
    ks = sorted({1, min(5, k), k})
    ranked = measured[spread(measured.size, _RANKED)]
    order = rankings(index, ranked)
    generator = np.random.default_rng(seed)
    chance, chance_average = dict.fromkeys(ks, 0.0), 0.0
    for _ in range(_SHUFFLES):
        mixed = codes.copy()
        mixed[able] = generator.permutation(codes[able])
        for at in ks:
            chance[at] += precision(mixed, measured, rows, at) / _SHUFFLES
        chance_average += float(average_precision(mixed, ranked, order).mean()) / _SHUFFLES
    average = average_precision(codes, ranked, order)
    return (
        Quality(
            precision={at: precision(codes, measured, rows, at) for at in ks},
            shuffled=chance,
            average_precision=float(average.mean()),
            average_precision_shuffled=chance_average,
            by_class=_by_class(labels, codes, measured, rows, ranked, average),
            rows=measured.size,
            ranked=ranked.size,
            classes=int(np.unique(codes[measured]).size),
            k=k,
        ),
        odd,
    )


def precision(
    codes: NDArray[np.int64], measured: NDArray[np.int64], rows: NDArray[np.int64], k: int
) -> float:
    """Share of the k nearest of `rows` (Q, >= k) that are of the class of its row (Q,)."""
    return float((codes[rows[:, :k]] == codes[measured][:, None]).mean())


def rankings(index: Index, queried: NDArray[np.int64]) -> NDArray[np.int64]:
    """All other rows of the index, nearest first, for each row queried: (Q, N - 1), in float32."""
    queries = torch.from_numpy(for_search(index.take(queried).numpy(), index.metric))
    blocks = map(torch.from_numpy, index.search_blocks())
    score = torch.cat([block_scores(queries, rows, index.metric) for rows in blocks], 1)
    own = torch.from_numpy(queried)
    score[torch.arange(len(queried)), own] = torch.inf  # first, and cut off
    order: NDArray[np.int64] = score.argsort(dim=1, descending=True, stable=True)[:, 1:].numpy()
    return order


def average_precision(
    codes: NDArray[Any], queried: NDArray[np.int64], order: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each ranking (Q, N): the mean of the precision at every row of the queried row's class."""
    hits = codes[order] == codes[queried][:, None]
    ranks = np.arange(1, order.shape[1] + 1)
    at_hits = np.where(hits, np.cumsum(hits, 1) / ranks, 0).sum(1)
    found: NDArray[np.float64] = at_hits / np.maximum(hits.sum(1), 1)
    return found


def _by_class(
    labels: Sequence[str],
    codes: NDArray[np.int64],
    measured: NDArray[np.int64],
    rows: NDArray[np.int64],
    ranked: NDArray[np.int64],
    average: NDArray[np.float64],
) -> dict[str, tuple[int, float, float]]:
    same = (codes[rows] == codes[measured][:, None]).mean(1)
    table = {}
    for code in np.unique(codes[measured]):
        own, own_ranked = codes[measured] == code, codes[ranked] == code
        label = labels[int(measured[own][0])]
        mean = float(average[own_ranked].mean()) if own_ranked.any() else float("nan")
        table[label] = (int(own.sum()), float(same[own].mean()), mean)
    return table


def _oddities(
    index: Index,
    looked: NDArray[np.int64],
    distances: NDArray[np.float64],
    found: NDArray[np.int64],
    k: int,
) -> Oddities:
    from scipy.stats import skew

    times = np.bincount(found.ravel(), minlength=len(index))
    skewness = float(skew(times)) if times.std() > 0 else 0.0
    hubs = np.argsort(-times, kind="stable")[:10]
    if index.metric == "cosine":
        near = distances[:, 0]
    else:  # as directions in any metric
        pairs = index.take(looked).numpy(), index.take(found[:, 0]).numpy()
        one, other = (for_search(x, "cosine").astype(np.float64) for x in pairs)
        near = 1 - (one * other).sum(1)
    pairs_seen: dict[tuple[int, int], float] = {}
    for row, other_row, distance in zip(looked, found[:, 0], near, strict=True):
        if distance < DUPLICATE and index.norms[row] > 0:
            pair = (min(int(row), int(other_row)), max(int(row), int(other_row)))
            pairs_seen.setdefault(pair, float(distance))
    duplicates = sorted((d, *pair) for pair, d in pairs_seen.items())
    return Oddities(
        hubs=tuple((int(row), int(times[row])) for row in hubs if times[row]),
        skewness=skewness,
        duplicates=tuple((a, b, d) for d, a, b in duplicates),
        rows=looked.size,
        k=k,
    )
