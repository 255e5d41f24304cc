"""What an analysis finds on the card against what it finds on the CPU, for `gpu.py`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from every_analysis import ANALYSES, small_pictures
from torch import Tensor

import featviz
from featviz.attacks.result import AttackResult
from featviz.attribution.result import Attributed
from featviz.embedding.store import Store
from featviz.models.model import Model
from featviz.neighbors.result import Neighbors
from featviz.training.result import TrainResult

Line = dict[str, Any]

FIRST = (
    "activations", "classify", "embed", "neighbors", "attribute", "maximize", "attack",
    "minimal in l2", "evaluate", "train", "build_atlas", "describe_units", "concepts",
    "trace_circuit", "ablate", "invert", "audit",
)  # fmt: skip
"""the analyses of the tour, which are checked before any speed"""

UNCOMPARED = ("seconds", "pace", "speed", "time", "memory", "lattice", "icon correlation")
"""beginnings of names: times, memory, ratios close to 0 / 0 after few steps, ranks of four cells"""


@dataclass(frozen=True)
class Tolerance:
    """How far numbers may be apart, as a share of the larger one, or of `least`."""

    share: float
    least: float


TIGHT = Tolerance(1e-5, 0.01)
"""of logits"""
PASS = Tolerance(1e-4, 0.01)
"""of what one pass of the network gives"""
LOOSE = Tolerance(1e-3, 0.01)
"""of sums of many numbers in another order"""
LOW = Tolerance(0.03, 0.1)
"""of one pass in bfloat16"""
LOOP = Tolerance(0.1, 0.3)
"""of what a few optimization steps give: their first, normalized, turn the smallest gradients"""
CHAOTIC = Tolerance(0.25, 1.0)
"""of what a whole search, training or layout gives, whose path depends on every bit"""
TOLERANCES = {
    **dict.fromkeys(
        ("maximize", "maximize_directions", "maximize_objective", "draw_facets", "interpolate",
         "invert", "accentuate", "caricature", "deepdream", "patch", "universal", "concepts",
         "activation_grid"), LOOP),
    **dict.fromkeys(
        ("audit", "train", "build_atlas", "build_class_atlas", "align_maps", "layout by the grid",
         "maximize in bfloat16", "maximize cppn"), CHAOTIC),
    **dict.fromkeys(("evaluate in bfloat16", "embed_layers in bfloat16"), LOW),
}  # fmt: skip
"""by analysis, or by its first word; PASS for the others"""


def check(name: str, device: str) -> Iterator[Line]:
    """The checks of one analysis, without bfloat16 by "auto"; "numbers": of logits and memory."""
    if name == "numbers":
        yield from numbers(device)
        return
    pictures = small_pictures()
    with ExitStack() as stack:
        for place in ("models.precision", "training.loop", "training.evaluation",
                      "classification.classify"):  # fmt: skip
            stack.enter_context(patch(f"featviz.{place}.has_bfloat16", lambda device: False))
        here = run(name, featviz.load("alexnet-mini", device="cpu"), pictures)
        with other_arithmetic(device):
            there = run(name, featviz.load("alexnet-mini", device=device), pictures)
    first = TOLERANCES.get(name.partition(" ")[0], PASS)
    yield from compare(here, there, TOLERANCES.get(name, first))


def other_arithmetic(device: str) -> AbstractContextManager[Any]:
    """On a CPU the other side rounds differently, so that a comparison compares something."""
    return torch.backends.mkldnn.flags(enabled=False) if device == "cpu" else nullcontext()


def run(name: str, model: Model, pictures: Tensor) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        result = ANALYSES[name](model, pictures, Path(folder) / "store")
        if hasattr(result, "save") and not (Path(folder) / "store").exists():
            result.save(Path(folder) / "result")
        if isinstance(result, dict) and all(isinstance(one, Store) for one in result.values()):
            return {
                name: store.matrix() for name, store in result.items()
            }  # while its files are there
        return result


def compare(here: Any, there: Any, tolerance: Tolerance) -> Iterator[Line]:
    """Lines with the largest difference of two results of the same kind."""
    if isinstance(here, AttackResult):
        yield from attacks(here, there)
    elif isinstance(here, Neighbors):
        yield line("rows are the CPU's", torch.equal(here.rows, there.rows))
        yield distance("distances", here.distances, there.distances, PASS)
    elif isinstance(here, Store):
        yield from stores(here, there)
    elif isinstance(here, Mapping):
        for name, value in here.items():
            for one in compare(value, there[name], tolerance):
                yield one | {"what": f"{name}: {one['what']}"}
    elif isinstance(here, Tensor):
        yield distance("values", here, there, tolerance)
    else:
        if isinstance(here, Attributed):
            yield from attributions(here, there)
        if isinstance(here, TrainResult):
            far = abs(there.numbers()["loss"].value / here.numbers()["loss"].value - 1)
            yield line("loss: relative difference", far <= 0.01, far)
        yield all_numbers(here, there, tolerance)


def line(what: str, ok: bool, value: Any = None) -> Line:
    return {"what": what, "value": value, "unit": "", "predicted": None, "ok": bool(ok)}


def distance(what: str, here: Tensor, there: Tensor, tolerance: Tolerance) -> Line:
    """|a - b| / |b|, over all of two tensors."""
    a, b = there.detach().cpu().double(), here.detach().cpu().double()
    far = float((a - b).norm() / b.norm().clamp_min(1e-12)) if a.shape == b.shape else math.inf
    return line(f"{what}: relative difference", far <= tolerance.share, far)


def all_numbers(here: Any, there: Any, tolerance: Tolerance) -> Line:
    """The largest difference of the numbers of two results, relative, and of which it is."""
    mine, other = here.numbers(), there.numbers()
    worst, which = 0.0, ""
    for name in (name for name in mine if not name.startswith(UNCOMPARED)):
        a, b = mine[name].value, other[name].value if name in other else None
        if isinstance(a, int | float) and isinstance(b, int | float):
            far = abs(a - b) / max(abs(a), abs(b), tolerance.least)
            if far > worst:
                worst, which = far, name
        elif (a is None) != (b is None):
            worst, which = math.inf, name
    what = f"{len(mine)} numbers: largest difference ({which})" if which else f"{len(mine)} numbers"
    return line(what, worst <= tolerance.share, worst)


def attacks(here: AttackResult, there: AttackResult) -> Iterator[Line]:
    """A success on the card is judged again on the CPU, and as many pictures are fooled."""
    model = featviz.load("alexnet-mini", device="cpu")
    with torch.no_grad():
        found = model(there.adversarial.cpu()).argmax(1)
    labels = there.labels.cpu()
    fooled = found == labels if there.targeted else found != labels
    yield line("successes, judged again on the CPU", torch.equal(fooled, there.success.cpu()))
    same = int(there.success.sum()) == int(here.success.sum())
    yield line("as many as on the CPU", same, int(there.success.sum()))
    both = (here.success & there.success.cpu()).nonzero().flatten()
    if len(both):
        far = (there.distance.cpu()[both] / here.distance[both].clamp_min(1e-9)).log().abs().max()
        yield line("distances, factor to the CPU's", float(far) <= CHAOTIC.share, float(far.exp()))


def stores(here: Store, there: Store) -> Iterator[Line]:
    yield distance("rows", here.matrix(), there.matrix(), PASS)
    same = float((here.matrix() == there.matrix()).double().mean())
    yield line("share of equal float16 numbers", same >= 0.98, same)


def attributions(here: Attributed, there: Attributed) -> Iterator[Line]:
    for method, a in here.maps.items():
        b = there.maps[method].cpu()
        cosine = float(torch.cosine_similarity(a.double().flatten(), b.double().flatten(), 0))
        yield line(f"{method}: cosine", cosine >= 0.9999, cosine)


def numbers(device: str) -> Iterator[Line]:
    """Logits, also where the caller has set TF32; equal bits in two runs; recovery of memory."""
    pictures = small_pictures()
    cpu, card = (featviz.load("alexnet-mini", device=place) for place in ("cpu", device))
    with torch.no_grad():
        want = cpu(pictures)
        with other_arithmetic(device):
            yield distance("logits", want, card(pictures), TIGHT)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            with other_arithmetic(device):
                yield distance("logits where TF32 is allowed", want, card(pictures), TIGHT)
        finally:
            torch.set_float32_matmul_precision(before)
    twice = [featviz.maximize(card, "conv4", units=[0, 1], steps=4).images for _ in range(2)]
    yield line("maximize twice: equal bits", torch.equal(*twice))
    if device == "cuda" and torch.version.cuda:
        yield from shortage(card)


def shortage(card: Model) -> Iterator[Line]:
    """With little memory, maximization takes smaller batches, and other work ends in one line."""
    whole = torch.cuda.get_device_properties(0).total_memory
    free = torch.cuda.mem_get_info()[0]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (whole - free + 1e9) / whole))
    try:
        units = list(range(card.layer("conv5").units))
        drawn = featviz.maximize(card, "conv5", units=units, steps=2, size=512, batch_size=256)
        yield line("maximize in 1 GB", len(drawn.images) == len(units))
        try:
            featviz.attack(card, torch.rand(4096, 3, 64, 64), steps=2)
            yield line("attack in 1 GB", True)
        except featviz.UserError as error:
            yield line(f"attack in 1 GB: {error}", "memory" in str(error))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
