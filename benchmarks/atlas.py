"""From rows of fc7 to a finished map: featviz against scikit-learn and openTSNE.

    python benchmarks/atlas.py [--quick] [--store FOLDER] [--large 50000] [--steps 20]

10,000 rows of 4,096 numbers (500 clusters through a random map and a ReLU, 70% zeros), or those of
a store. Seconds are from the rows to the finished layout, neighbours included; scikit-learn finds
its own, openTSNE is given featviz's affinities, and a second time runs at its own learning rate, on
until its divergence is no higher than featviz's, or for 2,000 steps. Every map is then judged
alike: divergence from the same affinities, recall@10 in the space of all 4,096 numbers.

At 50,000 rows scikit-learn and openTSNE would take the better part of an hour. There each takes
--steps steps on featviz's finished map, where they cost what its late ones do; 1000 times that, and
what comes before the steps, is reported, and the row says "extrapolated". --quick: 2,000 rows
of 1,024 numbers, and nothing large.
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
SCIKIT_LEARN_STEPS = 1000
"""its default"""


def main() -> None:
    given = _rounds.arguments(__doc__.splitlines()[0], store="", large=50_000, steps=20)
    rows = _rows(given.store, 2000 if given.quick else 10_000, 1024 if given.quick else 4096)
    lines, ratios = compare(rows)
    if not given.quick and given.large > len(rows):
        rows = _rows(given.store, given.large, 4096)
        if len(rows) == given.large:
            more, far = compare_large(rows, given.steps)
            lines, ratios = lines + more, ratios | far
    _rounds.report("atlas", lines, ratios, f"cpu, {torch.get_num_threads()} threads")


def _rows(store: str, count: int, dim: int) -> Tensor:
    if not store:
        return made_up_fc7(count, dim)
    from featviz.embedding.store import open_store

    opened = open_store(Path(store))
    some = min(count, len(opened))
    return opened.take([i * len(opened) // some for i in range(some)])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    made = work()
    return time.perf_counter() - started, made


def judge(name: str, pairs: Affinities, graph: Graph, raw: Tensor) -> list[dict[str, Any]]:
    recall = overlap(graph.rows[:, :10], map_neighbors(raw, 10))
    return [
        _rounds.row(f"{name}: divergence", "nats", [divergence(pairs, raw)]),
        _rounds.row(f"{name}: recall@10", "fraction", [recall]),
    ]


def compare(rows: Tensor) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every method to its end."""
    from sklearn.manifold import TSNE

    index, size = build_index(rows), f"{len(rows)} x {rows.shape[1]}"
    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    build_graph(build_index(rows[:600]), 90)  # what is loaded once is not counted
    lay_out(rows[:600, :50], LayoutSettings(steps=(5, 5)))
    search, graph = timed(lambda: build_graph(build_index(rows), 90))
    pairs = affinities(graph, PERPLEXITY)
    peer = LayoutSettings(method="openTSNE")
    works: dict[str, Callable[[], Tensor]] = {
        "featviz": lambda: lay_out(index, graph=graph).raw,
        "preview": lambda: lay_out(build_index(rows), LayoutSettings(method="preview")).raw,
        "openTSNE, 250 + 750": lambda: lay_out(index, peer, graph=graph).raw,
        "scikit-learn, 1000": lambda: torch.from_numpy(
            TSNE(
                perplexity=PERPLEXITY, max_iter=SCIKIT_LEARN_STEPS, random_state=0, n_jobs=-1
            ).fit_transform(unit)
        ).double(),
    }
    lines = [_rounds.row(f"featviz's graph, {size}", "s", [search])]
    seconds = {}
    for name, work in works.items():
        took, raw = timed(work)
        if name.startswith(("featviz", "openTSNE")):
            took += search
        seconds[name] = took
        lines.append(_rounds.row(f"{name}, {size}", "s", [took]))
        lines += judge(f"{name}, {size}", pairs, graph, raw)
        print(f"{name}: {took:.1f} s, divergence {divergence(pairs, raw):.3f}", flush=True)
        if name == "featviz":
            ours, goal = took, divergence(pairs, raw)
    own, steps, raw = open_tsne_until(pairs, principal_components(index, graph), goal)
    name = f"openTSNE's own rate, 250 + {steps}"
    seconds[name] = own + search
    print(f"{name}: {own + search:.1f} s, divergence {divergence(pairs, raw):.3f}", flush=True)
    lines.append(_rounds.row(f"{name}, {size}", "s", [own + search]))
    lines += judge(f"{name}, {size}", pairs, graph, raw)
    return lines, {
        f"{name}/featviz, {size}": took / ours
        for name, took in seconds.items()
        if name != "featviz"
    }


def compare_large(rows: Tensor, steps: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """featviz to its end, the others for some steps."""
    size = f"{len(rows)} x {rows.shape[1]}"
    search, graph = timed(lambda: build_graph(build_index(rows), 90))
    print(f"graph of {size}: {search:.1f} s, recall {graph.recall:.4f}", flush=True)
    index = build_index(rows)
    took, layout = timed(lambda: lay_out(index, graph=graph))
    print(f"featviz, {size}: {took:.1f} s", flush=True)
    pairs = affinities(graph, PERPLEXITY)
    lines = [
        _rounds.row(f"featviz's graph, {size}", "s", [search]),
        _rounds.row(f"featviz's graph, {size}: recall", "fraction", [graph.recall]),
        _rounds.row(f"featviz, {size}", "s", [search + took]),
        *judge(f"featviz, {size}", pairs, graph, layout.raw),
    ]
    peers = {
        "openTSNE, 1000 steps": (search, open_tsne_seconds(pairs, layout.raw, steps)),
        "scikit-learn, 1000 steps": scikit_learn_seconds(rows, layout.raw, steps),
    }
    ratios = {}
    for name, (before, each) in peers.items():
        whole = before + 1000 * each
        print(f"{name}, {size}: {before:.1f} s and {each:.3f} s a step", flush=True)
        lines.append(_rounds.row(f"{name}, {size}, extrapolated from {steps}", "s", [whole]))
        ratios[f"{name}, extrapolated/featviz, {size}"] = whole / (search + took)
    return lines, ratios


def principal_components(index: Index, graph: Graph) -> Tensor:
    """Where t-SNE begins: spread 1e-4 along the first axis."""
    start = lay_out(index, LayoutSettings(steps=(1, 1)), graph=graph).start.double()
    return (start - start.mean(0)) / start[:, 0].std() * 1e-4


def open_tsne_until(pairs: Affinities, start: Tensor, goal: float) -> tuple[float, int, Tensor]:
    """openTSNE with its own learning rate until its divergence is `goal`: seconds, steps, map."""
    embedding = _embedding(pairs, start)
    took, _ = timed(lambda: embedding.optimize(250, exaggeration=12, inplace=True))
    steps, raw = 0, start
    while steps < 2000 and (not steps or divergence(pairs, raw) > goal):
        more, _ = timed(lambda: embedding.optimize(50, inplace=True))
        took, steps = took + more, steps + 50
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


def open_tsne_seconds(pairs: Affinities, settled: Tensor, steps: int) -> float:
    """The seconds of a step; before the steps there is next to nothing but the graph."""
    embedding = _embedding(pairs, settled)
    took, _ = timed(lambda: embedding.optimize(steps, learning_rate=1.0, inplace=True))
    return took / steps


class Enough(Exception):
    """A few steps are done."""


def scikit_learn_seconds(rows: Tensor, settled: Tensor, steps: int) -> tuple[float, float]:
    """Of neighbours and affinities, and of a step: its descent is stopped after a few."""
    import sklearn.manifold._t_sne as inside

    descend = inside._gradient_descent
    stamps: list[float] = []

    def few(objective: Any, start: Any, it: int, max_iter: int, **more: Any) -> None:
        stamps.append(time.perf_counter())
        descend(objective, start, it, it + steps, **more)
        raise Enough

    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    inside._gradient_descent = few
    started = time.perf_counter()
    try:
        inside.TSNE(
            perplexity=PERPLEXITY,
            init=settled.float().numpy(),
            learning_rate=50.0,
            random_state=0,
            n_jobs=-1,
        ).fit_transform(unit)
    except Enough:
        return stamps[0] - started, (time.perf_counter() - stamps[0]) / steps
    finally:
        inside._gradient_descent = descend
    raise RuntimeError("scikit-learn took no step")


if __name__ == "__main__":
    main()
