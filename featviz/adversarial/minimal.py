"""`minimal`: the smallest change of each picture that turns the model's answer, in one run.

In: a model, pictures (N, 3, H, W) in [0, 1], their labels, a norm and a number of passes. Out: a
`Found` whose `distance` is the whole curve of accuracy against eps: a picture with distance d has
fallen at every eps >= d. A distance is an upper bound of the true smallest one, and 0 for a
picture that is wrong by itself, inf for one where nothing was found.
"""

from __future__ import annotations

from torch import Tensor

from featviz.adversarial.boundary import Boundary, Plan
from featviz.adversarial.found import Found, Progress, find
from featviz.adversarial.inputs import check_norm
from featviz.adversarial.search import Classifier
from featviz.errors import UserError

NORMS = ("l0", "l1", "l2", "linf")


def minimal(
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    norm: str,
    steps: int = 100,
    targeted: bool = False,
    clean: Tensor | None = None,
    seed: int = 0,
    slots: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """The smallest change found in a norm that makes the model err (or reach the labels)."""
    check_norm(norm, NORMS)
    walk = Boundary(norm, plan(norm, steps, targeted=targeted), targeted=targeted)
    return find(
        model, walk, pictures, labels, attack="minimal", eps=None, targeted=targeted,
        clean=clean, seed=seed, slots=slots, progress=progress,
    )  # fmt: skip


def plan(norm: str, steps: int, *, targeted: bool = False) -> Plan:
    """How `minimal` spends its passes: no more than `steps` forward, and `steps` backward."""
    if steps < 10:
        raise UserError(f"steps is {steps}; a smallest change takes 10 passes or more")
    polish = max(3, min(12, steps // 8))
    classes = 1 if targeted else max(1, min(9, polish - 1))
    walking = steps - 2 - polish  # one pass judges the clean picture, one begins the walk
    legs = 1 if targeted else max(1, min(classes, walking // 20, 9))
    leg = int(0.5 * walking) // legs
    return Plan(classes, legs, leg, walking - legs * leg, polish)
