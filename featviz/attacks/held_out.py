"""What attacks learned from many pictures share: the split, batches, the loss, rates, resuming.

A perturbation or a patch is learned from some pictures and judged on others. Its loss is clipped:
a picture that is fooled by more than `clip` logits no longer contributes (Shafahi et al. 2018,
arXiv:1811.11304).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.attacks.evaluation import with_graph
from featviz.attacks.losses import cross_entropy
from featviz.attacks.options import Classifier
from featviz.checkpoints import Checkpoint
from featviz.datasets import LabeledPictures
from featviz.errors import UserError
from featviz.statistics import Share, share

_KEPT_EVERY = 10
"""steps between two states on disk"""


def check_training(
    steps: int, pictures_per_step: int, held_out: float, momentum: float = 0.0
) -> None:
    """Raise UserError for settings of the training that make no sense."""
    if steps < 1 or pictures_per_step < 1:
        raise UserError(
            f"steps is {steps} and pictures_per_step {pictures_per_step}; both must be 1 or more"
        )
    if not 0 < held_out < 1:
        raise UserError(
            f"held_out is {held_out:g}; it is a share between 0 and 1, and both parts need pictures"
        )
    if not 0 <= momentum < 1:
        raise UserError(f"momentum is {momentum:g}; it must be 0 or more and below 1")


def split(data: LabeledPictures, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows for training and rows to judge on, drawn at random.

    Raises:
        UserError: There are fewer than two pictures.
    """
    count = len(data.names)
    if count < 2:
        raise UserError("2 pictures or more are needed: some to learn from, some to judge on")
    order = torch.randperm(count, generator=projections.generator(seed, 1))
    kept = min(count - 1, max(1, round(held_out * count)))
    return order[kept:].sort().values, order[:kept].sort().values


def digest(pictures: Tensor) -> str:
    """Hash of the pictures' values."""
    return hashlib.sha256(pictures.cpu().contiguous().numpy().tobytes()).hexdigest()


def shown_rows(count: int, most: int) -> list[int]:
    """At most so many rows of `count`, evenly spread: data sets are sorted by class."""
    most = min(count, most)
    return [i * count // most for i in range(most)]


def batches_of(rows: Tensor, size: int, steps: int, stream: torch.Generator) -> list[Tensor]:
    """`steps` batches of the rows, each round of them in a new order."""
    size = min(size, len(rows))
    waiting: list[int] = []
    found = []
    for _ in range(steps):
        if len(waiting) < size:
            waiting += rows[torch.randperm(len(rows), generator=stream)].tolist()
        found.append(torch.tensor(waiting[:size]))
        del waiting[:size]
    return found


def clipped_gradient(
    model: Classifier, pictures: Tensor, labels: Tensor, *, targeted: bool, clip: float
) -> tuple[Tensor, Tensor]:
    """Gradient (n, 3, H, W) of the summed clipped loss at pictures, and (n,) bool the successes."""
    leaf, logits = with_graph(model, pictures)
    value, weights = cross_entropy(logits.detach(), labels, targeted=targeted)
    weights = (weights * (value < clip)[:, None]).to(logits.dtype)
    (gradient,) = torch.autograd.grad(logits, leaf, weights)
    return gradient, (logits.detach().argmax(1) == labels) == targeted


def resumed_steps(kept: Checkpoint, state: Mapping[str, Tensor], steps: int) -> Iterator[int]:
    """The steps that are still to be made; `state`, changed in place, is kept now and then."""
    found = kept.read("state")
    first = 0
    if found is not None:
        first = int(found["step"])
        kept.read("state", size=first)
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(found[name]))
    for step in range(first, steps):
        yield step
        if (step + 1) % _KEPT_EVERY == 0 or step + 1 == steps:
            arrays = {name: tensor.cpu().numpy() for name, tensor in state.items()}
            made = torch.tensor(step + 1).numpy()
            kept.write("state", {"step": made, **arrays}, size=step + 1)


def fooling_rate(clean: Tensor, predicted: Tensor, target: int | None) -> Share:
    """Share of the pictures whose prediction changes; with a target: of the others, reaches it."""
    if target is None:
        return share(int((predicted != clean).sum()), len(clean))
    others = clean != target
    return share(int((predicted[others] == target).sum()), int(others.sum()))
