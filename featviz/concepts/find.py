"""`find_concepts`: directions that a layer uses, found in a store of its activations.

Pictures are held out; on the others the dictionary is fitted, once more for every further seed, and
on each half of them. All fits go through a checkpoint.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from featviz import results
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.concepts.dictionary import Dictionary, Method
from featviz.concepts.fit import Plan, fit, from_arrays, to_arrays
from featviz.concepts.measure import beside, stability, usage
from featviz.concepts.moments import Moments
from featviz.concepts.nmf import Start
from featviz.concepts.result import Concepts
from featviz.concepts.sample import Sample
from featviz.embedding.store import Store, open_store
from featviz.errors import UserError, public
from featviz.types import ConceptCount, Count, HeldOut, Progress, Seed, Seeds, Steps

_ACTIVE, _STEPS = 16, 2000


@public
def find_concepts(
    store: Store | str | Path,
    *,
    method: Method = "nmf",
    count: ConceptCount = 32,
    active: Count | None = None,
    steps: Steps | None = None,
    seeds: Seeds = 2,
    held_out: HeldOut = 0.25,
    seed: Seed = 0,
    device: str = "auto",
    checkpoint: str | Path | Checkpoint | None = None,
    progress: Progress | None = None,
) -> Concepts:
    """Directions in a layer's channels in which its activations can be written.

    Args:
        store: Activations of pictures at the layer, as `embed` makes them: with several positions
            of each map, or one row a picture; or the store's folder.
        method: "nmf": non-negative factors, sums of parts; "kmeans": one concept a row; "pca",
            "ica": with signs; "topk": a sparse dictionary, trained on the rows, which may have
            more concepts than the layer has units.
        count: How many concepts.
        active: Of topk, how many a row uses; default 16 (or `count`).
        steps: Of topk, of training, 1,024 rows each; default 2,000.
        seeds: Fits from different starts, by which stability is measured; 1: only by halves.
        held_out: Share of the pictures on which nothing is fitted, and what is explained measured.
        seed: Of the choice of pictures and of the first fit.
        device: Where topk is trained: "auto" (a GPU where there is one), "cpu", "cuda".
        checkpoint: A folder that keeps finished fits and stages of training; the same call goes on
            from there.
        progress: Called with (done, total, text).

    Returns:
        `Concepts`, the largest first.

    Raises:
        UserError: Activations that the method cannot take, or too few of them.

    Example:
        >>> store = featviz.embed(model, "photographs", "relu5", positions=20)
        >>> featviz.find_concepts(store, count=32).save("run/concepts-relu5")
    """
    started = time.perf_counter()
    opened = store if isinstance(store, Store) else open_store(store)
    plan = _plan(method, count, active, steps, device)
    test, train = _split(opened, held_out, seed)
    parameters = {
        "layer": opened.layer,
        "method": method,
        "count": count,
        **({"active": plan.active, "steps": plan.steps} if method == "topk" else {}),
        "seeds": seeds,
        "held_out": held_out,
    }
    moments = Moments.of(rows for rows, _ in train.blocks())
    job = {**parameters, "seed": seed, "device": plan.device.type, "rows": opened.digest}
    fits = 1 if method == "pca" else seeds
    with open_checkpoint(checkpoint, job, total=fits + 2, unit="fits") as kept:
        one = partial(_fit, kept=kept, plan=plan, progress=progress)
        main = one("fit", train, seed)
        again = {s: one(f"seed-{s}", train, s, start="rows") for s in range(seed + 1, seed + fits)}
        first, second = train.split(0.5, seed + 1)
        halves = one("half-0", first, seed), one("half-1", second, seed)
    if progress:
        progress(0, 1, "measuring")
    uses = 1 if method == "kmeans" else plan.active if method == "topk" else count
    return Concepts(
        origin=results.origin(
            None, parameters=parameters, started=started, seed=seed, base=opened.origin
        ),
        layer=opened.layer,
        dictionary=main,
        preparation=opened.preparation,
        rows=(len(train), len(test)),
        held_out=usage(main, test, seed),
        fitted=usage(main, train, seed),
        beside=beside(
            moments, test, min(uses, train.channels), seed, chosen=method in {"kmeans", "topk"}
        ),
        stability=stability(main, again, halves),
    )


def _plan(method: Method, count: int, active: int | None, steps: int | None, device: str) -> Plan:
    if method != "topk":
        for name, value in (("active", active), ("steps", steps)):
            if value is not None:
                raise UserError(f"{name} {value} would have no effect with {method}; leave it out")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used ({reason}); take cpu") from None
    chosen = min(_ACTIVE, count) if active is None else active
    return Plan(method, count, chosen, steps or _STEPS, place)


def _split(store: Store, held_out: float, seed: int) -> tuple[Sample, Sample]:
    """The held-out pictures, and the others."""
    whole = Sample.of(store)
    test, train = whole.split(held_out, seed)
    if test.pictures < 2 or train.pictures < 4:
        raise UserError(
            f"{store.title} has {whole.pictures} pictures, of which {test.pictures} would be held "
            "out; 2 must be, and 4 left to fit on: give more pictures"
        )
    return test, train


def _fit(
    name: str,
    sample: Sample,
    seed: int,
    *,
    kept: Checkpoint,
    plan: Plan,
    progress: Progress | None,
    start: Start = "svd",
) -> Dictionary:
    def report(done: int, total: int) -> None:
        if progress:
            progress(done, total, f"{plan.method} of {sample.store.layer}, {name}")

    report(0, 1)

    def make() -> Any:
        inner = kept.part(f"{name}-training")
        return to_arrays(fit(sample, plan, seed, start=start, kept=inner, report=report))

    return from_arrays(kept.piece(name, make), plan)
