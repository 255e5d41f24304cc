"""`audit`: accuracy against the size of the attack, over a data set, with checks of itself.

Stages, each in a module of its own: one clean pass (`clean_pass`); in each norm the smallest change
that fools each picture, which gives the whole curve of accuracy against eps at once
(`smallest_changes`); a second strong attack and one without gradients at a few eps
(`second_attack`); checks for masked gradients and failed attacks (`masking`); further results
(`parts`). Every success enters the curve, and each is judged by the model in float32, apart from
the search.

Work is cut into batches of pictures, which a checkpoint keeps. No random number depends on the
batch, so a run that was killed and given again ends with the same bytes.

    Carlini et al., "On Evaluating Adversarial Robustness", 2019 (arXiv:1902.06705)
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from featviz import results
from featviz.attacks.options import check_batch_size, check_eps, check_norm, choose_precision
from featviz.checkpoints import Checkpoint, open_checkpoint
from featviz.data.datasets import Pictures
from featviz.data.from_python import Data, Labels
from featviz.data.labeled import LabeledPictures, read_labeled
from featviz.errors import UserError, nearest, public
from featviz.models.frozen import frozen
from featviz.models.layers import need_gradients
from featviz.robustness.clean_pass import CleanPass, Work, clean_pass
from featviz.robustness.examples import NormState
from featviz.robustness.masking import (
    Check,
    Evidence,
    attack_checks,
    model_checks,
    range_checks,
)
from featviz.robustness.parts import FURTHER_PARTS, PARTS, Source, fool_by_margin, make_parts
from featviz.robustness.plan import Options, Plan, duration, make_plan
from featviz.robustness.result import Audit, audit_warnings
from featviz.robustness.second_attack import CHECKS, second_attacks
from featviz.robustness.self_test import SelfTest, self_test
from featviz.robustness.shape_bias import open_stimuli, shape_bias
from featviz.robustness.smallest_changes import smallest_changes
from featviz.types import (
    AutoPrecision,
    BatchSize,
    Count,
    Engine,
    Progress,
    SearchSteps,
    Seconds,
    Seed,
    Tries,
)
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.models.model import Model

NORMS = ("linf", "l2", "l1", "l0")
DEFAULT_EPS: Mapping[str, tuple[float, ...]] = {
    "linf": tuple(k / 255 for k in (0.125, 0.25, 0.5, 1, 2, 4, 8)),
    "l2": (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0),
    "l1": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    "l0": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
}
_BATCH_SIZE = 16  # on a CPU


@public
def audit(
    model: Model,
    pictures: Data,
    labels: Labels | None = None,
    *,
    norms: Sequence[str] = ("linf", "l2"),
    eps: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    count: Count | None = None,
    steps: SearchSteps = 60,
    check: str = "apgd",
    check_steps: Tries = 30,
    queries: Tries = 100,
    parts: Sequence[str] = PARTS,
    stimuli: str | Path | Pictures | None = None,
    categories: str | Path | Mapping[str, Sequence[str]] | None = None,
    against: Mapping[str, Model] | None = None,
    time: Seconds | None = None,
    seed: Seed = 0,
    batch_size: BatchSize | None = None,
    precision: AutoPrecision = "auto",
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Audit:
    """Robust accuracy against eps in each norm, an upper bound, with checks of the measurement.

    Args:
        model: The classifier.
        pictures: What `as_pictures` takes; a float tensor (N, C, H, W) keeps its size.
        labels: Of a tensor's pictures, indices or names. A data set is labelled by its class
            folders; pictures in folders that are no class of the model are left out. Without any
            labels the model's predictions on the clean pictures are used, with a warning.
        norms: Of "linf", "l2", "l1", "l0".
        eps: The grid of tables and marks: for one norm a sequence, for several a mapping
            {"linf": [...], "l2": [...]}. Default: 1/8 to 8 levels of 255, 1/32 to 2 in L2.
        count: At most so many pictures, evenly spread over the data set.
        steps: Of the search for the smallest change, 10 or more. More steps find smaller changes; a
            warning says when it has not converged.
        check: The second attack, on what the search did not fool at a few eps: "apgd" (with the DLR
            loss), or "ensemble" (all attacks in turn, which takes many times as long).
        check_steps: Of the second attack; 0 for none.
        queries: Forward passes per picture of the attack without gradients; 0 for none.
        parts: Further results: "corruptions", "universal" (one perturbation for all pictures),
            "transfer" (other models, small shifts), "diagnosis" (what changes in the network) and,
            if named, "attribution" (sanity checks of attribution maps).
        stimuli: Pictures whose shape and texture disagree, for the part "shape-bias"; see
            `shape_bias`.
        categories: Of the stimuli; see `shape_bias`.
        against: Other models that judge the adversarial pictures in "transfer", by name.
        time: Seconds that the audit may take, by an estimate made from a few passes at its start.
            What does not fit is left out, pictures first, then parts, and named in the warnings.
        seed: Of all random numbers, which are drawn per picture.
        batch_size: Pictures that the model computes at once; default 16, on CUDA 128.
        precision: Of the search. "auto" is bfloat16 where the processor is faster at it. Successes
            are judged in float32.
        checkpoint: A folder for finished pieces, from which a second call with the same arguments
            goes on; None keeps them in memory.
        engine: "here", or "ray": batches of pictures are attacked on a Ray cluster. `time` is
            estimated for this machine alone.
        progress: Called with (done, total, text).

    Returns:
        Curves, certificates of each picture, classes, checks, and the parts.

    Raises:
        UserError: An argument is out of range, or the checkpoint belongs to another job.

    Example:
        featviz.audit(model, featviz.open_pictures("val"), count=200).save("run/audit")
    """
    started = perf_counter()
    grids = check_grids(norms, eps)
    _check_options(steps, check, check_steps, queries, parts)
    on_cpu = model.device.type == "cpu"
    batch_size = check_batch_size(
        _BATCH_SIZE if batch_size is None and on_cpu else batch_size, model.device
    )
    if stimuli is not None:
        stimuli, *_ = open_stimuli(model, stimuli, categories)
    labeled = read_labeled(model, pictures, labels, count=count)
    need_gradients(model, ["logits"], cut=True)
    chosen = choose_precision(model, labeled.pictures[:1].to(model.device), precision)
    parameters = {
        "norms": list(grids),
        "eps": {norm: list(grid) for norm, grid in grids.items()},
        "count": count,
        "steps": steps,
        "check": check,
        "check_steps": check_steps,
        "queries": queries,
        "parts": list(parts),
        "time": time,
        "against": list(against) if against else None,
        "batch_size": batch_size,
        "precision": chosen,
        "labels": "predictions" if labeled.labels is None else "given",
    }
    job = parameters | {
        "model": model.record(),
        "pictures": labeled.sha256,
        "against_sha256": [other.sha256 for other in (against or {}).values()],
        "given_labels": None if labeled.labels is None else labeled.labels.tolist(),
        "seed": seed,
    }
    options = Options(tuple(grids), steps, check_steps, queries)
    with open_checkpoint(checkpoint, job, engine=engine) as kept:
        work = Work(kept, progress)
        plan = _plan(
            kept,
            partial(
                make_plan,
                model,
                labeled,
                options,
                parts,
                precision=chosen,
                batch_size=batch_size,
                seconds=time,
            ),
        )
        left_out = _left_out(plan, len(labeled.pictures), parts)
        labeled, parts = labeled.spread(plan.count), plan.parts
        work.report(0, 0, f"about {duration(plan.seconds)} for {counted(plan.count, 'picture')}")
        with frozen(model):
            tested = self_test()
            work.report(0, 1, tested.line.partition(":")[0])
            clean = clean_pass(
                model,
                labeled.pictures,
                labeled.labels,
                work,
                seed=seed,
                batch_size=batch_size,
                precision=chosen,
            )
            states = _search(clean, grids, options, check, work)
            judged = {"transfer", "diagnosis"} & set(parts)
            fooled = fool_by_margin(clean, work) if judged else None
        source = Source(
            clean=clean,
            work=work,
            labeled=labeled,
            fooled=fooled,
            data=labeled.source,
            against=against or {},
        )
        made, missing = make_parts(parts, source)
        if stimuli is not None:
            made["shape-bias"] = shape_bias(
                model, stimuli, categories=categories, progress=progress
            )
    origin = results.origin(
        model, parameters=parameters, started=started, data=labeled.data, seed=seed
    )
    result = _result(origin, clean, work, labeled, states, tested, made)
    warnings = (*result.warnings, *left_out, *missing, *audit_warnings(result))
    return replace(result, warnings=warnings)


def _search(
    clean: CleanPass,
    grids: Mapping[str, tuple[float, ...]],
    options: Options,
    check: str,
    work: Work,
) -> list[NormState]:
    """Smallest changes in each norm, and the second attack on what they leave."""
    states = smallest_changes(clean, grids, options.steps, work)
    for state in states:
        if options.check_steps and state.norm != "l0":
            second_attacks(state, check, options.check_steps, options.queries, work)
    return states


def _plan(kept: Checkpoint, make: Callable[[], Plan]) -> Plan:
    """The plan, as an earlier run made it; a clock must not change what that run began."""
    piece = kept.piece("plan", lambda: {"plan": np.array(json.dumps(asdict(make())))})
    found = json.loads(str(piece["plan"]))
    return Plan(found["count"], tuple(found["parts"]), found["seconds"])


def _left_out(plan: Plan, count: int, parts: Sequence[str]) -> list[str]:
    """What does not fit into the time, in words."""
    found = []
    if plan.count < count:
        found.append(f"{count - plan.count} of {counted(count, 'picture')}")
    found += [part for part in parts if part not in plan.parts]
    return [f"left out to fit into the time: {', '.join(found)}"] if found else []


def check_grids(
    norms: Sequence[str], eps: Sequence[float] | Mapping[str, Sequence[float]] | None
) -> dict[str, tuple[float, ...]]:
    """The grid of each norm, ascending, without 0 and doubles. Raises UserError."""
    if not norms:
        raise UserError("no norm was named; take linf, l2 or both")
    for norm in norms:
        check_norm(norm, NORMS)
    if eps is None:
        wanted: Mapping[str, Sequence[float]] = DEFAULT_EPS
    elif isinstance(eps, Mapping):
        wanted = {norm: eps.get(norm, DEFAULT_EPS[norm]) for norm in norms}
    elif len(norms) == 1:
        wanted = {norms[0]: eps}
    else:
        raise UserError(
            "one list of eps for several norms is ambiguous; "
            'give {"linf": [...], "l2": [...]}, or one norm'
        )
    grids = {}
    for norm in dict.fromkeys(norms):
        values = sorted({float(e) for e in wanted[norm]} - {0.0})
        for value in values:
            check_eps(value, norm, 1)
        if not values:
            raise UserError(f"no eps above 0 was given for {norm}")
        grids[norm] = tuple(values)
    return grids


def _check_options(
    steps: int, check: str, check_steps: int, queries: int, parts: Sequence[str]
) -> None:
    if check not in CHECKS:
        raise UserError(f"unknown check {check!r}{nearest(check, CHECKS)}; take apgd or ensemble")
    known = (*PARTS, *FURTHER_PARTS)
    for part in parts:
        if part not in known:
            raise UserError(
                f"unknown part {part!r}{nearest(part, known)} (there are {', '.join(known)})"
            )


def _checks(clean: CleanPass, states: Sequence[NormState]) -> list[Check]:
    """All checks: of the model, of the attacks over all norms, of the ranges."""
    right, n = len(clean.correct), len(clean.labels)
    one_step = noise = 0
    for state in states:
        if state.norm == "l0":
            continue
        measured = state.measured
        iterated = np.minimum(measured["search_distance"], measured["distance_8bit"])
        distance = state.examples["distance"]
        one_step += max(
            int(((measured["one_step"] <= eps) & (iterated > eps)).sum()) for eps in state.eps
        )
        noise += max(
            int((~correct & (distance > eps) & (distance > 0)).sum())
            for correct, eps in zip(state.noise_correct, state.eps, strict=True)
        )
    gains = [gain for state in states for gain in state.gains]
    seconds = [second for state in states for second in state.second_attacks]
    counts = sum((state.counts for state in states), start=Counter[str]())
    seen = Evidence(
        tried=right * len(states),
        one_step_only=one_step,
        black_box_tried=sum(second.black_box_tried for second in seconds),
        black_box_only=sum(second.black_box_fooled for second in seconds),
        unbounded_tried=counts["unbounded_tried"],
        unbounded_failed=counts["unbounded_failed"],
        noise_only=noise,
        zero_steps=counts["zero_steps"],
        silent=counts["silent"],
        late=float(np.median(gains)) if len(gains) >= 5 else None,
        unconfirmed=counts["unconfirmed"],
    )
    ranges = range_checks(
        [(state.norm, state.eps) for state in states],
        components=clean.pictures[0].numel(),
        left=min(len(state.left(state.eps[-1])) for state in states) / max(1, right),
        accuracy=right / n,
        n=n,
        classes=len(clean.model.classes),
    )
    return [*model_checks(clean.probe), *attack_checks(seen), *ranges]


def _result(
    origin: results.Origin,
    clean: CleanPass,
    work: Work,
    labeled: LabeledPictures,
    states: Sequence[NormState],
    tested: SelfTest,
    made: Mapping[str, results.Result],
) -> Audit:
    model = clean.model
    part_warnings = [f"{name}: {text}" for name, part in made.items() for text in part.warnings]
    return Audit(
        origin=origin,
        warnings=(*labeled.warnings, *part_warnings),
        model_name=model.name,
        data_name=labeled.data_name,
        classes=model.class_names,
        names=labeled.names,
        labels=clean.labels,
        predicted_labels=labeled.labels is None,
        clean=clean.logits.argmax(1),
        second_choice=clean.second_choice,
        margins=clean.margins,
        norms=tuple(state.result() for state in states),
        checks=tuple(_checks(clean, states)),
        self_test=tested,
        part_results=made,
        forwards=work.forwards,
        backwards=work.backwards,
        memory=_peak_memory(model.device),
        precision={"search": clean.precision, "judge": "float32"},
        seconds=work.seconds,
        resumed=work.kept.found,
        label_report=labeled.label_report,
    )


def _peak_memory(device: torch.device) -> float:
    """In bytes: on CUDA of the device's tensors, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return math.nan
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(used if sys.platform == "darwin" else 1024 * used)
