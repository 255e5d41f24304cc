"""Attacks of other people: any callable joins in, and is judged by the same rules as our own.

The callable gets the model, the pictures, their labels and one eps a picture, and returns pictures.
These are checked against ball and box and evaluated here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from featviz.attacks import projections
from featviz.attacks.evaluation import classify
from featviz.attacks.options import (
    AttackOptions,
    Classifier,
    check_batch_size,
    check_eps,
    check_labels,
    check_norm,
)
from featviz.attacks.result import AttackResult
from featviz.attacks.tracker import Tracker
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.pictures.images import check_pictures

ExternalAttack = Callable[[Classifier, Tensor, Tensor, Tensor], Tensor]
"""(model, pictures (N, 3, H, W), labels (N,), eps (N,)) to pictures (N, 3, H, W)"""

# By how much of eps a float32 program may miss the ball; it is then put right.
_ROUNDING = 1e-5


@public
def external_attack(
    attack: ExternalAttack,
    model: Classifier,
    pictures: Tensor,
    labels: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    name: str | None = None,
    options: AttackOptions = AttackOptions(),
) -> AttackResult:
    """Any callable as an attack of featviz.

    The callable gets only pictures that are right when clean. A result that is farther away than
    eps, outside [0, 1] or not finite is no success; what misses the ball by a rounding error is put
    right first. Forward passes are counted where the model is a module, as the mean over the
    pictures; backward passes are not known and left 0.

    Args:
        attack: (model, pictures, labels, eps (N,)) to pictures.
        name: In the result; default: the callable's own name.
        options: `clean`, `batch_size` and `progress` apply.

    Other arguments as for `pgd`.

    Raises:
        UserError: An argument is out of range, or the callable returns something else.

    Example:
        found = featviz.external_attack(my_attack, model, pictures, labels, eps=8 / 255)
    """
    started = time.perf_counter()
    called = str(name or getattr(attack, "__name__", type(attack).__name__))
    options.refuse(called, "targeted", "restarts", "eight_bit", "margin", "precision")
    check_norm(norm)
    pictures = check_pictures(pictures, channels=None)
    count, device = len(pictures), pictures.device
    radii = check_eps(eps, norm, count)
    labels = check_labels(labels, count).to(device)
    batch_size = check_batch_size(options.batch_size, device)
    with frozen(model):
        tracker = Tracker(pictures, labels, options=options, attempts=1, batch_size=batch_size)
        if options.clean is None:
            tracker.classify_clean(model)
        else:
            tracker.know_clean(options.clean)
        rows = (~tracker.success & (radii > 0).to(device)).nonzero()[:, 0]
        if len(rows):
            limits = radii.to(device)[rows]
            passes: list[int] = []

            def count_passes(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                passes.append(len(inputs[0]))

            module = model if isinstance(model, nn.Module) else nn.Identity()
            with module.register_forward_pre_hook(count_passes):
                returned = attack(model, pictures[rows], labels[rows], limits)
            moved, inside = _checked(returned, pictures[rows], limits, norm, called)
            logits = classify(model, moved, batch_size=batch_size)
            tracker.forwards[rows] += round(sum(passes) / len(rows)) + 1
            tracker.accept(rows, moved, logits)
            won = rows[(logits.argmax(1) != labels[rows]) & inside]
            tracker.success[won], tracker.first_step[won] = True, 0
        return tracker.result(model, name=called, norm=norm, eps=radii, started=started)


def _checked(
    returned: Any, pictures: Tensor, eps: Tensor, norm: str, name: str
) -> tuple[Tensor, Tensor]:
    """What a callable gave back, without rounding errors, and whether it kept to the rules."""
    if not isinstance(returned, Tensor) or returned.shape != pictures.shape:
        shape = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(
            f"the attack {name} must give back pictures of shape {tuple(pictures.shape)}, "
            f"it gave {shape}"
        )
    moved = returned.detach().to(pictures.device, pictures.dtype)
    finite = moved.isfinite().flatten(1).all(1)
    moved = torch.where(projections.column(finite), moved, pictures)
    boxed = moved.clamp(0, 1)
    near = projections.distance(moved, boxed, "linf") <= _ROUNDING
    # A value near 1 is known to 2^-24 in float32: that much of each may come from rounding alone.
    n = pictures[0].numel()
    rounding = 2.0**-23 * {"linf": 1.0, "l2": math.sqrt(n), "l1": float(n)}[norm]
    close = projections.distance(pictures, boxed, norm) <= eps * (1 + _ROUNDING) + rounding
    inside = finite & near & close
    right = projections.project(pictures, boxed, eps, norm)
    return torch.where(projections.column(inside), right, moved), inside
