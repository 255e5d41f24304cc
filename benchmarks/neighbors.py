"""Exact search in an fc7-like space: featviz against bare FAISS and bare torch.

    python benchmarks/neighbors.py [--quick]

Exact search beside scikit-learn's brute force too, and the approximate indexes behind it: how long
they take to build, how long to search, and the recall@10 that was measured when they were built.
20,000 rows of 4,096 numbers, 1,000 queries, 10 neighbors; --quick: 5,000 rows of 1,024. The rows
are 500 clusters through a random map and a ReLU, 70% zeros, as float16 numbers. featviz answers
with certified neighbors (float64 distances, ties by row), the bare searches with what float32
gives; how many of their answers are the same is printed too.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import _rounds
import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from featviz.neighbors.approximate import KINDS, build_approximate
from featviz.neighbors.exact import build_index, has_faiss

K = 10


def main() -> None:
    given = _rounds.arguments(__doc__.splitlines()[0])
    count, dim, queries, rounds = (5000, 1024, 200, 3) if given.quick else (20_000, 4096, 1000, 5)
    base, asked = made_up_fc7(count + queries, dim).split([count, queries])
    index = build_index(base)
    unit, unit_asked = (x / x.norm(dim=1, keepdim=True) for x in (base, asked))

    brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(unit.numpy())

    works = {
        "featviz": lambda: index.search(asked, K),
        "featviz, one query": lambda: index.search(asked[:1], K),
        "bare torch, one query": lambda: (unit_asked[:1] @ unit.T).topk(K),
        "bare torch matmul + topk": lambda: (unit_asked @ unit.T).topk(K),
        "scikit-learn brute": lambda: brute.kneighbors(unit_asked.numpy()),
    }
    same = {"bare torch matmul + topk": (unit_asked @ unit.T).topk(K).indices.numpy()}
    if has_faiss():
        import faiss

        flat = faiss.IndexFlatIP(dim)
        flat.add(unit.numpy())
        works["bare FAISS IndexFlatIP"] = lambda: flat.search(unit_asked.numpy(), K)
        same["bare FAISS IndexFlatIP"] = flat.search(unit_asked.numpy(), K)[1]
    else:
        print("faiss is not installed, so it is missing below")
    seconds = _rounds.measure(works, rounds)
    size = f"{queries} queries in {count} x {dim}"
    rows = [_rounds.row(f"{name}, {size}", "s", values) for name, values in seconds.items()]
    for kind in KINDS if has_faiss() else ():
        rows += approximate(kind, base, asked, size)
    exact = index.search(asked, K)[1].numpy()
    for name, found in same.items():
        share = np.mean([len(set(a) & set(b)) / K for a, b in zip(exact, found, strict=True)])
        rows.append(_rounds.row(f"{name}: same neighbors", "fraction", [float(share)]))
    ours = seconds["featviz"]
    ratios = {
        f"featviz/{name}": statistics.median(a / b for a, b in zip(ours, values, strict=True))
        for name, values in seconds.items()
        if name.startswith("bare") and "one query" not in name
    }
    ratios["scikit-learn/featviz"] = statistics.median(
        b / a for a, b in zip(ours, seconds["scikit-learn brute"], strict=True)
    )
    single = zip(seconds["featviz, one query"], seconds["bare torch, one query"], strict=True)
    ratios["featviz/bare torch, one query"] = statistics.median(a / b for a, b in single)
    _rounds.report("neighbors", rows, ratios)


def approximate(kind: str, base: Tensor, asked: Tensor, size: str) -> list[dict[str, Any]]:
    """Three rows for one kind of approximate index: building, searching, recall."""
    started = time.perf_counter()
    index = build_approximate(base, kind)
    built = time.perf_counter() - started
    searched = _rounds.measure({kind: lambda: index.search(asked, K)}, 3)[kind]
    return [
        _rounds.row(f"featviz {kind}: building it, recall measured", "s", [built]),
        _rounds.row(f"featviz {kind}, {size}", "s", searched),
        _rounds.row(f"featviz {kind}: recall@10", "fraction", [index.recall]),
    ]


def made_up_fc7(count: int, dim: int) -> Tensor:
    """Rows (count, dim) with the zeros, clusters and rounding of a store of fc7."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(500, 96, generator=generator)
    chosen = torch.randint(500, (count,), generator=generator)
    hidden = centers[chosen] + 0.7 * torch.randn(count, 96, generator=generator)
    mapped = hidden @ torch.randn(96, dim, generator=generator) / 96**0.5
    offset = mapped.flatten()[:: max(1, mapped.numel() // 100_000)].quantile(0.7)
    rows: Tensor = (mapped - offset).relu().half().float()
    return rows


if __name__ == "__main__":
    main()
