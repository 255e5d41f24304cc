"""`ablate`: what a net loses when units or directions of a layer are silenced.

Each picture passes the net once as far as the layer; then only what depends on the layer is
computed again for each unit (`models.rest`). Work is cut into pieces of some pictures and units.

    Zhou, Sun, Bau, Torralba, "Revisiting the Importance of Individual Units in CNNs via Ablation",
        2018 (arXiv:1806.02891), for the loss of each class when one unit is silenced
    Morcos et al., "On the importance of single directions for generalization", ICLR 2018
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz import results
from featviz.ablation.measured import PictureLogits
from featviz.ablation.result import Ablation
from featviz.ablation.silence import How, Silenced, all_silenced, controls
from featviz.checkpoints import Arrays, Checkpoint, open_checkpoint
from featviz.data.datasets import Pictures, Skipped, batches
from featviz.data.from_python import Data, Labels, as_pictures
from featviz.data.labeled import read_batch
from featviz.engine import Piece, map_pieces
from featviz.errors import BadPicture, UserError, public
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.model import Model, check_finite
from featviz.models.rest import channel_axis, recorded_pass, rest_of
from featviz.types import BatchSize, Count, Engine, Progress, Seed, Tries
from featviz.wording import counted

_PIECE, _UNITS = 128, 1024  # pictures and units of a piece
_UNIT = "silenced pictures"


@public
def ablate(
    model: Model,
    layer: str,
    pictures: Data,
    labels: Labels | None = None,
    *,
    units: str | Sequence[int | str] | None = None,
    directions: object = None,
    together: bool = False,
    how: How = "zero",
    controls: Tries = 20,
    picture: Data | None = None,
    count: Count | None = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    checkpoint: str | Path | Checkpoint | None = None,
    engine: Engine = "here",
    progress: Progress | None = None,
) -> Ablation:
    """Silence units or directions of a layer and measure accuracy, overall and by class.

    The same pictures pass the whole net and the net without the units, so that differences are
    paired: fixed and broken predictions, exact McNemar tests, corrected by Holm's method.

    Args:
        model: A classifier.
        layer: Alias or module path; "conv5:3,12" also names the units. The layer's output is
            changed: that of a convolution before its ReLU.
        pictures: With class folders or labels. Where none has a class of the model, its own
            predictions take their place: then "right" means unchanged.
        labels: The class of each picture; default: those of the data.
        units: "all" (default), "3,12", "0-15", class names in the layer of logits, neurons as
            "12@6,6".
        directions: In place of units: (k, C), or a result of `find_concepts`. An activation's
            coordinates in the space that they span are silenced, at every position.
        together: All at once; default: one by one.
        how: "zero"; "mean": over the data set, by unit; "resample": the values of another picture
            of the data set.
        controls: Random sets of as many other units (or random directions) for comparison.
        picture: One picture whose logits are given too.
        count: At most so many pictures, evenly spread.
        batch_size: Pictures that the model computes at once.
        seed: Of the controls and of "resample".
        checkpoint: A folder for finished pieces, from which a second call with the same arguments
            goes on; None keeps them in memory.
        engine: "here", or "ray": pieces of units and pictures are made by a Ray cluster.
        progress: Called with (silenced pictures done, all, text).

    Raises:
        UserError: An unknown layer or unit, directions that do not fit, no pictures.

    Example:
        >>> found = featviz.ablate(model, "conv5", "photographs")
        >>> found.to_pandas("units").head()
    """
    started = time.perf_counter()
    model.need_classes()
    if units is None and ":" in layer:
        layer, _, units = layer.partition(":")
    place = model.layer(layer)
    silenced = all_silenced(model, place, units, directions, together=together)
    random = _controls(silenced, place, controls, seed)
    data, truth, warnings = _labeled(model, pictures, labels, count)
    parameters = {
        "layer": place.name,
        "silenced": [one.name for one in silenced][:20],
        "number": len(silenced),
        "together": together,
        "how": how,
        "controls": len(random),
        "count": count,
        "batch_size": batch_size,
        "labels": "predictions" if truth is None else "given",
    }
    job = parameters | {
        "model": model.record(),
        "pictures": data.sha256,
        "truth": truth or [],
        "seed": seed,
        "what": _digest([*silenced, *random]),
    }
    runs = [*silenced, *random]
    total = len(data) * len(runs)
    opened = open_checkpoint(checkpoint, job, total=total, unit=_UNIT, engine=engine)
    with opened as kept, frozen(model):
        work = _Work(
            model=model,
            data=data,
            truth=None if truth is None else tuple(truth),
            layer=place.name,
            runs=tuple(runs),
            how=how,
            mean=_mean(model, data, place.name, batch_size, kept) if how == "mean" else None,
            partners=_partners(len(data), seed) if how == "resample" else None,
            batch_size=batch_size,
        )
        found = _measure(work, kept, progress)
        looked_at = None if picture is None else _logits(work, picture, len(silenced))
    n = len(silenced)
    skipped = [Skipped(row, data.paths[row], why) for row, why in found.skipped]
    if skipped:
        warnings += data.label_report(model, skipped).warnings
    if found.refusal:
        warnings += (f"each run is a whole pass of {model.name}: {found.refusal}",)
    unread = {one.row for one in skipped}
    result = Ablation(
        origin=results.origin(model, parameters=parameters, started=started, data=data, seed=seed),
        model_name=model.name,
        layer=place.name,
        how=how,
        names=tuple(one.name for one in silenced),
        classes=model.class_names,
        pictures=tuple(path for row, path in enumerate(data.paths) if row not in unread),
        labels=found.labels,
        predicted_labels=truth is None,
        before=found.before,
        after=found.after[:n],
        logit_change=found.change[:n],
        control_after=found.after[n:],
        control_change=found.change[n:],
        picture=looked_at,
        what="units" if directions is None else "directions",
    )
    return replace(result, warnings=tuple(dict.fromkeys(warnings)))


_controls = controls


def _digest(runs: Sequence[Silenced]) -> str:
    """A hash of all that is silenced."""
    digest = hashlib.sha256()
    for one in runs:
        digest.update(f"{one.name}{one.units}".encode())
        if one.basis is not None:
            digest.update(one.basis.numpy().tobytes())
    return digest.hexdigest()


def _labeled(
    model: Model, pictures: Data, labels: Labels | None, count: int | None
) -> tuple[Pictures, list[int] | None, tuple[str, ...]]:
    """The pictures that have a class of the model, or else all of them; classes, and warnings."""
    data = as_pictures(pictures, labels, model=model)
    report = data.label_report(model)
    rows = [row for row, label in enumerate(report.labels) if label is not None]
    chosen = data.select(rows) if rows else data
    chosen = chosen.spread(count) if count else chosen
    if not len(chosen):
        raise UserError(f"{data.root} has no pictures; nothing can be measured")
    if not rows:
        return chosen, None, report.warnings
    return chosen, [label for label in chosen.labels(model) if label is not None], report.warnings


def _mean(model: Model, data: Pictures, layer: str, batch_size: int, kept: Checkpoint) -> Tensor:
    """(C,): the mean of each unit over all positions of all pictures."""

    def make(span: range, report: Callable[[int], None]) -> Arrays:
        total, n = torch.zeros(model.layer(layer).units, dtype=torch.double), 0
        for batch in batches(data, model.preprocessing, batch_size=batch_size, span=span):
            images = batch.images.to(model.device)
            with torch.no_grad(), frozen(model):
                values = activations(model, images, [layer])[layer].cpu().double()
            rows = values.movedim(channel_axis(values), -1).flatten(0, -2)
            total, n = total + rows.sum(0), n + len(rows)
        return {"total": total.numpy(), "rows": np.array(n)}

    pieces = [Piece(f"mean-{span.start:07d}", span, 0) for span in _spans(len(data), batch_size)]
    made = [*map_pieces(make, pieces, kept, device=model.device.type)]
    total, rows = (sum(one[name] for one in made) for name in ("total", "rows"))
    return torch.from_numpy(np.asarray(total / max(1, rows)))


def _spans(count: int, batch_size: int) -> list[range]:
    """The pictures of each piece: whole batches."""
    step = batch_size * max(1, _PIECE // batch_size)
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _partners(n: int, seed: int) -> tuple[int, ...]:
    """For each picture another one, along one random cycle through all."""
    if n < 2:
        raise UserError("resampled values are those of another picture; give 2 or more pictures")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partners = torch.empty_like(order)
    partners[order] = order.roll(-1)
    return tuple(partners.tolist())


class _Measured(NamedTuple):
    """All pieces together: R runs, N pictures that could be read."""

    labels: Tensor
    before: Tensor
    """(N,) predictions"""
    after: Tensor
    """(R, N)"""
    change: Tensor
    """(R, N) of the logit of the picture's class"""
    skipped: list[tuple[int, str]]
    refusal: str


def _measure(work: _Work, kept: Checkpoint, progress: Progress | None) -> _Measured:
    n, runs = len(work.data), len(work.runs)
    units = [range(first, min(first + _UNITS, runs)) for first in range(0, runs, _UNITS)]
    pieces = [
        [
            Piece(
                f"pictures-{span.start:07d}-units-{some.start:05d}",
                (span, some),
                len(span) * len(some),
            )
            for some in units
        ]
        for span in _spans(n, work.batch_size)
    ]
    flat = [piece for row in pieces for piece in row]
    device = work.model.device.type
    made = map_pieces(work, flat, kept, device=device, progress=progress, text=_UNIT)
    rows = [[next(made) for _ in row] for row in pieces]
    parts = {
        name: torch.from_numpy(np.concatenate([row[0][name] for row in rows]))
        for name in ("labels", "before")
    }
    after, change = (
        torch.from_numpy(np.concatenate([np.concatenate([a[k] for a in row]) for row in rows], 1))
        for k in ("after", "change")
    )
    skipped = [
        (int(row), str(why))
        for arrays in (row[0] for row in rows)
        for row, why in zip(arrays["skipped"], arrays["reasons"], strict=True)
    ]
    if not len(parts["labels"]):
        raise UserError(f"no picture could be read; the first: {skipped[0][1]}")
    return _Measured(**parts, after=after, change=change, skipped=skipped, refusal=_refusal(rows))


def _refusal(rows: Sequence[Sequence[Arrays]]) -> str:
    return next((text for row in rows for a in row if (text := str(a["refusal"]))), "")


@dataclass(frozen=True)
class _Work:
    """Everything that the pieces depend on."""

    model: Model
    data: Pictures
    truth: tuple[int, ...] | None
    """the class of each picture"""
    layer: str
    runs: tuple[Silenced, ...]
    how: How
    mean: Tensor | None
    """(C,)"""
    partners: tuple[int, ...] | None
    """of each picture the one whose values it gets"""
    batch_size: int

    def __call__(
        self, work: tuple[range, range], report: Callable[[int], None] = lambda _: None
    ) -> Arrays:
        """The arrays of some pictures n and runs r.

        "labels" and "before" (n,); "after" (r, n), "change" (r, n); "skipped" and "reasons".
        """
        pictures, runs = work
        before, labels = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        after = [np.empty((len(runs), 0), np.int32)]
        change = [np.empty((len(runs), 0), np.float32)]
        skipped: list[Skipped] = []
        refusal = ""
        done = 0
        with torch.no_grad(), frozen(self.model):
            for rows, images in self._batches(pictures, skipped):
                rest = recorded_pass(self.model, self.layer, images)
                refusal = rest.refusal
                predicted = rest.output.argmax(1)
                truth = (
                    predicted
                    if self.truth is None
                    else torch.tensor([self.truth[row] for row in rows], device=images.device)
                )
                own = rest.output.gather(1, truth[:, None])
                other = self.other(rest.values, rows)
                found: list[Tensor] = []
                moved: list[Tensor] = []
                for run in runs:
                    logits = self.runs[run].run(rest, other)
                    found.append(logits.argmax(1))
                    moved.append((logits.gather(1, truth[:, None]) - own)[:, 0])
                    done += len(rows)
                    report(done)
                check_finite(torch.stack(moved), f"logits of {self.model.name} without some units")
                before.append(predicted.int().cpu().numpy())
                labels.append(truth.cpu().numpy())
                after.append(torch.stack(found).int().cpu().numpy())
                change.append(torch.stack(moved).float().cpu().numpy())
        return {
            "labels": np.concatenate(labels),
            "before": np.concatenate(before),
            "after": np.concatenate(after, axis=1),
            "change": np.concatenate(change, axis=1),
            "skipped": np.array([one.row for one in skipped], np.int64),
            "reasons": np.array([one.reason for one in skipped], str),
            "refusal": np.array(refusal),
        }

    def _batches(
        self, rows: range, skipped: list[Skipped]
    ) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Rows of the data set with their pictures."""
        for batch in batches(
            self.data,
            self.model.preprocessing,
            batch_size=self.batch_size,
            skipped=skipped,
            span=rows,
        ):
            yield batch.rows, batch.images.to(self.model.device)

    def other(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """What takes the place of silenced values of some rows of the data set."""
        if self.partners is not None:
            partners = torch.stack([self._partner(row) for row in rows]).to(values.device)
            return activations(self.model, partners, [self.layer])[self.layer].to(values.dtype)
        if self.mean is None:
            return values.new_zeros(())
        shape = [1] * values.dim()
        shape[channel_axis(values)] = -1
        return self.mean.to(values).view(shape)

    def _partner(self, row: int) -> Tensor:
        """The next picture of the cycle that can be read."""
        assert self.partners is not None
        while True:
            row = self.partners[row]
            try:
                return self.data.read(row, self.model.preprocessing)
            except BadPicture:
                continue


def _logits(work: _Work, picture: Data, runs: int) -> PictureLogits:
    """The logits of one picture, whole and in each run; "resample" takes a fixed picture."""
    given = read_batch(work.model, picture)
    if len(given.pictures) != 1:
        raise UserError(f"picture names {counted(len(given.pictures), 'picture')}; give one")
    image = given.pictures.to(work.model.device)
    with torch.no_grad():
        values = activations(work.model, image, [work.layer])[work.layer]
        rest = rest_of(work.model, work.model.layer(work.layer), image)
        other = work.other(values, [0])
        found = [
            rest(
                torch.cat([run(values, other) for run in work.runs[:runs][i : i + work.batch_size]])
            )
            for i in range(0, runs, work.batch_size)
        ]
        whole = work.model(image)[0]
    return PictureLogits(given.names[0], image[0].cpu(), whole.cpu(), torch.cat(found).cpu())
