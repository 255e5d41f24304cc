"""How fast the work of featviz is on a card, beside its bare part and predictions, for `gpu.py`.

A row is a function of the device and whether everything is small; it gives its lines one by one.
Seconds are medians of rounds that alternate, after one that does not count, each ended by waiting
for the card. Predictions are for one H200; their arithmetic is in docs/scale.md.
"""

from __future__ import annotations

import importlib.util
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import _rounds
import torch
import torch.nn.functional as F
from _gpu_checks import LOOSE, Line, distance, line
from maximize import Bare
from neighbors import made_up_fc7
from torch import Tensor

import featviz
from featviz.atlas.affinities import affinities
from featviz.atlas.graph import build_graph
from featviz.atlas.tsne import Attraction, Repulsion, divergence
from featviz.atlas.tsne import optimize as optimize_map
from featviz.attacks.options import AttackOptions
from featviz.data.datasets import Pictures, in_order, open_pictures
from featviz.embedding.pieces import Rows
from featviz.embedding.reduction import Reduction
from featviz.maximization.loop import optimize
from featviz.maximization.maximize import unit_objective
from featviz.maximization.settings import settings_for
from featviz.models.alexnet import AlexNet, AlexNetMini
from featviz.models.frozen import frozen
from featviz.neighbors.exact import build_index
from featviz.pictures.decoding import as_batch
from featviz.pictures.preprocessing import Preprocessing
from featviz.training.data import Examples
from featviz.types import Precision

ROUNDS = 5
K = 10
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
Predicted = tuple[float, float] | None


def speed(what: str, values: float | list[float], unit: str, predicted: Predicted = None) -> Line:
    """A measured line: the median, and the range of several rounds."""
    several = values if isinstance(values, list) else [values]
    shown = {"value": float(f"{statistics.median(several):.4g}"), "unit": unit}
    if len(several) > 1:
        shown["range"] = [float(f"{end(several):.4g}") for end in (min, max)]
    return {"what": what, **shown, "predicted": predicted, "ok": None}


def measured(
    works: Mapping[str, Callable[[], object]], device: str, *, small: bool, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Seconds of each work in each round."""

    def finished(work: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            work()
            wait(device)

        return run

    timed = {what: finished(work) for what, work in works.items()}
    return _rounds.measure(timed, 1 if small else rounds)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def once(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds, and what it makes."""
    wait(device)
    started = time.perf_counter()
    made = work()
    wait(device)
    return time.perf_counter() - started, made


def products(a: Tensor, b: Tensor, precision: str) -> Callable[[], Tensor]:
    """a @ b; "tf32" and "float32" of float32 numbers, "bfloat16" of theirs."""
    if precision == "bfloat16":
        a, b = a.bfloat16(), b.bfloat16()

    def product() -> Tensor:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            return a @ b
        finally:
            torch.set_float32_matmul_precision(before)

    return product


def ceilings(device: str, small: bool) -> Iterator[Line]:
    """What the card can do at all: memory, products, copies from the host, launches."""
    count, side = (1 << 18, 256) if small else (1 << 30, 8192)
    x = torch.ones(count, device=device)
    y = torch.empty_like(x)
    seconds = measured({"copy": lambda: y.copy_(x)}, device, small=small)["copy"]
    yield speed("copy", [8e-9 * count / s for s in seconds], "GB/s", (3900, 4500))
    a, b = torch.randn(2, side, side, device=device)
    works = {name: products(a, b, name) for name in ("bfloat16", "tf32", "float32")}
    expected = {"bfloat16": (650, 800), "tf32": (330, 420), "float32": (45, 55)}
    for name, values in measured(works, device, small=small).items():
        rates = [2e-12 * side**3 / s for s in values]
        yield speed(f"product, {name}", rates, "TFLOP/s", expected[name])
    host = torch.ones(count // 8)
    pinned = host.pin_memory() if device == "cuda" else host
    sent = {
        "pageable": lambda: host.to(device),
        "pinned": lambda: pinned.to(device, non_blocking=True),
    }
    for name, values in measured(sent, device, small=small).items():
        fast: Predicted = (45, 55) if name == "pinned" else (5, 12)
        yield speed(f"to the card, {name}", [4e-9 * len(host) / s for s in values], "GB/s", fast)
    tiny, times = torch.zeros(1, device=device), 100 if small else 2000

    def launches() -> None:
        for _ in range(times):
            tiny.add_(1)

    seconds = measured({"": launches}, device, small=small)[""]
    yield speed("a launch", [1e6 * s / times for s in seconds], "microseconds", (4, 7))


def subject(device: str, small: bool) -> featviz.Model:
    """AlexNet at its full size with random weights; small: the bundled model."""
    if small:
        return featviz.load("alexnet-mini", device=device)
    return featviz.load("alexnet", device=device, seed=0)


def maximize(device: str, small: bool) -> Iterator[Line]:
    """A step of 256 units of conv5 at 176 pixels, and of 16, beside the bare passes."""
    model = subject(device, small)
    layer = model.layer("conv5")
    steps = 8 if small else 64
    expected: dict[tuple[str, int, str], Predicted] = {
        ("featviz", 256, "float32"): (11, 13), ("featviz", 256, "bfloat16"): (5, 6),
        ("bare", 256, "float32"): (9, 10), ("bare", 256, "bfloat16"): (2, 2.5),
        ("bare, channels last", 256, "float32"): (9, 10),
        ("bare, channels last", 256, "bfloat16"): (2, 2.5),
        ("featviz", 16, "float32"): (1.5, 2.5), ("featviz", 16, "bfloat16"): (1.5, 2.5),
        ("featviz, CUDA graphs", 256, "float32"): (11, 13),
        ("featviz, CUDA graphs", 256, "bfloat16"): (4.5, 6),
        ("featviz, CUDA graphs", 16, "float32"): (0.8, 1.5),
        ("featviz, CUDA graphs", 16, "bfloat16"): (0.6, 1.5),
    }  # fmt: skip
    for count in (2,) if small else (256, 16):
        for precision in ("bfloat16", "float32"):
            settings = replace(
                settings_for(model, layer, steps=steps, precision=precision), checks=1
            )
            objective, regularizer = unit_objective(model, layer, range(count))
            targets = model, objective, range(count), range(count)
            side = settings.parametrization.height
            low = torch.bfloat16 if precision == "bfloat16" else torch.float32
            passes = partial(Bare, model, layer, count, side, low)

            ours = partial(optimize, *targets, regularizer=regularizer, batch_size=count)
            works: dict[str, Callable[[], object]] = {
                "featviz": partial(ours, settings),
                "bare": partial(passes(torch.contiguous_format), steps),
                "bare, channels last": partial(passes(torch.channels_last), steps),
            }
            if device == "cuda":
                works["featviz, CUDA graphs"] = partial(ours, replace(settings, cuda_graph=True))
            if torch.version.cuda is not None and device == "cuda":  # not a pretended one
                works["bare, as a CUDA graph"] = replayed(passes(torch.channels_last), steps)
            for name, values in measured(works, device, small=small, rounds=3).items():
                what = f"{name}, {count} units, {side} pixels, {precision}"
                milliseconds = [1e3 * s / steps for s in values]
                yield speed(what, milliseconds, "ms a step", expected.get((name, count, precision)))
            if device == "cuda":
                yield from recorded(works["featviz"], works["featviz, CUDA graphs"])


def recorded(plain: Callable[[], Any], graphs: Callable[[], Any]) -> Iterator[Line]:
    """Whether CUDA graphs are used, and whether the traces (N, steps) of both begin alike."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = graphs().trace
    texts = [str(one.message) for one in caught]
    yield line("CUDA graphs are used", not texts, texts)
    yield distance("trace with CUDA graphs", plain().trace[:, :8], found[:, :8], LOOSE)


def attack(device: str, small: bool) -> Iterator[Line]:
    """A step of PGD on pictures that it does not fool, with and without CUDA graphs."""
    model = subject(device, small)
    steps = 8 if small else 100
    expected: dict[tuple[str, int], Predicted] = {
        ("featviz", 8): (1, 2.5), ("featviz, CUDA graphs", 8): (0.8, 2),
        ("featviz", 128): (7.5, 10), ("featviz, CUDA graphs", 128): (7.5, 10),
    }  # fmt: skip
    for count in (2,) if small else (8, 128):
        made = torch.Generator().manual_seed(0)
        pictures = torch.rand(count, 3, *model.input_size, generator=made).to(device)
        with torch.no_grad():
            labels = model(pictures).argmax(1)
        run = partial(featviz.pgd, model, pictures, labels, eps=1e-6, steps=steps)
        works: dict[str, Callable[[], object]] = {"featviz": run}
        if device == "cuda":
            options = AttackOptions(cuda_graph=True)
            works["featviz, CUDA graphs"] = partial(run, options=options)
        for name, values in measured(works, device, small=small, rounds=3).items():
            what = f"{name}, PGD, {count} pictures, float32"
            milliseconds = [1e3 * s / steps for s in values]
            yield speed(what, milliseconds, "ms a step", expected.get((name, count)))
        if device == "cuda":
            yield from recorded(works["featviz"], works["featviz, CUDA graphs"])


def replayed(passes: Bare, steps: int) -> Callable[[], None]:
    """The same passes recorded once: against them one sees what their launches cost."""
    with frozen(passes.net):
        apart = torch.cuda.Stream()
        apart.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(apart):  # libraries take their memory before the recording
            for _ in range(3):
                passes.step()
        torch.cuda.current_stream().wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            passes.step()

    def run() -> None:
        for _ in range(steps):
            graph.replay()

    return run


def search(device: str, small: bool) -> Iterator[Line]:
    """Exact search of 1,000 queries and of one, beside a bare product and topk."""
    count, dim, queries = (500, 64, 20) if small else (100_000, 4096, 1000)
    base, asked = made_up_fc7(count + queries, dim).split([count, queries])
    index = build_index(base, device=device)
    works: dict[str, Callable[[], object]] = {
        "featviz": lambda: index.search(asked, K),
        "featviz, one query": lambda: index.search(asked[:1], K),
    }
    unit, wanted = ((x / x.norm(dim=1, keepdim=True)).to(device) for x in (base, asked))
    for name in ("float32", "tf32", "bfloat16"):
        product = products(wanted, unit.T, name)
        works[f"bare, {name}"] = lambda p=product: p().topk(K)  # type: ignore[misc]
    alone = products(wanted[:1], unit.T, "float32")
    works["bare, float32, one query"] = lambda: alone().topk(K)
    expected = {
        "featviz": (18, 30), "featviz, one query": (0.5, 1.5), "bare, float32": (17, 22),
        "bare, tf32": (2.5, 6), "bare, bfloat16": (1.5, 4), "bare, float32, one query": (0.4, 0.6),
    }  # fmt: skip
    for name, values in measured(works, device, small=small).items():
        milliseconds = [1e3 * s for s in values]
        yield speed(f"{name}, {count} x {dim}", milliseconds, "ms", expected.get(name))
    some = asked[:20]
    here = build_index(base, device="cpu").search(some, K)[1]
    yield line("neighbors are the CPU's", torch.equal(index.search(some, K)[1].cpu(), here))


class _MadeUp(Pictures):
    """Names of pictures that are in memory already."""


def train(device: str, small: bool) -> Iterator[Line]:
    """Pictures a second of AlexNet at 224 in bfloat16, beside a bare loop with all on the card."""
    count, side, batch, rounds = (64, 64, 16, 1) if small else (8192, 224, 256, 3)
    made = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=made, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=made)
    names = tuple(f"{label}/{i}.png" for i, label in enumerate(labels.tolist()))
    data = Examples(
        _MadeUp(Path("made-up"), names, tuple(name.split("/")[0] for name in names)),
        labels, tuple(map(str, range(10))), Preprocessing.of(side), pixels,
    )  # fmt: skip
    make = AlexNetMini if small else AlexNet
    settings = featviz.TrainSettings(
        batch_size=batch, lr=0.01, sizes={0: side}, precision="bfloat16"
    )

    def epochs(many: int) -> float:
        net = make(10)
        return once(
            lambda: featviz.train(net, data, epochs=many, settings=settings, device=device), device
        )[0]

    epochs(1)
    rates = [count / max(1e-9, epochs(2) - epochs(1)) for _ in range(rounds)]
    what = f"{side} pixels, batches of {batch}"
    yield speed(f"featviz, {what}, pictures in memory", rates, "pictures/s", (25_000, 45_000))
    bare = bare_training(make(10), pixels.to(device), labels.to(device), batch)
    seconds = measured({"": bare}, device, small=small, rounds=rounds)[""]
    yield speed(
        f"bare, {what}, pictures on the card", [count / s for s in seconds], "pictures/s",
        (45_000, 60_000),
    )  # fmt: skip


def bare_training(
    net: torch.nn.Module, pixels: Tensor, labels: Tensor, batch: int
) -> Callable[[], object]:
    """One pass over all pictures: flips, bfloat16, channels last, one fused optimizer step."""
    net.to(pixels.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    cuda = pixels.device.type == "cuda" and bool(torch.version.cuda)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=cuda)

    def run() -> None:
        for start in range(0, len(pixels), batch):
            x = pixels[start : start + batch].flip(3).contiguous(memory_format=torch.channels_last)
            with torch.autocast(pixels.device.type, torch.bfloat16):
                loss = F.cross_entropy(
                    net(x.float().div_(255).sub_(0.5)), labels[start : start + batch]
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def embed(device: str, small: bool) -> Iterator[Line]:
    """fc7 of JPEGs of 500 x 375, beside their decoding alone and the network alone."""
    model = subject(device, small)
    count, batch, layer = 32 if small else 4096, 64, "relu7"
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder) / "jpegs", count)
        data = open_pictures(Path(folder) / "jpegs")
        how, span = model.preprocessing, range(len(data))
        workers = torch.get_num_threads()
        some = [data.prepare(row, how).pixels for row in span[:batch]]

        def decoding() -> None:
            def read(row: int) -> object:
                return data.prepare(row, how)

            for _ in in_order(read, span, ahead=2 * batch, workers=workers):
                pass

        works: dict[str, Callable[[], object]] = {"decoding alone": decoding}
        for precision in PRECISIONS:
            rows = Rows(
                model, data, (model.layer(layer),), batch, Reduction(), precision, "exact", workers
            )

            def network(rows: Rows = rows) -> None:
                pictures = as_batch(some).to(device)
                with rows.network() as forward:
                    for _ in span[::batch]:
                        forward(pictures)

            works[f"network alone, {precision}"] = network
            works[f"embed, {precision}"] = lambda p=precision: featviz.embed(  # type: ignore[misc]
                model, data, layer, precision=p
            )
        if importlib.util.find_spec("simplejpeg"):
            works["embed, bfloat16, fast decoder"] = lambda: featviz.embed(
                model, data, layer, precision="bfloat16", decoder="fast"
            )
        expected: dict[str, Predicted] = {
            "network alone, float32": (25_000, 60_000),
            "network alone, bfloat16": (60_000, 100_000),
            "embed, float32": (3500, 5000), "embed, bfloat16": (3500, 5000),
        }  # fmt: skip
        for name, values in measured(works, device, small=small, rounds=2).items():
            yield speed(name, [count / s for s in values], "rows/s", expected.get(name))


def write_jpegs(folder: Path, count: int) -> None:
    """Smooth made-up pictures with some noise; 64 different ones."""
    from PIL import Image

    folder.mkdir()
    made = torch.Generator().manual_seed(0)

    def encoded(_: int) -> bytes:
        coarse = torch.rand(1, 3, 12, 16, generator=made)
        smooth = F.interpolate(coarse, (375, 500), mode="bicubic")[0]
        noisy = (smooth + 0.05 * torch.randn(3, 375, 500, generator=made)).clamp(0, 1)
        pixels = (255 * noisy).byte().permute(1, 2, 0).contiguous().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    files = [encoded(i) for i in range(min(count, 64))]
    with ThreadPoolExecutor() as pool:
        list(pool.map(
            lambda i: (folder / f"{i:05}.jpg").write_bytes(files[i % len(files)]), range(count)
        ))  # fmt: skip


def layout(device: str, small: bool) -> Iterator[Line]:
    """Graph and t-SNE of 50,000 rows of fc7."""
    count, dim, k, steps = (300, 32, 15, 10) if small else (50_000, 4096, 90, 250)
    rows = made_up_fc7(count, dim)
    index = build_index(rows, device=device)
    yield from map_of(index, k, steps, device, (1, 4), (2, 2.5))


def million(device: str, small: bool) -> Iterator[Line]:
    """Graph and t-SNE of a million rows of 32 numbers."""
    count, k, steps = (500, 15, 5) if small else (1_000_000, 90, 100)
    made = torch.Generator().manual_seed(0)
    centers = torch.randn(500, 32, generator=made)
    rows = centers[torch.randint(500, (count,), generator=made)]
    rows = rows + 0.5 * torch.randn(count, 32, generator=made)
    index = build_index(rows, device=device)
    yield from map_of(index, k, steps, device, (5, 20), (8, 12))


def map_of(
    index: Any, k: int, steps: int, device: str, graph_in: Predicted, step_in: Predicted
) -> Iterator[Line]:
    size = f"{len(index)} rows"
    seconds, graph = once(lambda: build_graph(index, k, device=device), device)
    yield speed(f"graph of {k} neighbors, {size}", seconds, "s", graph_in)
    seconds, pairs = once(lambda: affinities(graph, k / 3), device)
    yield speed(f"affinities, {size}", seconds, "s")
    start = 1e-4 * torch.randn(len(index), 2, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"exaggeration": 1.0, "learning_rate": 2.0 * len(index)}
    optimize_map(pairs, start, steps=(2, 2), device=device, **options)
    half = (steps // 2, steps - steps // 2)
    seconds, made = once(
        lambda: optimize_map(pairs, start, steps=half, device=device, **options), device
    )
    yield speed(f"t-SNE, {size}", 1e3 * seconds / steps, "ms a step", step_in)
    if len(index) <= 100_000:
        before, after = divergence(pairs, start), divergence(pairs, made)
        yield line("the divergence falls", after < before, [before, after])
        y = made.T.float().contiguous()
        for name, here, there in zip(
            ("repulsion", "Z"), Repulsion()(y), Repulsion()(y.to(device)), strict=True
        ):
            yield distance(f"{name} of the map", here, there, LOOSE)
        here, there = (Attraction(pairs, x.device)(x) for x in (y, y.to(device)))
        yield distance("attraction of the map", here, there, LOOSE)


def audit(device: str, small: bool) -> Iterator[Line]:
    """The audit of 200 pictures by the bundled model, without its further parts."""
    model = featviz.load("alexnet-mini", device=device)
    count = 4 if small else 200
    how: dict[str, Any] = {"steps": 10, "check_steps": 4, "queries": 4} if small else {}
    pictures = featviz.sample_pictures()
    seconds, found = once(
        lambda: featviz.audit(model, pictures, count=count, parts=(), **how), device
    )
    passes = found.forwards + found.backwards
    yield speed(f"audit of {count} pictures", seconds, "s", (4, 8))
    yield speed("its passes of one picture", passes / seconds, "passes/s")


def peers(device: str, small: bool) -> Iterator[Line]:
    """Lucent on the same units, canvas and steps, where it is installed."""
    try:
        import lucent  # noqa: F401
    except ImportError:
        yield {"what": "Lucent is not installed", "value": None, "ok": None}
        return
    from maximize_peers import lucent as drawn

    model = subject(device, small)
    units, side, steps = (range(2), 64, 2) if small else (range(256), 176, 30)
    net = model.net.requires_grad_(True)
    path = model.layer("conv5").path.replace(".", "_")
    works = {
        "Lucent": lambda: drawn(net, path, units, steps, side, side),
        "featviz": lambda: featviz.maximize(
            model, "conv5", units=list(units), steps=steps, size=side
        ),
    }
    for name, values in measured(works, device, small=small, rounds=2).items():
        what = f"{name}, {len(units)} units, {side} pixels"
        yield speed(what, [1e3 * s / steps for s in values], "ms a step")


ROWS: dict[str, Callable[[str, bool], Iterator[Line]]] = {
    row.__name__: row
    for row in (ceilings, maximize, attack, search, train, embed, layout, million, audit, peers)
}
