"""From rows of fc7 to a finished map: featviz against scikit-learn and openTSNE.

    python benchmarks/atlas.py [--quick] [--store FOLDER] [--sizes 10000,50000] [--methods A,B]

Rows of 4,096 numbers (500 clusters through a random map and a ReLU, 70% zeros), or those of a
store. Seconds are from the rows to the finished layout, neighbors included, by the clock and of
all processors; scikit-learn finds its own neighbors, openTSNE is given featviz's affinities. All
run to their end and every map is judged alike: divergence from the same affinities, recall@10 in
the space of all numbers. --methods: some of featviz, preview, scikit-learn, openTSNE, and
openTSNE-long, which runs at its own learning rate until its divergence is no higher than
featviz's, or for 2,000 steps; the default is all of them up to 20,000 rows, above without the
last. --quick: 2,000 rows of 1,024 numbers.

Where other work uses the processors too, set OMP_NUM_THREADS=1 and compare processor seconds: no
method waits for its own threads then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _rounds
import numpy as np
import torch
from neighbors import made_up_fc7
from torch import Tensor

from featviz.atlas.affinities import Affinities, affinities
from featviz.atlas.graph import Graph, build_graph
from featviz.atlas.layout import LayoutSettings, lay_out
from featviz.atlas.metrics import map_neighbors, overlap
from featviz.atlas.tsne import divergence
from featviz.neighbors.exact import Index, build_index

PERPLEXITY = 30.0


METHODS = ("featviz", "preview", "scikit-learn", "openTSNE", "openTSNE-long")
_LONG = 20_000
"""rows up to which openTSNE runs until it has featviz's divergence"""
Took = tuple[float, float]
"""seconds by the clock, and of all processors"""


def main() -> None:
    given = _rounds.arguments(
        __doc__.splitlines()[0], store="", sizes="10000,50000", methods=",".join(METHODS)
    )
    lines: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for size in [2000] if given.quick else map(int, given.sizes.split(",")):
        rows = _rows(given.store, size, 1024 if given.quick else 4096)
        methods = [m for m in given.methods.split(",") if m != METHODS[-1] or size <= _LONG]
        more, over = compare(rows, methods)
        lines, ratios = lines + more, ratios | over
    _rounds.report("atlas", lines, ratios, f"cpu, {torch.get_num_threads()} threads")


def _rows(store: str, count: int, dim: int) -> Tensor:
    if not store:
        return made_up_fc7(count, dim)
    from featviz.embedding.store import open_store

    opened = open_store(Path(store))
    some = min(count, len(opened))
    return opened.take([i * len(opened) // some for i in range(some)])


def timed(work: Callable[[], Any]) -> tuple[Took, Any]:
    started = time.perf_counter(), time.process_time()
    made = work()
    return (time.perf_counter() - started[0], time.process_time() - started[1]), made


def plus(a: Took, b: Took) -> Took:
    return a[0] + b[0], a[1] + b[1]


def report_of(name: str, took: Took) -> list[dict[str, Any]]:
    kinds = zip(("wall", "processor"), took, strict=True)
    return [_rounds.row(f"{name}, {kind}", "s", [seconds]) for kind, seconds in kinds]


def compare(rows: Tensor, methods: list[str]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every method to its end."""
    from sklearn.manifold import TSNE

    size = f"{len(rows)} x {rows.shape[1]}"
    build_graph(build_index(rows[:600]), 90)  # what is loaded once is not counted
    lay_out(rows[:600, :50], LayoutSettings(steps=(5, 5)))
    index = build_index(rows)
    search, graph = timed(lambda: build_graph(build_index(rows), 90))
    pairs = affinities(graph, PERPLEXITY)
    lines = [
        *report_of(f"featviz's graph, {size}", search),
        _rounds.row(f"featviz's graph, {size}: recall", "fraction", [graph.recall]),
    ]
    print(f"graph of {size}: {search[1]:.1f} s, recall {graph.recall:.4f}", flush=True)
    goal = 0.0

    def scikit_learn() -> Tensor:
        unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
        peer = TSNE(perplexity=PERPLEXITY, random_state=0, n_jobs=-1)
        return torch.from_numpy(peer.fit_transform(unit)).double()

    def open_tsne() -> Tensor:
        return lay_out(index, LayoutSettings(method="openTSNE"), graph=graph).raw

    works: dict[str, tuple[Took, Callable[[], Tensor]]] = {
        "featviz": (search, lambda: lay_out(index, graph=graph).raw),
        "preview": (
            (0, 0),
            lambda: lay_out(build_index(rows), LayoutSettings(method="preview")).raw,
        ),
        "scikit-learn": ((0, 0), scikit_learn),
        "openTSNE": (search, open_tsne),
    }
    seconds: dict[str, Took] = {}
    for method in methods:
        if method in works:
            before, work = works[method]
            took, raw = timed(work)
            name = method
        else:
            before = search
            start = principal_components(index, graph)
            took, steps, raw = open_tsne_until(pairs, start, goal)
            name = f"openTSNE's own rate, 250 + {steps}"
        took, score = plus(took, before), divergence(pairs, raw)
        seconds[name] = took
        recall = overlap(graph.rows[:, :10], map_neighbors(raw, 10))
        lines += [
            *report_of(f"{name}, {size}", took),
            _rounds.row(f"{name}, {size}: divergence", "nats", [score]),
            _rounds.row(f"{name}, {size}: recall@10", "fraction", [recall]),
        ]
        print(
            f"{name}: {took[0]:.1f} s, processors {took[1]:.1f} s, divergence {score:.3f}, "
            f"recall@10 {recall:.3f}",
            flush=True,
        )
        if method == "featviz":
            goal = score
    ours = seconds.pop("featviz", (1.0, 1.0))
    return lines, {
        f"{name}/featviz, {size}, {kind}": other / own
        for name, took in seconds.items()
        for kind, other, own in zip(("wall", "processor"), took, ours, strict=True)
    }


def principal_components(index: Index, graph: Graph) -> Tensor:
    """Where t-SNE begins: spread 1e-4 along the first axis."""
    start = lay_out(index, LayoutSettings(steps=(1, 1)), graph=graph).start.double()
    return (start - start.mean(0)) / start[:, 0].std() * 1e-4


def open_tsne_until(pairs: Affinities, start: Tensor, goal: float) -> tuple[Took, int, Tensor]:
    """openTSNE with its own learning rate until its divergence is `goal`: seconds, steps, map."""
    embedding = _embedding(pairs, start)
    took, _ = timed(lambda: embedding.optimize(250, exaggeration=12, inplace=True))
    steps, raw = 0, start
    while steps < 2000 and (not steps or divergence(pairs, raw) > goal):
        more, _ = timed(lambda: embedding.optimize(50, inplace=True))
        took, steps = plus(took, more), steps + 50
        raw = torch.from_numpy(np.asarray(embedding)).clone()
    return took, steps, raw


def _embedding(pairs: Affinities, at: Tensor) -> Any:
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PrecomputedAffinities
    from scipy.sparse import csr_matrix

    held = csr_matrix((pairs.p.numpy(), pairs.others.numpy(), pairs.starts.numpy()))
    return TSNEEmbedding(
        at.numpy().copy(),
        PrecomputedAffinities(held, normalize=False),
        negative_gradient_method="fft",
        n_jobs=torch.get_num_threads(),
        random_state=0,
        learning_rate="auto",
        momentum=0.8,
    )


if __name__ == "__main__":
    main()
