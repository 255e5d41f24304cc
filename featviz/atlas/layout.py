"""Two coordinates for each row of a space: t-SNE from the graph of its neighbours.

Settings follow Kobak and Berens 2019 ("The art of using t-SNE for single-cell transcriptomics",
Nature Communications 10:5416): start at the first two principal components shrunk to a standard
deviation of 1e-4, perplexity 30 but no more than a third of the others, exaggeration 4 from 100,000
rows on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.atlas import peers, tsne
from featviz.atlas.affinities import affinities
from featviz.atlas.graph import Graph, build_graph, neighbors_wanted
from featviz.errors import UserError, nearest
from featviz.models.load import resolve_device
from featviz.neighbors.exact import Index, build_index

if TYPE_CHECKING:
    from featviz.embedding.store import Store
    from featviz.neighbors.exact import Metric

START_SPREAD = 1e-4
SHAKE = 0.1
EARLY_EXAGGERATION = 12.0
LEARNING_RATE = 2.0
"""of our method, times the rows, over the exaggeration. Kobak and Berens take 1/12 throughout; at
10,000 rows that left the divergence higher after 750 steps (1.07 nats) than this after 500 (0.86;
both on a coarser grid than today's)"""
ITERATIONS = (50, 950)
"""of our method: with early exaggeration, and after it"""
PREVIEW_ITERATIONS = (50, 150)
PEERS_ITERATIONS = (250, 750)
"""at a learning rate of N / 12 openTSNE's own 250 + 500 are not enough for 10,000 rows"""
MANY = 100_000
"""rows from which clusters are drawn tighter"""
_LEARNED = 20_000
FEWEST = 8
"""with fewer rows than this t-SNE has nothing to weigh up; the principal components are the map"""

_PACKAGES = {"openTSNE": "openTSNE", "scikit-learn": "sklearn", "cuml": "cuml"}
_PEERS = {"openTSNE": peers.open_tsne, "scikit-learn": peers.scikit_learn, "cuml": peers.cuml}
METHODS = ("auto", "tsne", "preview", *_PEERS)


@dataclass(frozen=True)
class Layout:
    """Where each row is on the map."""

    xy: Tensor
    """(N, 2) float32 in [0, 1], y downwards; both axes have the same scale"""
    raw: Tensor
    """(N, 2) float64 as optimised, in t-SNE's own units; `xy` is it shifted and scaled"""
    start: Tensor
    """(N, 2) the principal components it began from, on the terms of `xy`"""
    method: str
    perplexity: float
    iterations: tuple[int, int]
    """with early exaggeration, and after it"""
    divergence: float | None
    """the Kullback-Leibler divergence of the map from its graph in nats, for every method by the
    same formula (`featviz.atlas.tsne.divergence`); None for principal components"""
    seed: int


def lay_out(
    space: Store | Index | Tensor,
    *,
    metric: Metric = "cosine",
    graph: Graph | None = None,
    perplexity: float = 30.0,
    iterations: tuple[int, int] | None = None,
    exaggeration: float | None = None,
    method: str = "auto",
    begin: Tensor | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int, int, str], None] | None = None,
) -> Layout:
    """A map of the rows in which neighbours stay together.

    space: a store, an index, or a matrix (N, dim)
    graph: its neighbours, where they were found before (`featviz.atlas.graph.build_graph`)
    perplexity: about how many neighbours each row tries to keep; 5 to 100. Small data: capped at
        (N - 1) / 3
    iterations: steps with early exaggeration (forms the islands), then without (settles them);
        50 and 950, for a preview 50 and 150, for other libraries' methods 250 and 750
    exaggeration: of the second part. 1 is plain t-SNE, the default below 100,000 rows; 4, the
        default from there on, draws clusters tighter so that they do not fray
    method: "auto" or "tsne", ours; "openTSNE", "scikit-learn" or "cuml" where they are installed;
        "preview", ours with fewer steps on a graph along 50 principal axes: a map in seconds that
        keeps fewer neighbours
    begin: (N, 2) where to start instead of at the principal components, at any scale: another map
        of the same rows, so that this one is arranged as that is
    seed: of the tenth of its spread by which the start is shaken, so that equal rows come apart and
        maps of several seeds say what is chance. The same seed gives the same bytes on one machine
        with the same number of threads
    device: of our method and the search; "auto" takes CUDA where there is one. On a GPU sums have
        no fixed order, so maps of one seed differ there

    Distances between islands, their sizes and empty space mean little on a t-SNE map.
    Raises UserError for fewer than 2 rows, unknown methods and a graph of other rows.
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
    if iterations is None:
        iterations = {"tsne": ITERATIONS, "preview": PREVIEW_ITERATIONS}.get(
            chosen, PEERS_ITERATIONS
        )
    start = principal_components(index, seed=seed)
    unfolded = to_unit_square(start)
    if count < FEWEST:
        return Layout(unfolded, start, unfolded, "principal components", 0.0, (0, 0), None, seed)
    capped = min(perplexity, (count - 1) / 3)
    if graph is None:
        graph = build_graph(
            index,
            neighbors_wanted(count, capped),
            progress,
            quick=chosen == "preview",
            device=device,
        )
    graph = graph.nearest(min(graph.k, max(1, math.floor(3 * capped))))
    if begin is not None and begin.shape != start.shape:
        raise UserError(f"a map of {count} rows cannot begin at {tuple(begin.shape)} positions")
    first = start if begin is None else begin.to(start) - begin.to(start).mean(0)
    # t-SNE makes much of the last bit, and linear algebra does not promise it: round it away.
    initial = first / max(float(first[:, 0].std()), 1e-30)
    generator = torch.Generator().manual_seed(seed)
    initial = initial + SHAKE * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    initial = (initial * START_SPREAD).float().double()
    task = peers.Task(
        vectors=lambda: _vectors(index),
        graph=graph,
        pairs=affinities(graph, capped),
        start=initial,
        perplexity=capped,
        iterations=iterations,
        early_exaggeration=EARLY_EXAGGERATION,
        exaggeration=exaggeration,
        learning_rate=max(200.0, count / 12),  # ours takes larger steps, below
        seed=seed,
        progress=progress,
    )
    if chosen in _PEERS:
        raw = _PEERS[chosen](task)
        name = f"{chosen} {importlib.metadata.version(chosen)}"
    else:
        raw = tsne.optimize(
            task.pairs,
            initial,
            iterations=iterations,
            early_exaggeration=EARLY_EXAGGERATION,
            exaggeration=exaggeration,
            learning_rate=LEARNING_RATE * count,
            device=resolve_device(device),
            progress=progress,
        )
        name = "preview" if chosen == "preview" else "featviz"
    return Layout(
        xy=to_unit_square(raw),
        raw=raw,
        start=unfolded,
        method=name,
        perplexity=capped,
        iterations=iterations,
        divergence=tsne.divergence(task.pairs, raw),
        seed=seed,
    )


def _choose(method: str) -> str:
    if method not in METHODS:
        hint = nearest(method, METHODS)
        raise UserError(f"unknown layout method {method!r}; take one of {', '.join(METHODS)}{hint}")
    if method in _PACKAGES and importlib.util.find_spec(_PACKAGES[method]) is None:
        raise UserError(f"{method} is not installed; pip install {method}, or take another method")
    return "tsne" if method == "auto" else method


def _vectors(index: Index) -> Tensor:
    """The rows (N, dim) in which Euclidean distance orders neighbours as the metric does."""
    return torch.cat([torch.from_numpy(rows) for rows in index.search_blocks()])


def principal_components(space: Index | Tensor, *, seed: int = 0) -> Tensor:
    """Coordinates (N, 2) float64 on the two main axes of an index's directions, or a matrix's rows.

    Each axis points where its largest entry is. Of more than 20,000 rows an even sample of so many
    settles the axes.
    """
    from sklearn.utils.extmath import randomized_svd

    vectors = space if isinstance(space, Tensor) else _vectors(space)
    middle = vectors.mean(0)
    coordinates = torch.zeros(len(vectors), 2, dtype=torch.float64)
    some = min(len(vectors), _LEARNED)
    learned = vectors[torch.arange(some) * len(vectors) // some]
    sample = (learned - middle).double()
    if not bool(sample.any()):
        return coordinates
    _, _, axes = randomized_svd(sample.numpy(), 2, n_iter=7, random_state=seed, flip_sign=False)
    found = [(rows - middle).double() @ torch.from_numpy(axes.T) for rows in vectors.split(8192)]
    coordinates[:, : len(axes)] = torch.cat(found)
    largest = coordinates.abs().argmax(0)
    signs = coordinates[largest, torch.arange(2)].sign()
    return coordinates * torch.where(signs == 0, 1, signs)


def to_unit_square(xy: Tensor) -> Tensor:
    """Coordinates shifted and scaled into [0, 1], the longer side filling it, as float32."""
    middle, side = frame(xy)
    return ((xy.double() - middle) / side + 0.5).clamp(0, 1).float()


def frame(xy: Tensor) -> tuple[Tensor, float]:
    """The middle (2,) and the longer side of what `to_unit_square` makes the unit square."""
    low, high = xy.double().min(0).values, xy.double().max(0).values
    side = float((high - low).max())
    return (low + high) / 2, side if side > 0 else 1.0
