"""`audit`: accuracy against the size of the attack, over a data set, with doubts about itself.

One clean pass serves all. Then, in each norm, a search for the smallest change that fools each
picture gives the whole curve of accuracy against eps at once. Beside it one gradient step and
random noise of every eps of the grid, and a walk down the grid for changes that a file of 8 bits
can hold. What stands at a few telling eps is attacked once more by another strong attack and then
without gradients; every success, whoever found it, enters the curve. Each success is judged by the
model itself in float32, apart from the search.

The order of work is by groups of pictures. A finished group is kept in `<out>.partial` (see
`shards`), and no random number depends on the group, so a run that was killed and given again ends
with the same bytes.

    Carlini et al., "On Evaluating Adversarial Robustness", 2019 (arXiv:1902.06705)
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz import images, results
from featviz.attacks import projections
from featviz.attacks.apgd import apgd
from featviz.attacks.checks import check_batch_size, check_eps, check_norm
from featviz.attacks.ensemble import ensemble
from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.loop import classify
from featviz.attacks.minimal import minimal
from featviz.attacks.options import AttackOptions, choose_precision
from featviz.attacks.pgd import pgd
from featviz.attacks.square import square
from featviz.datasets import Pictures, read_labelled
from featviz.errors import UserError, nearest
from featviz.models.frozen import frozen
from featviz.robustness import masking
from featviz.robustness.masking import Evidence, Probe
from featviz.robustness.parts import FOLLOWED_EPS, SECTIONS, Followed, make_sections
from featviz.robustness.pieces import SECONDS, Arrays, Shards
from featviz.robustness.result import Audit, Fall, Level, NormAudit, Point, doubts
from featviz.robustness.self_test import SelfTest, self_test
from featviz.statistics import median
from featviz.types import AutoPrecision

if TYPE_CHECKING:
    from featviz.models.model import Model

NORMS = ("linf", "l2", "l1", "l0")
DEFAULT_EPS: Mapping[str, tuple[float, ...]] = {
    "linf": tuple(k / 255 for k in (0.125, 0.25, 0.5, 1, 2, 4, 8)),
    "l2": (0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0),
    "l1": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
    "l0": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
}
FEWEST_STEPS = 10
"""of a search for the smallest change"""
CHECKS = ("apgd", "suite")
SHOWN = 6
"""pictures in the sheets of the easiest and of the hardest"""
_SLOTS = 16  # on a CPU, where the whole batch is at the same point of a search most of the time
_GROUP = 2  # times the slots: pictures of one piece of work
_PROBED = 32  # pictures on which the model itself is looked at
_CHECKED_AT = (0.75, 0.5, 0.25)  # shares of the right pictures that still stand
_BLACK_BOX = 16  # pictures tried without gradients
_CONVERGENCE = 16  # pictures on which shorter searches are run
_EIGHT_BIT_STEPS = 10
_FOLLOWED, _FOLLOWED_STEPS = 48, 20  # pictures for the transfer matrix and the look inside
Progress = Callable[[int, int, str], None]
Classifier = Callable[[Tensor], Tensor]


def audit(
    model: Model,
    pictures: Pictures | Tensor,
    labels: Sequence[int | str] | Tensor | None = None,
    *,
    norms: Sequence[str] = ("linf", "l2"),
    eps: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    count: int | None = None,
    steps: int = 60,
    check: str = "apgd",
    check_steps: int = 30,
    queries: int = 100,
    sections: Sequence[str] = SECTIONS,
    against: Mapping[str, Model] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Accuracy against eps in each norm, at most, and what to think of the measurement.

    pictures: a data set, or a tensor (N, 3, H, W) in [0, 1]
    labels: of a tensor's pictures, indices or names. A data set is labelled by its class folders;
        pictures in folders that are no class of the model are left out. Without any label the
        model's own clean answers stand in, and the result says so
    norms: of "linf", "l2", "l1", "l0"
    eps: the grid of tables and marks, for one norm a sequence, for several a mapping
        {"linf": [...], "l2": [...]}; default: 1/8 to 8 levels of 255, 1/32 to 2 in L2
    count: at most so many pictures, evenly spread over the data set
    steps: of the search for the smallest change; more find smaller ones (a warning says when)
    check: the second attack on what stands at a few eps: "apgd" (with the DLR loss), or "suite"
        (everything, in turn: much dearer); check_steps: of it; 0 leaves the check out
    queries: passes a picture of the attack without gradients; 0 leaves it out
    sections: further parts, of "corruptions", "universal" (one change for all pictures), "transfer"
        (do other models, and small shifts, see it too?) and "inside" (what changes in the net)
    against: other models that judge the adversarial pictures in "transfer", by name
    seed: of all random numbers, which are drawn per picture: neither order nor neighbours matter
    slots: how many pictures the model sees at once (default 16, on CUDA 128)
    precision: "auto" searches in bf16 where the processor is faster at it and the boundary is far
        enough for it, "fp32" never; what counts is judged in fp32
    out: the result folder, written at the end; finished work waits in `<out>.partial`, and a
        second call with the same arguments goes on from there. None keeps everything in memory
    announce: told the outcome of the self-test, one line, before anything else is done

    Returns an `Audit`. Raises UserError for arguments out of range.

        featviz.audit(model, featviz.open_pictures("val"), count=200, out="run/audit")
    """
    started = time.perf_counter()
    grids = check_grids(norms, eps)
    _check_numbers(steps, check, check_steps, queries, sections)
    if out is not None:
        results.check_target(out, overwrite=overwrite)
    on_cpu = model.device.type == "cpu"
    batch_size = check_batch_size(
        _SLOTS if batch_size is None and on_cpu else batch_size, model.device
    )
    given = read_labelled(model, pictures, labels, count=count)
    precision = choose_precision(model, given.pictures[:1].to(model.device), precision)
    parameters = {
        "norms": list(grids),
        "eps": {k: list(v) for k, v in grids.items()},
        "count": count,
        "steps": steps,
        "check": check,
        "check_steps": check_steps,
        "queries": queries,
        "sections": list(sections),
        "against": list(against) if against else None,
        "batch_size": batch_size,
        "precision": precision,
        "labels": "given" if given.labels is not None else "the model's own answers",
    }
    job = parameters | {
        "model": model.record(),
        "seed": seed,
        "versions": results.versions(),
        "pictures": _digest(given.pictures),
        "against_sha256": [other.sha256 for other in (against or {}).values()],
        "given_labels": None if given.labels is None else given.labels.tolist(),
    }
    shards = Shards(None if out is None else Path(f"{out}.partial"), job)
    run = _Run(model, model, given.pictures, seed, batch_size, precision, shards, progress)
    with frozen(model):
        tested = self_test()
        if announce is not None:
            announce(tested.line)
        run.look(given.labels)
        parts = [
            _norm(run, norm, grid, steps, (check, check_steps, queries))
            for norm, grid in grids.items()
        ]
        checks = [
            *masking.model_checks(run.probe),
            *masking.attack_checks(_evidence(run, parts)),
            *_range_checks(run, parts, len(model.classes)),
        ]
        followed = _followed(run) if {"transfer", "inside"} & set(sections) else None
    finished = [part.finish() for part in parts]
    extra, missing = make_sections(
        sections,
        model,
        given,
        run.labels,
        followed,
        whole=pictures if isinstance(pictures, Pictures) else None,
        against=against or {},
        partial=None if shards.folder is None else shards.folder / "corruptions",
        seed=seed,
        batch_size=batch_size,
        precision=precision,
        progress=progress,
    )
    doubted = [text for section in extra for text in section.warnings]
    result = Audit(
        origin=results.origin(
            model, parameters=parameters, started=started, data=given.data, seed=seed
        ),
        warnings=(*given.warnings, *missing, *doubted),
        model_name=model.name,
        data_name=given.data_name,
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        names=given.names,
        labels=run.labels,
        own_labels=given.labels is None,
        clean=run.logits.argmax(1),
        runner_up=run.runner_up,
        margins=run.margins,
        norms=tuple(finished),
        checks=tuple(checks),
        selftest=tested,
        sections=tuple(extra),
        forwards=run.forwards,
        backwards=run.backwards,
        memory=_memory(model.device),
        precision={"search": precision, "judge": "float32"},
        seconds=run.seconds,
        resumed=shards.found,
    )
    result = replace(result, warnings=(*result.warnings, *doubts(result)))
    if out is not None:
        result.save(out, overwrite=overwrite)
        shards.close()
    return result


def check_grids(
    norms: Sequence[str], eps: Sequence[float] | Mapping[str, Sequence[float]] | None
) -> dict[str, tuple[float, ...]]:
    """The grid of each norm, ascending, without 0 and doubles. Raises UserError."""
    if not norms:
        raise UserError("no norm was named; take linf, l2 or both")
    for norm in norms:
        check_norm(norm, NORMS)
    if eps is None:
        given: Mapping[str, Sequence[float]] = DEFAULT_EPS
    elif isinstance(eps, Mapping):
        given = {norm: eps.get(norm, DEFAULT_EPS[norm]) for norm in norms}
    elif len(norms) == 1:
        given = {norms[0]: eps}
    else:
        raise UserError(
            "one list of eps for two norms would mean two things; "
            'give {"linf": [...], "l2": [...]}, or one norm'
        )
    grids = {}
    for norm in dict.fromkeys(norms):
        values = sorted({float(e) for e in given[norm]} - {0.0})
        for value in values:
            check_eps(value, norm, 1)
        if not values:
            raise UserError(f"no eps above 0 was given for {norm}")
        grids[norm] = tuple(values)
    return grids


def _check_numbers(
    steps: int, check: str, check_steps: int, queries: int, sections: Sequence[str]
) -> None:
    if check not in CHECKS:
        raise UserError(f"unknown check {check!r}{nearest(check, CHECKS)}; take apgd or suite")
    if steps < FEWEST_STEPS or check_steps < 0 or queries < 0:
        raise UserError(
            f"steps is {steps}, check_steps {check_steps}, queries {queries}: a search for the "
            f"smallest change takes {FEWEST_STEPS} steps or more, the others 0 or more"
        )
    for section in sections:
        if section not in SECTIONS:
            raise UserError(
                f"unknown section {section!r}{nearest(section, SECTIONS)} "
                f"(there are {', '.join(SECTIONS)})"
            )


def _digest(pictures: Tensor) -> str:
    return hashlib.sha256(pictures.contiguous().numpy().tobytes()).hexdigest()


@dataclass
class _Run:
    """What all parts of an audit share: the pictures, the clean pass, the counts."""

    model: Model
    victim: Classifier
    """the model; with its logits tied to the picture where it cuts the graph itself"""
    pictures: Tensor
    seed: int
    batch_size: int
    precision: AutoPrecision
    shards: Shards
    progress: Progress | None
    logits: Tensor = field(init=False)
    labels: Tensor = field(init=False)
    runner_up: Tensor = field(init=False)
    margins: Tensor = field(init=False)
    right: Tensor = field(init=False)
    """rows of the pictures that are right when clean"""
    probe: Probe = field(init=False)
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def piece(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """A piece of work, made or found, with its cost counted."""
        piece = self.shards.get(name, make)
        self.seconds += float(piece[SECONDS][0])
        if "passes" in piece:
            self.forwards += int(piece["passes"][0])
            self.backwards += int(piece["passes"][1])
        return piece

    def report(self, done: int, total: int, text: str) -> None:
        if self.progress is not None:
            self.progress(done, total, text)

    def look(self, labels: Tensor | None) -> None:
        """The clean pass, and what the model itself is like."""

        def clean() -> Arrays:
            z = classify(self.model, self.on_device(self.pictures), batch_size=self.batch_size)
            return {"logits": z.cpu().numpy(), "passes": np.array([len(z), 0])}

        self.report(0, 1, "clean pictures")
        self.logits = torch.from_numpy(self.piece("clean", clean)["logits"])
        if not bool(self.logits.isfinite().all()):
            raise UserError("the model gives logits that are not finite; nothing can be measured")
        self.labels = self.logits.argmax(1) if labels is None else labels
        z, own = self.logits.double(), self.labels[:, None]
        best, self.runner_up = z.scatter(1, own, -math.inf).max(1)
        self.margins = z.gather(1, own)[:, 0] - best
        self.right = (self.logits.argmax(1) == self.labels).nonzero()[:, 0]
        rows = self.right if len(self.right) else torch.arange(len(self.labels))
        rows = _spread(rows, _PROBED)

        def probed() -> Arrays:
            x, y = self.on_device(self.pictures[rows]), self.on_device(self.labels[rows])
            seen = masking.probe(self.model, x, y, batch_size=self.batch_size, seed=self.seed)
            return {
                "probe": np.array([json.dumps(asdict(seen))]),
                "passes": np.array([seen.forwards, seen.backwards]),
            }

        self.probe = Probe(**json.loads(str(self.piece("probe", probed)["probe"][0])))
        if self.probe.unavailable:
            self.victim = attached(self.model)

    def on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.model.device)

    def options(self, rows: Tensor) -> AttackOptions:
        """Of the attacks on some of the pictures."""
        return AttackOptions(
            seed=self.seed,
            batch_size=self.batch_size,
            precision=self.precision,
            clean=self.on_device(self.logits[rows]),
        )

    def groups(self, rows: Tensor) -> list[Tensor]:
        """Rows in groups of some slots: little is lost at a kill, and few seats stay empty."""
        return list(rows.split(_GROUP * self.batch_size)) if len(rows) else []


def attached(model: Classifier) -> Classifier:
    """A model whose logits hang on the picture with slope 0 where it cuts the graph itself."""

    def answer(pictures: Tensor) -> Tensor:
        logits = model(pictures)
        if logits.requires_grad or not pictures.requires_grad or not torch.is_grad_enabled():
            return logits
        return logits + 0 * pictures.flatten(1).sum(1, keepdim=True)

    return answer


def _spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spread."""
    n = len(rows)
    return rows if n <= count else rows[[i * n // count for i in range(count)]]


class _Best:
    """The smallest change of each picture of a group so far, judged by the model itself."""

    def __init__(self, run: _Run, rows: Tensor, norm: str):
        self.run, self.norm = run, norm
        self.x, self.y = run.on_device(run.pictures[rows]), run.on_device(run.labels[rows])
        n = len(rows)
        self.distance = torch.full((n,), math.inf, dtype=torch.float64)
        self.judged = torch.full((n,), math.nan, dtype=torch.float64)
        self.predicted = torch.full((n,), -1)
        self.attack = [""] * n
        self.adversarial = self.x.clone()
        self.forwards = self.backwards = self.unconfirmed = 0

    def offer(self, at: Tensor, pictures: Tensor, attack: str) -> Tensor:
        """Pictures that an attack says fool, for the rows `at` of the group.

        Those that are nearer than what was known are judged once more. Returns (len(at),) float64:
        the distances, infinite where the model is right after all.
        """
        here = at.to(self.x.device)
        distance = projections.distance(self.x[here], pictures, self.norm).cpu()
        nearer = distance < self.distance[at]
        at, pictures = at[nearer], pictures[nearer.to(here.device)]
        if not len(at):
            return distance
        here = at.to(self.x.device)
        z = classify(self.run.model, pictures, batch_size=self.run.batch_size).double()
        self.forwards += len(at)
        own = self.y[here, None]
        ahead = (z.scatter(1, own, -math.inf).amax(1) - z.gather(1, own)[:, 0]).cpu()
        predicted = z.argmax(1)
        wrong = (predicted != self.y[here]).cpu()
        self.unconfirmed += int((~wrong).sum())
        taken = at[wrong]
        self.distance[taken] = distance[nearer][wrong]
        self.judged[taken], self.predicted[taken] = ahead[wrong], predicted.cpu()[wrong]
        self.adversarial[taken.to(here.device)] = pictures[wrong.to(here.device)]
        for i in taken.tolist():
            self.attack[i] = attack
        distance[nearer.nonzero()[:, 0][~wrong]] = math.inf
        return distance

    def arrays(self) -> Arrays:
        """Everything found, with the judgement of what 8 bits leave of it."""
        n = len(self.x)
        fell = self.distance.isfinite()
        fools = torch.zeros(n, dtype=torch.bool)
        rows = fell.nonzero()[:, 0]
        if len(rows):
            there = rows.to(self.x.device)
            rounded = images.quantize(self.adversarial[there]).to(self.x.dtype)
            answers = classify(self.run.model, rounded, batch_size=self.run.batch_size).argmax(1)
            fools[rows] = (answers != self.y[there]).cpu()
            self.forwards += len(rows)
        hashes = [
            hashlib.sha256(picture.cpu().contiguous().numpy().tobytes()).hexdigest()
            if fell[i]
            else ""
            for i, picture in enumerate(self.adversarial)
        ]
        return {
            "distance": self.distance.numpy(),
            "judged": self.judged.numpy(),
            "predicted": self.predicted.numpy(),
            "attack": np.array(self.attack, dtype="U32"),
            "fools_8bit": fools.numpy(),
            "sha256": np.array(hashes, dtype="U64"),
            "unconfirmed": np.array([self.unconfirmed]),
            "passes": np.array([self.forwards, self.backwards]),
        }


@dataclass
class _Part:
    """What is known of one norm while the audit goes on; all tensors have a row a picture."""

    run: _Run
    norm: str
    eps: tuple[float, ...]
    distance: Tensor
    searched: Tensor
    judged: Tensor
    predicted: Tensor
    attack: list[str]
    fools_8bit: Tensor
    sha256: list[str]
    distance_8bit: Tensor
    estimate: Tensor
    one_step: Tensor
    noise_right: Tensor
    zero_steps: Tensor
    unlimited_standing: int = 0
    unlimited_tried: int = 0
    unconfirmed: int = 0
    silent: int = 0
    gains: list[float] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    shown: dict[int, tuple[Tensor, float, int]] = field(default_factory=dict)
    """row -> adversarial picture, its distance and class, of those that may be in the sheets"""
    forwards: int = 0
    backwards: int = 0

    @staticmethod
    def empty(run: _Run, norm: str, eps: tuple[float, ...]) -> _Part:
        n = len(run.labels)
        wrong = torch.ones(n, dtype=torch.bool)
        wrong[run.right] = False
        nothing = torch.where(wrong, 0.0, math.inf).double()
        return _Part(
            run,
            norm,
            eps,
            distance=nothing.clone(),
            searched=nothing.clone(),
            judged=torch.full((n,), math.nan, dtype=torch.float64),
            predicted=torch.full((n,), -1),
            attack=[""] * n,
            fools_8bit=torch.zeros(n, dtype=torch.bool),
            sha256=[""] * n,
            distance_8bit=nothing.clone(),
            estimate=nothing.clone(),
            one_step=nothing.clone(),
            noise_right=torch.zeros(len(eps), n, dtype=torch.bool),
            zero_steps=torch.zeros(n, dtype=torch.long),
        )

    def take(self, rows: Tensor, piece: Arrays) -> None:
        """Let the successes of a piece enter where they are smaller than what was known."""
        distance = torch.from_numpy(piece["distance"])
        better = distance < self.distance[rows]
        at = rows[better]
        self.distance[at] = distance[better]
        self.judged[at] = torch.from_numpy(piece["judged"])[better]
        self.predicted[at] = torch.from_numpy(piece["predicted"])[better]
        self.fools_8bit[at] = torch.from_numpy(piece["fools_8bit"])[better]
        for i in better.nonzero()[:, 0].tolist():
            self.attack[int(rows[i])] = str(piece["attack"][i])
            self.sha256[int(rows[i])] = str(piece["sha256"][i])
        self.unconfirmed += int(piece["unconfirmed"][0])
        self.forwards += int(piece["passes"][0])
        self.backwards += int(piece["passes"][1])
        if "shown" in piece:
            pictures = torch.from_numpy(piece["shown_pictures"])
            for i, picture in zip(piece["shown"].tolist(), pictures, strict=True):
                self.shown[int(rows[i])] = (picture, float(distance[i]), int(piece["predicted"][i]))

    def standing(self, eps: float) -> Tensor:
        """Rows that are right when clean and not known to fall within eps."""
        return ((self.distance > eps) & (self.distance > 0)).nonzero()[:, 0]

    def finish(self) -> NormAudit:
        order = sorted(self.shown, key=lambda row: (self.shown[row][1], row))

        def falls(rows: Iterable[int]) -> tuple[Fall, ...]:
            return tuple(
                Fall(
                    row,
                    self.shown[row][1],
                    self.shown[row][2],
                    self.run.pictures[row],
                    self.shown[row][0],
                )
                for row in rows
            )

        flat = self.norm != "l0"
        return NormAudit(
            norm=self.norm,
            eps=self.eps,
            distance=self.distance,
            searched=self.searched,
            attack=tuple(self.attack),
            predicted=self.predicted,
            fools_8bit=self.fools_8bit,
            judged=self.judged,
            distance_8bit=self.distance_8bit,
            estimate=self.estimate,
            one_step=self.one_step if flat else None,
            noise_right=self.noise_right if flat else None,
            points=tuple(self.points),
            levels=tuple(self.levels),
            easiest=falls(order[:SHOWN]),
            hardest=falls(order[::-1][: min(SHOWN, max(0, len(order) - SHOWN))]),
            sha256=tuple(self.sha256),
            forwards=self.forwards,
            backwards=self.backwards,
        )


def _norm(
    run: _Run, norm: str, grid: tuple[float, ...], steps: int, checking: tuple[str, int, int]
) -> _Part:
    """All attacks of one norm; `checking` is the second attack, its steps, and blind queries."""
    check, check_steps, queries = checking
    part = _Part.empty(run, norm, grid)
    name = projections.NORM_NAMES[norm]
    for k, rows in enumerate(run.groups(run.right)):
        run.report(_GROUP * k * run.batch_size, len(run.right), f"smallest changes in {name}")

        def searched(rows: Tensor = rows) -> Arrays:
            return _search(run, rows, norm, grid, steps)

        piece = run.piece(f"{norm}-{k:04d}", searched)
        part.take(rows, piece)
        for key in ("searched", "distance_8bit", "estimate", "one_step", "zero_steps"):
            getattr(part, key)[rows] = torch.from_numpy(piece[key])
        part.noise_right[:, rows] = torch.from_numpy(piece["noise_right"])
        part.gains += piece["gains"].tolist()
        part.silent += int(piece["silent"][0])
        part.unlimited_tried += len(rows)
        part.unlimited_standing += int(piece["unlimited_standing"][0])
    if check_steps and norm != "l0":
        for k, eps in enumerate(_telling(part)):
            _check(part, k, eps, (check, check_steps, queries if k == 0 else 0))
    if len(run.right):
        _converge(part, steps)
    return part


def _search(run: _Run, rows: Tensor, norm: str, grid: tuple[float, ...], steps: int) -> Arrays:
    """One group: the smallest change, one step, noise, and what 8 bits can hold."""
    best = _Best(run, rows, norm)
    n = len(rows)
    x, y, clean = best.x, best.y, run.on_device(run.logits[rows])
    found = minimal(run.victim, x, y, norm=norm, steps=steps, options=run.options(rows))
    best.forwards += int(found.forwards.sum())
    best.backwards += int(found.backwards.sum())
    hits = found.success.cpu().nonzero()[:, 0]
    searched = torch.full((n,), math.inf, dtype=torch.float64)
    searched[hits] = best.offer(hits, found.adversarial[hits.to(x.device)], found.attack)
    trace, success = found.trace.cpu(), found.success.cpu()
    gains = masking.late_gain(trace[~success], max(1, steps // 10)).tolist()
    zero = torch.where(success, 0, found.zero_gradients.cpu())

    # A ball that holds every picture: who stands here shows a failing attack.
    misses = (~success).nonzero()[:, 0]
    standing = 0
    if len(misses):
        there = misses.to(x.device)
        whole = pgd(
            run.victim,
            x[there],
            y[there],
            eps=1.0,
            norm="linf",
            steps=max(10, steps // 4),
            options=run.options(rows[misses]),
        )
        best.forwards += int(whole.forwards.sum())
        best.backwards += int(whole.backwards.sum())
        standing = int((~whole.success).sum())
        won = whole.success.cpu()
        best.offer(misses[won], whole.adversarial[won.to(x.device)], "pgd, whole box")

    estimate = torch.full((n,), math.inf, dtype=torch.float64)
    one_step = estimate.clone()
    noise_right = torch.zeros(len(grid), n, dtype=torch.bool)
    distance_8bit = estimate.clone()
    if norm != "l0":
        nearest_class = linear_estimate(
            run.victim, x, y, norm=norm, among=5, batch_size=run.batch_size
        )
        estimate = nearest_class.distances.amin(1).cpu()
        best.forwards += n
        best.backwards += 5 * n
        one_step = _one_step(run, best, norm, grid, clean)
        noise_right = _noise(run, best, rows, norm, grid)
        distance_8bit = _eight_bit(run, best, rows, norm, grid)
    arrays = best.arrays()
    order = best.distance.argsort(stable=True)
    fell = order[best.distance[order].isfinite()]
    shown = torch.cat([fell[:SHOWN], fell[SHOWN:][-SHOWN:]])
    return arrays | {
        "searched": searched.numpy(),
        "estimate": estimate.numpy(),
        "one_step": one_step.numpy(),
        "noise_right": noise_right.numpy(),
        "distance_8bit": distance_8bit.numpy(),
        "zero_steps": zero.numpy(),
        "gains": np.array(gains, dtype=np.float64),
        "silent": np.array([int(masking.silent_success(trace, success).sum())]),
        "unlimited_standing": np.array([standing]),
        "shown": shown.numpy(),
        "shown_pictures": best.adversarial[shown.to(x.device)].cpu().numpy(),
    }


def _one_step(run: _Run, best: _Best, norm: str, grid: Sequence[float], clean: Tensor) -> Tensor:
    """(n,) float64: the smallest FGSM of the grid that fools; one gradient serves all eps."""
    rows = torch.arange(len(best.x))
    x, y = best.x, best.y
    others = clean.scatter(1, y[:, None], -math.inf).argmax(1)
    gradient, _ = masking.margin_gradient(run.victim, x, y, others, batch_size=run.batch_size)
    gradient = torch.where(gradient.isfinite(), gradient, 0)
    best.forwards += len(x)
    best.backwards += len(x)
    found = torch.full((len(x),), math.inf, dtype=torch.float64)
    for eps in grid:
        at = rows[found.isinf()]
        if not len(at):
            break
        here = at.to(x.device)
        radii = torch.full((len(at),), eps, dtype=torch.float64, device=x.device)
        moved = projections.farthest(x[here], gradient[here], radii, norm)
        answers = classify(run.model, moved, batch_size=run.batch_size).argmax(1)
        best.forwards += len(at)
        wrong = (answers != y[here]).cpu()
        found[at[wrong]] = projections.distance(x[here], moved, norm).cpu()[wrong]
        best.offer(at[wrong], moved[wrong.to(x.device)], "fgsm")
    return found


def _noise(run: _Run, best: _Best, rows: Tensor, norm: str, grid: Sequence[float]) -> Tensor:
    """(len(grid), n) bool: right under noise as large as the ball allows."""
    keys = [projections.picture_key(run.pictures[row], run.seed) for row in rows.tolist()]
    right = torch.zeros(len(grid), len(rows), dtype=torch.bool)
    for k, eps in enumerate(grid):
        streams = (projections.generator(key, 1_000_000 + k) for key in keys)
        pairs = zip(best.x, streams, strict=True)
        noisy = torch.stack([projections.random_noise(p, eps, norm, s) for p, s in pairs])
        answers = classify(run.model, noisy, batch_size=run.batch_size).argmax(1)
        best.forwards += len(rows)
        right[k] = (answers == best.y).cpu()
    return right


def _eight_bit(run: _Run, best: _Best, rows: Tensor, norm: str, grid: Sequence[float]) -> Tensor:
    """(n,) float64: the smallest change found that 8 bits can hold, walking down the grid.

    Each success has a distance of its own; the next try is at the largest eps of the grid below.
    """
    usable = [eps for eps in grid if norm != "linf" or eps * 255 >= 1 - 1e-9]
    found = torch.full((len(rows),), math.inf, dtype=torch.float64)
    at, radii = (
        torch.arange(len(rows)),
        torch.full((len(rows),), usable[-1] if usable else 0.0, dtype=torch.float64),
    )
    while usable and len(at):
        here = at.to(best.x.device)
        tried = pgd(
            run.victim,
            best.x[here],
            best.y[here],
            eps=radii,
            norm=norm,
            steps=_EIGHT_BIT_STEPS,
            random_start=False,
            options=replace(run.options(rows[at]), eight_bit=True),
        )
        best.forwards += int(tried.forwards.sum())
        best.backwards += int(tried.backwards.sum())
        won = tried.success.cpu()
        distance = best.offer(at[won], tried.adversarial[won.to(here.device)], "pgd, 8-bit")
        # The levels of 8 bits are not floats: a distance may pass its eps by a last bit.
        at, tops = at[won], radii[won]
        found[at] = torch.minimum(found[at], torch.minimum(distance, tops))
        below = [
            max((e for e in usable if e < top and e < d), default=0.0)
            for d, top in zip(found[at].tolist(), tops.tolist(), strict=True)
        ]
        further = torch.tensor([e > 0 for e in below], dtype=torch.bool)
        at, radii = at[further], torch.tensor([e for e in below if e > 0], dtype=torch.float64)
    return found


def _telling(part: _Part) -> list[float]:
    """The eps of the grid at which about half, three quarters and a quarter still stand."""
    right = max(1, len(part.run.right))
    shares = {eps: len(part.standing(eps)) / right for eps in part.eps}
    there = [eps for eps, s in shares.items() if s > 0]
    found = [min(there, key=lambda e: abs(shares[e] - want)) for want in (0.5, 0.25, 0.75) if there]
    return list(dict.fromkeys(found))


def _check(part: _Part, k: int, eps: float, checking: tuple[str, int, int]) -> None:
    """Attack what stands at eps once more, and then without gradients."""
    check, steps, queries = checking
    run, rows = part.run, part.standing(eps)
    fell = late = 0
    for g, group in enumerate(run.groups(rows)):
        run.report(
            _GROUP * g * run.batch_size, len(rows), f"checking {projections.NORM_NAMES[part.norm]}"
        )

        def attacked(group: Tensor = group) -> Arrays:
            best = _Best(run, group, part.norm)
            options = run.options(group)
            settings: dict[str, Any] = {"eps": eps, "norm": part.norm, "steps": steps}
            if check == "suite":
                found = ensemble(run.victim, best.x, best.y, queries=0, options=options, **settings)
            else:
                loss = "dlr" if run.logits.shape[1] >= 3 else "ce"
                found = apgd(run.victim, best.x, best.y, loss=loss, options=options, **settings)
            best.forwards += int(found.forwards.sum())
            best.backwards += int(found.backwards.sum())
            won = found.success.cpu()
            at = won.nonzero()[:, 0]
            best.offer(at, found.adversarial[at.to(best.x.device)], found.attack)
            trace = found.trace.cpu()
            return best.arrays() | {
                "late": np.array([int((found.first_step.cpu()[won] > 0.9 * steps).sum())]),
                "gains": masking.late_gain(trace[~won], max(1, steps // 10)).numpy(),
                "silent": np.array([int(masking.silent_success(trace, won).sum())]),
            }

        piece = run.piece(f"{part.norm}-check-{k}-{g:04d}", attacked)
        part.take(group, piece)
        fell += int(np.isfinite(piece["distance"]).sum())
        late += int(piece["late"][0])
        part.gains += piece["gains"].tolist()
        part.silent += int(piece["silent"][0])
    tried = broke = 0
    left = _spread(part.standing(eps), _BLACK_BOX)
    if queries and len(left) and part.norm in {"linf", "l2"}:

        def blind() -> Arrays:
            best = _Best(run, left, part.norm)
            found = square(
                run.victim,
                best.x,
                best.y,
                eps=eps,
                norm=part.norm,
                queries=queries,
                options=run.options(left),
            )
            best.forwards += int(found.forwards.sum())
            at = found.success.cpu().nonzero()[:, 0]
            best.offer(at, found.adversarial[at.to(best.x.device)], found.attack)
            return best.arrays()

        piece = run.piece(f"{part.norm}-black-box", blind)
        part.take(left, piece)
        tried, broke = len(left), int(np.isfinite(piece["distance"]).sum())
    part.points.append(
        Point(eps, "APGD" if check == "apgd" else "the suite", len(rows), fell, late, tried, broke)
    )
    part.points.sort(key=lambda point: point.eps)


def _converge(part: _Part, steps: int) -> None:
    """The search with a quarter and half of the steps, on a few pictures."""
    run = part.run
    rows = _spread(run.right, _CONVERGENCE)

    def shorter(fewer: int) -> Arrays:
        best = _Best(run, rows, part.norm)
        found = minimal(
            run.victim,
            best.x,
            best.y,
            norm=part.norm,
            steps=fewer,
            options=run.options(rows),
        )
        distance = torch.where(found.success, found.distance, math.inf).cpu()
        passes = [int(found.forwards.sum()), int(found.backwards.sum())]
        return {"distance": distance.numpy(), "passes": np.array(passes)}

    for fewer in (steps // 4, steps // 2):
        if fewer < FEWEST_STEPS:
            continue
        run.report(fewer, steps, "convergence")

        def made(fewer: int = fewer) -> Arrays:
            return shorter(fewer)

        piece = run.piece(f"{part.norm}-steps-{fewer}", made)
        part.levels.append(Level(fewer, median(torch.from_numpy(piece["distance"])).value))
    part.levels.append(Level(steps, median(part.searched[rows]).value))


def _evidence(run: _Run, parts: Sequence[_Part]) -> Evidence:
    """The counts that the checks compare, over all norms."""
    tried = len(run.right) * len(parts)
    one_step = noise = 0
    for part in parts:
        if part.norm == "l0":
            continue
        iterated = torch.minimum(part.searched, part.distance_8bit)
        one_step += max(int(((part.one_step <= eps) & (iterated > eps)).sum()) for eps in part.eps)
        noise += max(
            int((~part.noise_right[k] & (part.distance > eps) & (part.distance > 0)).sum())
            for k, eps in enumerate(part.eps)
        )
    gains = [gain for part in parts for gain in part.gains]
    points = [point for part in parts for point in part.points]
    return Evidence(
        tried=tried,
        one_step_only=one_step,
        black_box_tried=sum(p.black_box for p in points),
        black_box_only=sum(p.black_box_fell for p in points),
        unlimited_tried=sum(part.unlimited_tried for part in parts),
        unlimited_standing=sum(part.unlimited_standing for part in parts),
        noise_only=noise,
        zero_steps=sum(int((part.zero_steps > 0).sum()) for part in parts),
        silent=sum(part.silent for part in parts),
        late=float(np.median(gains)) if len(gains) >= 5 else None,
        unconfirmed=sum(part.unconfirmed for part in parts),
    )


def _range_checks(run: _Run, parts: Sequence[_Part], classes: int) -> list[masking.Check]:
    """Units and ranges: eps far too large or small, pictures that the model cannot read."""
    side = run.pictures[0].numel()
    # Half of the box's diagonal in each norm: from there on every picture can be made grey.
    trivial = {"linf": 0.5, "l2": 0.5 * math.sqrt(side), "l1": 0.5 * side, "l0": 0.99 * side}
    largest = max(part.eps[0] / trivial[part.norm] for part in parts)
    level = {"linf": 1 / 255, "l2": 1 / 255, "l1": 1 / 255, "l0": 1.0}
    smallest = min(part.eps[-1] / level[part.norm] for part in parts)
    standing = min(len(part.standing(part.eps[-1])) / max(1, len(run.right)) for part in parts)
    n = len(run.labels)
    accuracy = len(run.right) / n
    chance = 1 / classes
    return [
        masking.above(
            "eps beyond every picture",
            largest,
            0.999999,
            meaning="the smallest eps of a grid, over the one that turns any picture grey",
            remedy="nothing can stand there, the numbers mean nothing; is the unit right "
            "(8/255, not 8)?",
        ),
        masking.Check(
            "eps below one level",
            smallest,
            0.1,
            smallest < 0.1 and standing > 0.5,
            "the largest eps of a grid, in levels of an 8-bit picture (1/255)",
            "so small a change says nothing of robustness; is the unit right (divided by 255 "
            "twice)?",
        ),
        masking.Check(
            "clean accuracy at chance",
            accuracy,
            2 * chance,
            n >= 20 and accuracy <= 2 * chance,
            f"accuracy on clean pictures, beside {100 * chance:.2g}% by guessing",
            "the pictures may not be what the model expects: range (0 to 1 or 0 to 255), "
            "normalisation, order of colours, or the labels belong to other classes",
        ),
    ]


def _followed(run: _Run) -> Followed | None:
    """Pictures that were right, attacked until the false class leads as far as the right one did.

    The margin asked for is the median of theirs; pictures that end wrong by less count too.
    """
    rows = _spread(run.right, _FOLLOWED)
    if not len(rows):
        return None

    def attacked() -> Arrays:
        best = _Best(run, rows, "linf")
        margin = max(float(run.margins[rows].median()), 1e-6)
        found = pgd(
            run.victim,
            best.x,
            best.y,
            eps=FOLLOWED_EPS,
            norm="linf",
            steps=_FOLLOWED_STEPS,
            random_start=False,
            options=replace(run.options(rows), margin=margin),
        )
        answers = classify(run.model, found.adversarial, batch_size=run.batch_size).argmax(1).cpu()
        passes = [int(found.forwards.sum()) + len(rows), int(found.backwards.sum())]
        return {
            "adversarial": found.adversarial.cpu().numpy(),
            "answers": answers.numpy(),
            "passes": np.array(passes),
        }

    piece = run.piece("followed", attacked)
    answers = torch.from_numpy(piece["answers"])
    wrong = answers != run.labels[rows]
    if not bool(wrong.any()):
        return None
    adversarial = torch.from_numpy(piece["adversarial"])
    return Followed(rows[wrong], adversarial[wrong], answers[wrong])


def _memory(device: torch.device) -> float:
    """Most bytes held so far: on CUDA by the device's tensors, else by the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return math.nan
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(used if sys.platform == "darwin" else 1024 * used)


__all__ = ["Audit", "SelfTest", "audit", "check_grids"]
