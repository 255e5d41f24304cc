"""Two coordinates for each row of a space: t-SNE from exact neighbours.

Settings follow Kobak and Berens 2019 ("The art of using t-SNE for single-cell transcriptomics",
Nature Communications 10:5416): start at the first two principal components shrunk to a standard
deviation of 1e-4, learning rate n/12 (not below 200) throughout, perplexity 30 but no more than a
third of the others. openTSNE optimises it; scikit-learn's t-SNE answers where openTSNE is absent.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz.atlas.graph import Graph, build_graph, neighbors_wanted
from featviz.errors import UserError
from featviz.neighbors.exact import Index, build_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featviz.embedding.store import Store
    from featviz.neighbors.exact import Metric

START_SPREAD = 1e-4
MOMENTUM = 0.8
EARLY_EXAGGERATION = 12.0
MANY = 100_000
"""rows from which clusters are drawn tighter"""
FEWEST = 8
"""with fewer rows than this t-SNE has nothing to weigh up; the principal components are the map"""


@dataclass(frozen=True)
class Layout:
    """Where each row is on the map."""

    xy: Tensor
    """(N, 2) float32 in [0, 1], y downwards; both axes have the same scale"""
    raw: Tensor
    """(N, 2) float64 as optimised, in t-SNE's own units; `xy` is it shifted and scaled"""
    start: Tensor
    """(N, 2) the principal components it began from, on the same terms"""
    method: str
    perplexity: float
    iterations: tuple[int, int]
    """with early exaggeration, and after it"""
    divergence: float | None
    """the Kullback-Leibler divergence reached, None for principal components"""
    seed: int


def lay_out(
    space: Store | Index | Tensor,
    *,
    metric: Metric = "cosine",
    graph: Graph | None = None,
    perplexity: float = 30.0,
    iterations: tuple[int, int] = (250, 750),
    exaggeration: float | None = None,
    method: str = "auto",
    begin: Tensor | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Layout:
    """A map of the rows in which neighbours stay together.

    space: a store, an index, or a matrix (N, dim)
    graph: its neighbours, where they were found before (`featviz.atlas.graph.build_graph`)
    perplexity: about how many neighbours each row tries to keep; 5 to 100. Small data: capped at
        (N - 1) / 3
    iterations: steps with early exaggeration (forms the islands), then without (settles them)
    exaggeration: of the second part. 1 is plain t-SNE, the default below 100,000 rows; 4, the
        default from there on, draws clusters tighter so that they do not fray
    method: "openTSNE", "scikit-learn", or "auto", the first of them that is installed
    begin: (N, 2) where to start instead of at the principal components, at any scale: another map
        of the same rows, so that this one is arranged as that is
    seed: of the tie-breaking inside; the same seed gives the same bytes on one machine

    Distances between islands, their sizes and empty space mean little on a t-SNE map.
    Raises UserError for fewer than 2 rows and unknown methods.
    """
    index = space if isinstance(space, Index) else build_index(space, metric=metric)
    count = len(index)
    if count < 2:
        raise UserError(f"a map needs at least 2 pictures, there are {count}")
    if exaggeration is None:
        exaggeration = 1.0 if count < MANY else 4.0
    if perplexity < 1 or exaggeration < 1:
        raise UserError(f"perplexity {perplexity} and exaggeration {exaggeration} are at least 1")
    if graph is not None and len(graph) != count:
        raise UserError(f"a graph of {len(graph)} rows for a space of {count}; build it anew")
    chosen = _choose(method)
    vectors = _vectors(index)
    start = principal_components(vectors, seed=seed)
    unfolded = to_unit_square(start)
    if count < FEWEST:
        return Layout(unfolded, start, unfolded, "principal components", 0.0, (0, 0), None, seed)
    capped = min(perplexity, (count - 1) / 3)
    if begin is not None and begin.shape != start.shape:
        raise UserError(f"a map of {count} rows cannot begin at {tuple(begin.shape)} positions")
    first = start if begin is None else begin.to(start) - begin.to(start).mean(0)
    initial = first / max(float(first[:, 0].std()), 1e-30) * START_SPREAD
    # t-SNE makes much of the last bit, and linear algebra does not promise it: round it away.
    initial = initial.float().double()
    if graph is None:
        graph = build_graph(index, neighbors_wanted(count, capped), progress)
    run = _open_tsne if chosen == "openTSNE" else _scikit_learn
    found, divergence = run(
        graph, vectors, initial.numpy(), capped, iterations, exaggeration, seed, progress
    )
    name = f"{chosen} {importlib.metadata.version(chosen)}"
    raw = torch.from_numpy(found)
    return Layout(to_unit_square(raw), raw, unfolded, name, capped, iterations, divergence, seed)


def _choose(method: str) -> str:
    packages = {"openTSNE": "openTSNE", "scikit-learn": "sklearn"}
    if method == "auto":
        here = [name for name, package in packages.items() if importlib.util.find_spec(package)]
        if here:
            return here[0]
        raise UserError("a map needs openTSNE or scikit-learn; pip install openTSNE")
    if method not in packages:
        raise UserError(f"unknown layout method {method!r}; take auto, openTSNE or scikit-learn")
    if importlib.util.find_spec(packages[method]) is None:
        raise UserError(f"{method} is not installed; pip install {method}, or take another method")
    return method


def _vectors(index: Index) -> Tensor:
    """The rows (N, dim) in which Euclidean distance orders neighbours as the metric does."""
    rows = index.take(np.arange(len(index)))
    if index.metric == "l2":
        return rows
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return unit


def principal_components(vectors: Tensor, *, seed: int = 0) -> Tensor:
    """Coordinates (N, 2) on the two main axes; each axis points where its largest entry is."""
    from sklearn.utils.extmath import randomized_svd

    centred = (vectors - vectors.mean(0)).double().numpy()
    if not np.any(centred):
        return torch.zeros(len(vectors), 2, dtype=torch.float64)
    u, s, _ = randomized_svd(centred, 2, n_iter=7, random_state=seed, flip_sign=False)
    coordinates = np.zeros((len(vectors), 2))
    coordinates[:, : s.size] = u * s
    largest = np.abs(coordinates).argmax(0)
    signs = np.sign(coordinates[largest, [0, 1]])
    return torch.from_numpy(coordinates * np.where(signs == 0, 1, signs))


def to_unit_square(xy: Tensor) -> Tensor:
    """Coordinates shifted and scaled into [0, 1], the longer side filling it, as float32."""
    low, high = xy.double().min(0).values, xy.double().max(0).values
    side = float((high - low).max())
    middle = (low + high) / 2
    scaled = (xy.double() - middle) / (side if side > 0 else 1.0) + 0.5
    return scaled.clamp(0, 1).float()


def _open_tsne(
    graph: Graph,
    vectors: Tensor,
    initial: NDArray[np.float64],
    perplexity: float,
    iterations: tuple[int, int],
    exaggeration: float,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[NDArray[np.float64], float]:
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    near = graph.nearest(min(graph.k, max(1, math.floor(3 * perplexity))))
    total = sum(iterations)
    # One thread below 10,000 rows: faster there, and nothing depends on how threads add up.
    threads = 1 if len(graph) < 10_000 else -1
    affinities = PerplexityBasedNN(
        knn_index=PrecomputedNeighbors(near.rows.numpy(), near.lengths.numpy()),
        perplexity=perplexity,
        n_jobs=threads,
    )
    embedding = TSNEEmbedding(
        initial.copy(),
        affinities,
        negative_gradient_method="bh" if len(graph) < 10_000 else "fft",
        n_jobs=threads,
        random_state=seed,
    )
    done = 0

    def show(iteration: int, error: float, _embedding: Any) -> None:
        if progress is not None:
            progress(done + iteration, total, "laying out")

    settings = {
        "learning_rate": max(200.0, len(graph) / 12),
        "momentum": MOMENTUM,
        "inplace": True,
        "callbacks": show,
        "callbacks_every_iters": 10,
        "use_callbacks": True,
    }
    embedding.optimize(iterations[0], exaggeration=EARLY_EXAGGERATION, **settings)
    done = iterations[0]
    embedding.optimize(iterations[1], exaggeration=exaggeration, **settings)
    return np.asarray(embedding, dtype=np.float64), float(embedding.kl_divergence)


def _scikit_learn(
    graph: Graph,
    vectors: Tensor,
    initial: NDArray[np.float64],
    perplexity: float,
    iterations: tuple[int, int],
    exaggeration: float,
    seed: int,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[NDArray[np.float64], float]:
    from sklearn.manifold import TSNE

    tsne = TSNE(
        perplexity=perplexity,
        init=initial.astype(np.float32),
        # its gradient lacks the factor 4 of the others
        learning_rate=max(200.0, len(graph) / 12) / 4,
        early_exaggeration=EARLY_EXAGGERATION,
        max_iter=max(250, sum(iterations)),
        random_state=seed,
        n_jobs=1,
    )
    found = tsne.fit_transform(vectors.numpy())
    if progress is not None:
        progress(sum(iterations), sum(iterations), "laying out")
    return np.asarray(found, dtype=np.float64), float(tsne.kl_divergence_)
