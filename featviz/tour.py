"""The tour: every analysis once over one model and one data set, each into its result folder.

`featviz demo` runs it. A step is a folder's name and a function that makes a result; `tour_steps`
lists them in order. A step whose folder holds a result of the same model, data and seed is kept, so
a tour that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from featviz import results
from featviz.atlas.build import build_atlas
from featviz.atlas.icons import IconSettings
from featviz.attacks.attack import attack
from featviz.attribution.attribute import attribute
from featviz.datasets import Pictures, batches
from featviz.embedding.extract import embed
from featviz.embedding.store import Store
from featviz.errors import UserError
from featviz.from_picture.accentuation import accentuate
from featviz.from_picture.inversion import invert
from featviz.gallery.build import build_gallery
from featviz.kernels.growth import kernel_growth
from featviz.kernels.sheet import kernel_sheet
from featviz.maps.activation_maps import activation_maps
from featviz.maps.patch_times_kernel import patch_times_kernel
from featviz.maps.top_patches import top_patches
from featviz.maximization.maximize import maximize
from featviz.models.layers import activations
from featviz.models.load import bundled
from featviz.models.model import Layer, Model
from featviz.models.summary import summarize
from featviz.neighbors.find import find_neighbors
from featviz.robustness.audit import audit
from featviz.training.evaluation import evaluate
from featviz.types import Progress


@dataclass(frozen=True)
class Budget:
    """How much each analysis of the tour does."""

    units: int = 12
    """shown of each layer: the first ones"""
    layers: int = 5
    """convolutions whose units are shown: the first and the last of them"""
    pictures: int = 2
    """that are looked at closely by inversion and attribution; attacks take twice as many"""
    maximize_steps: int = 192
    compared: int = 200
    """pictures whose scores are compared with those of maximized pictures"""
    searched: int = 2000
    """pictures that are searched for top activating patches"""
    embedded: int = 5000
    queries: int = 8
    icons: Literal["sample", "both"] = "both"
    invert_steps: int = 120
    accentuate_steps: int = 64
    audited: int = 40
    audit_steps: int = 60
    check_steps: int = 30
    square_queries: int = 50


QUICK = Budget(
    units=4,
    layers=2,
    pictures=1,
    maximize_steps=32,
    compared=32,
    searched=64,
    embedded=64,
    queries=3,
    icons="sample",
    invert_steps=24,
    accentuate_steps=8,
    audited=12,
    audit_steps=20,
    check_steps=10,
    square_queries=20,
)
"""seconds instead of minutes"""


@dataclass(frozen=True)
class Step:
    """One result of the tour."""

    folder: str
    make: Callable[[], results.Result]


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    folder: Path
    seconds: float
    kept: bool
    """it was there already"""
    refused: str = ""
    """why it could not be made; the tour goes on without it"""


@dataclass(frozen=True)
class Tour:
    """The outcomes of all steps, and where the gallery is."""

    outcomes: tuple[Outcome, ...]
    gallery: Path
    seconds: float


def run_tour(
    model: Model,
    pictures: Pictures,
    out: str | Path,
    *,
    budget: Budget | None = None,
    seed: int = 0,
    class_names: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[Outcome], None] | None = None,
) -> Tour:
    """Run every analysis on a model and a data set and build the gallery.

    Args:
        model: steps that need a head are left out of a model without one.
        pictures: the data set.
        out: folder of the result folders and of the gallery.
        budget: how much each analysis does; `QUICK` takes seconds instead of minutes.
        seed: of all analyses.
        class_names: names of the class folders that the model does not have.
        overwrite: make every result again, also those that exist.
        progress: called by the analyses.
        announce: called after each step.

    Raises:
        UserError: the data holds no picture, or `out` cannot be written.
    """
    started = time.perf_counter()
    folder = Path(out)
    subject = Subject(model, pictures, budget or Budget(), seed, class_names or {}, progress)
    outcomes = []
    for step in tour_steps(subject):
        outcomes.append(_run(step, subject, folder / step.folder, overwrite=overwrite))
        if announce is not None:
            announce(outcomes[-1])
    gallery = build_gallery(folder, overwrite=True)
    return Tour(tuple(outcomes), gallery, time.perf_counter() - started)


def _run(step: Step, subject: Subject, target: Path, *, overwrite: bool) -> Outcome:
    if not overwrite and _is_current(target, subject):
        return Outcome(target, 0.0, kept=True)
    began = time.perf_counter()
    refused = ""
    try:
        step.make().save(target, overwrite=True)
    except UserError as error:
        refused = str(error)
    return Outcome(target, time.perf_counter() - began, kept=False, refused=refused)


def _is_current(target: Path, subject: Subject) -> bool:
    """Whether a folder holds a result of this model, seed and (if it used all of them) pictures."""
    try:
        document = results.read_result(target)
    except UserError:
        return False
    model, data, pictures = document["model"], document["data"], subject.pictures
    return (
        (model is None or model["sha256"] == subject.model.sha256)
        and document["seed"] in (None, subject.seed)
        and (data is None or data["count"] != len(pictures) or data["sha256"] == pictures.sha256)
    )


@dataclass
class Subject:
    """The model, the pictures, and which layers, units and pictures of them are shown."""

    model: Model
    pictures: Pictures
    budget: Budget
    seed: int
    class_names: Mapping[str, str]
    progress: Progress | None

    @cached_property
    def convolutions(self) -> list[Layer]:
        """conv1 to conv5, or up to five convolutions spread over a model without these names."""
        named = [la for la in self.model.layers.values() if la.name.startswith("conv")]
        if named and all(la.name in self.model.aliases for la in named):
            return named
        found = [la for la in self.model.layers.values() if la.kind == "Conv2d" and la.spatial]
        if len(found) <= 5:
            return found
        return [found[round(i * (len(found) - 1) / 4)] for i in range(5)]

    @cached_property
    def shown_layers(self) -> list[Layer]:
        """The convolutions whose units are shown, the first one included."""
        first, *deeper = self.convolutions
        return [first, *deeper[-(self.budget.layers - 1) :]]

    def units(self, layer: Layer) -> list[int]:
        """The first units of a layer."""
        return list(range(min(layer.units, self.budget.units)))

    @cached_property
    def labels(self) -> tuple[int | None, ...]:
        return self.pictures.labels(self.model)

    @cached_property
    def labeled(self) -> Pictures | None:
        """The pictures whose class folder is a class of the model, or None."""
        rows = [i for i, label in enumerate(self.labels) if label is not None]
        return self.pictures.select(rows) if rows else None

    @cached_property
    def classes(self) -> list[int]:
        """Classes to show: those of the first two shown pictures, then others of the data.

        Without labels the first classes of the model.
        """
        known = sorted({label for label in self.labels if label is not None})
        known = known or list(range(len(self.model.classes)))
        count = min(len(known), self.budget.units)
        spread = [known[i * len(known) // count] for i in range(count)]
        close = [label for row in self.rows[:2] if (label := self.labels[row]) is not None]
        return sorted(list(dict.fromkeys([*close, *spread]))[:count])

    @cached_property
    def rows(self) -> list[int]:
        """Pictures to show: the right predictions of highest probability, at most one a class.

        Of at most 200 pictures. Without labels all predictions count as right; without a head the
        rows are eight, evenly spread.
        """
        if self.model.headless:
            count = len(self.pictures)
            return [i * count // 8 for i in range(min(8, count))]
        some = (self.labeled or self.pictures).spread(min(200, self.budget.searched))
        labels = some.labels(self.model)
        best: dict[int, tuple[float, int]] = {}
        for batch in batches(some, resize=self.model.resize, crop=self.model.input_size):
            with torch.no_grad():
                found = self.model(batch.images.to(self.model.device)).softmax(1).cpu().max(1)
            for row, chance, predicted in zip(
                batch.rows, found.values.tolist(), found.indices.tolist(), strict=True
            ):
                if labels[row] in (None, predicted):
                    best[predicted] = max(best.get(predicted, (0.0, 0)), (chance, -row))
        places = {path: row for row, path in enumerate(self.pictures.paths)}
        ranked = sorted(best.values(), reverse=True)
        return [places[some.paths[-row]] for _, row in ranked] or [0]

    def shown(self, count: int) -> tuple[Tensor, list[str]]:
        """The first pictures to show, (N, 3, S, S), and their names."""
        rows, model = self.rows[:count], self.model
        read = [self.pictures.read(row, model.resize, model.input_size) for row in rows]
        return torch.stack(read), [self.pictures.paths[row] for row in rows]

    @cached_property
    def space(self) -> Store:
        """The fc7 space, made once for three results."""
        pictures = self.pictures.spread(self.budget.embedded)
        return embed(self.model, pictures, class_names=self.class_names, progress=self.progress)


def tour_steps(subject: Subject) -> list[Step]:
    """All steps in order: the model, its units, single pictures, the feature space, robustness."""
    parts = (_model_steps, _unit_steps, _picture_steps, _space_steps, _robustness_steps)
    return [step for part in parts for step in part(subject)]


def _model_steps(s: Subject) -> list[Step]:
    model = s.model
    steps = [Step("layers", lambda: summarize(model))]
    if bundled(model.name).with_suffix(".kernels.safetensors").is_file():
        steps.append(Step("growth-conv1", kernel_growth))
    labeled = s.labeled
    if labeled is not None and not model.headless:
        steps.append(Step("eval", lambda: evaluate(model, labeled, progress=s.progress)))
    return steps


def _unit_steps(s: Subject) -> list[Step]:
    model, budget = s.model, s.budget
    first, *deeper = s.shown_layers
    compared, searched = s.pictures.spread(budget.compared), s.pictures.spread(budget.searched)

    def kernels(layer: Layer, units: list[int] | None = None) -> Step:
        return Step(
            f"kernels-{results.file_stem(layer.name)}",
            lambda: kernel_sheet(model, layer.name, units=units, progress=s.progress),
        )

    def maximized(layer: str, units: list[int]) -> Step:
        return Step(
            f"maximize-{results.file_stem(layer)}",
            lambda: maximize(
                model,
                layer,
                units=units,
                pictures=compared,
                steps=budget.maximize_steps,
                seed=s.seed,
                progress=s.progress,
            ),
        )

    def examples(layer: str, units: list[int]) -> Step:
        return Step(
            f"examples-{results.file_stem(layer)}",
            lambda: top_patches(model, searched, layer, units=units, progress=s.progress),
        )

    whole = budget.layers > 2
    head = [] if model.headless else [("logits", s.classes)]
    convolutions = [(layer.name, s.units(layer)) for layer in s.shown_layers]
    return [
        kernels(first),
        *[kernels(layer, s.units(layer)) for layer in deeper[:1] if whole],
        *[maximized(layer, units) for layer, units in [*convolutions[1:], *head]],
        *[examples(layer, units) for layer, units in [*convolutions, *(head if whole else [])]],
    ]


def _picture_steps(s: Subject) -> list[Step]:
    model, budget, seed = s.model, s.budget, s.seed
    first, *deeper = s.shown_layers
    every = [layer.name for layer in s.convolutions]
    inverted = [every[0], every[len(every) // 2], every[-1]]
    inverted += [] if model.headless else ["logits"]
    compared = s.pictures.spread(budget.compared)

    def maps(layer: Layer) -> Step:
        return Step(
            f"maps-{results.file_stem(layer.name)}",
            lambda: activation_maps(model, s.shown(1)[0][0], layer.name, units=s.units(layer)),
        )

    def patch() -> results.Result:
        """Of the units that are shown, the one with the highest activation."""
        pictures, _ = s.shown(1)
        values = activations(model, pictures.to(model.device), [first.name])[first.name][0]
        best = int(values.flatten(1).max(1).values[s.units(first)].argmax())
        return patch_times_kernel(model, pictures[0], f"{first.name}:{best}")

    def inversion() -> results.Result:
        pictures, names = s.shown(budget.pictures)
        return invert(
            model,
            pictures,
            inverted,
            names=names,
            steps=budget.invert_steps,
            others=compared,
            seed=seed,
            progress=s.progress,
        )

    def accentuation() -> results.Result:
        pictures, names = s.shown(1)
        return accentuate(
            model,
            pictures,
            names=names,
            steps=budget.accentuate_steps,
            seed=seed,
            progress=s.progress,
        )

    def attribution() -> results.Result:
        pictures, names = s.shown(budget.pictures)
        return attribute(model, pictures, names=names, seed=seed, progress=s.progress)

    middle = deeper[(len(deeper) - 1) // 2 : -1][:1]
    steps = [maps(layer) for layer in [first, *middle, *deeper[-1:]]]
    steps += [Step("patch-times-kernel", patch), Step("inversion", inversion)]
    if not model.headless:
        steps += [Step("accentuation", accentuation), Step("attribute", attribution)]
    return steps


def _space_steps(s: Subject) -> list[Step]:
    def neighbors() -> results.Result:
        rows = {path: row for row, path in enumerate(s.space.pictures.paths)}
        shown = [s.pictures.paths[row] for row in s.rows]
        queries = [rows[path] for path in shown if path in rows][: s.budget.queries]
        return find_neighbors(
            s.space, queries or None, k=8, model=s.model, seed=s.seed, progress=s.progress
        )

    def atlas() -> results.Result:
        return build_atlas(
            s.model,
            s.space,
            seed=s.seed,
            progress=s.progress,
            icons=s.budget.icons,
            icon_side=5,
            icon=IconSettings(steps=64),
        )

    return [
        Step("embed", lambda: s.space),
        Step("neighbors", neighbors),
        Step("atlas", atlas),
    ]


def _robustness_steps(s: Subject) -> list[Step]:
    budget = s.budget

    def attacked() -> results.Result:
        pictures, names = s.shown(2 * budget.pictures)
        return attack(s.model, pictures, names=names, seed=s.seed, progress=s.progress)

    def audited() -> results.Result:
        return audit(
            s.model,
            s.pictures,
            count=budget.audited,
            steps=budget.audit_steps,
            check_steps=budget.check_steps,
            queries=budget.square_queries,
            parts=(),
            seed=s.seed,
            progress=s.progress,
        )

    return [] if s.model.headless else [Step("attack", attacked), Step("audit", audited)]
