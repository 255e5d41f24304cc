"""`Corruptions`: accuracy under each corruption at each severity, with tables and mean errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from featviz import results
from featviz.corruptions import figures
from featviz.corruptions.constants import (
    ALEXNET_ERRORS,
    CORRUPTIONS,
    SEVERITIES,
    family,
    settings,
    words,
)
from featviz.corruptions.mce import (
    ALEXNET_CLEAN_ERROR,
    VALID_SIDE,
    MeanCorruptionError,
    mean_corruption_error,
)
from featviz.data.labels import LabelReport
from featviz.statistics import Share, percentiles, resampled_means, share
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEW = 100


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
    predicted_labels: bool
    """the labels are the model's predictions on the clean pictures, since none were given"""
    clean: Tensor
    """(N,) predictions on the clean pictures"""
    severities: tuple[int, ...]
    predictions: Mapping[str, Tensor]
    """corruption -> (severities, N) classes"""
    side: int
    """the shorter one of the pictures, in pixels"""
    jpeg: bool
    example: Mapping[str, Tensor]
    """corruption -> (severities, C, H, W) one picture under it"""
    example_row: int
    example_clean: Tensor
    seconds: float
    label_report: LabelReport | None = None
    """how the data's folders fit the classes; None for a tensor"""

    @property
    def title(self) -> str:
        pictures = counted(len(self.names), "picture")
        return f"Corruptions: {self.model_name} on {pictures} of {self.data_name}"

    @property
    def published(self) -> bool:
        """Whether the pictures are such as AlexNet's published errors were measured on."""
        return tuple(self.example_clean.shape) == (3, VALID_SIDE, VALID_SIDE)

    @property
    def clean_share(self) -> Share:
        """Accuracy on the clean pictures."""
        return share(int((self.clean == self.labels).sum()), len(self.names))

    def share(self, name: str, severity: int) -> Share:
        """Accuracy under one corruption at one severity."""
        return self.shares(name)[self.severities.index(severity)]

    def shares(self, name: str) -> list[Share]:
        """Accuracy under one corruption at each severity."""
        right = (self.predictions[name] == self.labels).sum(1).tolist()
        return [share(k, len(self.names)) for k in right]

    def errors(self) -> dict[str, tuple[float, ...]]:
        """Corruption -> share of wrong predictions at each severity."""
        return {
            name: tuple(1 - (s.value or 0) for s in self.shares(name)) for name in self.predictions
        }

    def mean_error(self, without: Sequence[str] = ()) -> MeanCorruptionError | None:
        """Mean errors over the benchmark's corruptions; None if severities are missing.

        There is an mCE at 224 pixels and 1,000 classes only, where AlexNet's errors were measured.
        """
        return self._mean_error(self.errors(), 1 - (self.clean_share.value or 0), without)

    def _mean_error(
        self, errors: Mapping[str, Sequence[float]], clean: float, without: Sequence[str]
    ) -> MeanCorruptionError | None:
        errors = {n: e for n, e in errors.items() if n in CORRUPTIONS and n not in without}
        if not errors or self.severities != SEVERITIES:
            return None
        valid = self.published and len(self.classes) == 1000 and self.jpeg
        return mean_corruption_error(errors, clean=clean, side=self.side if valid else None)

    @cached_property
    def right(self) -> Tensor:
        """(corruptions, severities, N) bool: the prediction is the label."""
        return torch.stack(list(self.predictions.values())) == self.labels

    def mean_share(self, names: Iterable[str] | None = None) -> Share:
        """Mean accuracy over corruptions and severities: a share in [0, 1] of each picture."""
        chosen = set(self.predictions if names is None else names)
        rows = [i for i, name in enumerate(self.predictions) if name in chosen]
        each = self.right[rows].double().mean((0, 1))
        return share(float(each.sum()), len(self.names))

    def _mean_error_numbers(self) -> dict[str, results.Number]:
        """Mean errors, their intervals from pictures drawn again (bootstrap)."""
        drawn = self._drawn_errors
        found: dict[str, results.Number] = {}
        for ending, without in (("", ()), (" without frost", ("frost",))):
            mean = self.mean_error(without)
            if mean is None or (without and (mean.mce is None or "frost" not in self.predictions)):
                continue
            over = f"of {counted(len(mean.corruptions), 'corruption')}"
            fields = {
                "mean corruption error": ("mean", f"{over}, not normalized"),
                "relative corruption error": (
                    "relative_mean",
                    "mean corruption error minus the clean error, not normalized",
                ),
                "mCE": ("mce", f"{over}; AlexNet is 100%"),
                "relative mCE": ("relative_mce", over),
            }
            if without:
                comparable = "of the 14 that are comparable with published ones"
                fields = {"mCE": ("mce", comparable)}
            means = [self._mean_error(errors, clean, without) for errors, clean in drawn]
            for name, (field, meaning) in fields.items():
                value = getattr(mean, field)
                if value is not None:
                    ends = percentiles(torch.tensor([getattr(one, field) for one in means]))
                    number = results.Number(value, "fraction", meaning, *ends, len(self.names))
                    found[f"{name}{ending}"] = number
        return found

    @cached_property
    def _drawn_errors(self) -> list[tuple[dict[str, list[float]], float]]:
        """Error rates of each corruption and the clean one, for samples of the pictures."""
        cells = self.right.flatten(0, 1).T
        wrong = ~torch.cat([cells, (self.clean == self.labels)[:, None]], dim=1)
        rates = resampled_means(wrong).clamp(0, 1)
        table = rates[:, :-1].view(len(rates), len(self.predictions), -1)
        return [
            (dict(zip(self.predictions, one.tolist(), strict=True)), float(clean))
            for one, clean in zip(table, rates[:, -1], strict=True)
        ]

    def numbers(self) -> dict[str, results.Number]:
        n = len(self.names)
        means = {name: self.mean_share([name]) for name in self.predictions}
        found = {
            "clean accuracy": self.clean_share.number("without corruption"),
            "accuracy under corruption": self.mean_share().estimate(
                f"mean of {counted(len(means), 'corruption')} at "
                f"{counted(len(self.severities), 'severity')}",
            ),
        }
        found |= self._mean_error_numbers()
        ranked = sorted(means, key=lambda name: means[name].value or 0)
        for text, name in (("lowest accuracy", ranked[0]), ("highest accuracy", ranked[-1])):
            meaning = f"of a corruption: {words(name)}, over its severities"
            found[text] = means[name].estimate(meaning)
        passes = n * (1 + len(means) * len(self.severities))
        found["forward passes"] = results.Number(passes, "", "of single pictures")
        found["seconds"] = results.Number(round(self.seconds, 1), "s")
        return found

    def plot(self) -> Figure:
        accuracies = {name: [self.clean_share, *self.shares(name)] for name in self.predictions}
        return figures.plot_curves(accuracies, (0, *self.severities), published=self.published)

    def plot_sheet(self) -> Figure:
        """One picture under every corruption, framed by whether the prediction is right."""
        row, label = self.example_row, self.labels[self.example_row]
        clean = (self.example_clean, bool(self.clean[row] == label))
        rows = {}
        for name, pictures in self.example.items():
            right = (self.predictions[name][:, row] == label).tolist()
            rows[name] = [clean, *zip(pictures, right, strict=True)]
        return figures.plot_sheet(rows, (0, *self.severities))

    def write(self, folder: results.Folder) -> None:
        published = self.published
        dotted = " Dotted: the published error rates of AlexNet, 1,000 classes." * published
        folder.figure(
            "curves.svg",
            self.plot(),
            caption="Accuracy under each corruption at severities 0 (clean) to 5, "
            f"{counted(len(self.names), 'picture')}, with 95% Wilson bands.{dotted} Severity need "
            "not be monotone for snow and elastic transform: the benchmark's constants are not.",
            alt="Small panels, one a corruption: accuracy falls with severity",
        )
        folder.figure(
            "sheet.svg",
            self.plot_sheet(),
            caption="One picture under every corruption. Blue frame: classified right; orange: "
            "wrong. The random part of a corruption is the same at all severities.",
            alt="A picture in rows of growing corruption, framed by whether the model is right",
        )
        folder.arrays(
            "cells.npz",
            {
                "picture": np.array(self.names),
                "corruption": np.array(list(self.predictions)),
                "severity": np.array(self.severities),
                "right": self.right.numpy(),
            },
            caption="Which pictures are classified right in each cell: right[corruption, "
            "severity, picture].",
        )
        if "frost" in self.predictions:
            folder.warn(
                "frost uses procedural ice, not the benchmark's photographs of it: its numbers are "
                "not comparable with published ones"
            )

    def tables(self) -> Iterator[results.Table]:
        header = ["corruption", "family", "severity", "constants"]
        header += ["right", "n", "accuracy", "low", "high"]
        caption = "Accuracy of every corruption and severity with its 95% Wilson interval; "
        caption += "severity 0 is clean."
        published = self.published
        if published:
            header.append("alexnet_published")
            caption += " The last column: AlexNet on 50,000 pictures of 1,000 classes."

        def accuracy(s: Share, error: float | None) -> list[object]:
            known = "" if error is None else round(1 - error, 5)
            return [s.hits, s.n, s.value, s.low, s.high, *[known] * published]

        rows = [["clean", "", 0, "", *accuracy(self.clean_share, ALEXNET_CLEAN_ERROR)]]
        for name in self.predictions:
            errors = ALEXNET_ERRORS.get(name)
            for severity, s in zip(self.severities, self.shares(name), strict=True):
                constants = " ".join(f"{c:g}" for c in settings(name, severity, self.side))
                error = errors[severity - 1] if errors else None
                rows.append([name, family(name), severity, constants, *accuracy(s, error)])
        yield results.Table("corruptions.csv", header, rows, caption=caption)
        right = self.right.flatten(0, 1)
        counts = right.sum(0)
        yield results.Table(
            "pictures.csv",
            ("picture", "label", "clean", "right", "right_cells", "cells"),
            (
                (
                    self.names[i],
                    self.classes[int(self.labels[i])],
                    self.classes[int(self.clean[i])],
                    int(self.clean[i] == self.labels[i]),
                    int(counts[i]),
                    len(right),
                )
                for i in counts.argsort(stable=True).tolist()
            ),
            caption="Every picture, the least robust first: whether it is right when clean, and "
            "in how many cells of the table (a corruption at a severity).",
        )


def corruption_warnings(result: Corruptions) -> list[str]:
    """What limits the numbers: missing labels, few pictures, other sizes and classes."""
    found = []
    n = len(result.names)
    if result.predicted_labels:
        found.append(
            "there are no labels: the model's predictions on the clean pictures are used instead, "
            "so accuracy means agreement with itself"
        )
    if n < _FEW:
        found.append(f"only {counted(n, 'picture')}: the intervals are wide")
    if result.published and len(result.classes) != 1000:
        found.append(
            f"AlexNet's published errors are for 1,000 classes, this model has "
            f"{len(result.classes)}: they are drawn for orientation, and there is no mCE"
        )
    if result.side not in {64, 224}:
        found.append(
            f"ImageNet-C has constants for 224 and 64 pixels; at {result.side} lengths are scaled"
        )
    return found
