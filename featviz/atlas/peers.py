"""The t-SNE of other libraries under our settings, for comparison and for those who prefer them.

Learning rates are brought to one convention, the gradient without its factor 4 (van der Maaten's
program, openTSNE, cuML); scikit-learn's gradient has that factor.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz.types import seed_32

if TYPE_CHECKING:
    from featviz.atlas.affinities import Affinities
    from featviz.atlas.graph import Graph
    from featviz.types import Progress

EARLY_EXAGGERATION = 12.0
"""their own"""
PACKAGES = {"openTSNE": "openTSNE", "scikit-learn": "sklearn", "cuml": "cuml"}
"""methods and the package that each imports"""
DISTRIBUTIONS = {"cuml": ("cuml-cu13", "cuml-cu12")}
"""methods whose packages are installed under other names"""


def version(method: str) -> str:
    """The version of the library of a method, whatever its distribution is called."""
    for name in DISTRIBUTIONS.get(method, (method,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return str(getattr(importlib.import_module(PACKAGES[method]), "__version__", "unknown"))


def optimize(
    method: str,
    pairs: Affinities,
    start: Tensor,
    *,
    graph: Graph,
    vectors: Callable[[], Tensor],
    perplexity: float,
    steps: tuple[int, int],
    exaggeration: float,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Points (N, 2) float64 that another library's t-SNE reaches.

    Args:
        method: "openTSNE": from the same affinities, Barnes-Hut below 10,000 rows, FIt-SNE above.
            "scikit-learn": Barnes-Hut; finds its own neighbors, has no late exaggeration. "cuml":
            FIt-SNE on a GPU, from the same graph and its own principal components; written from its
            documentation (26.08) and not tried, since no GPU was at hand.
        pairs: Affinities, for openTSNE.
        start: (N, 2).
        graph: 3 * perplexity neighbors a row, for cuml.
        vectors: The rows (N, dim), in which Euclidean distance orders neighbors as the metric does.
        perplexity: Neighbors that each row tries to keep.
        steps: With early exaggeration, and after it.
        exaggeration: Of the second part.
        seed: Of the library.
        progress: Called with the steps done, by openTSNE.
    """
    rate = max(200.0, len(start) / 12)
    if method == "openTSNE":
        found = _open_tsne(pairs, start, steps, exaggeration, rate, seed, progress)
    else:
        total = sum(steps)
        shared: dict[str, Any] = {
            "perplexity": perplexity,
            "early_exaggeration": EARLY_EXAGGERATION,
            "random_state": seed_32(seed),
        }
        if method == "scikit-learn":
            from sklearn.manifold import TSNE

            tsne = TSNE(
                init=start.float().numpy(),
                learning_rate=rate / 4,
                max_iter=max(250, total),
                n_jobs=torch.get_num_threads(),
                **shared,
            )
        else:
            tsne = importlib.import_module("cuml.manifold").TSNE(
                method="fft",
                n_neighbors=graph.k + 1,
                init="pca",
                learning_rate=rate,
                learning_rate_method="none",
                late_exaggeration=exaggeration,
                exaggeration_iter=steps[0],
                max_iter=total,
                precomputed_knn=_sparse_graph(graph),
                **shared,
            )
        found = tsne.fit_transform(vectors().numpy())
    return torch.from_numpy(np.array(found, dtype=np.float64))


def _open_tsne(
    pairs: Affinities,
    start: Tensor,
    steps: tuple[int, int],
    exaggeration: float,
    rate: float,
    seed: int,
    progress: Progress | None,
) -> Any:
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PrecomputedAffinities
    from scipy.sparse import csr_matrix

    count = len(start)
    p = csr_matrix((pairs.p, pairs.others, pairs.starts), shape=(count, count))
    many = count >= 10_000
    # One thread below 10,000 rows: faster there, and sums have one order.
    embedding = TSNEEmbedding(
        start.numpy().copy(),
        PrecomputedAffinities(p, normalize=False),
        negative_gradient_method="fft" if many else "bh",
        n_jobs=torch.get_num_threads() if many else 1,
        random_state=seed_32(seed),
    )
    done = 0

    def show(step: int, error: float, _embedding: Any) -> None:
        if progress is not None:
            progress(done + step, sum(steps), "laying out")

    for number, factor in zip(steps, (EARLY_EXAGGERATION, exaggeration), strict=True):
        if number:
            embedding.optimize(
                number,
                exaggeration=factor,
                learning_rate=rate,
                momentum=0.8,
                inplace=True,
                callbacks=show,
                callbacks_every_iters=10,
                use_callbacks=progress is not None,
            )
        done += number
    return embedding


def _sparse_graph(graph: Graph) -> Any:
    """Distances to the neighbors, sparse; cuML counts a row as its own first neighbor."""
    from scipy.sparse import csr_matrix

    count, k = graph.rows.shape
    rows = np.hstack([np.arange(count)[:, None], graph.rows.numpy()])
    lengths = np.hstack([np.zeros((count, 1)), graph.lengths.numpy()]).astype(np.float32)
    bounds = np.arange(0, rows.size + 1, k + 1)
    return csr_matrix((lengths.ravel(), rows.ravel(), bounds), shape=(count, count))
