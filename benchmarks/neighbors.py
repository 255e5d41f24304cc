"""Exact search in an fc7-like space: featviz against bare FAISS and bare torch.

    python benchmarks/neighbors.py [--quick] [--alone 1]

20,000 rows of 4,096 numbers, 1,000 queries and one query, 10 neighbors; scikit-learn's brute force
too, and the approximate indexes: how long they take to build, how long to search, and the recall@10
that was measured when they were built. --alone 1: exact search beside torch and FAISS alone.
--quick: that with 5,000 rows of 1,024 in one thread.

The rows are 500 clusters through a random map and a ReLU, 70% zeros, as float16 numbers.
featviz answers with certified neighbors (float64 distances, ties by row), the bare searches with
what float32 gives; how many of their answers are the same is printed too. Ratios are medians over
interleaved rounds, by the clock and in processor seconds, which other work disturbs less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
    given = _rounds.arguments(__doc__.splitlines()[0], alone=0)
    whole = not given.quick and not given.alone
    count, dim, queries, rounds = (5000, 1024, 1000, 5) if given.quick else (20_000, 4096, 1000, 5)
    if given.quick:
        torch.set_num_threads(1)
    base, asked = made_up_fc7(count + queries, dim).split([count, queries])
    index = build_index(base)
    unit, unit_asked = (x / x.norm(dim=1, keepdim=True) for x in (base, asked))

    works: dict[str, Callable[[], Any]] = {
        "featviz": lambda: index.search(asked, K),
        "bare torch": lambda: (unit_asked @ unit.T).topk(K),
    }
    single: dict[str, Callable[[], Any]] = {
        "featviz": lambda: index.search(asked[:1], K),
        "bare torch": lambda: (unit_asked[:1] @ unit.T).topk(K),
    }
    same = {"bare torch": works["bare torch"]().indices.numpy()}
    if has_faiss():
        import faiss

        if given.quick:
            faiss.omp_set_num_threads(1)
        flat = faiss.IndexFlatIP(dim)
        flat.add(unit.numpy())
        works["bare FAISS"] = lambda: flat.search(unit_asked.numpy(), K)
        single["bare FAISS"] = lambda: flat.search(unit_asked[:1].numpy(), K)
        same["bare FAISS"] = works["bare FAISS"]()[1]
    else:
        print("faiss is not installed, so it is missing below")
    if whole:
        brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(unit.numpy())
        works["scikit-learn brute"] = lambda: brute.kneighbors(unit_asked.numpy())
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for asking, compared, times in ((queries, works, rounds), (1, single, 10 * rounds)):
        size = f"{asking} {'query' if asking == 1 else 'queries'} in {count} x {dim}"
        kinds = ("wall", "processor")
        for kind, seconds in zip(kinds, _rounds.measure_both(compared, times), strict=True):
            rows += [
                _rounds.row(f"{name}, {size}, {kind}", "s", values)
                for name, values in seconds.items()
            ]
            ours = seconds.pop("featviz")
            ratios |= {
                f"featviz/{name}, {size}, {kind}": _rounds.ratio(ours, values)
                for name, values in seconds.items()
            }
    for kind in KINDS if has_faiss() and whole else ():
        rows += approximate(kind, base, asked, f"{queries} queries in {count} x {dim}")
    exact = index.search(asked, K)[1].numpy()
    for name, found in same.items():
        share = np.mean([len(set(a) & set(b)) / K for a, b in zip(exact, found, strict=True)])
        rows.append(_rounds.row(f"{name}: same neighbors", "fraction", [float(share)]))
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
