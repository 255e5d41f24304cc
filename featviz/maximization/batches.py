"""Batches of pictures as pieces of a job: made here or on a Ray cluster, kept in a checkpoint.

Comes in: tasks, each an objective with its targets and settings. Goes out: what became of each. A
job that was stopped makes only the missing batches when it is given again. Each target may be
started several times, from seeds that follow from its own; the picture with the highest clean score
is kept.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featviz.checkpoints import Arrays, Checkpoint, open_checkpoint
from featviz.engine import Piece, map_pieces
from featviz.maximization.loop import BATCH, BATCH_ON_CUDA, optimize
from featviz.maximization.objectives import PICTURE, Objective
from featviz.maximization.optimized import Optimized, joined
from featviz.maximization.settings import Settings
from featviz.models.frozen import frozen
from featviz.models.layers import check_size, need_gradients
from featviz.models.model import Layer, Model
from featviz.types import Engine, Progress
from featviz.wording import counted


@dataclass(frozen=True)
class Task:
    """Targets of one objective."""

    layer: Layer
    objective: Objective
    settings: Settings
    keys: tuple[str, ...]
    """of each target: with the seed all that its start and transforms depend on"""
    regularizer: Objective | None = None
    start: Tensor | None = None
    """(N, 3, H, W): where to begin, in place of noise"""
    after_relu: bool = False
    """whether the steps, too, read a ReLU after it, not before it, where a silent unit still has a
    gradient"""

    @property
    def entering(self) -> tuple[str, ...]:
        """The layer if the steps read it before its ReLU. Scores always read what leaves it."""
        alone = self.objective.layers == (self.layer.name,) and not self.after_relu
        return (self.layer.name,) if alone and self.layer.kind in {"ReLU", "ReLU6"} else ()

    @property
    def group(self) -> int:
        """How many targets are optimized together."""
        return math.lcm(self.objective.group, self.regularizer.group if self.regularizer else 1)

    def record(self) -> dict[str, Any]:
        """What the pictures depend on, for a checkpoint."""
        regularizer = None if self.regularizer is None else self.regularizer.text
        begun = b"" if self.start is None else self.start.cpu().numpy().tobytes()
        return {
            "layer": self.layer.key,
            "objective": self.objective.text,
            "regularizer": regularizer,
            "targets": len(self.keys),
            "targets sha256": hashlib.sha256("\n".join(self.keys).encode()).hexdigest(),
            "start sha256": hashlib.sha256(begun).hexdigest(),
        } | self.settings.record()


@dataclass(frozen=True)
class Finished:
    """The finished targets of a task."""

    rows: tuple[int, ...]
    """which of its targets"""
    made: Optimized
    """of these; of several restarts the best"""
    restart_scores: Tensor
    """(N, restarts): the clean scores of all"""
    seconds: float
    """that making one of them took, wherever and whenever it was made"""


class Stopped(KeyboardInterrupt):
    """Ctrl-C; `result` holds what was finished, or None."""

    def __init__(self, text: str, result: Any = None):
        super().__init__(text)
        self.result = result


def optimize_tasks(
    model: Model,
    tasks: Sequence[Task],
    *,
    seed: int,
    restarts: int = 1,
    frames: int = 0,
    batch_size: int | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
    text: str = "optimizing",
) -> tuple[list[Finished | None], str | None]:
    """Make the pictures of all tasks.

    Args:
        checkpoint: Where finished batches are kept, and from which the same job goes on; the
            caller removes it.
        engine: "here" or "ray".
        text: Shown with the progress, which counts steps of single pictures.

    Returns:
        What became of each task (None: nothing), and after Ctrl-C a line that says how much.

    Raises:
        UserError: The checkpoint holds another job, or a count is below its least.
    """
    for task in tasks:
        need_gradients(model, [name for name in task.objective.layers if name != PICTURE])
    if batch_size is None:
        batch_size = BATCH if model.device.type == "cpu" else BATCH_ON_CUDA
    for task in tasks:
        form, seen = task.settings.parametrization, task.settings.transforms.size
        for layer in set(task.objective.layers) - {PICTURE}:
            check_size(model, seen or (form.height, form.width), layer)
    pieces: list[Piece] = []
    for number, task in enumerate(tasks):
        size = max(task.group, batch_size // restarts // task.group * task.group)
        for first in range(0, len(task.keys), size):
            rows = range(first, min(first + size, len(task.keys)))
            name = f"{number:03d}-{task.layer.name}-{first:05d}"
            pieces.append(Piece(name, (number, rows), len(rows) * restarts * task.settings.steps))
    job = {
        "model": model.sha256,
        "device": model.device.type,
        "seed": seed,
        "restarts": restarts,
        "frames": frames,
        "batch_size": batch_size,
        "tasks": [task.record() for task in tasks],
    }

    make, stopped = _Batches(model, tuple(tasks), seed, restarts, frames), None
    with open_checkpoint(checkpoint, job, engine=engine) as kept:
        try:
            map_pieces(make, pieces, kept, device=model.device.type, progress=progress, text=text)
        except KeyboardInterrupt:
            stopped = "stopped"
        finished = [_finished(kept, pieces, number) for number in range(len(tasks))]
    if stopped is not None:
        count = sum(len(one.rows) for one in finished if one is not None)
        wanted = counted(sum(len(task.keys) for task in tasks), "picture")
        stopped = f"stopped with {count} of {wanted} made"
        if checkpoint is not None and count:
            stopped += "; give the same command again to go on"
    return finished, stopped


@dataclass(frozen=True)
class _Batches:
    """Makes pieces."""

    model: Model
    tasks: tuple[Task, ...]
    seed: int
    restarts: int
    frames: int

    def __call__(self, work: tuple[int, range], report: Callable[[int], None]) -> Arrays:
        number, rows = work
        task, restarts, started = self.tasks[number], self.restarts, time.perf_counter()
        with frozen(self.model):
            made = optimize(
                self.model,
                task.objective,
                [row for row in rows for _ in range(restarts)],
                [seed_of(self.seed, task.keys[row], i) for row in rows for i in range(restarts)],
                task.settings,
                regularizer=task.regularizer,
                start=None if task.start is None else task.start[list(rows)],
                batch_size=len(rows) * restarts,
                frames=self.frames,
                entering=task.entering,
                progress=lambda done, _, __: report(done),
            )
        scores = made.scores.cpu().view(-1, restarts)
        best = scores.nan_to_num(-math.inf).argmax(1)
        best_rows = [i * restarts + int(best[i]) for i in range(len(rows))]
        chosen = made.rows(best_rows)
        arrays = {name: value.cpu().numpy() for name, value in vars(chosen).items()}
        arrays["parameters"] = np.empty((len(rows), 0), np.float32)
        arrays["images"] = chosen.images.cpu().mul(255).round().to(torch.uint8).numpy()
        seconds = torch.tensor(time.perf_counter() - started).numpy()
        return arrays | {"restart_scores": scores.numpy(), "seconds": seconds}


def _finished(kept: Checkpoint, pieces: Sequence[Piece], number: int) -> Finished | None:
    """The finished targets of a task."""
    rows: list[int] = []
    made: list[Optimized] = []
    scores: list[Tensor] = []
    seconds = 0.0
    for piece in pieces:
        arrays = kept.read(piece.name) if piece.work[0] == number else None
        if arrays is None:
            continue
        found = {name: torch.from_numpy(value) for name, value in arrays.items()}
        scores.append(found.pop("restart_scores"))
        seconds += found.pop("seconds").item()
        made.append(Optimized(**(found | {"images": found["images"].float() / 255})))
        rows += piece.work[1]
    if not rows:
        return None
    return Finished(tuple(rows), joined(made), torch.cat(scores), seconds / len(rows))


def seed_of(seed: int, key: str, restart: int = 0) -> int:
    """The seed of a target's first start, or of a later one."""
    text = f"{seed}/{key}" + (f"/try {restart}" if restart else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
