"""The smallest adversarial example of each picture: in one batch, and in one norm as a whole.

Attacks offer what they find to a `Batch`, which lets the model judge it in float32 and keeps it
where it is closer to the clean picture than what was known. A `NormState` collects the batches of
all stages and ends as a `NormAudit`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.evaluation import classify
from featviz.attacks.options import AttackOptions
from featviz.pictures import images
from featviz.robustness.clean_pass import CleanPass
from featviz.robustness.masking import late_gain, silent_success
from featviz.robustness.norm_audit import (
    AdversarialExample,
    Convergence,
    NormAudit,
    SecondAttack,
    above,
)

if TYPE_CHECKING:
    from featviz.attacks.result import AttackResult
    from featviz.checkpoints import Arrays

EXAMPLE = np.dtype(
    [
        ("distance", np.float64),
        ("margin", np.float64),
        ("predicted", np.int64),
        ("fools_8bit", np.bool_),
        ("attack", "U32"),
        ("sha256", "U64"),
    ],
    align=True,  # so that its numbers can be read as tensors
)
"""an adversarial example: see `NormAudit`"""
MEASURED = ("search_distance", "distance_8bit", "estimate", "one_step")
"""further distances of each picture: see `NormAudit`"""
SHOWN = 6
"""pictures in the sheets of the least and of the most robust"""
_COUNTS = ("unconfirmed", "silent", "late", "zero_steps", "unbounded_tried", "unbounded_failed")


def _no_examples(n: int) -> NDArray[np.void]:
    table = np.zeros(n, EXAMPLE)
    table["distance"], table["margin"], table["predicted"] = math.inf, math.nan, -1
    return table


class Batch:
    """The smallest adversarial example of each picture of a batch so far."""

    def __init__(self, clean: CleanPass, rows: Tensor, norm: str):
        device = clean.model.device
        self.clean, self.norm = clean, norm
        self.x, self.y = clean.pictures[rows].to(device), clean.labels[rows].to(device)
        self.logits = clean.logits[rows].to(device)
        self.adversarial = self.x.clone()
        self.examples = _no_examples(len(rows))
        self.counts: Counter[str] = Counter()
        self.gains: list[float] = []
        self.passes = np.zeros(2, np.int64)

    def run(
        self,
        attack: Callable[..., AttackResult],
        at: Tensor | slice = slice(None),
        *,
        margin: float = 0.0,
        eight_bit: bool = False,
        **keywords: Any,
    ) -> AttackResult:
        """Run an attack on the rows `at` and count its passes."""
        clean = self.clean
        options = AttackOptions(
            clean=self.logits[at],
            seed=clean.seed,
            batch_size=clean.batch_size,
            precision=clean.precision,
            margin=margin,
            eight_bit=eight_bit,
        )
        found = attack(clean.attacked, self.x[at], self.y[at], options=options, **keywords)
        self.passes += (int(found.forwards.sum()), int(found.backwards.sum()))
        return found

    def take(self, found: AttackResult, at: Tensor | None = None, attack: str = "") -> Tensor:
        """Judge the successes of an attack on the rows `at`; (n,) distances, inf where none."""
        at = torch.arange(len(self.x)) if at is None else at
        hits = found.success.cpu().nonzero()[:, 0]
        distance = torch.full((len(at),), math.inf, dtype=torch.float64)
        distance[hits] = self.offer(at[hits], found.adversarial[hits], attack or found.attack)
        return distance

    def trace(self, found: AttackResult, steps: int) -> None:
        """Count the signs of a failed attack (I3, I4) in what one found on the whole batch."""
        trace, success = found.trace.cpu(), found.success.cpu()
        self.counts["silent"] += int(silent_success(trace, success).sum())
        self.gains += late_gain(trace[~success], max(1, steps // 10)).tolist()

    def offer(self, at: Tensor, pictures: Tensor, attack: str) -> Tensor:
        """Pictures that fool according to an attack, for the rows `at` of the batch.

        Those that are closer than what is known are judged in float32. Returns (len(at),) float64
        distances, inf where the model is right.
        """
        distance = projections.distance(self.x[at], pictures, self.norm).cpu()
        closer = (distance < torch.from_numpy(self.examples["distance"])[at]).nonzero()[:, 0]
        if not len(closer):
            return distance
        rows, pictures = at[closer], pictures[closer]
        logits = classify(self.clean.model, pictures, batch_size=self.clean.batch_size)
        self.passes[0] += len(rows)
        margin, _ = losses.margin(logits, self.y[rows])
        predicted = logits.argmax(1)
        wrong = (predicted != self.y[rows]).cpu()
        self.counts["unconfirmed"] += int((~wrong).sum())
        taken = rows[wrong].numpy()
        for name, values in (
            ("distance", distance[closer]),
            ("margin", margin.cpu()),
            ("predicted", predicted.cpu()),
        ):
            self.examples[name][taken] = values[wrong].numpy()
        self.examples["attack"][taken] = attack
        self.adversarial[rows[wrong]] = pictures[wrong]
        distance[closer[~wrong]] = math.inf
        return distance

    def arrays(self) -> Arrays:
        """Everything found, with the judgement of the adversarial pictures rounded to 8 bits."""
        rows = np.flatnonzero(np.isfinite(self.examples["distance"]))
        if len(rows):
            at = torch.from_numpy(rows)
            rounded = images.quantize(self.adversarial[at]).to(self.x.dtype)
            fools = self.clean.predict(rounded) != self.y[at]
            self.examples["fools_8bit"][rows] = fools.cpu().numpy()
            self.passes[0] += len(rows)
        for i in rows.tolist():
            values = self.adversarial[i].cpu().contiguous().numpy()
            self.examples["sha256"][i] = hashlib.sha256(values.tobytes()).hexdigest()
        return {
            "examples": self.examples,
            "counts": np.array([self.counts[name] for name in _COUNTS]),
            "gains": np.array(self.gains),
            "passes": self.passes,
        }

    def shown(self) -> Arrays:
        """The adversarial pictures that may be the least or the most robust of all."""
        order = self.examples["distance"].argsort(kind="stable")
        order = order[np.isfinite(self.examples["distance"][order])]
        rows = np.concatenate([order[:SHOWN], order[SHOWN:][-SHOWN:]])
        pictures = self.adversarial[torch.from_numpy(rows)]
        return {"shown": rows, "shown_pictures": pictures.cpu().numpy()}


class NormState:
    """What is known in one norm while the audit goes on; rows are those of the audit's pictures."""

    def __init__(self, clean: CleanPass, norm: str, eps: tuple[float, ...]):
        n = len(clean.labels)
        self.clean, self.norm, self.eps = clean, norm, eps
        wrong = np.ones(n, bool)
        wrong[clean.correct] = False
        self.examples = _no_examples(n)
        self.examples["distance"][wrong] = 0
        self.measured = {name: self.examples["distance"].copy() for name in MEASURED}
        self.noise_correct = np.zeros((len(eps), n), bool)
        self.counts: Counter[str] = Counter()
        self.gains: list[float] = []
        self.passes = np.zeros(2, np.int64)
        self.second_attacks: list[SecondAttack] = []
        self.convergence: list[Convergence] = []
        self.shown: dict[int, AdversarialExample] = {}

    def take(self, rows: Tensor, piece: Arrays) -> None:
        """Keep the adversarial examples of a batch that are closer than what is known."""
        found, at = piece["examples"], rows.numpy()
        closer = found["distance"] < self.examples["distance"][at]
        self.examples[at[closer]] = found[closer]
        self.counts.update(dict(zip(_COUNTS, piece["counts"].tolist(), strict=True)))
        self.gains += piece["gains"].tolist()
        self.passes += piece["passes"]

    def take_search(self, rows: Tensor, piece: Arrays) -> None:
        """The same with all that the search measures beside."""
        self.take(rows, piece)
        at = rows.numpy()
        for name in MEASURED:
            self.measured[name][at] = piece[name]
        self.noise_correct[:, at] = piece["noise_correct"]
        for i, picture in zip(piece["shown"], piece["shown_pictures"], strict=True):
            found, row = piece["examples"][i], int(rows[i])
            self.shown[row] = AdversarialExample(
                row,
                float(found["distance"]),
                int(found["predicted"]),
                self.clean.pictures[row],
                torch.from_numpy(picture),
            )

    @property
    def distance(self) -> Tensor:
        return torch.from_numpy(self.examples["distance"])

    def left(self, eps: float) -> Tensor:
        """Rows that are right when clean and not fooled within eps so far."""
        return above(self.distance, eps).nonzero()[:, 0]

    def result(self) -> NormAudit:
        shown = sorted(self.shown.values(), key=lambda example: (example.distance, example.row))
        steps_exist = self.norm != "l0"  # FGSM and noise have no counterpart in L0
        columns = {
            name: torch.from_numpy(self.examples[name].copy())
            for name in ("distance", "margin", "predicted", "fools_8bit")
        }
        measured = {name: torch.from_numpy(values) for name, values in self.measured.items()}
        one_step = measured.pop("one_step")
        return NormAudit(
            norm=self.norm,
            eps=self.eps,
            **columns,
            **measured,
            one_step=one_step if steps_exist else None,
            attack=tuple(self.examples["attack"].tolist()),
            sha256=tuple(self.examples["sha256"].tolist()),
            noise_correct=torch.from_numpy(self.noise_correct) if steps_exist else None,
            second_attacks=tuple(sorted(self.second_attacks)),
            convergence=tuple(self.convergence),
            least_robust=tuple(shown[:SHOWN]),
            most_robust=tuple(shown[SHOWN:][::-1][:SHOWN]),
            forwards=int(self.passes[0]),
            backwards=int(self.passes[1]),
        )
