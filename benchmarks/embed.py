"""Rows a second of `embed` against decoding alone and the network alone; memory with --rows.

    python benchmarks/embed.py [--quick] [--data FOLDER] [--model NAME --weights FILE]
    python benchmarks/embed.py --agreement 2500 --data FOLDER
    python benchmarks/embed.py --rows 200000

Decoding, the network, both together and a whole `featviz.embed` into a folder are measured in
interleaved rounds on the same pictures, with all threads each. On a GPU the slower of the two
bounds the whole. On a CPU they share the cores, so that seconds add up: "sum of both" is what one
could reach if they never got in each other's way, and the ratio to it is what `embed` loses; in
processor seconds too, which other work disturbs less. A whole `embed` of one picture is what does
not depend on their number. --quick: at most 192 pictures, float32 alone.

With --agreement, so many pictures are embedded in float32 and in bfloat16, and the nearest of each
are searched in both spaces: the share of float32's ten nearest that bfloat16 has too.

With --rows, made-up pictures go through a net with a layer of 4096 units into a store on the disk,
in a process of its own for each number of rows; what counts is the largest memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import _rounds
import torch
from torch import nn

import featviz
from featviz.data.datasets import Pictures, in_order, open_pictures
from featviz.data.samples import sample_pictures
from featviz.embedding.extract import default_layer
from featviz.embedding.pieces import Rows, as_stored
from featviz.embedding.reduction import Reduction
from featviz.errors import BadPicture
from featviz.models.model import Model
from featviz.neighbors.exact import build_index
from featviz.pictures.decoding import Prepared, as_batch
from featviz.pictures.preprocessing import Preprocessing
from featviz.types import Precision

BATCH = 64
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def rates(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=given.scratch or None) as scratch:
        rates_in(scratch, given)


def rates_in(scratch: str, given: argparse.Namespace) -> None:
    weights = given.weights or None
    model = featviz.load(given.model, weights=weights)
    data = open_pictures(given.data) if given.data else sample_pictures()
    data = data.spread(min(given.pictures, 192) if given.quick else given.pictures)
    layer = given.layer or default_layer(model)
    workers = given.workers or torch.get_num_threads()
    places = (model.layer(layer),)
    how = model.preprocessing
    span = range(len(data))
    some = [data.prepare(row, how).pixels for row in span[:BATCH]]

    def decoding() -> None:
        for _ in in_order(
            lambda row: data.prepare(row, how, decoder=given.decoder),
            span,
            ahead=2 * BATCH,
            workers=workers,
        ):
            pass

    def whole(data: Pictures, precision: Precision) -> None:
        featviz.embed(
            model,
            data,
            layer,
            out=f"{scratch}/store",
            precision=precision,
            decoder=given.decoder,
            workers=workers,
            overwrite=True,
        )

    works: dict[str, Callable[[], None]] = {
        "decoding": decoding,
        "embed one, float32": lambda: whole(data.select([0]), "float32"),
    }
    precisions = PRECISIONS[:1] if given.quick else PRECISIONS
    for precision in precisions:
        rows = Rows(model, data, places, BATCH, Reduction(), precision, given.decoder, workers)

        def network(rows: Rows = rows) -> None:
            with rows.network() as forward:
                for start in span[::BATCH]:
                    batch = as_batch(some[: len(data) - start])
                    taken = rows.reduction(forward(batch)[layer], places[0], range(len(batch)))
                    as_stored(taken, layer)

        def both(rows: Rows = rows) -> None:
            rows(span)

        works |= {
            f"network, {precision}": network,
            f"embed, {precision}": both,
            f"whole embed, {precision}": partial(whole, data, precision),
        }
    measured = _rounds.measure_both(works, 2 if given.quick else given.rounds)
    print(f"{given.model} at {layer}, {len(data)} pictures of {data.name}, {workers} decoding")
    compare(measured, len(data), precisions)


def compare(
    measured: tuple[dict[str, list[float]], dict[str, list[float]]],
    pictures: int,
    precisions: tuple[Precision, ...],
) -> None:
    """Report seconds by the clock and of processors as rates, and what `embed` loses."""
    table: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for kind, seconds in zip(("wall", "processor"), measured, strict=True):
        for name, values in seconds.items():
            if name.startswith("embed one"):
                table.append(_rounds.row(f"{name}, {kind}", "s", values))
                continue
            table.append(_rounds.row(f"{name}, {kind}", "rows/s", [pictures / s for s in values]))
        for precision in precisions:
            network_, embed_ = seconds[f"network, {precision}"], seconds[f"embed, {precision}"]
            parts = list(zip(seconds["decoding"], network_, strict=True))
            if kind == "wall":
                slower = [max(pair) for pair in parts]
                ratios[f"embed/slower of both, {precision}, {kind}"] = _rounds.ratio(slower, embed_)
            both_ = [sum(pair) for pair in parts]
            ratios[f"embed/sum of both, {precision}, {kind}"] = _rounds.ratio(both_, embed_)
            whole_ = seconds[f"whole embed, {precision}"]
            ratios[f"whole embed/sum of both, {precision}, {kind}"] = _rounds.ratio(both_, whole_)
    _rounds.report("embed", table, ratios)


def agreement(given: argparse.Namespace) -> None:
    model = featviz.load(given.model, weights=given.weights or None)
    data = open_pictures(given.data) if given.data else sample_pictures()
    data = data.spread(given.agreement)
    found, rows, seconds = [], [], []
    for precision in PRECISIONS:
        started = time.perf_counter()
        store = featviz.embed(model, data, given.layer or None, precision=precision)
        seconds.append(time.perf_counter() - started)
        matrix = store.matrix()
        rows.append(matrix)
        found.append(build_index(store).search(matrix, 10, exclude=torch.arange(len(store)))[1])
    shared = (found[0][:, :, None] == found[1][:, None, :]).any(2).double().mean()
    away = 1 - torch.cosine_similarity(rows[0].double(), rows[1].double())
    what = f"{given.model}, {len(data)} pictures of {data.name}"
    table = [
        _rounds.row(f"recall@10, {what}", "", [float(shared)]),
        _rounds.row(f"1 - cosine, {what}", "", away.tolist()),
    ]
    _rounds.report("embed --agreement", table, {"bfloat16/float32": seconds[0] / seconds[1]})


@dataclass(frozen=True)
class MadeUp(Pictures):
    """Tiny pictures that cost next to nothing; every thousandth cannot be read."""

    def prepare(
        self, row: int, preprocessing: Preprocessing, *, decoder: str = "exact"
    ) -> Prepared:
        if row % 1000 == 999:
            raise BadPicture(f"{self.paths[row]} is not there")
        made = torch.Generator().manual_seed(row)
        pixels = torch.randint(0, 256, (3, 8, 8), generator=made, dtype=torch.uint8)
        return Prepared(pixels, (8, 8))


def memory(rows: int) -> None:
    """Run as a process of its own: embed so many rows, open and search them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4096), nn.ReLU(), nn.Linear(4096, 2))
    model = Model(
        net,
        name="wide",
        preprocessing=Preprocessing.of(8, mean=[0.5], std=[0.3]),
    )
    names = tuple(f"class{i % 1000:03}/picture{i:08}.jpg" for i in range(rows))
    data = MadeUp(Path("made-up"), names, tuple(sys.intern(n[:8]) for n in names))
    with tempfile.TemporaryDirectory() as folder:
        before = _peak()
        started = time.perf_counter()
        featviz.embed(model, data, "2", out=f"{folder}/s", precision="float32")
        seconds = time.perf_counter() - started
        embedded = _peak()
        started = time.perf_counter()
        store = featviz.open_store(f"{folder}/s", verify=False)
        opened = time.perf_counter() - started
        after_opening = _peak()
        index = build_index(store)
        index.search(store.take(range(100)), 10)
        print(
            json.dumps(
                {
                    "rows": len(store),
                    "seconds": seconds,
                    "seconds to open": opened,
                    "MB before": before,
                    "MB embedded": embedded,
                    "MB opened": after_opening,
                    "MB searched": _peak(),
                }
            )
        )


def _peak() -> float:
    """The largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memories(most: int) -> None:
    found = []
    for rows in (most // 10, most):
        command = [sys.executable, __file__, "--rows", str(rows), "--alone", "1"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print({name: round(value, 1) for name, value in found[-1].items()})
    small, large = found
    table = [
        _rounds.row(f"{stage}, {f['rows']} rows", "MB", [f[f"MB {stage}"]])
        for stage in ("before", "embedded", "opened", "searched")
        for f in found
    ]
    ratios = {"memory of all/of a tenth": large["MB embedded"] / small["MB embedded"]}
    _rounds.report("embed --rows", table, ratios)


if __name__ == "__main__":
    given = _rounds.arguments(
        __doc__.splitlines()[0],
        data="",
        model="alexnet-mini",
        weights="",
        layer="",
        pictures=640,
        decoder="exact",
        workers=0,
        scratch="",
        rounds=5,
        agreement=0,
        rows=0,
        alone=0,
    )
    if given.rows and given.alone:
        memory(given.rows)
    elif given.rows:
        memories(given.rows)
    elif given.agreement:
        agreement(given)
    else:
        rates(given)
