"""Further parts of an audit beside its curves: corruptions, one change for all, transfer, inside.

A section is any object with `numbers()` and `write(folder)`; the audit puts it into a folder of its
own and its figures and tables onto its page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from featviz import datasets, plotting, results
from featviz.attacks.projections import NORM_NAMES, eps_text
from featviz.attacks.universal import universal
from featviz.corruptions.table import corruption_table
from featviz.datasets import Labelled, Pictures
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.robustness.diagnosis import Reference
from featviz.robustness.diagnosis_figures import look_inside
from featviz.robustness.transfer import Transfer, shared_labels, transfer_matrix
from featviz.statistics import Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.attacks.attack import Attacked

SECTIONS = ("corruptions", "universal", "transfer", "inside")
FOLLOWED_EPS = 8 / 255
"""of the pictures that are followed inside and judged by other models, in L-infinity"""
FOLLOWED_WORDS = (
    "attacked within L∞ 8/255 until the false class led by as much as the right one had"
)
_FOLLOWED_INSIDE = 24
_CORRUPTED = 100  # pictures that every corruption is tried on
_UNIVERSAL_STEPS = 60
_PER_CLASS, _REFERENCES = 12, 480  # reference pictures of a class, and in all
Progress = Callable[[int, int, str], None]


class Section(NamedTuple):
    """A further part of the audit under its name."""

    name: str
    part: Any
    """with `numbers()` and `write(folder)`"""

    def numbers(self) -> dict[str, results.Number]:
        """Its figures under its name; what the audit says itself is left out."""
        return {
            f"{self.name}: {key}": value
            for key, value in self.part.numbers().items()
            if key not in {"clean accuracy", "seconds"}
        }

    def write(self, folder: results.Folder) -> None:
        """Its files in a folder of its own, listed with the audit's."""
        place = folder.path / self.name
        place.mkdir()
        own = results.Folder(place)
        self.part.write(own)
        for listed, target in (
            (own.figures, folder.figures),
            (own.tables, folder.tables),
            (own.arrays_, folder.arrays_),
        ):
            target += [item | {"file": f"{self.name}/{item['file']}"} for item in listed]
        for text in own.warnings:
            folder.warn(f"{self.name}: {text}")

    @property
    def warnings(self) -> list[str]:
        """Doubts of the section itself."""
        return [f"{self.name}: {text}" for text in getattr(self.part, "warnings", ())]


@dataclass(frozen=True)
class Followed:
    """Pictures that were right, attacked until they were clearly wrong."""

    rows: Tensor
    """of the audit's pictures, (K,)"""
    adversarial: Tensor
    """(K, 3, S, S)"""
    predicted: Tensor
    """(K,)"""


@dataclass(frozen=True)
class TransferPart:
    """The transfer matrix, drawn."""

    found: Transfer
    pictures: int

    def numbers(self) -> dict[str, results.Number]:
        numbers = {}
        for (source, judge), cell in self.found.cells.items():
            if judge != source:
                noise = 100 * (cell.noise.value or 0)
                numbers[f"{source} to {judge}"] = results.Number(
                    cell.fooled.value,
                    "fraction",
                    f"of {cell.fooled.n} pictures that both name right still fool; "
                    f"interval {cell.fooled.interval}; noise of equal size {noise:.1f}%",
                )
        for (_, check), s in self.found.checks.items():
            numbers[f"still fools, {check}"] = results.Number(
                s.value, "fraction", f"of {s.n} pictures; interval {s.interval}"
            )
        return numbers

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "transfer.svg",
            self.plot(),
            caption=f"Do pictures that fool the model ({FOLLOWED_WORDS}) still fool it when "
            "judged again, in 8 bits, in bf16, shifted by a pixel (all four ways), saved as JPEG "
            "90 - and do they fool other models? Bars: share that does, with 95% Wilson interval; "
            "green: noise of the same size. A fragile point fools once, a region fools on.",
            alt="Bars of the share of adversarial pictures that still fool under each condition",
        )
        folder.table(
            "transfer.csv",
            ("source", "judge", "fooled", "n", "rate", "low", "high", "noise_rate"),
            [tuple("" if v is None else v for v in row) for row in self.found.rows()],
            caption="Pictures made to fool the source, judged by others and under small changes; "
            "only pictures that both models name right when clean count.",
        )

    def plot(self) -> Figure:
        """Bars with intervals."""
        bars: list[tuple[str, Share, Share | None]] = [
            (check, s, None) for (_, check), s in self.found.checks.items()
        ]
        for (source, judge), cell in self.found.cells.items():
            if judge != source:
                bars.append((f"by {judge}", cell.fooled, cell.noise))
        figure = plotting.new_figure(5.6, 0.9 + 0.3 * len(bars))
        ax = figure.subplots()
        for y, (_, s, noise) in enumerate(bars):
            ax.barh(y, 100 * (s.value or 0), color=plotting.BLUE, height=0.55)
            ax.plot([100 * s.low, 100 * s.high], [y, y], color=plotting.INK, linewidth=1.2)
            if noise is not None and noise.value is not None:
                ax.plot(
                    [100 * noise.value],
                    [y],
                    "|",
                    color=plotting.GREEN,
                    markersize=13,
                    markeredgewidth=2,
                )
        ax.set_yticks(range(len(bars)), [f"{name} (n = {s.n})" for name, s, _ in bars])
        ax.invert_yaxis()
        plotting.lines(ax, xlabel="still fool (%)", ylabel="")
        ax.set_xlim(0, 102)
        return figure


def make_sections(
    names: Sequence[str],
    model: Model,
    given: Labelled,
    labels: Tensor,
    followed: Followed | None,
    *,
    whole: Pictures | None,
    against: Mapping[str, Model],
    partial: Any,
    seed: int,
    batch_size: int,
    precision: str,
    progress: Progress | None,
) -> tuple[list[Section], list[str]]:
    """The sections asked for, and what could not be made, in words.

    given: the audit's pictures; labels: (N,) their classes; whole: the data set that they are from
    followed: pictures for "transfer" and "inside"; None if none was fooled
    partial: where corruptions keep their finished cells, or None
    """
    made: list[Section] = []
    missing: list[str] = []
    for name in SECTIONS:
        if name not in names:
            continue
        try:
            if name == "corruptions":
                rows = _some(len(labels), _CORRUPTED)
                part: Any = corruption_table(
                    model,
                    given.pictures[rows],
                    labels[rows],
                    seed=seed,
                    batch_size=batch_size,
                    partial=partial,
                    progress=progress,
                )
            elif name == "universal":
                part = universal(
                    model,
                    given.pictures,
                    labels,
                    steps=_UNIVERSAL_STEPS,
                    seed=seed,
                    batch_size=batch_size,
                    precision=precision,
                    progress=progress,
                )
            elif followed is None:
                raise UserError("no picture was fooled, so there is none to judge or follow")
            elif name == "transfer":
                part = _transfer(model, given, labels, followed, against, seed, batch_size)
            else:
                part = _inside(model, given, labels, followed, whole, seed, progress)
        except UserError as error:
            missing.append(f"{name} is left out: {error}")
        else:
            made.append(Section(name, part))
    return made, missing


def _some(n: int, most: int) -> list[int]:
    """At most `most` rows of n, evenly spread."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]


def _transfer(
    model: Model,
    given: Labelled,
    labels: Tensor,
    followed: Followed,
    against: Mapping[str, Model],
    seed: int,
    batch_size: int,
) -> TransferPart:
    rows = followed.rows
    models = {model.name: model} | {
        (f"{name} (2)" if name == model.name else name): other for name, other in against.items()
    }
    pictures = {model.name: given.pictures[rows]}
    truth = {model.name: labels[rows]}
    if len(models) > 1:
        if given.data is not None:
            folders = [given.data.folders[i] for i in rows.tolist()]
        else:
            folders = [model.classes[int(c)].partition(",")[0] for c in labels[rows]]
        known = shared_labels(models, folders)
        for name, other in models.items():
            if name == model.name:
                continue
            truth[name] = known[name]
            if given.data is None:
                pictures[name] = _resized(given.pictures[rows], other.input_size)
            else:
                some = given.data.select(rows.tolist())
                _, pictures[name], _ = datasets.read_all(
                    some, resize=other.resize, crop=other.input_size
                )
    found = transfer_matrix(
        models,
        pictures,
        truth,
        {model.name: followed.adversarial},
        seed=seed,
        batch_size=batch_size,
    )
    return TransferPart(found, len(rows))


def _resized(pictures: Tensor, side: int) -> Tensor:
    import torch.nn.functional as F

    if pictures.shape[-1] == side:
        return pictures
    resized = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    return resized.clamp(0, 1)


def _inside(
    model: Model,
    given: Labelled,
    labels: Tensor,
    followed: Followed,
    whole: Pictures | None,
    seed: int,
    progress: Progress | None,
) -> Any:
    at = _some(len(followed.rows), _FOLLOWED_INSIDE)
    rows = followed.rows[at]
    names = [given.names[i] for i in rows.tolist()]
    wanted = {*labels[rows].tolist(), *followed.predicted[at].tolist()}
    reference = _reference(model, given, labels, whole, wanted, set(names))
    return look_inside(
        model,
        given.pictures[rows],
        followed.adversarial[at],
        labels[rows],
        followed.predicted[at],
        names=names,
        size=FOLLOWED_WORDS,
        reference=reference,
        seed=seed,
        progress=progress,
    )


def inside_of(
    model: Model,
    attacked: Attacked,
    data: Pictures | None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Section | None:
    """What changes inside for the pictures of an attack; None if none was fooled.

    data: pictures whose class folders show the classes; without them there are no class means and
        no neighbours
    """
    found = attacked.found
    rows = (found.success & ~found.already).nonzero()[:, 0]
    if not len(rows):
        return None
    labels, predicted = attacked.labels[rows], found.predicted[rows]
    reference = None
    if data is not None:
        wanted = {*labels.tolist(), *predicted.tolist()}
        nothing = Labelled((), attacked.originals[:0], None, None, ())
        reference = _reference(model, nothing, labels[:0], data, wanted, set(attacked.names))
    names = [attacked.names[i] for i in rows.tolist()]
    size = f"smallest in {NORM_NAMES[attacked.norm]}"
    if attacked.eps is not None:
        size = f"{NORM_NAMES[attacked.norm]} up to {eps_text(attacked.eps, attacked.norm)}"
    part = look_inside(
        model,
        attacked.originals[rows],
        found.adversarial[rows],
        labels,
        predicted,
        names=names,
        size=size,
        reference=reference,
        seed=seed,
        progress=progress,
    )
    return Section("inside", part)


def _reference(
    model: Model,
    given: Labelled,
    labels: Tensor,
    whole: Pictures | None,
    wanted: set[int],
    used: set[str],
) -> Reference | None:
    """Other pictures of the classes: of the data set, or else of those audited."""
    most = max(1, min(_PER_CLASS, _REFERENCES // max(1, len(wanted))))
    if whole is None:
        known: Sequence[int | None] = labels.tolist()
        paths: Sequence[str] = given.names
    else:
        known, paths = whole.labels(model), whole.paths
    taken: dict[int, int] = {}
    rows = []
    for i, (label, path) in enumerate(zip(known, paths, strict=True)):
        if label in wanted and path not in used and taken.get(label, 0) < most:
            assert label is not None
            taken[label] = taken.get(label, 0) + 1
            rows.append(i)
    if not rows:
        return None
    if whole is None:
        return Reference(given.pictures[rows], labels[rows])
    data, pictures, _ = datasets.read_all(
        whole.select(rows), resize=model.resize, crop=model.input_size
    )
    return Reference(pictures, torch.tensor(data.labels(model)))
