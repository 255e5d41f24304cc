"""The loop of the iterated attacks: evaluate pictures, let those that fool leave, take a step.

In: a model, a `Batch` of pictures with labels and radii, an `Attack` (how one moves). What is found
and what it costs goes into a `Tracker`.

All pictures of a batch are at the same step. The model sees at most `batch_size` of them at once,
so that memory is bounded, and the rows of the pictures that have left are closed up: no pass is
spent on what is decided. Nothing mixes the pictures of a batch, and their random numbers come from
their own values.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.evaluation import Attack, Batch, evaluate
from featviz.attacks.options import (
    AttackOptions,
    Classifier,
    check_batch_size,
    check_eps,
    check_labels,
    choose_precision,
    device_of,
)
from featviz.attacks.result import AttackResult
from featviz.attacks.tracker import Tracker
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.graphed import graphed, need_cuda
from featviz.models.precision import in_bfloat16
from featviz.pictures import images
from featviz.pictures.images import check_pictures

_BATCHES = 4
"""batches of the model that are attacked side by side: the rows of those that leave close up"""


def run_attack(
    model: Classifier,
    attack: Attack,
    pictures: Tensor,
    labels: Tensor,
    *,
    name: str,
    eps: float | Tensor | None,
    options: AttackOptions,
    aims: Tensor | None = None,
    starts: Tensor | None = None,
) -> AttackResult:
    """Attack pictures, and say what became of each.

    Args:
        model: Pictures in [0, 1] to logits; a module is used in eval mode and left as it was.
        attack: How it moves.
        pictures: (N, 3, H, W) in [0, 1]; moved to a module's device.
        labels: (N,) to be left, or reached with `options.targeted`.
        name: Of the attack, in the result.
        eps: Radius of the ball, one or (N,). None for attacks without a ball.
        options: What all attacks share.
        aims: (N, T) classes for the loss; each is an attempt of its own, until one succeeds.
        starts: (N, 3, H, W) where the first attempt begins, within the ball.

    Raises:
        UserError: An argument is out of range, or the model gives no usable logits.
    """
    started = time.perf_counter()
    pictures, home = check_pictures(pictures, channels=None), pictures.device
    count, device = len(pictures), device_of(model, pictures)
    if options.cuda_graph:
        need_cuda(device)
    pictures = pictures.to(device)
    labels = check_labels(labels, count).to(device)
    radii = torch.full((count,), torch.inf, dtype=torch.float64)
    if eps is not None:
        radii = check_eps(eps, attack.norm, count)
    clean = options.clean
    if clean is not None and (clean.dim() not in {1, 2} or len(clean) != count):
        raise UserError(
            f"clean must be the logits or the classes of {count} pictures, got a tensor of shape "
            f"{tuple(clean.shape)}"
        )
    if options.eight_bit:
        pictures = images.quantize(pictures)
    aims = None if aims is None else aims.to(device)
    batch_size = check_batch_size(options.batch_size, device)
    precision = choose_precision(model, pictures, options.precision)
    attempts = options.restarts if aims is None else aims.shape[1]
    with frozen(model):
        tracker = Tracker(
            pictures, labels, options=options, attempts=attempts, batch_size=batch_size
        )
        keys = [projections.picture_key(p, options.seed) for p in pictures]
        whole = Batch(
            pictures,
            labels,
            radii.to(device),
            torch.arange(count, device=device),
            torch.tensor(keys, device=device),
            labels if aims is None else aims[:, 0],
            None if starts is None else starts.to(device),
            targeted=options.targeted,
            eight_bit=options.eight_bit,
        )

        def report(left: int) -> None:
            if options.progress is not None:
                options.progress(count - left, count, name)

        attempt_all = functools.partial(
            _attempt_all,
            attack=attack,
            whole=whole,
            aims=aims,
            tracker=tracker,
            report=report,
        )
        if clean is not None:
            tracker.know_clean(clean)
        elif precision == "bfloat16" or not attack.starts_at_picture or not bool(radii.all()):
            tracker.classify_clean(model)
        recorded = functools.partial(graphed, wanted=options.cuda_graph, device=device)
        with recorded(model) as net:
            if precision == "bfloat16":
                with in_bfloat16(model) as low, recorded(low) as fast:
                    if attack.leaves_at_hit:
                        attempt_all(fast, judge=model)
                    else:  # only some of its steps are in bfloat16; the others are judged at once
                        attempt_all(net, fast=fast)
            if precision == "float32" or not attack.leaves_at_hit:
                attempt_all(net)
        report(0)
        radius = None if eps is None else radii
        found = tracker.result(model, name=name, norm=attack.norm, eps=radius, started=started)
    return found.moved(home)


def _attempt_all(
    model: Classifier,
    *,
    attack: Attack,
    whole: Batch,
    aims: Tensor | None,
    tracker: Tracker,
    report: Callable[[int], None],
    fast: Classifier | None = None,
    judge: Classifier | None = None,
) -> None:
    """All attempts, each at the pictures that are not decided yet, some batches side by side."""
    for attempt in range(tracker.reached.shape[1]):
        rows = (~tracker.success & (whole.eps > 0)).nonzero()[:, 0]
        if not len(rows):
            return
        now = replace(whole, attempt=attempt, aims=whole.aims if aims is None else aims[:, attempt])
        tracker.begin(attack.passes)
        waiting = len(rows)
        for part in rows.split(_BATCHES * tracker.batch_size):
            waiting -= len(part)
            attack_batch(
                model,
                attack,
                now[part],
                tracker,
                fast=fast,
                judge=judge,
                waiting=waiting,
                report=report,
            )


def attack_batch(
    model: Classifier,
    attack: Attack,
    batch: Batch,
    tracker: Tracker,
    *,
    fast: Classifier | None,
    judge: Classifier | None,
    waiting: int,
    report: Callable[[int], None],
) -> None:
    """One attempt at the pictures of a batch. To be called within `frozen(model)`.

    Args:
        model: Pictures to logits.
        attack: How it moves.
        batch: The pictures.
        tracker: Where results are noted.
        fast: The model in bfloat16, for the steps that allow it.
        judge: The model in float32 where `model` is in bfloat16: what seems to fool is shown to it,
            and the search goes on where that does not hold.
        waiting: Pictures that come later.
        report: Called with the number of pictures that are left, those included.

    Raises:
        UserError: The logits are not finite or of another shape than (n, classes).
    """
    attack = copy.copy(attack)  # its state is that of one batch
    attack.start(batch)
    for step in range(attack.passes):
        shown = attack.x
        if batch.eight_bit:
            limit = batch.eps if attack.stays_in_ball else torch.full_like(batch.eps, torch.inf)
            shown = projections.on_levels(batch.pictures, shown, limit, attack.norm)
        low = fast is not None and attack.in_low_precision(step)
        seen = evaluate(
            fast if fast is not None and low else model,
            shown,
            batch,
            attack=attack if attack.wants_gradient(step) else None,
            margin=tracker.options.margin,
            batch_size=tracker.batch_size,
        )
        if judge is not None and attack.counts(step):
            seen = tracker.judge(judge, batch, seen)
        if step == 0 and attack.starts_at_picture:
            seen = tracker.judge_clean(batch.rows, seen)
        tracker.note(batch, seen, attack, step, counts=attack.counts(step) and not low)
        leaves = tracker.already[batch.rows]
        if attack.leaves_at_hit and attack.counts(step):
            leaves = leaves | seen.hit
        finished = attack.finished(seen, batch)
        if finished is not None:
            leaves = leaves | finished
        stay = (~leaves).nonzero()[:, 0]
        report(waiting + len(stay))
        if step + 1 == attack.passes or not len(stay):
            return
        if len(stay) < len(batch):
            batch, seen = batch[stay], seen[stay]
            attack.keep(stay)
        attack.step(seen, batch, step)
        tracker.note_step(batch.rows, seen)
