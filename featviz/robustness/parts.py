"""Results within an audit: corruptions, a universal perturbation, transfer, diagnosis.

In: the audited pictures and those that were fooled by a margin. Out: results by name, each with a
folder of its own, and why a part could not be made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import results
from featviz.attacks.pgd import pgd
from featviz.attacks.universal import universal
from featviz.attribution.sanity import check_attributions
from featviz.corruptions.table import corruption_table
from featviz.data import datasets
from featviz.data.datasets import Pictures
from featviz.data.labeled import LabeledPictures
from featviz.errors import UserError
from featviz.pictures import images
from featviz.robustness.clean_pass import CleanPass, Work, spread
from featviz.robustness.diagnosis import Reference
from featviz.robustness.diagnosis_result import Diagnosis, diagnose
from featviz.robustness.examples import Batch
from featviz.robustness.transfer import Transfer, shared_labels, transfer_matrix

if TYPE_CHECKING:
    from featviz.attacks.result import AttackResult
    from featviz.checkpoints import Arrays
    from featviz.models.model import Model
    from featviz.types import Progress

PARTS = ("corruptions", "universal", "transfer", "diagnosis")
"""what an audit makes unless it is told otherwise"""
FURTHER_PARTS = ("attribution",)
FOOLED_EPS = 8 / 255
"""of the pictures that are diagnosed and judged by other models, in L-infinity"""
FOOLED_WORDS = (
    "attacked within L∞ 8/255 until the wrong class led by the median of the clean margins"
)
_FOOLED, _FOOLED_STEPS = 48, 20
_CORRUPTED = 100  # pictures of the corruption table
_UNIVERSAL_STEPS = 60
_DIAGNOSED = 24
_EXPLAINED = 8
_PER_CLASS, _REFERENCES = 12, 480  # reference pictures of a class, and in all


@dataclass(frozen=True)
class Fooled:
    """Pictures that were classified right, attacked until they were wrong by a margin."""

    rows: Tensor
    """(K,) of the audit's pictures"""
    adversarial: Tensor
    """(K, 3, S, S)"""
    predicted: Tensor
    """(K,)"""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the parts of an audit are made from."""

    clean: CleanPass
    work: Work
    labeled: LabeledPictures
    """the audited pictures"""
    fooled: Fooled | None
    """for transfer and diagnosis; None if no picture was fooled"""
    data: Pictures | None
    """the whole data set that the pictures are from, if they are from one"""
    against: Mapping[str, Model]
    """other models that judge the adversarial pictures, by name"""


def make_parts(names: Sequence[str], source: Source) -> tuple[dict[str, results.Result], list[str]]:
    """The parts that were asked for, by name, and what could not be made, in words."""
    makers = (_corruptions, _universal, _transfer, _diagnosis, _attribution)
    made: dict[str, results.Result] = {}
    missing: list[str] = []
    for name, make in zip((*PARTS, *FURTHER_PARTS), makers, strict=True):
        if name in names:
            try:
                made[name] = make(source)
            except UserError as error:
                missing.append(f"{name} is left out: {error}")
    return made, missing


def fool_by_margin(clean: CleanPass, work: Work) -> Fooled | None:
    """Attack some pictures until the wrong class leads by the median of the clean margins.

    Pictures that end wrong by less count too. None if no picture is fooled.
    """
    rows = spread(clean.correct, _FOOLED)
    if not len(rows):
        return None

    def attacked() -> Arrays:
        batch = Batch(clean, rows, "linf")
        margin = max(float(clean.margins[rows].median()), 1e-6)
        found = batch.run(
            pgd, margin=margin, eps=FOOLED_EPS, steps=_FOOLED_STEPS, random_start=False
        )
        predicted = clean.predict(found.adversarial)
        batch.passes[0] += len(rows)
        return {
            "adversarial": found.adversarial.cpu().numpy(),
            "predicted": predicted.cpu().numpy(),
            "passes": batch.passes,
        }

    piece = work.piece(clean.model, "fooled", attacked, "fooling by a margin")
    adversarial, predicted = (torch.from_numpy(piece[k]) for k in ("adversarial", "predicted"))
    wrong = predicted != clean.labels[rows]
    return Fooled(rows[wrong], adversarial[wrong], predicted[wrong]) if wrong.any() else None


def _corruptions(source: Source) -> results.Result:
    clean = source.clean
    rows = spread(torch.arange(len(clean.labels)), _CORRUPTED)
    return corruption_table(
        clean.model,
        clean.pictures[rows],
        clean.labels[rows],
        seed=clean.seed,
        batch_size=clean.batch_size,
        checkpoint=source.work.kept.part("corruptions"),
        progress=source.work.progress,
    )


def _universal(source: Source) -> results.Result:
    clean = source.clean
    return universal(
        clean.model,
        clean.pictures,
        clean.labels,
        steps=_UNIVERSAL_STEPS,
        seed=clean.seed,
        batch_size=clean.batch_size,
        precision=clean.precision,
        checkpoint=source.work.kept.part("universal"),
        progress=source.work.progress,
    )


def _those_fooled(source: Source) -> Fooled:
    if source.fooled is None:
        raise UserError("no picture was fooled")
    return source.fooled


def _transfer(source: Source) -> Transfer:
    clean, labeled, fooled = source.clean, source.labeled, _those_fooled(source)
    model, rows = clean.model, fooled.rows
    models = {model.name: model} | {
        (f"{name} (2)" if name == model.name else name): other
        for name, other in source.against.items()
    }
    pictures = {model.name: labeled.pictures[rows]}
    labels = {model.name: clean.labels[rows]}
    data = None if labeled.data is None else labeled.data.select(rows.tolist())
    if data is not None:
        folders = data.folders
    else:
        folders = tuple(model.classes[int(c)].partition(",")[0] for c in labels[model.name])
    for name, other in list(models.items())[1:]:
        labels |= shared_labels({name: other}, folders)
        if data is None:
            pictures[name] = images.resize(labeled.pictures[rows], other.input_size)
        else:
            pictures[name] = datasets.read_all(data, other.preprocessing)[1]
    return transfer_matrix(
        models,
        pictures,
        labels,
        {model.name: fooled.adversarial},
        size=FOOLED_WORDS,
        seed=clean.seed,
        batch_size=clean.batch_size,
    )


def _diagnosis(source: Source) -> Diagnosis:
    clean, labeled, fooled = source.clean, source.labeled, _those_fooled(source)
    at = spread(torch.arange(len(fooled.rows)), _DIAGNOSED)
    model, rows, predicted = clean.model, fooled.rows[at], fooled.predicted[at]
    labels, names = clean.labels[rows], [labeled.names[i] for i in rows.tolist()]
    wanted, used = {*labels.tolist(), *predicted.tolist()}, set(names)
    if source.data is not None:
        reference = _reference(model, source.data, wanted, used)
    else:
        others = _choose(clean.labels.tolist(), labeled.names, wanted, used)
        reference = Reference(labeled.pictures[others], clean.labels[others]) if others else None
    return diagnose(
        model,
        labeled.pictures[rows],
        fooled.adversarial[at],
        labels,
        predicted,
        names=names,
        size=FOOLED_WORDS,
        reference=reference,
        seed=clean.seed,
        progress=source.work.progress,
    )


def _attribution(source: Source) -> results.Result:
    clean = source.clean
    rows = spread(clean.correct, _EXPLAINED)
    if not len(rows):
        raise UserError("no picture is classified right")
    return check_attributions(
        clean.model,
        clean.pictures[rows],
        target=clean.labels[rows].tolist(),
        names=[source.labeled.names[i] for i in rows.tolist()],
        batch_size=clean.batch_size,
        seed=clean.seed,
        progress=source.work.progress,
    )


def diagnose_attack(
    model: Model,
    attacked: AttackResult,
    data: Pictures | None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis | None:
    """What changes in the network for the pictures that an attack fooled; None if there is none.

    data: pictures whose class folders represent the classes; without them there are no class means
    and no neighbors
    """
    rows = (attacked.success & ~attacked.already).nonzero()[:, 0]
    if not len(rows):
        return None
    own = attacked.clean if attacked.targeted else attacked.labels
    labels, predicted = own[rows], attacked.predicted[rows]
    reference = None
    if data is not None:
        wanted = {*labels.tolist(), *predicted.tolist()}
        reference = _reference(model, data, wanted, set(attacked.names))
    return diagnose(
        model,
        attacked.originals[rows],
        attacked.adversarial[rows],
        labels,
        predicted,
        names=[attacked.name(i) for i in rows.tolist()],
        size=attacked.ball,
        reference=reference,
        seed=seed,
        progress=progress,
    )


def _reference(model: Model, data: Pictures, wanted: set[int], used: set[str]) -> Reference | None:
    """Pictures of the wanted classes from a data set."""
    rows = _choose(data.labels(model), data.paths, wanted, used)
    if not rows:
        return None
    data, pictures, _ = datasets.read_all(data.select(rows), model.preprocessing)
    return Reference(pictures, torch.tensor(data.labels(model)))


def _choose(
    labels: Sequence[int | None], names: Sequence[str], wanted: set[int], used: set[str]
) -> list[int]:
    """Rows of the first pictures of each wanted class, without those that are used already."""
    most = max(1, min(_PER_CLASS, _REFERENCES // max(1, len(wanted))))
    taken: Counter[int | None] = Counter()
    rows = []
    for i, (label, name) in enumerate(zip(labels, names, strict=True)):
        if label in wanted and name not in used and taken[label] < most:
            taken[label] += 1
            rows.append(i)
    return rows
