"""`AttackResult`: what an attack made of each picture; `find` fills it in.

`find` is the way from checked arguments to a result that all attacks share: which pictures are
wrong by themselves, the search with its slots, the judgement in float32 where the search ran in
bf16, the judgement of what 8 bits can hold, and the counts. An attack adds its `Walk`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from featviz import images
from featviz.attacks import projections
from featviz.attacks.checks import check_batch_size, check_eps, check_labels
from featviz.attacks.loop import Classifier, Job, Outcome, Walk, classify, run
from featviz.attacks.options import AttackOptions, choose_precision
from featviz.errors import UserError
from featviz.images import check_pictures
from featviz.models.frozen import frozen
from featviz.models.precision import in_bfloat16


@dataclass(frozen=True)
class AttackResult:
    """What an attack made of each picture, in the order given."""

    attacks: tuple[str, ...]
    """names: pgd, apgd-ce, fmn, ...; more than one if several were tried in turn"""
    by: Tensor
    """(N,) which of them succeeded; -1 where none did or none was needed"""
    norm: str
    """the norm it measures its changes in"""
    classes: int
    """how many the model tells apart; 0 where it was never asked"""
    adversarial: Tensor
    """(N, 3, H, W): the picture that fools; without success the one that came nearest to it"""
    success: Tensor
    """(N,) bool: the model is wrong on `adversarial` (with a target: it answers the target)"""
    success_8bit: Tensor
    """(N,) bool: the same, judged on the picture rounded to 8 bits"""
    already: Tensor
    """(N,) bool: so without any change; such a picture is returned as it was"""
    clean: Tensor
    """(N,) the class of each picture before"""
    predicted: Tensor
    """(N,) the class of `adversarial`"""
    distance: Tensor
    """(N,) float64: the change that fools, in `norm`; 0 where none was needed, inf where none was
    found"""
    l2: Tensor
    """(N,) float64: L2 norm of the change, found or tried"""
    linf: Tensor
    """(N,) float64: its largest component"""
    first_step: Tensor
    """(N,) steps up to the first success, over all restarts; -1 without success"""
    steps: Tensor
    """(N,) steps up to `adversarial`; of several attacks in turn, with the looks of earlier ones"""
    forwards: Tensor
    """(N,) passes spent on the picture, the one that judges 8 bits included"""
    backwards: Tensor
    zero_gradients: Tensor
    """(N,) gradients that were 0 everywhere or not finite"""
    trace: Tensor
    """(N, looks) float64: how far the attack was ahead (above 0: it had won) at each look, in
    logits; nan where there was no look"""

    @property
    def attack(self) -> str:
        """The name of the attack, or of all of them."""
        return " + ".join(self.attacks)

    def __len__(self) -> int:
        return len(self.success)

    def cpu(self) -> AttackResult:
        """The same with every tensor on the CPU."""
        return self._each(Tensor.cpu)

    def __getitem__(self, rows: Tensor | slice) -> AttackResult:
        """The same for some of the pictures."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> AttackResult:
        changed: dict[str, Any] = {
            f.name: change(getattr(self, f.name)) for f in fields(self) if f.type == "Tensor"
        }
        return replace(self, **changed)


def together(first: AttackResult, rows: Tensor, then: AttackResult, name: str) -> AttackResult:
    """One result of two attacks in turn: `then`, called `name`, on the pictures `rows` (k,).

    The name is one of those that `first` lists: all that are planned, run or not. A later success
    takes the place of a failure, and so does a later failure that came nearer.
    """
    better = then.success | (_ahead(then) > _ahead(first[rows]))
    taken = rows[better]
    changed: dict[str, Any] = {}
    for field in ("adversarial", "success", "success_8bit", "predicted", "distance", "l2", "linf"):
        value = getattr(first, field).clone()
        at = taken.to(value.device)
        value[at] = getattr(then, field)[better.to(value.device)]
        changed[field] = value
    before = (~first.trace.isnan()).sum(1) - 1  # steps, near enough: looks but the first
    for field in ("steps", "first_step"):
        value = getattr(first, field).clone()
        own = getattr(then, field)
        later = torch.where(own >= 0, own + before[rows].clamp(min=0), own)
        value[taken] = later[better]
        changed[field] = value
    for field in ("forwards", "backwards", "zero_gradients"):
        changed[field] = getattr(first, field).index_add(0, rows, getattr(then, field))
    by = first.by.clone()
    by[rows] = torch.where(then.by >= 0, first.attacks.index(name), by[rows])
    ends = [_end(trace) for trace in first.trace]
    width = max(ends[i] + _end(own) for i, own in zip(rows.tolist(), then.trace, strict=True))
    trace = first.trace.new_full((len(first), max(width, *ends)), torch.nan)
    trace[:, : max(ends)] = first.trace[:, : max(ends)]
    for i, own in zip(rows.tolist(), then.trace, strict=True):
        trace[i, ends[i] : ends[i] + _end(own)] = own[: _end(own)]
    return replace(first, by=by, trace=trace, **changed)


def _end(trace: Tensor) -> int:
    """Behind the last look of a picture's trace."""
    looks = (~trace.isnan()).nonzero()
    return int(looks[-1]) + 1 if len(looks) else 0


def _ahead(found: AttackResult) -> Tensor:
    """(N,) how near the attack came: the best margin on the way."""
    return found.trace.nan_to_num(-torch.inf).amax(1)


def find(
    model: Classifier,
    walk: Walk,
    pictures: Tensor,
    labels: Tensor,
    *,
    attack: str,
    eps: float | Tensor | None,
    aims: Tensor | None = None,
    starts: Tensor | None = None,
    options: AttackOptions,
    further: Callable[[Job, Outcome], Job | None] | None = None,
) -> AttackResult:
    """Let a walk attack pictures, and say what became of each.

    pictures: (N, 3, H, W) in [0, 1]; labels: (N,) to be left, or reached with `targeted`
    eps: radius, one or (N,); None for attacks without a ball (the walk then sees eps = inf)
    aims, starts: of each picture, for the `Job`
    clean: (N, classes) logits of the pictures, or (N,) classes, if the caller has them: no pass is
        spent on them then
    restarts, eight_bit, margin: as in `search.run`; seed: of the random numbers
    precision: "bf16" searches in bf16, judges in fp32 what was found, and searches once more in
        fp32 for the pictures whose success did not hold; "auto" does so where it is faster. A walk
        that goes on after a success is in bf16 only where it says so (`Walk.rough`)
    further: told a job that failed, may give another for the same picture (another target, say);
        the outcomes are merged

    Raises UserError for arguments out of range.
    """
    targeted, eight_bit, clean = options.targeted, options.eight_bit, options.clean
    progress, margin = options.progress, options.margin
    pictures = check_pictures(pictures)
    count, device = len(pictures), pictures.device
    if eps is None:
        radii = torch.full((count,), torch.inf, dtype=torch.float64)
    else:
        radii = check_eps(eps, walk.norm, count)
    labels = check_labels(labels, count)
    if clean is not None and (clean.dim() not in {1, 2} or len(clean) != count):
        raise UserError(
            f"clean must be the logits or the classes of {count} pictures, got a tensor of shape "
            f"{tuple(clean.shape)}"
        )
    if eight_bit:
        pictures = images.quantize(pictures)
    batch_size = check_batch_size(options.batch_size, device)
    precision = choose_precision(model, pictures, options.precision)
    outcomes: dict[int, Outcome] = {}
    latest: dict[int, Job] = {}
    decided = 0

    with frozen(model):
        spent = classes = 0
        if clean is not None and clean.dim() == 2:
            classes = clean.shape[1]
        if clean is None and precision == "bfloat16":
            clean, spent = classify(model, pictures, batch_size=batch_size), 1
        if clean is not None and clean.dim() == 2:
            clean = clean.argmax(1)
        answers = None if clean is None else clean.tolist()
        jobs = []
        for i, label in enumerate(labels.tolist()):
            job = Job(
                pictures[i],
                label,
                float(radii[i]),
                projections.picture_key(pictures[i], options.seed),
                i,
                known_right=clean is not None,
                aim=0 if aims is None else int(aims[i]),
                start=None if starts is None else starts[i],
            )
            if answers is None:
                jobs.append(job)
            elif (answers[i] == label) == targeted or job.eps == 0:
                outcomes[i] = _at_once(job, answers[i], (answers[i] == label) == targeted, spent)
            else:
                outcomes[i] = _at_once(job, answers[i], False, spent)
                jobs.append(job)

        def done(job: Job, outcome: Outcome) -> Job | None:
            nonlocal decided
            i = job.tag
            latest[i] = job
            outcomes[i] = merged(outcomes[i], outcome) if i in outcomes else outcome
            more = further(job, outcome) if further is not None and not outcome.success else None
            if more is None:
                decided += 1
                if progress is not None:
                    progress(min(count - len(searched) + decided, count), count, attack)
            return more

        settings: dict[str, Any] = {
            "batch_size": batch_size,
            "done": done,
            "targeted": targeted,
            "restarts": options.restarts,
            "eight_bit": eight_bit,
            "margin": margin,
        }
        searched = jobs
        if precision == "bfloat16" and jobs:
            with in_bfloat16(model, pictures) as fast:
                if walk.leaves_at_hit:
                    classes = max(classes, run(fast, jobs, walk, **settings))
                    again = _judged(model, labels, outcomes, targeted, margin, batch_size)
                else:  # it says itself which looks may be rough; the others are judged as they come
                    classes = max(classes, run(model, jobs, walk, fast=fast, **settings))
                    again = sorted(i for i in latest if not outcomes[i].success)
            jobs = [latest[i] for i in again]
        classes = max(classes, run(model, jobs, walk, **settings))
        return gather(
            model,
            pictures,
            labels,
            outcomes,
            attack=attack,
            norm=walk.norm,
            targeted=targeted,
            batch_size=batch_size,
            classes=classes,
            looks=walk.looks * options.restarts,
        )


def _at_once(job: Job, answer: int, already: bool, forwards: int) -> Outcome:
    """The outcome of a job before any walk."""
    return Outcome(
        picture=job.picture.clone(),
        success=already,
        already=already,
        clean=answer,
        predicted=answer,
        margin=-torch.inf,
        steps=0,
        first_step=0 if already else -1,
        made=0,
        looks=0,
        forwards=forwards,
        backwards=0,
        zero_gradients=0,
        trace=torch.empty(0, dtype=torch.float64),
    )


def merged(first: Outcome, then: Outcome) -> Outcome:
    """One outcome of two attempts at a picture, the second made because the first had failed."""
    better = then if then.success or then.margin > first.margin else first
    before = first.made if better is then else 0
    known = first.trace[: first.looks]
    return replace(
        better,
        clean=first.clean if then.clean is None else then.clean,
        steps=better.steps + before,
        first_step=then.first_step + first.made if then.success else -1,
        made=first.made + then.made,
        looks=first.looks + then.looks,
        forwards=first.forwards + then.forwards,
        backwards=first.backwards + then.backwards,
        zero_gradients=first.zero_gradients + then.zero_gradients,
        trace=torch.cat([known, then.trace]),
    )


def _judged(
    model: Classifier,
    labels: Tensor,
    outcomes: dict[int, Outcome],
    targeted: bool,
    margin: float,
    batch_size: int,
) -> list[int]:
    """Judge in fp32 what a bf16 search has found; the numbers of the pictures that stood it not."""
    rows = [i for i, o in outcomes.items() if o.success and not o.already]
    if not rows:
        return []
    logits = classify(
        model, torch.stack([outcomes[i].picture for i in rows]), batch_size=batch_size
    ).double()
    at = labels[torch.tensor(rows)].to(logits.device)
    own = logits.gather(1, at[:, None])[:, 0]
    other = logits.scatter(1, at[:, None], -torch.inf).amax(1)
    ahead = (own - other if targeted else other - own).tolist()
    failed = []
    for i, answer, lead in zip(rows, logits.argmax(1).tolist(), ahead, strict=True):
        wrong = lead > margin if margin > 0 else (answer == int(labels[i])) == targeted
        o = outcomes[i]
        outcomes[i] = replace(
            o,
            success=wrong,
            predicted=answer,
            margin=lead,
            forwards=o.forwards + 1,
            first_step=o.first_step if wrong else -1,
            trace=o.trace if wrong else torch.where(o.trace > lead, lead, o.trace),
        )
        if not wrong:
            failed.append(i)
    return sorted(failed)


def gather(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    outcomes: dict[int, Outcome],
    *,
    attack: str,
    norm: str,
    targeted: bool,
    batch_size: int,
    classes: int = 0,
    looks: int = 0,
) -> AttackResult:
    """The outcomes of pictures 0 to N - 1 as one result; what 8 bits can hold is judged here.

    classes: how many the model has; looks: columns of the trace at least
    To be called within `frozen(model)`.
    """
    found = [outcomes[i] for i in range(len(pictures))]
    adversarial = torch.stack([o.picture for o in found])

    def gathered(name: str, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor([getattr(o, name) for o in found], dtype=dtype)

    success = gathered("success", torch.bool)
    forwards = gathered("forwards")
    success_8bit = success.clone()
    rounded = images.quantize(adversarial).to(adversarial.dtype)
    changed = (rounded != adversarial).flatten(1).any(1).cpu() & success
    if changed.any():
        rows = changed.nonzero()[:, 0]
        answers = (
            classify(model, rounded[rows.to(rounded.device)], batch_size=batch_size).argmax(1).cpu()
        )
        wanted = labels.cpu()[rows]
        success_8bit[rows] = answers == wanted if targeted else answers != wanted
        forwards[rows] += 1
    distance = projections.distance(pictures, adversarial, norm).cpu()
    longest = max(looks, *(len(o.trace) for o in found))
    trace = torch.full((len(found), longest), torch.nan, dtype=torch.float64)
    for i, o in enumerate(found):
        trace[i, : len(o.trace)] = o.trace
    already = gathered("already", torch.bool)
    return AttackResult(
        attacks=(attack,),
        by=torch.where(success & ~already, 0, -1),
        norm=norm,
        classes=classes,
        adversarial=adversarial,
        success=success,
        success_8bit=success_8bit,
        already=already,
        clean=gathered("clean"),
        predicted=gathered("predicted"),
        distance=torch.where(success, distance, torch.inf),
        l2=projections.l2_distance(pictures, adversarial).cpu(),
        linf=projections.linf_distance(pictures, adversarial).cpu(),
        first_step=gathered("first_step"),
        steps=gathered("steps"),
        forwards=forwards,
        backwards=gathered("backwards"),
        zero_gradients=gathered("zero_gradients"),
        trace=trace,
    )
