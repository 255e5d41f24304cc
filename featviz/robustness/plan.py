"""How long an audit takes, and what of it fits into a given time.

The passes of every stage follow from the options; a few passes are timed on the spot. Constants
are counted on runs of `audit` (its "forward passes" and "backward passes"); how many pictures a
stage meets depends on the model, so an estimate may be wrong by half.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from featviz.attacks import losses
from featviz.attacks.evaluation import classify
from featviz.corruptions import CORRUPTIONS, corrupt
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.precision import in_precision
from featviz.robustness.clean_pass import attached, spread

if TYPE_CHECKING:
    from torch import Tensor

    from featviz.data.labeled import LabeledPictures
    from featviz.models.model import Model
    from featviz.types import Precision

# Passes of each picture that is right when clean, in one norm: the search takes one a step, and
# `_FIXED` go to the attacks beside it (one step, noise, 8 bits, linear estimate).
_FIXED = {"forward": 59.0, "backward": 24.0}
_FEW = 16  # pictures of the convergence check and of the attack without gradients
_SECOND = 1.8  # of the pictures are met by the second attack, over its three eps
_UNIVERSAL = 60  # steps, each over 64 pictures or fewer
_CORRUPTED, _DIAGNOSED = 100, 24  # pictures
_EXPLAINED = 8
_DIAGNOSIS = 200.0  # passes of a diagnosed picture
_ENOUGH = 48  # pictures that are kept before a part is left out
FEWEST = 8
"""pictures below which no audit is fitted into a time"""


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage."""

    curves: float
    """attacks in all norms, with their checks"""
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.curves + sum(self.parts.values())


@dataclass(frozen=True)
class Pace:
    """Seconds that one picture takes."""

    forward: float
    backward: float
    """of a pass forth and back"""
    corrupted: float
    """all corruptions of one severity, without the model"""


def measure_pace(
    model: Model, pictures: Tensor, precision: Precision, batch_size: int, *, corruptions: bool
) -> Pace:
    """Time a few passes of the batch size that the attacks use.

    Args:
        model: The classifier.
        pictures: (N, C, H, W), any of the audit's.
        precision: Of the search.
        batch_size: Pictures that the model computes at once.
        corruptions: Time them too.
    """
    x = pictures[torch.arange(batch_size) % len(pictures)].to(model.device)
    with frozen(model), in_precision(model, precision) as made:
        run = attached(made)

        def forth() -> None:
            with torch.no_grad():
                run(x)

        def back() -> None:
            leaf = x.clone().requires_grad_(True)
            logits = run(leaf)
            losses.margin(logits, logits.argmax(1))[0].sum().backward()

        forward, backward = (_seconds(f) / len(x) for f in (forth, back))
    corrupted = 0.0
    if corruptions:
        started = time.perf_counter()
        for name in CORRUPTIONS:
            corrupt(x[:1], name, 3)
        corrupted = time.perf_counter() - started
    return Pace(forward, backward, corrupted)


def _seconds(call: Callable[[], None]) -> float:
    """Median of three calls after one that warms up."""
    call()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@dataclass(frozen=True)
class Options:
    """What an audit does to each picture."""

    norms: tuple[str, ...]
    steps: int
    check_steps: int
    queries: int


def estimate(
    pace: Pace, count: int, right: float, options: Options, parts: Sequence[str]
) -> Estimate:
    """Seconds of an audit of `count` pictures of which the share `right` is right when clean."""
    n, norms, steps = count * right, options.norms, options.steps
    few = min(_FEW, n)
    shorter = few * 0.75 * steps  # the convergence check
    forward = count + len(norms) * (n * (_FIXED["forward"] + steps) + shorter)
    backward = len(norms) * (n * (_FIXED["backward"] + steps) + shorter)
    second = sum(norm != "l0" for norm in norms) * _SECOND * n * options.check_steps
    black_box = sum(norm in {"linf", "l2"} for norm in norms) * few / 2 * options.queries
    only_forward = max(0.0, forward - backward) + black_box
    some = min(48, n)
    costs = {
        "corruptions": min(count, _CORRUPTED)
        * 5
        * (pace.corrupted + len(CORRUPTIONS) * pace.forward),
        "universal": _UNIVERSAL * min(64, count) * pace.backward + 4 * count * pace.forward,
        "transfer": some * (20 * pace.backward + 8 * pace.forward),
        "diagnosis": min(_DIAGNOSED, n) * _DIAGNOSIS * pace.backward,
        "attribution": min(_EXPLAINED, n) * (150 * pace.backward + 1200 * pace.forward),
    }
    curves = only_forward * pace.forward + (backward + second) * pace.backward
    return Estimate(curves, {part: costs[part] for part in parts if part in costs})


def fit(
    seconds: float, pace: Pace, count: int, right: float, options: Options, parts: Sequence[str]
) -> tuple[int, tuple[str, ...]]:
    """How many pictures and which parts fit into `seconds`.

    Fewer pictures come first, down to 48; then parts are left out, the dearest first; then fewer
    pictures again, down to 8.

    Raises:
        UserError: 8 pictures without parts take longer.
    """

    def most(fewest: int, kept: Sequence[str]) -> int:
        """The most pictures, `fewest` or more, that fit with these parts; 0 if none do."""
        for n in range(count, fewest - 1, -1):
            if estimate(pace, n, right, options, kept).seconds <= seconds:
                return n
        return 0

    kept = list(parts)
    while True:
        if found := most(min(_ENOUGH, count), kept):
            return found, tuple(kept)
        if not kept:
            break
        costs = estimate(pace, min(_ENOUGH, count), right, options, kept).parts
        kept.remove(max(kept, key=lambda part: costs.get(part, 0.0)))
    if found := most(min(FEWEST, count), ()):
        return found, ()
    needed = estimate(pace, min(FEWEST, count), right, options, ()).seconds
    raise UserError(
        f"{seconds:g} s are too short for {min(FEWEST, count)} pictures, which take about "
        f"{duration(needed)}; give more time, or fewer --steps and --queries"
    )


@dataclass(frozen=True)
class Plan:
    """What an audit does, and how long that takes."""

    count: int
    parts: tuple[str, ...]
    seconds: float
    """the estimate"""


def make_plan(
    model: Model,
    labeled: LabeledPictures,
    options: Options,
    parts: Sequence[str],
    *,
    precision: Precision,
    batch_size: int,
    seconds: float | None,
) -> Plan:
    """Time a few passes; leave out what does not fit into `seconds`, if that is given."""
    pace = measure_pace(
        model, labeled.pictures, precision, batch_size, corruptions="corruptions" in parts
    )
    count, right = len(labeled.pictures), _right(model, labeled, batch_size)
    kept = tuple(parts)
    if seconds is not None:
        count, kept = fit(seconds, pace, count, right, options, parts)
    return Plan(count, kept, estimate(pace, count, right, options, kept).seconds)


def _right(model: Model, labeled: LabeledPictures, batch_size: int) -> float:
    """The share of some pictures that is right when clean."""
    if labeled.labels is None:
        return 1.0
    rows = spread(torch.arange(len(labeled.labels)), 2 * _FEW)
    found = classify(model, labeled.pictures[rows].to(model.device), batch_size=batch_size)
    return float((found.argmax(1).cpu() == labeled.labels[rows]).double().mean())


def duration(seconds: float) -> str:
    """ "40 s", "6 min", "2.5 h" """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
