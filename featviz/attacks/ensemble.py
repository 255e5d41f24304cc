"""`suite`: attacks in turn, each on what the earlier ones left standing, the cheap ones first.

FGSM, then a few steps of APGD from there, decide most pictures of an undefended model at the cost
of a few passes. What stands meets APGD with cross-entropy, APGD with DLR, and short walks of
targeted APGD towards the nearest classes. The best margin so far then says how near the picture
is to falling: those that are near get long walks towards the classes that came nearest, the
others are left to a few queries of Square, which asks for no gradient.

These are the kinds of attack of AutoAttack (Croce & Hein 2020, arXiv:2003.01690), without FAB;
there every picture pays the full walk of the first, and every one that stands that of all. No
stage depends on the scale of the logits.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from featviz.attacks.apgd import apgd, towards_each
from featviz.attacks.checks import check_batch_size, check_eps, check_labels, check_norm
from featviz.attacks.linear_estimate import linear_estimate
from featviz.attacks.loop import Classifier
from featviz.attacks.options import AttackOptions
from featviz.attacks.pgd import fgsm
from featviz.attacks.result import AttackResult, together
from featviz.attacks.square import SQUARE_NORMS, square
from featviz.errors import UserError
from featviz.images import check_pictures
from featviz.models.frozen import frozen
from featviz.types import AutoPrecision

STAGES = (
    "fgsm",
    "apgd-ce short",
    "apgd-ce",
    "apgd-dlr",
    "apgd-margin",
    "apgd-t short",
    "apgd-t",
    "square",
)
"""In this order, each on what stands; apgd-margin takes the place of apgd-dlr with two classes."""
NEAR = 0.2
"""A picture is near to falling if no more than this share of its clean margin is left."""


def ensemble(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
    queries: int = 1000,
    options: AttackOptions = AttackOptions(precision="auto"),
) -> AttackResult:
    """The strongest that featviz does within a fixed ball: what stands here is worth reporting.

    steps: of the long walks of APGD. The first walk has a tenth, those with cross-entropy and DLR
        have 4/10, the short targeted ones 15/100
    targets: classes that the targeted walks go for
    queries: of Square where a picture is near to falling, a tenth elsewhere; 0 leaves it out (it
        knows no L1)

    Other arguments as for `pgd`. `AttackResult.by` says which attack brought a picture down. Raises
    UserError for arguments out of range.
    """
    check_norm(norm)
    options.refuse("ensemble", "targeted", "restarts")
    if steps < 1 or targets < 0 or queries < 0:
        raise UserError("steps must be 1 or more, targets and queries 0 or more")
    pictures = check_pictures(pictures)
    count = len(pictures)
    labels = check_labels(labels, count).to(pictures.device)
    radii = check_eps(eps, norm, count)
    batch_size = check_batch_size(options.batch_size, pictures.device)
    progress = options.progress
    options = replace(options, batch_size=batch_size, progress=None)
    exact = replace(options, precision="float32")
    found = fgsm(model, pictures, labels, eps=radii, norm=norm, rescale_logits=True, options=exact)
    found = replace(found, attacks=STAGES)

    def report(text: str) -> None:
        if progress is not None:
            progress(int(found.success.sum()), count, text)

    def ended() -> AttackResult:
        if progress is not None:
            progress(count, count, "attacked")
        return found

    def standing() -> Tensor:
        return (~found.success & (radii > 0)).nonzero()[:, 0]

    def some(rows: Tensor) -> tuple[Classifier, Tensor, Tensor]:
        at = rows.to(pictures.device)
        return model, pictures[at], labels[at]

    def known(rows: Tensor, seed: int, precision: AutoPrecision, size: int) -> AttackOptions:
        return replace(
            options,
            clean=found.clean[rows],
            seed=options.seed + seed,
            precision=precision,
            batch_size=size,
        )

    def add(rows: Tensor, later: AttackResult, name: str) -> None:
        nonlocal found
        found = together(found, rows, later, name)

    few, middle, short = max(1, steps // 10), max(1, 4 * steps // 10), max(1, 15 * steps // 100)
    several = "dlr" if found.classes >= 3 else "margin"
    search = options.precision
    for k, (name, length, loss) in enumerate(
        (
            ("apgd-ce short", few, "ce"),
            ("apgd-ce", middle, "ce"),
            ("apgd-dlr" if several == "dlr" else "apgd-margin", middle, several),
        )
    ):
        rows = standing()
        if not len(rows):
            return ended()
        report(name)
        later = apgd(
            *some(rows),
            eps=radii[rows],
            norm=norm,
            steps=length,
            loss=loss,
            starts=None if k else found.adversarial[rows.to(pictures.device)],
            rescale_logits=True,
            options=known(rows, k, search, max(1, batch_size // 2) if k else batch_size),
        )
        add(rows, later, name)
    half = max(1, batch_size // 2)

    rows = standing()
    if len(rows) and found.classes >= 4 and targets > 0:
        report("apgd-t short")
        at = rows.to(pictures.device)
        with frozen(model):
            near = linear_estimate(
                model, pictures[at], labels[at], norm=norm, among=2 * targets, batch_size=half
            )
        aims = near.classes[:, :targets]
        later, reached = towards_each(
            *some(rows),
            aims,
            eps=radii[rows],
            norm=norm,
            steps=short,
            options=known(rows, 3, search, half),
        )
        found.forwards[rows] += 1
        found.backwards[rows] += near.classes.shape[1]
        add(rows, later, "apgd-t short")
        keep = _near(found, rows) & ~later.success
        if keep.any():
            report("apgd-t")
            order = reached[keep].argsort(dim=1, descending=True, stable=True)
            best = aims[keep.to(aims.device)].gather(1, order.to(aims.device))
            # In L1, where the step sizes follow the number of steps, one length does not do.
            for again, length in enumerate((steps // 2, steps) if norm == "l1" else (steps,)):
                left = keep & ~found.success[rows]
                if left.any():
                    nearest = best[left[keep].to(best.device)]
                    later, _ = towards_each(
                        *some(rows[left]),
                        nearest,
                        eps=radii[rows[left]],
                        norm=norm,
                        steps=max(1, length),
                        options=known(rows[left], 4 + again, "float32", max(1, batch_size // 4)),
                    )
                    add(rows[left], later, "apgd-t")

    rows = standing()
    if len(rows) and norm in SQUARE_NORMS and queries:
        report("square")
        promising = _near(found, rows)
        for part, length in ((promising, queries), (~promising, max(1, queries // 10))):
            if part.any():
                later = square(
                    *some(rows[part]),
                    eps=radii[rows[part]],
                    norm=norm,
                    queries=length,
                    options=known(rows[part], 3, search, half),
                )
                add(rows[part], later, "square")
    return ended()


def _near(found: AttackResult, rows: Tensor) -> Tensor:
    """(k,) bool: whether what is left of the margin is a small share of the clean one."""
    trace = found.trace[rows]
    clean = trace.gather(1, (~trace.isnan()).long().argmax(1, keepdim=True))[:, 0]
    return trace.nan_to_num(-torch.inf).amax(1) >= NEAR * clean
