"""How benchmarks measure and report: interleaved rounds, medians, one JSON line at the end."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def arguments(text: str, **options: Any) -> argparse.Namespace:
    """--quick (within a minute on 2 cores) and the benchmark's own options with their defaults."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--quick", action="store_true", help="within a minute on 2 cores")
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def measure(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each work in each round, A B C A B C ..., after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            started = clock()
            work()
            if i:
                seconds[name].append(clock() - started)
    return seconds


def measure_both(
    works: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """As `measure`, by the clock and in processor seconds of all threads."""
    found: tuple[dict[str, list[float]], dict[str, list[float]]] = (
        {name: [] for name in works},
        {name: [] for name in works},
    )
    for i in range(rounds + 1):
        for name, work in works.items():
            before = time.perf_counter(), time.process_time()
            work()
            after = time.perf_counter(), time.process_time()
            for seconds, start, end in zip(found, before, after, strict=True):
                if i:
                    seconds[name].append(end - start)
    return found


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median of the ratios in each round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def row(what: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
    """One measured quantity over its rounds."""
    return {
        "what": what,
        "unit": unit,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def report(
    benchmark: str, rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float], device: str = ""
) -> None:
    """A table for people, then the JSON line."""
    width = max(len(r["what"]) for r in rows)
    for r in rows:
        print(
            f"{r['what']:<{width}}  median {r['median']:.4g} {r['unit']}"
            f"  ({r['min']:.4g} to {r['max']:.4g}, {r['rounds']} rounds)"
        )
    for name, value in ratios.items():
        print(f"{name}: {value:.3g}")
    document = {
        "benchmark": benchmark,
        "device": device or f"cpu ({platform.machine()})",
        "rows": list(rows),
        "ratios": dict(ratios),
    }
    print(json.dumps(document))
