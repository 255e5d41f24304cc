"""The t-SNE of other libraries on the same terms as ours, to compare with and for who prefers them.

Each takes what `featviz.atlas.tsne.optimize` takes and gives points (N, 2) float64. Their learning
rates are brought to one convention, the gradient without its factor 4 (van der Maaten's program,
openTSNE, cuML); scikit-learn's gradient has that factor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featviz.atlas.affinities import Affinities
from featviz.atlas.graph import Graph


@dataclass(frozen=True)
class Task:
    """What every t-SNE is given."""

    vectors: Callable[[], Tensor]
    """the rows (N, dim), where Euclidean distance orders neighbours as the metric does"""
    graph: Graph
    """3 * perplexity neighbours a row"""
    pairs: Affinities
    start: Tensor
    """(N, 2) float64, the first axis with a standard deviation of 1e-4"""
    perplexity: float
    iterations: tuple[int, int]
    early_exaggeration: float
    exaggeration: float
    learning_rate: float
    seed: int
    progress: Callable[[int, int, str], None] | None


def open_tsne(task: Task) -> Tensor:
    """openTSNE on our affinities: Barnes-Hut below 10,000 rows, FIt-SNE from there on."""
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PrecomputedAffinities
    from scipy.sparse import csr_matrix

    count, total = len(task.graph), sum(task.iterations)
    pairs = task.pairs
    held = csr_matrix(
        (pairs.p.numpy(), pairs.others.numpy(), pairs.starts.numpy()), shape=(count, count)
    )
    many = count >= 10_000
    # One thread below 10,000 rows: faster there, and nothing depends on how threads add up.
    embedding = TSNEEmbedding(
        task.start.numpy().copy(),
        PrecomputedAffinities(held, normalize=False),
        negative_gradient_method="fft" if many else "bh",
        n_jobs=torch.get_num_threads() if many else 1,
        random_state=task.seed,
    )
    done = 0

    def show(iteration: int, error: float, _embedding: Any) -> None:
        if task.progress is not None:
            task.progress(done + iteration, total, "laying out")

    settings: dict[str, Any] = {"learning_rate": task.learning_rate, "momentum": 0.8}
    settings |= {"inplace": True}
    if task.progress is not None:
        settings |= {"callbacks": show, "callbacks_every_iters": 10, "use_callbacks": True}
    if task.iterations[0]:
        embedding.optimize(task.iterations[0], exaggeration=task.early_exaggeration, **settings)
    done = task.iterations[0]
    if task.iterations[1]:
        embedding.optimize(task.iterations[1], exaggeration=task.exaggeration, **settings)
    return torch.from_numpy(np.array(embedding, dtype=np.float64))


def scikit_learn(task: Task) -> Tensor:
    """scikit-learn's Barnes-Hut t-SNE. It finds its own neighbours and never exaggerates late."""
    from sklearn.manifold import TSNE

    total = max(250, sum(task.iterations))
    tsne = TSNE(
        perplexity=task.perplexity,
        init=task.start.float().numpy(),
        learning_rate=task.learning_rate / 4,
        early_exaggeration=task.early_exaggeration,
        max_iter=total,
        random_state=task.seed,
        n_jobs=torch.get_num_threads(),
    )
    found = tsne.fit_transform(task.vectors().numpy())
    if task.progress is not None:
        task.progress(total, total, "laying out")
    return torch.from_numpy(np.asarray(found, dtype=np.float64))


def cuml(task: Task) -> Tensor:
    """cuML's FIt-SNE on a GPU, on our graph and from principal components.

    Written from its documentation (26.08) and not tried: no GPU was at hand. By default cuML starts
    at random and adapts its learning rate; here it gets the settings of the others, so that maps
    can be compared.
    """
    from scipy.sparse import csr_matrix

    count, k = task.graph.rows.shape
    # cuML counts a row as its own first neighbour.
    rows = np.hstack([np.arange(count)[:, None], task.graph.rows.numpy()])
    lengths = np.hstack([np.zeros((count, 1)), task.graph.lengths.numpy()]).astype(np.float32)
    bounds = np.arange(0, rows.size + 1, k + 1)
    near = csr_matrix((lengths.ravel(), rows.ravel(), bounds), shape=(count, count))
    tsne = importlib.import_module("cuml.manifold").TSNE(
        method="fft",
        perplexity=task.perplexity,
        n_neighbors=k + 1,
        init="pca",
        learning_rate=task.learning_rate,
        learning_rate_method="none",
        early_exaggeration=task.early_exaggeration,
        late_exaggeration=task.exaggeration,
        exaggeration_iter=task.iterations[0],
        max_iter=sum(task.iterations),
        random_state=task.seed,
        precomputed_knn=near,
    )
    found = np.asarray(tsne.fit_transform(task.vectors().numpy()))
    if task.progress is not None:
        task.progress(sum(task.iterations), sum(task.iterations), "laying out")
    return torch.from_numpy(found.astype(np.float64))
