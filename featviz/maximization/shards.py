"""Ascents in shards: many targets of several objectives, kept on disk as they are finished.

A `Task` is one objective with its targets and settings, usually the units of one layer.
`climb_tasks` cuts each into shards, has them made here or on a Ray cluster (`engine`) and puts the
climbs together again. Finished shards lie in a folder, and a job that was killed goes on from them,
provided it is the same job to the last argument.

Each target may be tried several times, from seeds that follow from its own; the try whose picture
has the highest clean score is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featviz import results
from featviz.engine_old import Files, Shard, map_shards
from featviz.errors import UserError
from featviz.maximization.loop import BATCH, BATCH_ON_CUDA, Optimized, joined, optimize
from featviz.maximization.objectives import Objective
from featviz.maximization.result import file_stem
from featviz.maximization.settings import Settings
from featviz.models.frozen import frozen
from featviz.models.model import Layer

if TYPE_CHECKING:
    from featviz.models.model import Model


@dataclass(frozen=True)
class Task:
    """Targets of one objective."""

    layer: Layer
    goal: Objective
    besides: Objective | None
    settings: Settings
    keys: tuple[str, ...]
    """of each target: its picture depends on the seed and this alone"""
    as_it_leaves: bool = False
    """whether the layer's value is read as it leaves, where that is a ReLU, not as it enters"""

    def described(self) -> dict[str, Any]:
        """In plain words and numbers: what it takes to be the same task."""
        besides = None if self.besides is None else self.besides.text
        aims = hashlib.sha256("\n".join(self.keys).encode()).hexdigest()
        settings = self.settings.record()
        return {
            "layer": self.layer.path,
            "objective": self.goal.text,
            "besides": besides,
            "targets": len(self.keys),
            "targets sha256": aims,
        } | settings


@dataclass(frozen=True)
class Climbed:
    """What became of a task."""

    order: tuple[int, ...]
    """which of its targets are finished"""
    climb: Optimized
    """of these; of several tries the best"""
    tries: Tensor
    """(N, T): the clean scores of all tries"""
    seconds: float
    """that making one of them took, wherever and whenever it was made"""


def climb_tasks(
    model: Model,
    tasks: Sequence[Task],
    *,
    seed: int,
    tries: int = 1,
    film: int = 0,
    batch_size: int | None = None,
    partial: Path | None = None,
    engine: str = "here",
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[list[Climbed | None], bool]:
    """Climb all tasks. Returns what became of each (None: nothing), and whether it was stopped.

    partial: the folder of finished shards; it is made, gone on with, and left for the caller to
        remove. None keeps nothing
    engine: "here" or "ray"

    Ctrl-C does not raise: what is finished is returned.

    Raises UserError if `partial` holds the shards of another job.
    """
    if batch_size is None:
        batch_size = BATCH if model.device.type == "cpu" else BATCH_ON_CUDA
    job = _Job(model, tuple(tasks), seed, tries, film, batch_size)
    shards = job.shards()
    stopped = False

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, f"maximising {', '.join(t.layer.name for t in tasks)}")

    with _kept(partial, job) as folder:
        try:
            map_shards(
                job,
                shards,
                folder,
                engine=engine,
                gpus=int(model.device.type == "cuda"),
                progress=report,
            )
        except KeyboardInterrupt:
            stopped = True
        return [_read(folder, shards, number) for number in range(len(tasks))], stopped


@dataclass(frozen=True)
class _Job:
    """The work that shards are pieces of; what `engine` sends to its workers."""

    model: Model
    tasks: tuple[Task, ...]
    seed: int
    tries: int
    film: int
    batch_size: int

    def shards(self) -> list[Shard]:
        shards = []
        for number, task in enumerate(self.tasks):
            count = len(task.keys)
            most = max(1, self.batch_size // self.tries)
            size = math.ceil(count / math.ceil(count / most))  # as even as they go
            for first in range(0, count, size):
                rows = range(first, min(first + size, count))
                name = f"{number:03d}-{file_stem(task.layer.name)}-{first:05d}"
                steps = len(rows) * self.tries * task.settings.steps
                shards.append(Shard(name, (number, rows), steps))
        return shards

    def __call__(self, work: tuple[int, range], report: Callable[[int], None]) -> Files:
        number, rows = work
        task = self.tasks[number]
        started = time.perf_counter()
        targets = [row for row in rows for _ in range(self.tries)]
        seeds = [seed_of(self.seed, task.keys[row], t) for row in rows for t in range(self.tries)]
        entering = before_relu(self.model, task.layer, task.goal, task.as_it_leaves)
        with frozen(self.model), entering:
            made = optimize(
                self.model,
                task.goal,
                targets,
                seeds,
                task.settings,
                regularizer=task.besides,
                batch_size=self.batch_size,
                frames=self.film,
                progress=lambda done, _, __: report(done),
            )
        clean = made.scores.cpu().view(-1, self.tries)
        best = clean.nan_to_num(-math.inf).argmax(1)
        chosen = made.rows([i * self.tries + int(t) for i, t in enumerate(best)])
        return {"climb.npz": _packed(chosen, clean, time.perf_counter() - started)}

    def described(self) -> dict[str, Any]:
        versions = results.versions()
        return {
            "model": self.model.sha256,
            "seed": self.seed,
            "tries": self.tries,
            "film": self.film,
            "batch_size": self.batch_size,
            "featviz": versions["featviz"],
            "torch": versions["torch"],
            "device": self.model.device.type,
            "tasks": [task.described() for task in self.tasks],
        }


def seed_of(seed: int, key: str, number: int = 0) -> int:
    """The seed of a target's first try, or of a later one."""
    text = f"{seed}/{key}" + (f"/try {number}" if number else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def before_relu(
    model: Model, layer: Layer, goal: Objective, as_it_leaves: bool = False
) -> Iterator[None]:
    """Let taps of a ReLU read what goes into it: a silent unit still has a gradient there."""
    if layer.kind not in {"ReLU", "ReLU6"} or goal.layers != (layer.name,) or as_it_leaves:
        yield
        return
    module = model.net.get_submodule(layer.path)
    entered: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entered[:] = [inputs[0]]
        return (inputs[0].clone(),)  # an in-place ReLU must not reach what is kept

    def give(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return entered.pop()

    handles = [module.register_forward_pre_hook(keep), module.register_forward_hook(give)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def partial_of(folder: Path) -> Path:
    """Where the shards of a result folder that is being made are kept."""
    return folder.with_name(f"{folder.name}.partial")


def unfinished(folder: Path) -> bool:
    """Whether a result folder was saved when its job was stopped, and the job can go on."""
    if not (partial_of(folder) / "job.json").is_file() or not (folder / "result.json").is_file():
        return False
    said = results.read_result(folder).get("warnings", [])
    return any("stopped early" in str(text) for text in said)


def remove(partial: Path) -> None:
    """Remove a folder of shards; nothing else."""
    if (partial / "job.json").is_file():
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _kept(partial: Path | None, job: _Job) -> Iterator[Path]:
    """The folder of the finished shards: the given one if it is this job's, or one for now."""
    if partial is None:
        with tempfile.TemporaryDirectory(prefix="featviz-") as folder:
            yield Path(folder)
        return
    wanted = json.loads(json.dumps(job.described()))
    note = partial / "job.json"
    try:
        found = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if found is None and partial.is_dir() and any(partial.iterdir()):
            raise UserError(
                f"{partial} is in the way and not ours; move it or choose another --out"
            )
        if found is not None and found != wanted:
            other = _difference(found, wanted)
            raise UserError(
                f"{partial} holds the unfinished shards of another job ({other}); "
                "give that command again to finish it, remove the folder, or choose another --out"
            )
        partial.mkdir(parents=True, exist_ok=True)
        if found is None:
            results.write_json(note, wanted)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise results.cannot_write(partial, error) from None
        raise UserError(f"{note} is damaged; remove {partial} or choose another --out") from None
    try:
        yield partial
    finally:
        if not any((partial / shard.name).is_dir() for shard in job.shards()):
            remove(partial)  # nothing to go on from


def _difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first thing in which two jobs differ: "steps 128, now 256"."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in wanted:
            if found.get(key) != wanted[key]:
                return _difference(found.get(key), wanted[key], key)
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for one, other in zip(found, wanted, strict=True):
            if one != other:
                return _difference(one, other, name)
    short = isinstance(found, str | int | float) and isinstance(wanted, str | int | float)
    return f"{name} {found}, now {wanted}" if short else f"other {name or 'arguments'}"


def _packed(climb: Optimized, tries: Tensor, seconds: float) -> bytes:
    """A shard's file: the climbs, without the parameters, which nobody needs any more."""
    arrays = {name: value.cpu().numpy() for name, value in vars(climb).items()}
    arrays["images"] = climb.images.cpu().mul(255).round().to(torch.uint8).numpy()
    arrays["parameters"] = np.zeros((len(climb.scores), 0), dtype=np.float32)
    file = io.BytesIO()
    np.savez(file, tries=tries.numpy(), seconds=np.array(seconds), **arrays)
    return file.getvalue()


def _read(folder: Path, shards: Sequence[Shard], number: int) -> Climbed | None:
    """The finished targets of a task."""
    order: list[int] = []
    climbs: list[Optimized] = []
    tries: list[Tensor] = []
    seconds = 0.0
    for shard in shards:
        task, rows = shard.work
        file = folder / shard.name / "climb.npz"
        if task != number or not file.is_file():
            continue
        with np.load(file) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        tries.append(found.pop("tries"))
        seconds += found.pop("seconds").item()
        found["images"] = found["images"].float() / 255
        climbs.append(Optimized(**found))
        order += rows
    if not order:
        return None
    return Climbed(tuple(order), joined(climbs), torch.cat(tries), seconds / len(order))
