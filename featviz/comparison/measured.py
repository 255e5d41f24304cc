"""What is known of one model on a set of pictures, from results in memory or on disk.

Two `Measured` of the same pictures are all that a comparison needs. Classes are names here, since
two models may number them differently.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from featviz import results
from featviz.errors import UserError
from featviz.training.calibration import Calibration

if TYPE_CHECKING:
    from featviz.corruptions.result import Corruptions
    from featviz.robustness.result import Audit

SEARCH, ONE_STEP = "smallest changes", "one step (FGSM)"


@dataclass(frozen=True)
class Robustness:
    """The smallest changes that fool a model, in one norm."""

    names: tuple[str, ...]
    """of the pictures (M)"""
    eps: tuple[float, ...]
    """the grid, ascending"""
    distances: Mapping[str, Tensor]
    """attack -> (M,) float64: 0 where the clean picture is wrong, inf where none was found"""


@dataclass(frozen=True)
class Corrupted:
    """Right predictions under corruptions."""

    names: tuple[str, ...]
    """of the pictures (M)"""
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    right: Tensor
    """(corruptions, severities, M) bool"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model on N pictures."""

    name: str
    model: Mapping[str, Any] | None
    """its entry in result.json"""
    names: tuple[str, ...]
    """of the pictures"""
    classes: tuple[str, ...]
    """the right class of each picture"""
    predicted: tuple[str, ...]
    right: Tensor
    """(N,) bool"""
    confidence: Tensor | None = None
    """(N,) probability of the prediction"""
    robustness: Mapping[str, Robustness] = field(default_factory=dict)
    """by norm"""
    corrupted: Corrupted | None = None
    warnings: tuple[str, ...] = ()

    @property
    def calibration(self) -> Calibration | None:
        """Whether it is right as often as it is sure."""
        return None if self.confidence is None else Calibration(self.confidence, self.right)

    def rows(self, names: Sequence[str]) -> Measured:
        """The same for these pictures, in this order."""
        at = {name: row for row, name in enumerate(self.names)}
        order = [at[name] for name in names]
        return replace(
            self,
            names=tuple(names),
            classes=tuple(self.classes[i] for i in order),
            predicted=tuple(self.predicted[i] for i in order),
            right=self.right[order],
            confidence=None if self.confidence is None else self.confidence[order],
        )


def same_pictures(first: Measured, second: Measured) -> tuple[Measured, Measured]:
    """Both in the order of the first. Raises UserError unless the pictures are the same."""
    one, other = set(first.names), set(second.names)
    if one != other or len(one) < len(first.names):
        raise UserError(
            f"{first.name} and {second.name} were measured on different pictures "
            f"({len(one & other)} of {len(one | other)} are in both); give both the same --data "
            "and --count"
        )
    return first, second.rows(first.names)


def robustness_of(audit: Audit) -> dict[str, Robustness]:
    """What an audit found, by norm."""
    found = {}
    for norm in audit.norms:
        distances = {SEARCH: norm.distance}
        if norm.one_step is not None:
            distances[ONE_STEP] = norm.one_step
        found[norm.norm] = Robustness(audit.names, norm.eps, distances)
    return found


def corrupted_of(table: Corruptions) -> Corrupted:
    """The cells of a table of corruptions, picture by picture."""
    return Corrupted(table.names, tuple(table.predictions), table.severities, table.right)


def read_measured(folder: Path, name: str) -> Measured:
    """What a result folder of `eval`, `audit` or `corrupt` holds of its model.

    name: of the model in the comparison; "" takes the result's own

    Raises:
        UserError: It is no such folder, or lacks a table.
    """
    document = results.read_result(folder)
    kind, model = document.get("kind"), document.get("model") or {}
    readers = {"eval": _read_eval, "audit": _read_audit, "corruptions": _read_corruptions}
    if kind not in readers:
        raise UserError(
            f"{folder} holds a result of {kind}; compare takes folders of eval, audit or corrupt"
        )
    if kind != "eval" and document["parameters"].get("labels") == "predictions":
        raise UserError(f"{folder} has no labels, only the model's predictions; nothing to compare")
    try:
        found: Measured = readers[kind](folder, document, name or str(model.get("name")), model)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{folder} cannot be read ({error!r}); make the result again") from None
    return found


def _table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it again") from None


def _predictions(
    rows: Sequence[Mapping[str, str]],
    predicted: str,
    right: Sequence[bool],
    name: str,
    model: Mapping[str, Any],
) -> Measured:
    """From a table with the columns "picture" and "label", and that of the predictions."""
    return Measured(
        name=name,
        model=model,
        names=tuple(row["picture"] for row in rows),
        classes=tuple(row["label"] for row in rows),
        predicted=tuple(row[predicted] for row in rows),
        right=torch.tensor(right),
    )


def _read_eval(
    folder: Path, document: Mapping[str, Any], name: str, model: Mapping[str, Any]
) -> Measured:
    rows = _table(folder / "pictures.csv")
    confidence = torch.tensor([float(row["confidence"]) for row in rows], dtype=torch.float64)
    right = [row["right"] == "1" for row in rows]
    return replace(_predictions(rows, "predicted", right, name, model), confidence=confidence)


def _read_audit(
    folder: Path, document: Mapping[str, Any], name: str, model: Mapping[str, Any]
) -> Measured:
    by_norm: dict[str, list[dict[str, str]]] = {}
    for row in _table(folder / "certificates.csv"):
        by_norm.setdefault(row["norm"], []).append(row)
    first = next(iter(by_norm.values()))
    robustness = {}
    for norm, rows in by_norm.items():
        at = [float(row["distance"] or math.inf) for row in rows]
        robustness[norm] = Robustness(
            tuple(row["picture"] for row in rows),
            tuple(document["parameters"]["eps"][norm]),
            {SEARCH: torch.tensor(at, dtype=torch.float64)},
        )
    part = folder / "corruptions"
    corrupted = _read_cells(part) if part.is_dir() else None
    right = [row["distance"] == "" or float(row["distance"]) > 0 for row in first]
    found = _predictions(first, "clean", right, name, model)
    return replace(found, robustness=robustness, corrupted=corrupted)


def _read_corruptions(
    folder: Path, document: Mapping[str, Any], name: str, model: Mapping[str, Any]
) -> Measured:
    rows = _table(folder / "pictures.csv")
    right = [row["right"] == "1" for row in rows]
    found = _predictions(rows, "clean", right, name, model)
    return replace(found, corrupted=_read_cells(folder))


def _read_cells(folder: Path) -> Corrupted:
    try:
        with np.load(folder / "cells.npz", allow_pickle=False) as file:
            names, marks, severities, right = (
                file[name] for name in ("picture", "corruption", "severity", "right")
            )
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{folder / 'cells.npz'} cannot be read ({error}); make it again") from None
    return Corrupted(
        tuple(names.tolist()),
        tuple(marks.tolist()),
        tuple(severities.tolist()),
        torch.from_numpy(right),
    )
