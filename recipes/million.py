"""As many rows as ImageNet has pictures, through every step on one machine, each step measured.

    python recipes/million.py --out run/million --data FOLDER --model alexnet --weights FILE
    python recipes/million.py --out run/small --rows 20000          (the bundled model and pictures)

Rows are made up with the structure of real ones (`made_up_rows`): those of --data at --layer before
its ReLU. Steps, each in a process of its own, and skipped where its line is in OUT/steps.jsonl:

    fit      real rows, their structure, and how made-up rows compare with them
    store    `featviz.embed` of all rows; with --kills 2 it is killed twice (SIGKILL) and goes on
    again    the same without a kill, to compare the bytes (only with --twice)
    search   exact neighbors of 1,000 rows, streamed
    index    an approximate index, its recall over those 1,000
    graph    neighbors of every row, their recall over those 1,000
    layout   t-SNE of all rows
    place    1,000 new rows on the map
    page     the page of all rows

A line has seconds, processor seconds, the largest memory of the step, bytes on the disk, and what
the step measured. The same command goes on where it was stopped: within a step too, since `embed`
keeps pieces, and the graph and the layout keep what is finished. With --growth OTHER_OUT ... it
prints how the steps of runs of several sizes grow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_up_rows import CLASSES, MadeUp, Structure, describe, fit, made_up, network
from torch import Tensor

import featviz
from featviz.atlas.graph import HELD, Graph, build_graph
from featviz.atlas.grid import cut
from featviz.atlas.layout import Layout, LayoutSettings, frame, lay_out
from featviz.atlas.levels import make_level
from featviz.atlas.metrics import is_among, map_neighbors, overlap
from featviz.atlas.placing import place_rows
from featviz.atlas.thumbnails import Thumbnails
from featviz.atlas.viewer.data import PageData
from featviz.atlas.viewer.page import render_page
from featviz.checkpoints import Checkpoint, open_checkpoint, remove_checkpoint
from featviz.data.datasets import evenly
from featviz.embedding.store import Store
from featviz.neighbors.approximate import Effort, build_approximate, open_approximate
from featviz.neighbors.exact import build_index
from featviz.pictures import images
from featviz.results import Number

ROWS = 1_281_167
"""pictures of ImageNet's training set"""
ASKED = 1000
"""rows whose neighbors are found exactly"""
READ = 8000
"""real rows at most from which the structure is fitted"""
INDEX_RECALL = 0.95
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
"""glibc keeps the memory of large blocks for the next ones: a third of the graph's time else goes
into fresh pages"""
NEW = 1000
"""rows that are placed on the finished map"""
SIDES = (8, 24, 72)
"""squares a side of the page's cells"""
PICTURED = 5000
"""rows with a picture on the page, beside the samples of its cells"""
PIECE = 256
"""rows that `embed` makes at a time"""
COMPARED = 3000
"""of these, and of made-up ones, that are compared"""


def main() -> None:
    options = _options()
    if options.growth:
        print(growth([options.out, *options.growth]))
        return
    if options.only:
        STEPS[options.only](options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if step == "again" and not options.twice:
            continue
        if step not in _done(options.out):
            run(step, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--data", help="real pictures in class folders; default: the bundled ones")
    parser.add_argument("--model", default="alexnet-mini")
    parser.add_argument("--weights")
    parser.add_argument("--layer", default="fc7", help="of which rows are read, before its ReLU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--perplexity", type=float, default=30.0)
    parser.add_argument("--held", type=float, default=HELD, help="see `build_graph`")
    parser.add_argument("--steps", type=int, nargs=2, help="of t-SNE: early, and after it")
    parser.add_argument("--kills", type=int, default=0, help="of the store's step, by SIGKILL")
    parser.add_argument("--twice", action="store_true", help="make the store again, uninterrupted")
    parser.add_argument(
        "--growth", type=Path, nargs="+", help="print how the steps of --out and these runs grow"
    )
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- steps, and what they cost ------------------------------------------------------------------


def _done(out: Path) -> set[str]:
    """The steps that have a line."""
    lines = out / "steps.jsonl"
    return {json.loads(line)["step"] for line in lines.open()} if lines.exists() else set()


def run(step: str, options: argparse.Namespace) -> None:
    """A step in a process of its own; its line is appended."""
    print(f"{step} ...", flush=True)
    started, processor, memory = time.perf_counter(), 0.0, 0.0
    kills = options.kills if step == "store" else 0
    for attempt in range(kills + 1):
        child = subprocess.Popen(
            [sys.executable, *sys.argv, "--only", step], env={**os.environ, **HEAP}
        )
        if attempt < kills:
            _wait_for_pieces(child, options, share=(attempt + 1) / (kills + 1))
            child.send_signal(signal.SIGKILL)
        _, status, used = os.wait4(child.pid, 0)
        processor += used.ru_utime + used.ru_stime
        memory = max(memory, used.ru_maxrss / 2**20)
    if status:
        raise SystemExit(f"{step} ended with status {status}; the same command goes on from there")
    line = {
        "step": step,
        "rows": options.rows,
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(processor, 1),
        "largest_memory_GB": round(memory, 2),
        "kills": kills,
        **json.loads((options.out / f"{step}.json").read_text()),
    }
    with (options.out / "steps.jsonl").open("a") as lines:
        lines.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _wait_for_pieces(
    child: subprocess.Popen[bytes], options: argparse.Namespace, share: float
) -> None:
    """Until a share of the rows is kept, or the process has ended."""
    partial = options.out / "store.partial"
    wanted = share * options.rows
    while child.poll() is None:
        pieces = sorted(partial.glob("rows-*.npz"))
        if pieces and int(pieces[-1].stem[5:]) >= wanted:
            return
        time.sleep(0.2)


def _finish(options: argparse.Namespace, step: str, **measured: Any) -> None:
    """Keep what a step has measured."""
    (options.out / f"{step}.json").write_text(json.dumps(measured))


def growth(runs: Sequence[Path]) -> str:
    """A table of processor seconds by step and rows, the exponent, and the seconds of ROWS rows."""
    spent: dict[str, dict[int, float]] = {}
    for run in runs:
        for text in (run / "steps.jsonl").read_text().splitlines():
            line = json.loads(text)
            if line["step"] != "fit":
                spent.setdefault(line["step"], {})[line["rows"]] = line["processor_seconds"]
    sizes = sorted({rows for found in spent.values() for rows in found})
    heads = ["step", *(f"{rows:,}" for rows in sizes), "exponent", f"{ROWS:,}, extrapolated"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for step, found in spent.items():
        cells = [f"{found[rows]:.0f}" if rows in found else "" for rows in sizes]
        if len(found) > 1:
            slope, level = np.polyfit(np.log([*found]), np.log([*found.values()]), 1)
            cells += [f"{slope:.2f}", f"{math.exp(level + slope * math.log(ROWS)):,.0f}"]
        else:
            cells += ["", ""]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _bytes_below(place: Path) -> int:
    """On the disk."""
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


# ---- the rows -----------------------------------------------------------------------------------


def step_fit(options: argparse.Namespace) -> None:
    place = options.out / "real"
    if not place.exists():
        model = featviz.load(options.model, weights=options.weights)
        pictures = (
            featviz.open_pictures(options.data) if options.data else featviz.sample_pictures()
        )
        featviz.embed(model, pictures.spread(READ), options.layer, out=place)
    store = featviz.open_store(place)
    structure = fit(store.matrix(), store.labels)
    structure.save(options.out / "structure.npz")
    classes = len(set(store.labels))
    # Classes of the same size as the real ones.
    each = len(store) // classes
    like = made_up(each * CLASSES, structure, seed=options.seed).select(range(each * classes))
    imitated = featviz.embed(network(structure, seed=options.seed), like, "relu7")
    some = evenly(min(len(store), len(like)), COMPARED)
    _finish(
        options,
        "fit",
        real=describe(store.take(some).relu(), [store.labels[row] for row in some]),
        made_up=describe(imitated.take(some), [imitated.labels[row] for row in some]),
        classes=classes,
        axes=len(structure.within),
        real_rows=len(store),
        disk_GB=_bytes_below(place) / 1e9,
    )


def _rows(options: argparse.Namespace, count: int, first: int = 0) -> tuple[featviz.Model, MadeUp]:
    structure = Structure.load(options.out / "structure.npz")
    data = made_up(count, structure, seed=options.seed, first=first)
    return network(structure, seed=options.seed), data


def _embed(options: argparse.Namespace, name: str) -> None:
    model, data = _rows(options, options.rows)
    store = featviz.embed(
        model, data, "relu7", out=options.out / name, precision="float32", overwrite=True
    )
    digest = hashlib.sha256("".join(shard.sha256 for shard in store.shards).encode())
    _finish(
        options,
        name,
        dim=store.dim,
        disk_GB=_bytes_below(options.out / name) / 1e9,
        sha256=digest.hexdigest(),
        parts_remade=_remade(model, data, store),
    )


def _remade(model: featviz.Model, data: MadeUp, store: Store) -> str:
    """How many pieces of the store are the same bytes when they are made again alone."""
    starts = [start // PIECE * PIECE for start in evenly(len(store), 8)]
    same = 0
    for start in starts:
        span = range(start, min(start + PIECE, len(store)))
        alone = featviz.embed(model, data.select(span), "relu7", precision="float32")
        same += np.array_equal(alone.span(0, len(span)), store.span(span.start, span.stop))
    return f"{same} of {len(starts)}"


def step_store(options: argparse.Namespace) -> None:
    _embed(options, "store")


def step_again(options: argparse.Namespace) -> None:
    _embed(options, "again")


def _open(options: argparse.Namespace) -> Store:
    return featviz.open_store(options.out / "store", verify=False)


# ---- neighbors ----------------------------------------------------------------------------------


def _asked(count: int) -> Tensor:
    """The rows whose neighbors are found exactly, spread evenly."""
    return torch.tensor(evenly(count, ASKED))


def _recall(options: argparse.Namespace, found: Tensor) -> float:
    """Share of the true k nearest of the asked rows in `found` (Q, k)."""
    with np.load(options.out / "search.npz") as kept:
        true = torch.from_numpy(kept["near"])[:, : found.shape[1]]
    return float((true[:, :, None] == found[:, None, :]).any(2).double().mean())


def step_search(options: argparse.Namespace) -> None:
    store, started = _open(options), time.perf_counter()
    index = build_index(store)
    built = time.perf_counter() - started
    asked = _asked(len(store))
    k = min(len(store) - 1, _neighbors(options))
    distances, near = index.search(store.take(asked), k, exclude=asked)
    np.savez(options.out / "search.npz", asked=asked, near=near, distances=distances)
    _finish(
        options,
        "search",
        queries=len(asked),
        k=k,
        seconds_to_open=round(built, 1),
        disk_GB=(options.out / "search.npz").stat().st_size / 1e9,
    )


def _neighbors(options: argparse.Namespace) -> int:
    return int(3 * options.perplexity)


def step_index(options: argparse.Namespace) -> None:
    store = _open(options)
    started = time.perf_counter()
    made = build_approximate(store, "ivf", recall=INDEX_RECALL, progress=_say)
    built = time.perf_counter() - started
    made.save(options.out / "index")
    asked = _asked(len(store))
    queries = store.take(asked)
    started = time.perf_counter()
    found = made.search(queries, 10, exclude=asked)[1]
    took = time.perf_counter() - started
    _finish(
        options,
        "index",
        recall_at_10=_recall(options, found),
        seconds_of_building=round(built, 1),
        milliseconds_a_query=round(1000 * took / len(asked), 2),
        probes=made.effort.probes,
        candidates=made.effort.candidates,
        disk_GB=_bytes_below(options.out / "index") / 1e9,
    )


# ---- the map ------------------------------------------------------------------------------------


def _checkpoint(options: argparse.Namespace, name: str) -> AbstractContextManager[Checkpoint]:
    """Where a step of the map keeps its parts."""
    job = {name: getattr(options, name) for name in ("rows", "seed", "perplexity", "held", "steps")}
    return open_checkpoint(options.out / f"{name}.partial", job)


def step_graph(options: argparse.Namespace) -> None:
    store = _open(options)
    with _checkpoint(options, "graph") as kept:
        graph = build_graph(
            build_index(store), _neighbors(options), _say, held=options.held, kept=kept
        )
    np.savez(options.out / "graph.npz", rows=graph.rows.int(), distances=graph.distances)
    remove_checkpoint(options.out / "graph.partial")
    asked = _asked(len(store))
    _finish(
        options,
        "graph",
        k=graph.k,
        held=options.held,
        recall=_recall(options, graph.rows[asked]),
        recall_at_10=_recall(options, graph.rows[asked][:, :10]),
        disk_GB=(options.out / "graph.npz").stat().st_size / 1e9,
    )


def _graph(options: argparse.Namespace) -> Graph:
    with np.load(options.out / "graph.npz") as kept:
        rows, distances = (torch.from_numpy(kept[name]) for name in ("rows", "distances"))
    return Graph(rows.long(), distances, "cosine")


def step_layout(options: argparse.Namespace) -> None:
    index, graph = build_index(_open(options)), _graph(options)
    settings = LayoutSettings(
        perplexity=options.perplexity, steps=tuple(options.steps) if options.steps else None
    )
    with _checkpoint(options, "layout") as kept:
        layout = lay_out(index, settings, graph=graph, seed=options.seed, kept=kept, progress=_say)
    with (options.out / "layout.pickle").open("wb") as file:
        pickle.dump(layout, file)
    remove_checkpoint(options.out / "layout.partial")
    _finish(
        options,
        "layout",
        divergence=round(float(layout.divergence or 0), 4),
        steps=layout.steps,
        perplexity=layout.perplexity,
        map_recall_at_10=overlap(graph.rows[:, :10], map_neighbors(layout.xy, 10)),
        width=frame(layout.raw)[1],
        disk_GB=(options.out / "layout.pickle").stat().st_size / 1e9,
    )


def _layout(options: argparse.Namespace) -> Layout:
    with (options.out / "layout.pickle").open("rb") as file:
        found: Layout = pickle.load(file)
    return found


def step_place(options: argparse.Namespace) -> None:
    """New rows near the middle of the neighbors that the map's own index finds for them."""
    model, later = _rows(options, NEW, first=options.rows)
    new = featviz.embed(model, later, "relu7", precision="float32")
    store, layout = _open(options), _layout(options)
    index = open_approximate(options.out / "index", store)
    index.effort = Effort(index.effort.probes, 4)  # the positions need no exact neighbors
    started = time.perf_counter()
    xy = place_rows(layout, index, new.matrix())
    took = time.perf_counter() - started
    near = index.search(new.matrix(), 10)[1]
    asked = _asked(len(store))
    again = place_rows(layout, index, store.take(asked), exclude=asked)
    moved = (again - layout.xy[asked]).norm(dim=1)
    np.savez(options.out / "place.npz", xy=xy, near=near)
    _finish(
        options,
        "place",
        new=len(xy),
        seconds_of_placing=round(took, 1),
        # in shares of the map's side, and of the distance between two rows of the map at random
        to_the_middle_of_neighbors=float(
            (xy - layout.xy[near].median(1).values).norm(dim=1).median()
        ),
        own_rows_placed_again_away=float(moved.median()),
        two_rows_apart=float((layout.xy[asked] - layout.xy[asked.flip(0)]).norm(dim=1).median()),
    )


def step_page(options: argparse.Namespace) -> None:
    store, layout, graph = _open(options), _layout(options), _graph(options)
    index, count, k = build_index(store), len(store), min(10, len(store) - 1)
    levels = [make_level(index, cut(layout.xy, side), store.labels) for side in SIDES]
    shown = map_neighbors(layout.xy, k)
    near = graph.nearest(k)
    kept = is_among(near.rows, shown)
    own = sorted({row for level in levels for row in level.samples} | {*evenly(count, PICTURED)})
    page = PageData(
        title=f"Atlas of {count:,} made-up rows",
        layer=store.layer,
        model=store.model_name,
        data=str(store.source["name"]),
        dim=store.dim,
        whole=count,
        method=f"Laid out by t-SNE ({layout.method}, perplexity {layout.perplexity:g}).",
        recall={
            "this map": float(kept.double().mean()),
            "principal components": overlap(near.rows, map_neighbors(layout.start, k)),
            "a random map": k / (count - 1),
        },
        numbers={"divergence": Number(layout.divergence or 0.0, "nats", "Kullback-Leibler")},
        warnings=("Rows are made up; a picture is the 4,096 numbers of its row, in 64 lines.",),
        paths=store.pictures.paths,
        classes=store.labels,
        xy=layout.xy,
        neighbors=near.rows,
        distances=near.distances,
        kept=kept,
        places={},
        thumbnails=Thumbnails(torch.tensor(own), _pictures(store, own)),
        levels=levels,
    )
    file = options.out / "atlas.html"
    file.write_text(render_page(page), encoding="utf-8")
    _finish(
        options,
        "page",
        map_recall_at_10=float(kept.double().mean()),
        pictured=len(own),
        disk_GB=file.stat().st_size / 1e9,
    )


def _pictures(store: Store, rows: Sequence[int]) -> Tensor:
    """The numbers of rows as gray squares of 32 pixels, (P, 3, 32, 32) uint8."""
    side = math.isqrt(store.dim)
    made = []
    for part in torch.tensor(rows).split(1024):
        squares = store.take(part)[:, : side * side].view(-1, 1, side, side)
        small = images.resize(squares, 32).clamp_min(0)
        bright = small / small.amax((2, 3), keepdim=True).clamp_min(1e-6)
        made.append(images.to_uint8(bright.sqrt()).expand(-1, 3, -1, -1))
    return torch.cat(made)


def _say(done: int, total: int, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}: {done} of {total}", flush=True)


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fit": step_fit,
    "store": step_store,
    "again": step_again,
    "search": step_search,
    "index": step_index,
    "graph": step_graph,
    "layout": step_layout,
    "place": step_place,
    "page": step_page,
}

if __name__ == "__main__":
    main()
