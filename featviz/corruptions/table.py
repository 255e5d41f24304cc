"""`corruption_table`: how often a model is right under each corruption at each severity.

Every cell of the table, a corruption at a severity, is one pass over all pictures. With a folder
for unfinished work a cell that is done is kept there, and a run that was stopped goes on behind
it to the same result.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from featviz import plotting, results
from featviz.attacks.checks import check_batch_size
from featviz.attacks.loop import classify
from featviz.attacks.projections import picture_key
from featviz.corruptions.apply import corrupt
from featviz.corruptions.constants import CORRUPTIONS, FAMILIES, SEVERITIES, settings
from featviz.corruptions.yardstick import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    VALID_SIDE,
    MeanCorruptionError,
    mean_corruption_error,
)
from featviz.datasets import Pictures, read_labelled
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.statistics import Share, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.models.model import Model

Progress = Callable[[int, int, str], None]
_FEW = 100
_COLOURS = {
    "noise": plotting.RED,
    "blur": plotting.BLUE,
    "weather": plotting.GREEN,
    "digital": plotting.PURPLE,
    "extra": plotting.ORANGE,
}


def family(name: str) -> str:
    """noise, blur, weather, digital, or extra."""
    return next((kind for kind, names in FAMILIES.items() if name in names), "extra")


def words(name: str) -> str:
    """A corruption's name for people: "jpeg compression" of jpeg_compression."""
    return name.replace("_", " ").replace("jpeg", "JPEG")


@dataclass(frozen=True, kw_only=True, repr=False)
class Corruptions(results.Result):
    """Accuracy of a model under corruptions of growing severity."""

    kind: ClassVar[str] = "corruptions"

    model_name: str
    data_name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """of the pictures"""
    labels: Tensor
    """(N,)"""
    own_labels: bool
    """the labels are the model's own clean answers, for want of others"""
    clean: Tensor
    """(N,) the model's answers to the clean pictures"""
    severities: tuple[int, ...]
    answers: Mapping[str, Tensor]
    """corruption -> (severities, N) the model's answers"""
    side: int
    """of the pictures, in pixels"""
    jpeg: bool
    example: Tensor
    """(3, S, S) the picture of the sheet"""
    example_row: int
    seed: int
    seconds: float

    @property
    def title(self) -> str:
        n = len(self.names)
        return f"Corruptions: {self.model_name} on {n} pictures of {self.data_name}"

    @property
    def clean_share(self) -> Share:
        """Accuracy on the clean pictures."""
        return share(int((self.clean == self.labels).sum()), len(self.names))

    def share(self, name: str, severity: int) -> Share:
        """Accuracy under one corruption at one severity."""
        answers = self.answers[name][self.severities.index(severity)]
        return share(int((answers == self.labels).sum()), len(self.names))

    def errors(self) -> dict[str, tuple[float, ...]]:
        """Corruption -> share of wrong answers at each severity."""
        n = len(self.names)
        return {
            name: tuple(float(k) / n for k in (answers != self.labels).sum(1))
            for name, answers in self.answers.items()
        }

    def mean_error(self, without: Sequence[str] = ()) -> MeanCorruptionError | None:
        """Mean errors over the benchmark's corruptions; None if severities are missing.

        mCE stands at 224 pixels and 1,000 classes only: AlexNet's errors were measured there.
        """
        errors = {n: e for n, e in self.errors().items() if n in CORRUPTIONS and n not in without}
        if not errors or self.severities != SEVERITIES:
            return None
        valid = self.side == VALID_SIDE and len(self.classes) == 1000 and self.jpeg
        return mean_corruption_error(
            errors, clean=1 - (self.clean_share.value or 0), side=self.side if valid else None
        )

    def numbers(self) -> dict[str, results.Number]:
        n, clean = len(self.names), self.clean_share
        means = {
            name: float((answers == self.labels).double().mean())
            for name, answers in self.answers.items()
        }
        hardest, mildest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        found = {
            "clean accuracy": results.Number(
                clean.value, "fraction", f"95% interval {clean.interval}, n = {n}"
            ),
            "accuracy under corruption": results.Number(
                sum(means.values()) / len(means),
                "fraction",
                f"mean of {len(means)} corruptions at {len(self.severities)} severities",
            ),
        }
        mean = self.mean_error()
        if mean is not None:
            over = f"of {len(mean.corruptions)} corruptions"
            found["mean corruption error"] = results.Number(
                mean.mean, "fraction", f"{over}, not normalised"
            )
            found["lost to corruption"] = results.Number(
                mean.relative_mean, "fraction", "mean corruption error less the clean error"
            )
            if mean.mce is not None:
                found["mCE"] = results.Number(mean.mce, "fraction", f"{over}; AlexNet is 100%")
                found["relative mCE"] = results.Number(mean.relative_mce, "fraction", over)
            rest = self.mean_error(without=("frost",))
            if rest is not None and rest.mce is not None and "frost" in self.answers:
                found["mCE without frost"] = results.Number(
                    rest.mce, "fraction", "the 14 that compare with the published ones"
                )
        found["hardest"] = results.Number(
            words(hardest), "", f"{100 * means[hardest]:.1f}% right over its severities"
        )
        found["mildest"] = results.Number(words(mildest), "", f"{100 * means[mildest]:.1f}% right")
        passes = n * (1 + len(self.answers) * len(self.severities))
        found["forward passes"] = results.Number(passes, "", "of single pictures")
        found["seconds"] = results.Number(round(self.seconds, 1), "s", "for all of it")
        return found

    def write(self, folder: results.Folder) -> None:
        n = len(self.names)
        yardstick = (
            " Dotted: the published error rates of AlexNet, 1,000 classes."
            if self.side == VALID_SIDE
            else ""
        )
        folder.figure(
            "curves.svg",
            self.plot(),
            caption=f"Accuracy under each corruption at severities 0 (clean) to 5, {n} pictures, "
            f"with 95% Wilson bands.{yardstick} Severity need not be monotone for snow and "
            "elastic transform: the benchmark's constants are not.",
            alt="Small panels, one a corruption: accuracy falls with severity",
        )
        folder.figure(
            "sheet.jpg",
            self.plot_sheet(),
            caption="One picture under every corruption. Blue frame: the model names it "
            "right; orange: wrong. The random part of a corruption is the same at all severities.",
            alt="A photograph in rows of growing corruption, framed by whether the model is right",
        )
        columns = [
            "corruption",
            "family",
            "severity",
            "constants",
            "right",
            "n",
            "accuracy",
            "low",
            "high",
        ]
        caption = (
            "Accuracy of every corruption and severity with its 95% Wilson interval; severity 0 is "
            "clean."
        )
        if self.side == VALID_SIDE:
            columns.append("alexnet_published")
            caption += (
                " The last column is what AlexNet reached on 50,000 pictures of 1,000 classes."
            )
        rows = (row[: len(columns)] for row in self._rows())
        folder.table("corruptions.csv", columns, rows, caption=caption)
        stood = torch.stack(list(self.answers.values())).eq(self.labels).flatten(0, 1).sum(0)
        order = stood.argsort(stable=True).tolist()
        folder.table(
            "pictures.csv",
            ("picture", "label", "clean", "right_cells", "cells"),
            (
                (
                    self.names[i],
                    self.classes[int(self.labels[i])],
                    self.classes[int(self.clean[i])],
                    int(stood[i]),
                    len(self.answers) * len(self.severities),
                )
                for i in order
            ),
            caption="Every picture, the most easily lost first: in how many cells of the table the "
            "model is right about it.",
        )
        if "frost" in self.answers:
            folder.warn(
                "frost lays procedural ice over the pictures, not the benchmark's photographs of "
                "it: its numbers are not comparable with published ones"
            )

    def _rows(self) -> list[tuple[object, ...]]:
        s = self.clean_share
        published = 1 - ALEXNET_CLEAN_ERROR if self.side == VALID_SIDE else ""
        rows: list[tuple[object, ...]] = [
            ("clean", "", 0, "", s.hits, s.n, s.value, s.low, s.high, published)
        ]
        for name in self.answers:
            for severity in self.severities:
                s = self.share(name, severity)
                constants = " ".join(f"{c:g}" for c in settings(name, severity, self.side))
                rows.append(
                    (
                        name,
                        family(name),
                        severity,
                        constants,
                        s.hits,
                        s.n,
                        s.value,
                        s.low,
                        s.high,
                        _published(name, severity, self.side),
                    )
                )
        return rows

    def plot(self) -> Figure:
        """Small panels, one a corruption."""
        columns = min(5, len(self.answers))
        rows = -(-len(self.answers) // columns)
        figure = plotting.new_figure(1.75 * columns + 0.4, 1.5 * rows + 0.35)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(self.answers) :]:
            ax.set_visible(False)
        for ax, name in zip(axes.flat, self.answers, strict=False):
            self._draw(ax, name)
        figure.supxlabel("severity", fontsize=9)
        figure.supylabel("accuracy (%)", fontsize=9)
        return figure

    def _draw(self, ax: Axes, name: str) -> None:
        x = (0, *self.severities)
        shares = [self.clean_share, *(self.share(name, s) for s in self.severities)]
        colour = _COLOURS[family(name)]
        ax.fill_between(
            x,
            [100 * s.low for s in shares],
            [100 * s.high for s in shares],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
        ax.plot(
            x,
            [100 * (s.value or 0) for s in shares],
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1.5,
        )
        if self.side == VALID_SIDE and name in ALEXNET_ERRORS:
            errors = (ALEXNET_CLEAN_ERROR, *ALEXNET_ERRORS[name])
            ax.plot(
                range(6), [100 - 100 * e for e in errors], ":", color=plotting.INK, linewidth=1.2
            )
        plotting.lines(ax, xlabel="", ylabel="")
        ax.set_title(words(name) + (" *" if name == "frost" else ""), fontsize=8, pad=3)
        ax.set_ylim(0, 100)
        ax.set_xticks(range(6))
        ax.set_yticks((0, 25, 50, 75, 100))

    def plot_sheet(self) -> Figure:
        """One picture under every corruption, framed by whether the model is right."""
        blocks = 2 if len(self.answers) > 6 else 1
        rows = -(-len(self.answers) // blocks)
        cell, words_width, head = 0.74, 0.85, 0.28
        block = words_width + cell * (len(self.severities) + 1) + 0.1
        page = plotting.Page(blocks * block, head + cell * rows)
        label = int(self.labels[self.example_row])
        for i, name in enumerate(self.answers):
            left, top = (i // rows) * block + words_width, head + cell * (i % rows)
            page.text(
                left - 0.07,
                top + cell / 2,
                words(name).replace(" ", "\n", 1),
                fontsize=7,
                ha="right",
            )
            for c, severity in enumerate((0, *self.severities)):
                if i % rows == 0:
                    page.text(
                        left + cell * (c + 0.5),
                        head / 2,
                        f"severity {severity}" if severity else "clean",
                        fontsize=6.5,
                        ha="center",
                    )
                picture, answer = self.example, int(self.clean[self.example_row])
                if severity:
                    picture = corrupt(
                        picture[None], name, severity, seed=self.seed, jpeg=self.jpeg
                    )[0]
                    row = self.severities.index(severity)
                    answer = int(self.answers[name][row][self.example_row])
                ax = page.axes(left + cell * c, top, cell - 0.05, cell - 0.05)
                plotting.show_image(ax, picture, pixelated=self.side <= 128)
                plotting.frame(ax, plotting.BLUE if answer == label else plotting.ORANGE, 1.6)
        return page.figure


def _published(name: str, severity: int, side: int) -> float | str:
    if side != VALID_SIDE or name not in ALEXNET_ERRORS:
        return ""
    return round(1 - ALEXNET_ERRORS[name][severity - 1], 5)


def corruption_table(
    model: Model,
    pictures: Pictures | Tensor,
    labels: Sequence[int | str] | Tensor | None = None,
    *,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    count: int | None = None,
    jpeg: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    partial: str | Path | None = None,
    progress: Progress | None = None,
) -> Corruptions:
    """Accuracy under each corruption at each severity, with its interval.

    pictures: a data set, or a tensor (N, 3, S, S) in [0, 1]
    labels: of a tensor's pictures, indices or names; a data set is labelled by its folders.
        Without any the model's own clean answers stand in, and the result says so
    names: of corruptions, see `CORRUPTIONS` and `EXTRA`; severities: of 1 to 5
    count: at most so many pictures, evenly spread
    jpeg: save every corrupted picture as JPEG of quality 85 before the model sees it, as the
        published pictures are. Clean pictures are given as they are
    seed: see `corrupt`; slots: pictures that the model sees at once
    partial: a folder for finished cells; a run with the same arguments goes on from them

    Returns `Corruptions`. Raises UserError for arguments out of range.
    """
    started = time.perf_counter()
    names, severities = tuple(dict.fromkeys(names)), tuple(sorted(set(severities)))
    if not names or not severities:
        raise UserError("no corruption or no severity was named")
    for name in names:
        for severity in severities:
            settings(name, severity, model.input_size)
    batch_size = check_batch_size(batch_size, model.device)
    given = read_labelled(model, pictures, labels, count=count)
    keys = [picture_key(picture, seed) for picture in given.pictures]
    cells = [(name, severity) for name in names for severity in severities]
    with frozen(model), torch.no_grad():

        def judged(batch: Tensor) -> Tensor:
            return classify(model, batch.to(model.device), batch_size=batch_size).argmax(1).cpu()

        clean = judged(given.pictures)
        own_labels = given.labels is None
        own = clean if given.labels is None else given.labels
        kept = _Kept(partial, model, keys, jpeg=jpeg, batch_size=batch_size)
        answers: dict[str, list[Tensor]] = {name: [] for name in names}
        for done, (name, severity) in enumerate(cells):
            if progress is not None:
                progress(done, len(cells), f"{words(name)}, severity {severity}")
            found = kept.read(name, severity)
            if found is None:
                parts = []
                for start in range(0, len(keys), batch_size):
                    block = given.pictures[start : start + batch_size].to(model.device)
                    parts.append(judged(corrupt(block, name, severity, seed=seed, jpeg=jpeg)))
                found = torch.cat(parts)
                kept.write(name, severity, found)
            answers[name].append(found)
    if progress is not None:
        progress(len(cells), len(cells), "corruptions")
    right = (clean == own).nonzero()
    example = int(right[0]) if len(right) else 0
    result = Corruptions(
        origin=results.origin(
            model,
            parameters={
                "names": list(names),
                "severities": list(severities),
                "count": count,
                "jpeg": jpeg,
                "batch_size": batch_size,
                "labels": "the model's own answers" if own_labels else "given",
            },
            started=started,
            data=given.data,
            seed=seed,
        ),
        model_name=model.name,
        data_name=given.data_name,
        classes=tuple(model.class_name(c) for c in range(len(model.classes))),
        names=given.names,
        labels=own,
        own_labels=own_labels,
        clean=clean,
        severities=severities,
        answers={name: torch.stack(rows) for name, rows in answers.items()},
        side=given.pictures.shape[-1],
        jpeg=jpeg,
        example=given.pictures[example],
        example_row=example,
        seed=seed,
        seconds=time.perf_counter() - started,
        warnings=given.warnings,
    )
    return _with_doubts(result)


class _Kept:
    """Finished cells on disk, of one and the same run."""

    def __init__(
        self, folder: str | Path | None, model: Model, keys: Sequence[int], **settings: object
    ):
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        plan = json.dumps([model.sha256, list(keys), sorted(settings.items())])
        self.digest = hashlib.sha256(plan.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str, severity: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}-{severity}-{self.digest}.npy"

    def read(self, name: str, severity: int) -> Tensor | None:
        if self.folder is None or not self._path(name, severity).is_file():
            return None
        return torch.from_numpy(np.load(self._path(name, severity)))

    def write(self, name: str, severity: int, answers: Tensor) -> None:
        if self.folder is None:
            return
        path = self._path(name, severity)
        unfinished = path.with_suffix(".part")
        try:
            with unfinished.open("wb") as out:
                np.save(out, answers.numpy())
            os.replace(unfinished, path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise results.cannot_write(path, error) from None


def _with_doubts(result: Corruptions) -> Corruptions:
    doubts = list(result.warnings)
    n = len(result.names)
    if result.own_labels:
        doubts.append(
            "there are no labels: the model's own clean answers stand in for them, so accuracy "
            "means agreement with itself"
        )
    if n < _FEW:
        doubts.append(f"only {n} pictures: the intervals are wide")
    if result.side == VALID_SIDE and len(result.classes) != 1000:
        doubts.append(
            f"AlexNet's published errors are for 1,000 classes, this model has "
            f"{len(result.classes)}: they are drawn for orientation, and there is no mCE"
        )
    if result.side not in {64, 224}:
        doubts.append(
            f"ImageNet-C has constants for 224 and 64 pixels; at {result.side} lengths are scaled"
        )
    return Corruptions(**{**result.__dict__, "warnings": tuple(doubts)})


__all__ = ["Corruptions", "corruption_table", "family", "words"]
