"""What attacks learned from many pictures share: the split, batches, the loss, rates, resuming.

A perturbation or a patch is learned from some pictures and judged on others. Its loss is clipped:
a picture that is fooled by more than `clip` logits no longer contributes (Shafahi et al. 2018,
arXiv:1811.11304).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featviz import results
from featviz.attacks import projections
from featviz.attacks.evaluation import classify, with_graph
from featviz.attacks.losses import cross_entropy
from featviz.attacks.options import Classifier, check_batch_size
from featviz.checkpoints import Checkpoint
from featviz.data.from_python import Data, Labels
from featviz.data.labeled import LabeledPictures, read_labeled
from featviz.errors import UserError
from featviz.models.model import Model

_KEPT_EVERY = 10
"""steps between two states on disk"""


@dataclass(frozen=True)
class HeldOut:
    """Pictures of which some are learned from and the others judged on."""

    model: Model
    data: LabeledPictures
    x: Tensor
    """all of them, where the model is"""
    training: Tensor
    held: Tensor
    """rows"""
    target: int | None
    seed: int
    batch_size: int
    started: float

    def predict(self, pictures: Tensor) -> Tensor:
        """(N,) classes of pictures, clipped to [0, 1]."""
        return classify(self.model, pictures.clamp(0, 1), batch_size=self.batch_size).argmax(1)

    def labels(self, clean: Tensor) -> Tensor:
        """(N,) classes to be left, or to be reached, from the clean predictions."""
        return clean if self.target is None else torch.full_like(clean, self.target)

    def job(self, parameters: Mapping[str, object]) -> dict[str, object]:
        """What the unfinished work depends on."""
        known = {"model": self.model.record(), "pictures": self.data.sha256, "seed": self.seed}
        return known | dict(parameters)

    def shown(self, most: int) -> list[int]:
        """At most so many of the held-out rows, evenly spread: data sets are sorted by class."""
        count = len(self.held)
        most = min(count, most)
        return [i * count // most for i in range(most)]

    def fields(
        self, parameters: Mapping[str, object], clean: Tensor, most: int, passes: int
    ) -> dict[str, Any]:
        """Fields of a `HeldOutResult`; passes: forward and backward each, of the training."""
        return {
            "origin": results.origin(
                self.model,
                parameters=dict(parameters),
                started=self.started,
                data=self.data.data,
                seed=self.seed,
            ),
            "warnings": self.data.warnings,
            "model_name": self.model.name,
            "data_name": self.data.data_name,
            "classes": self.model.class_names,
            "target": self.target,
            "names": tuple(self.data.names[i] for i in self.held.tolist()),
            "clean": clean[self.held].cpu(),
            "trained_on": len(self.training),
            "shown": tuple(self.shown(most)),
            "backwards": passes,
            "seconds": time.perf_counter() - self.started,
        }


def hold_out(
    model: Model,
    pictures: Data,
    labels: Labels | None,
    *,
    target: int | str | None,
    share: float,
    count: int | None,
    seed: int,
    batch_size: int | None,
) -> HeldOut:
    """Read pictures and draw a share of them to judge on.

    Raises:
        UserError: There are fewer than two pictures, or another argument is out of range.
    """
    started = time.perf_counter()
    batch_size = check_batch_size(batch_size, model.device)
    aim = None if target is None else model.class_index(target)
    data = read_labeled(model, pictures, labels, count=count)
    n = len(data.names)
    if n < 2:
        raise UserError("2 pictures or more are needed: some to learn from, some to judge on")
    order = torch.randperm(n, generator=projections.generator(seed, 1))
    kept = min(n - 1, max(1, round(share * n)))
    training, held = order[kept:].sort().values, order[:kept].sort().values
    x = data.pictures.to(model.device)
    return HeldOut(model, data, x, training, held, aim, seed, batch_size, started)


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
