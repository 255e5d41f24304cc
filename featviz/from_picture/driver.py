"""What `invert`, `caricature`, `deepdream` and `accentuate` share.

Pictures come in as a batch. For each column (a layer, a unit) `restarts` pictures are made of each,
in pieces of a few pictures that a checkpoint keeps; then the column's numbers are measured, of what
a PNG holds, without transforms, in float32. What differs is the column's objective (`Column.draw`)
and its numbers (`Column.measure`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from featviz import results
from featviz.checkpoints import Arrays, Checkpoint, open_checkpoint
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError
from featviz.from_picture.result import Redrawn
from featviz.from_picture.settings import MethodName, method_settings
from featviz.maximization.batches import seed_of
from featviz.maximization.loop import optimize
from featviz.maximization.optimized import Optimized
from featviz.maximization.settings import Settings
from featviz.models.frozen import frozen
from featviz.models.layers import check_size, read_layer
from featviz.pictures import films
from featviz.wording import not_one_each

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.maximization.objectives import Objective
    from featviz.models.model import Model
    from featviz.types import AutoPrecision, Engine, Progress

R = TypeVar("R", bound=Redrawn)

# Pictures in a batch, and in a piece of a checkpoint, where none are given.
BATCH, BATCH_ON_CUDA = 4, 64
# Layers that are taken when none is named.
_KINDS = ("Conv2d", "Linear")


class Batch(NamedTuple):
    """Some pictures to be made."""

    originals: Tensor
    """(N, 3, H, W): which picture each is made from"""
    restarts: tuple[int, ...]
    """(N,): which of that picture's restarts each is"""


@dataclass(frozen=True)
class Column:
    """A layer or unit from which pictures are drawn again."""

    name: str
    """as people read it"""
    steps: int
    """of one picture, in all"""
    settings: Settings
    draw: Callable[[Batch], Optimized]
    measure: Callable[[Tensor, Tensor], dict[str, Tensor]]
    """numbers (N,) of given pictures (N, 3, H, W) and of what was made from them, beside those
    that all methods have: pixel distance and class rank"""
    unit: str = ""
    """as "conv5:12", where it is one"""


@dataclass(kw_only=True)
class Redrawing:
    """One run of a method: checked pictures, the optimization of a batch, and the result."""

    model: Model
    pictures: Tensor
    """(P, 3, H, W) or (3, H, W); afterwards always the former, on the model's device"""
    method: MethodName
    steps: int
    chosen: Settings | None
    """in place of the method's own settings"""
    precision: AutoPrecision
    seed: int
    named: Sequence[str] | None
    """names of the pictures, where they have some"""
    frames: int
    film: str
    batch_size: int | None
    checkpoint: str | Path | Checkpoint | None
    engine: Engine
    progress: Progress | None
    restarts: int = 1
    lr: float | None = None

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.pictures = _as_batch(self.model, self.pictures)
        self.names = _picture_names(self.named, len(self.pictures))
        films.check_kind(self.film)
        on_cpu = self.model.device.type == "cpu"
        self.size = self.batch_size or (BATCH if on_cpu else BATCH_ON_CUDA)
        self._done = 0  # steps of single pictures in this piece
        self._report: Callable[[int], None] = lambda _: None

    def __getstate__(self) -> dict[str, Any]:
        """What the workers of a cluster get of it."""
        return vars(self) | {"progress": None, "checkpoint": None}

    def settings(self, layer: str) -> Settings:
        """How pictures are optimized for a layer."""
        height, width = self.pictures.shape[-2:]
        if self.chosen is not None:
            form = self.chosen.parametrization
            # DeepDream makes a parametrization for each of its sizes.
            if self.method != "deepdream" and (form.height, form.width) != (height, width):
                raise UserError(
                    f"settings are for pictures of {form.height}x{form.width} pixels, and these "
                    f"have {height}x{width}; take method_settings(..., height={height}, "
                    f"width={width})"
                )
            return self.chosen
        made = method_settings(
            self.method,
            self.model,
            layer,
            height=height,
            width=width,
            steps=self.steps,
            precision=self.precision,
        )
        return made if self.lr is None else replace(made, lr=self.lr)

    def optimize(
        self,
        objective: Objective,
        settings: Settings,
        batch: Batch,
        key: str,
        *,
        start: Tensor | None = None,
    ) -> Optimized:
        """Optimize the pictures of a batch, each from its own seed.

        Args:
            objective: With a target for each picture; in groups of more than one the first of a
                group is the picture, and the others are only read.
            settings: How.
            batch: The pictures.
            key: What the seeds depend on, with the run's seed and the restart.
            start: Pictures (N * group, 3, H, W) to begin at, in place of noise.
        """
        group, count = objective.group, len(batch.originals)
        seeds = [seed_of(self.seed, f"{key}/{t}") for t in batch.restarts]
        before, work = self._done, count * settings.steps
        made = optimize(
            self.model,
            objective,
            range(count * group),
            [seed for seed in seeds for _ in range(group)],
            settings,
            start=start,
            batch_size=count * group,
            frames=self.frames,
            progress=lambda done, total, _: self._report(before + work * done // total),
        )
        self._done = before + work
        return made.rows(range(0, count * group, group))

    def result(
        self,
        kind: type[R],
        columns: Sequence[Column],
        parameters: Mapping[str, Any],
        *,
        data: Pictures | None = None,
    ) -> R:
        """Draw and measure all columns."""
        shape = (len(self.pictures), self.restarts)
        parameters = {
            "pictures": list(self.names),
            "size": self.pictures.shape[-1],
            "restarts": self.restarts,
            **parameters,
            **columns[-1].settings.record(),
        }
        job = {
            "kind": kind.kind,
            "parameters": parameters,
            "columns": [(column.name, column.settings.record()) for column in columns],
            "model": self.model.sha256,
            "given": hashlib.sha256(self.pictures.cpu().numpy().tobytes()).hexdigest(),
            "seed": self.seed,
            "frames": self.frames,
            "batch_size": self.size,
        }
        total = shape[0] * shape[1] * sum(column.steps for column in columns)
        opened = open_checkpoint(
            self.checkpoint, job, total=total, unit="steps", engine=self.engine
        )
        with opened as kept, frozen(self.model):
            drawn = self._draw(columns, kept)
            source = self.pictures.repeat_interleave(self.restarts, 0)
            measured = []
            for column, one in zip(columns, drawn, strict=True):
                pictures = torch.from_numpy(one["images"]).to(source)
                numbers = column.measure(source, pictures)
                numbers["pixel distance"] = pixel_distances(source, pictures)
                numbers["class rank"] = class_ranks(self.model, source, pictures)
                measured.append(numbers)

        def stacked(parts: Sequence[Tensor]) -> Tensor:
            """Columns of (P * T, ...) as (P, K, T, ...)."""
            return torch.stack([part.cpu().unflatten(0, shape) for part in parts], 1)

        def made(name: str) -> Tensor:
            return stacked([torch.from_numpy(one[name]) for one in drawn])

        return kind(
            origin=results.origin(
                self.model,
                seed=self.seed,
                started=self.started,
                data=data,
                parameters=parameters,
            ),
            model_name=self.model.name,
            names=self.names,
            columns=tuple(column.name for column in columns),
            units=tuple(c.unit for c in columns) if all(c.unit for c in columns) else (),
            originals=self.pictures.cpu(),
            measured={
                name: stacked([numbers[name].float() for numbers in measured])
                for name in kind.measures
            },
            film=self.film,
            images=made("images"),
            trace=made("trace"),
            frames=made("frames"),
        )

    def _draw(self, columns: Sequence[Column], kept: Checkpoint) -> list[Arrays]:
        """The pictures of each column (P * T, 3, H, W), with their traces and frames."""
        rows = [(p, t) for p in range(len(self.pictures)) for t in range(self.restarts)]
        parts = [rows[first : first + self.size] for first in range(0, len(rows), self.size)]
        pieces = [
            Piece(f"column-{k:03}-{i:05}", (k, some), len(some) * column.steps)
            for k, column in enumerate(columns)
            for i, some in enumerate(parts)
        ]

        def make(work: tuple[int, list[tuple[int, int]]], report: Callable[[int], None]) -> Arrays:
            k, some = work
            self._done, self._report = 0, report
            batch = Batch(self.pictures[[p for p, _ in some]], tuple(t for _, t in some))
            with frozen(self.model):
                drawn = columns[k].draw(batch)
            return {
                name: getattr(drawn, name).cpu().numpy() for name in ("images", "trace", "frames")
            }

        found = map_pieces(
            make,
            pieces,
            kept,
            device=self.model.device.type,
            progress=self.progress,
            text=f"{self.method}, {', '.join(column.name for column in columns)}",
        )
        made = [[next(found) for _ in parts] for _ in columns]
        return [
            {name: np.concatenate([piece[name] for piece in own]) for name in own[0]}
            for own in made
        ]


def class_ranks(model: Model, originals: Tensor, drawn: Tensor) -> Tensor:
    """The rank (N,) of each given picture's predicted class in the logits of the drawn one.

    1: the prediction is the same. NaN without logits.
    """
    if model.headless:
        return torch.full((len(originals),), torch.nan)
    logits = read_layer(model, drawn, "logits")
    own = logits.gather(1, read_layer(model, originals, "logits").argmax(1, keepdim=True))
    return 1.0 + (logits > own).sum(1)


def pixel_distances(originals: Tensor, drawn: Tensor) -> Tensor:
    """The root mean square of the pixels' differences, (N,)."""
    return (drawn - originals).square().mean((1, 2, 3)).sqrt()


def chosen_layers(model: Model, layers: str | Sequence[str] | None) -> list[str]:
    """Names of layers from "conv1,conv5", a sequence or None.

    None: the convolutions and fully connected layers with names of their own, and where there are
    none eight of all, spread over the model. Raises UserError for an unknown layer.
    """
    if layers is None:
        weighty = [layer.name for layer in model.layers.values() if layer.kind in _KINDS]
        named = [name for name in weighty if name in model.aliases and name != "logits"]
        named += ["logits"] * ("logits" in model.layers)
        count = min(8, len(weighty))
        spread = [weighty[round(i * (len(weighty) - 1) / max(1, count - 1))] for i in range(count)]
        return named if len(named) > 2 else spread
    items = layers.split(",") if isinstance(layers, str) else list(layers)
    found = [model.layer(item.strip()).name for item in items if item.strip()]
    if not found:
        raise UserError("no layer was named; give some, as in conv1,conv5,fc7")
    return list(dict.fromkeys(found))


def _as_batch(model: Model, pictures: Tensor) -> Tensor:
    """Pictures as (P, 3, H, W) on the model's device. Raises UserError if they are none."""
    batch = model.check(pictures, single=True).to(model.std)
    check_size(model, (batch.shape[-2], batch.shape[-1]))
    return batch


def _picture_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple("picture" if count == 1 else f"picture {i + 1}" for i in range(count))
    if len(names) != count:
        raise UserError(not_one_each(len(names), "name", count))
    return tuple(names)
