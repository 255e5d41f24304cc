"""Attacks of other people: any callable joins in, and is judged by the same rules as our own.

The callable is told the model, the pictures, their labels and one eps a picture, and gives back
pictures. What it says of them is not asked: they are checked against ball and box and shown to
the model here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from featviz.attacks import projections
from featviz.attacks.checks import check_batch_size, check_eps, check_labels, check_norm
from featviz.attacks.loop import Classifier, Outcome, classify
from featviz.attacks.options import AttackOptions
from featviz.attacks.result import AttackResult, gather
from featviz.errors import UserError
from featviz.images import check_pictures
from featviz.models.frozen import frozen

Attack = Callable[[Classifier, Tensor, Tensor, Tensor], Tensor]
"""(model, pictures (N, 3, H, W), labels (N,), eps (N,)) to pictures (N, 3, H, W)"""

# By how much of eps a float32 program may miss the ball; it is then put right.
_ROUNDING = 1e-5


def external_attack(attack: Attack, name: str | None = None) -> Callable[..., AttackResult]:
    """The callable as an attack of featviz: a function like `pgd`, that gives an `AttackResult`.

    name: what results call it; default: the callable's own name

    The function takes (model, pictures, labels, *, eps, norm="linf", options).
    Pictures of right labels only are handed to the callable. One that comes back farther away
    than eps, outside [0, 1] or not finite is no success, whatever the model says of it; what
    misses the ball by a rounding error is put right first. Forward passes are counted where the
    model is a module, as the mean over the pictures; backward passes are not known and left 0.

        theirs = external_attack(my_attack)
        found = theirs(model, pictures, labels, eps=8 / 255)

    The function raises UserError for arguments out of range, and for a callable that gives back
    something of another shape.
    """
    called = str(name or getattr(attack, "__name__", type(attack).__name__))

    def adapted(
        model: Classifier,
        pictures: Tensor,
        labels: Tensor,
        *,
        eps: float | Tensor,
        norm: str = "linf",
        options: AttackOptions = AttackOptions(),
    ) -> AttackResult:
        check_norm(norm)
        options.refuse(called, "targeted", "restarts", "eight_bit", "margin", "precision")
        clean = options.clean
        pictures = check_pictures(pictures)
        count, device = len(pictures), pictures.device
        radii = check_eps(eps, norm, count)
        labels = check_labels(labels, count).to(device)
        batch_size = check_batch_size(options.batch_size, device)
        with frozen(model):
            if clean is None:
                logits, spent = classify(model, pictures, batch_size=batch_size), 1
            else:
                logits, spent = clean, 0
            answers = logits.argmax(1) if logits.dim() == 2 else logits
            tried = ((answers == labels).cpu() & (radii > 0)).nonzero()[:, 0]
            at = tried.to(device)
            passes = 0
            moved = pictures[at]
            if len(tried):
                with _Counter(model) as counter:
                    given = attack(model, moved.clone(), labels[at], radii[tried].to(device))
                passes = round(counter.passes / len(tried))
                moved, inside = _checked(given, pictures[at], radii[tried].to(device), norm, called)
                outcome = classify(model, moved, batch_size=batch_size)
                classes = outcome.shape[1]
                predicted = outcome.argmax(1)
                success = (predicted != labels[at]) & inside
            outcomes: dict[int, Outcome] = {}
            for i in range(count):
                outcomes[i] = _outcome(
                    pictures[i], int(answers[i]), bool(answers[i] != labels[i]), spent
                )
            for k, i in enumerate(tried.tolist()):
                outcomes[i] = _outcome(
                    moved[k],
                    int(answers[i]),
                    False,
                    spent + passes + 1,
                    fell=bool(success[k]),
                    predicted=int(predicted[k]),
                )
            return gather(
                model,
                pictures,
                labels,
                outcomes,
                attack=called,
                norm=norm,
                targeted=False,
                batch_size=batch_size,
                classes=classes if len(tried) else 0,
                looks=1,
            )

    return adapted


def _checked(
    given: Any, pictures: Tensor, eps: Tensor, norm: str, name: str
) -> tuple[Tensor, Tensor]:
    """What a callable gave back, without rounding errors, and whether it kept to the rules."""
    if not isinstance(given, Tensor) or given.shape != pictures.shape:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise UserError(
            f"the attack {name} must give back pictures of shape {tuple(pictures.shape)}, "
            f"it gave {shape}"
        )
    moved = given.detach().to(pictures.device, pictures.dtype)
    finite = moved.isfinite().flatten(1).all(1)
    moved = torch.where(projections.column(finite), moved, pictures)
    boxed = moved.clamp(0, 1)
    near = projections.linf_distance(moved, boxed) <= _ROUNDING
    # A value near 1 is known to 2^-24 in float32: that much of each may come from rounding alone.
    n = pictures[0].numel()
    rounding = 2.0**-23 * {"linf": 1.0, "l2": math.sqrt(n), "l1": float(n)}[norm]
    close = projections.distance(pictures, boxed, norm) <= eps * (1 + _ROUNDING) + rounding
    inside = finite & near & close
    right = projections.project(pictures, boxed, eps, norm)
    return torch.where(projections.column(inside), right, moved), inside


def _outcome(
    picture: Tensor,
    clean: int,
    already: bool,
    forwards: int,
    *,
    fell: bool = False,
    predicted: int | None = None,
) -> Outcome:
    return Outcome(
        picture=picture.clone(),
        success=already or fell,
        already=already,
        clean=clean,
        predicted=clean if predicted is None else predicted,
        margin=0.0,
        steps=0,
        first_step=0 if already or fell else -1,
        made=0,
        looks=0,
        forwards=forwards,
        backwards=0,
        zero_gradients=0,
        trace=torch.empty(0, dtype=torch.float64),
    )


class _Counter:
    """How many pictures pass through a module."""

    def __init__(self, model: Classifier):
        self.model, self.passes = model, 0

    def __enter__(self) -> _Counter:
        if isinstance(self.model, nn.Module):
            self.handle = self.model.register_forward_pre_hook(self._count)
        return self

    def _count(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self.passes += len(given[0])

    def __exit__(self, *error: object) -> None:
        if isinstance(self.model, nn.Module):
            self.handle.remove()
