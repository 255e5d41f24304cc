"""`suite`: attacks in turn, each on what the earlier ones left standing, the cheap ones first.

FGSM, then a few steps of APGD from there, decide most pictures of an undefended model at the cost
of a few passes. What stands meets APGD with cross-entropy, APGD with DLR, targeted APGD towards the
nearest classes, and at last Square, which asks for no gradient. These are the kinds of attack of
AutoAttack (Croce & Hein 2020, arXiv:2003.01690), without FAB; there every picture pays the full
walk of the first. No stage depends on the scale of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from featviz.adversarial.apgd import apgd, apgd_targeted
from featviz.adversarial.found import Found, Progress, together
from featviz.adversarial.inputs import check_eps, check_labels, check_norm, check_pictures
from featviz.adversarial.projected import fgsm
from featviz.adversarial.search import Classifier
from featviz.adversarial.square import SQUARE_NORMS, square
from featviz.errors import UserError

FEW = 10
"""steps of the first APGD, which begins where FGSM ended"""


def suite(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    steps: int = 50,
    targets: int = 9,
    queries: int = 500,
    eight_bit: bool = False,
    margin: float = 0.0,
    clean: Tensor | None = None,
    seed: int = 0,
    slots: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """The strongest that featviz does within a fixed ball: what stands here is worth reporting.

    steps: of each walk of APGD; targets: walks of the targeted one at most; queries: of Square, 0
        to leave it out (it knows no L1). Other arguments as for `pgd`

    `Found.by` says which attack brought a picture down. Raises UserError for arguments out of
    range.
    """
    check_norm(norm)
    if steps < 1 or targets < 0 or queries < 0:
        raise UserError("steps must be 1 or more, targets and queries 0 or more")
    pictures = check_pictures(pictures)
    count = len(pictures)
    labels = check_labels(labels, count).to(pictures.device)
    radii = check_eps(eps, norm, count)
    shared: dict[str, Any] = {
        "norm": norm, "eight_bit": eight_bit, "margin": margin, "slots": slots,
    }  # fmt: skip
    found = fgsm(model, pictures, labels, eps=radii, tempered=True, clean=clean, **shared)
    shared["seed"] = seed
    for attack, options in _stages(found.classes, norm, steps, targets, queries):
        if progress is not None:
            progress(int(found.success.sum()), count, "attacking")
        rows = (~found.success & (radii > 0)).nonzero()[:, 0]
        if not len(rows):
            break
        at = rows.to(pictures.device)
        if attack is apgd and options["steps"] == FEW:
            options["starts"] = found.adversarial[at]
        later = attack(
            model, pictures[at], labels[at], eps=radii[rows], clean=found.clean[rows],
            **options, **shared,
        )  # fmt: skip
        found = together(found, rows, later)
    if progress is not None:
        progress(count, count, "attacking")
    return found


def _stages(
    classes: int, norm: str, steps: int, targets: int, queries: int
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """What comes after FGSM: attacks with their options. DLR asks for classes enough."""
    yield apgd, {"steps": FEW, "tempered": True}
    yield apgd, {"steps": steps, "tempered": True}
    yield apgd, {"steps": steps, "loss": "dlr" if classes >= 3 else "margin"}
    if classes >= 4 and targets:
        yield apgd_targeted, {"steps": steps, "targets": targets}
    if norm in SQUARE_NORMS and queries:
        yield square, {"queries": queries}
