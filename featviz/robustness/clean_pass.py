"""First stage of an audit: the clean pictures, once for all attacks, and the model's gradients.

In: a model and labelled pictures. Out: a `CleanPass`, which every later stage takes, with the
`Work` that keeps finished pieces and adds up what they cost.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz.attacks import losses
from featviz.attacks.evaluation import classify
from featviz.attacks.options import Classifier
from featviz.engine import Make, Piece, map_pieces
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.robustness import masking
from featviz.robustness.masking import Probe

if TYPE_CHECKING:
    from featviz.checkpoints import Arrays, Checkpoint
    from featviz.models.model import Model
    from featviz.types import Precision, Progress

_PROBED = 32  # pictures


@dataclass
class Work:
    """The finished pieces of an audit and what they cost."""

    kept: Checkpoint
    progress: Progress | None = None
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0

    def map(
        self, model: Model, make: Callable[[Any], Arrays], pieces: Sequence[Piece], text: str
    ) -> Iterator[Arrays]:
        """Pieces of work, made or read; "passes" are their forward and backward passes."""
        for piece in map_pieces(
            _timed(model, make),
            pieces,
            self.kept,
            device=model.device.type,
            progress=self.progress,
            text=text,
        ):
            self.seconds += float(piece["seconds"])
            self.forwards += int(piece["passes"][0])
            self.backwards += int(piece["passes"][1])
            yield piece

    def piece(self, model: Model, name: str, make: Callable[[], Arrays], text: str) -> Arrays:
        """One such piece."""
        (piece,) = self.map(model, lambda _: make(), [Piece(name, None)], text)
        return piece

    def report(self, done: int, total: int, text: str) -> None:
        if self.progress is not None:
            self.progress(done, total, text)


def _timed(model: Model, make: Callable[[Any], Arrays]) -> Make:
    """`make` with the model frozen, also on a worker, and with its seconds."""

    def made(work: Any, report: Callable[[int], None]) -> Arrays:
        started = time.perf_counter()
        with frozen(model):
            arrays = make(work)
        return arrays | {"seconds": np.array(time.perf_counter() - started)}

    return made


@dataclass(frozen=True, kw_only=True)
class CleanPass:
    """What all stages of an audit share; row i belongs to picture i."""

    model: Model
    attacked: Classifier
    """the model, differentiable (with gradient 0) also where it detaches the picture itself"""
    pictures: Tensor
    labels: Tensor
    logits: Tensor
    second_choice: Tensor
    """(N,) the best class but the label"""
    margins: Tensor
    """(N,) float64: the label's logit minus the best other one"""
    correct: Tensor
    """rows of the pictures that are classified right"""
    probe: Probe
    seed: int
    batch_size: int
    precision: Precision

    def predict(self, pictures: Tensor) -> Tensor:
        """(N,) classes, in float32."""
        return classify(self.model, pictures, batch_size=self.batch_size).argmax(1)

    def batches(self, rows: Tensor) -> list[Tensor]:
        """Rows of the pictures that make one piece of work each."""
        return list(rows.split(self.batch_size)) if len(rows) else []


def clean_pass(
    model: Model,
    pictures: Tensor,
    labels: Tensor | None,
    work: Work,
    *,
    seed: int,
    batch_size: int,
    precision: Precision,
) -> CleanPass:
    """Classify the clean pictures and probe the model's gradients; labels None: the predictions.

    To be called within `frozen(model)`. Raises UserError for logits that are not finite.
    """
    device = model.device

    def classified() -> Arrays:
        found = classify(model, pictures.to(device), batch_size=batch_size)
        return {"logits": found.cpu().numpy(), "passes": np.array([len(pictures), 0])}

    piece = work.piece(model, "clean", classified, "clean pictures")
    logits = torch.from_numpy(piece["logits"])
    if not bool(logits.isfinite().all()):
        raise UserError("the model gives logits that are not finite; nothing can be measured")
    labels = logits.argmax(1) if labels is None else labels
    correct = (logits.argmax(1) == labels).nonzero()[:, 0]
    rows = spread(correct if len(correct) else torch.arange(len(labels)), _PROBED)

    def probed() -> Arrays:
        x, y = pictures[rows].to(device), labels[rows].to(device)
        seen = masking.probe(model, x, y, batch_size=batch_size, seed=seed)
        passes = np.array([seen.forwards, seen.backwards])
        return {"probe": np.array(json.dumps(asdict(seen))), "passes": passes}

    piece = work.piece(model, "probe", probed, "gradients")
    probe = Probe(**json.loads(str(piece["probe"])))
    return CleanPass(
        model=model,
        attacked=attached(model) if probe.unavailable else model,
        pictures=pictures,
        labels=labels,
        logits=logits,
        second_choice=losses.others(logits, labels).argmax(1),
        margins=-losses.margin(logits, labels)[0],
        correct=correct,
        probe=probe,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
    )


def attached(model: Classifier) -> Classifier:
    """A model that detaches its input, with gradient 0 instead of none."""

    def forward(pictures: Tensor) -> Tensor:
        logits = model(pictures)
        if logits.requires_grad or not pictures.requires_grad or not torch.is_grad_enabled():
            return logits
        return logits + 0 * pictures.flatten(1).sum(1, keepdim=True)

    return forward


def spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spread."""
    n = len(rows)
    return rows if n <= count else rows[[i * n // count for i in range(count)]]
