"""The tour: every analysis once over one model and one data set, each into its result folder.

`featviz demo` runs it. A step is a folder's name and a function that makes a result; `tour_steps`
lists them in order. A step whose folder holds a result of the same model, data and seed is kept, so
a tour that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from featviz import results
from featviz.ablation.ablate import ablate
from featviz.ablation.attribute_layer import attribute_layer
from featviz.ablation.patch_activations import patch_activations
from featviz.atlas.build import build_atlas
from featviz.atlas.icons import IconSettings
from featviz.attacks.attack import attack
from featviz.attribution.attribute import attribute
from featviz.circuits.trace import trace_circuit
from featviz.classification.classify import classify
from featviz.concepts.cards import concept_cards
from featviz.concepts.find import find_concepts
from featviz.concepts.grid import activation_grid
from featviz.concepts.result import Concepts
from featviz.data.datasets import Pictures, batches
from featviz.descriptions.units import describe_units
from featviz.embedding.extract import embed
from featviz.embedding.store import Store
from featviz.errors import UserError
from featviz.explorer.build import build_explorer
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
from featviz.types import Megabytes, Progress


@dataclass(frozen=True)
class Budget:
    """How much each analysis of the tour does."""

    units: int = 12
    """shown of each layer: the first ones"""
    layers: int = 5
    """convolutions whose units are shown: the first and the last of them"""
    pictures: int = 2
    """that are looked at closely by inversion and attribution; attacks take twice as many"""
    classified: int = 12
    """pictures whose most likely classes are shown"""
    maximize_steps: int = 192
    silenced: int = 128
    """pictures on which units are silenced"""
    compared: int = 200
    """pictures whose scores are compared with those of maximized pictures"""
    searched: int = 2000
    """pictures that are searched for top activating patches"""
    embedded: int = 5000
    queries: int = 8
    icons: Literal["sample", "both"] = "both"
    concepts: int = 6
    concept_steps: int = 32
    cells: int = 3
    """rows and columns of the grid of a picture"""
    invert_steps: int = 120
    accentuate_steps: int = 64
    audited: int = 40
    audit_steps: int = 60
    check_steps: int = 30
    square_queries: int = 50
    explorer: Megabytes = 20
    """of the page in which the model runs, at most"""


QUICK = Budget(
    units=4,
    layers=2,
    pictures=1,
    classified=4,
    maximize_steps=32,
    silenced=32,
    compared=32,
    searched=64,
    embedded=64,
    queries=3,
    icons="sample",
    concepts=4,
    concept_steps=8,
    cells=2,
    invert_steps=24,
    accentuate_steps=8,
    audited=12,
    audit_steps=20,
    check_steps=10,
    square_queries=20,
    explorer=5,
)
"""seconds instead of minutes"""

Step = tuple[str, Callable[[], results.Result]]
"""the folder of a result, and the function that makes it"""


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
    subject = Subject(
        model, pictures, folder, budget or Budget(), seed, class_names or {}, progress
    )
    outcomes = []
    for name, make in tour_steps(subject):
        outcomes.append(_run(make, subject, folder / name, overwrite=overwrite))
        if announce is not None:
            announce(outcomes[-1])
    gallery = build_gallery(folder, overwrite=True)
    return Tour(tuple(outcomes), gallery, time.perf_counter() - started)


def _run(
    make: Callable[[], results.Result], subject: Subject, target: Path, *, overwrite: bool
) -> Outcome:
    if not overwrite and _is_current(target, subject):
        return Outcome(target, 0.0, kept=True)
    began = time.perf_counter()
    refused = ""
    try:
        make().save(target, overwrite=True)
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
    folder: Path
    """of the results"""
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

    @cached_property
    def compared(self) -> Pictures:
        """The pictures with which results are compared."""
        return self.pictures.spread(self.budget.compared)

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
        for batch in batches(some, self.model.preprocessing):
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

    def shown(self, count: int) -> Tensor:
        """The first pictures to show, (N, C, H, W)."""
        how = self.model.preprocessing
        return torch.stack([self.pictures.read(row, how) for row in self.rows[:count]])

    @property
    def first_shown(self) -> Pictures:
        """The first picture to show, by itself."""
        return self.pictures.select(self.rows[:1])

    def names(self, count: int) -> list[str]:
        """Their names."""
        return [self.pictures.paths[row] for row in self.rows[:count]]

    @cached_property
    def space(self) -> Store:
        """The fc7 space, made once for three results."""
        pictures = self.pictures.spread(self.budget.embedded)
        return embed(self.model, pictures, class_names=self.class_names, progress=self.progress)

    @cached_property
    def concepts(self) -> Concepts:
        """Concepts of the last ReLU with positions, or else of the last convolution."""
        maps = [one for one in self.model.layers.values() if one.kind == "ReLU" and one.spatial]
        layer = (maps or self.convolutions)[-1].name
        some = self.compared.spread(64)
        store = embed(self.model, some, layer, positions="all", progress=self.progress)
        return find_concepts(store, count=self.budget.concepts, seed=self.seed)


def tour_steps(subject: Subject) -> Iterator[Step]:
    """All steps in order: the model, its units, single pictures, the feature space, robustness.

    The page in which the model runs is last: it takes pictures of units from the results before it.
    """
    for part in (_model_steps, _unit_steps, _picture_steps, _space_steps, _robustness_steps):
        yield from part(subject)
    yield "explorer", partial(_explorer, subject)


def _model_steps(s: Subject) -> Iterator[Step]:
    yield "layers", partial(summarize, s.model)
    if not s.model.headless:
        some = s.pictures.spread(s.budget.classified)
        yield "classify", partial(classify, s.model, some, progress=s.progress)
    if bundled(s.model.architecture).with_suffix(".kernels.safetensors").is_file():
        yield "growth-conv1", kernel_growth
    if s.labeled is not None and not s.model.headless:
        yield "eval", partial(evaluate, s.model, s.labeled, progress=s.progress)


def _unit_steps(s: Subject) -> Iterator[Step]:
    model, budget, progress = s.model, s.budget, s.progress
    whole = budget.layers > 2
    head = [] if model.headless else [("logits", s.classes)]
    first, *deeper = [(layer.name, s.units(layer)) for layer in s.shown_layers]
    kernels = [(first[0], None), *(deeper[:1] if whole else [])]
    searched = s.pictures.spread(budget.searched)
    for layer, units in kernels:
        yield (
            f"kernels-{results.file_stem(layer)}",
            partial(kernel_sheet, model, layer, units=units, progress=progress),
        )
    for layer, units in [*deeper, *head]:
        yield (
            f"maximize-{results.file_stem(layer)}",
            partial(
                maximize,
                model,
                layer,
                units=units,
                pictures=s.compared,
                steps=budget.maximize_steps,
                seed=s.seed,
                progress=progress,
            ),
        )
    for layer, units in [first, *deeper, *(head if whole else [])]:
        yield (
            f"examples-{results.file_stem(layer)}",
            partial(top_patches, model, searched, layer, units=units, progress=progress),
        )
    yield "concepts", lambda: s.concepts
    yield (
        "cards",
        lambda: concept_cards(
            model,
            s.concepts,
            s.compared.spread(64),
            classes=s.classes[:3] or None,
            patches=6,
            class_pictures=2,
            steps=budget.concept_steps,
            seed=s.seed,
            progress=progress,
        ),
    )
    if s.labeled is not None:
        for layer, units in [first, *deeper[-1:]]:
            yield (
                f"describe-{results.file_stem(layer)}",
                partial(
                    describe_units,
                    model,
                    s.labeled,
                    layer,
                    units=units,
                    permutations=200,
                    seed=s.seed,
                    progress=progress,
                ),
            )
    for layer, units in deeper[-1:]:
        yield (
            "circuit",
            partial(
                trace_circuit,
                model,
                f"{layer}:{units[0]}",
                s.compared.spread(32),
                positions=16,
                seed=s.seed,
                progress=progress,
            ),
        )
        if not model.headless:
            yield (
                "ablation",
                partial(
                    ablate,
                    model,
                    layer,
                    (s.labeled or s.pictures).spread(budget.silenced),
                    units="all" if model.layer(layer).units <= 512 else units,
                    seed=s.seed,
                    progress=progress,
                ),
            )


def _picture_steps(s: Subject) -> Iterator[Step]:
    model, seed, progress, count = s.model, s.seed, s.progress, s.budget.pictures
    first, *deeper = s.shown_layers
    every = [layer.name for layer in s.convolutions]
    inverted = [every[0], every[len(every) // 2], every[-1]]
    inverted += [] if model.headless else ["logits"]

    def maps(layer: Layer) -> results.Result:
        return activation_maps(model, s.first_shown, layer.name, units=s.units(layer))

    def patch() -> results.Result:
        """Of the units that are shown, the one with the highest activation."""
        picture = s.shown(1)
        values = activations(model, picture.to(model.device), [first.name])[first.name][0]
        best = int(values.flatten(1).max(1).values[s.units(first)].argmax())
        return patch_times_kernel(model, s.first_shown, f"{first.name}:{best}")

    for layer in [first, *deeper[(len(deeper) - 1) // 2 : -1][:1], *deeper[-1:]]:
        yield f"maps-{results.file_stem(layer.name)}", partial(maps, layer)
    yield "patch-times-kernel", patch
    yield (
        "grid",
        lambda: activation_grid(
            model,
            s.shown(1)[0],
            s.concepts.layer,
            groups=4,
            cells=s.budget.cells,
            steps=s.budget.concept_steps // 2,
            name=s.names(1)[0],
            seed=seed,
            progress=progress,
        ),
    )
    yield (
        "inversion",
        lambda: invert(
            model,
            s.shown(count),
            inverted,
            names=s.names(count),
            steps=s.budget.invert_steps,
            others=s.compared,
            seed=seed,
            progress=progress,
        ),
    )
    if model.headless:
        return
    yield (
        "accentuation",
        lambda: accentuate(
            model,
            s.shown(1),
            names=s.names(1),
            steps=s.budget.accentuate_steps,
            seed=seed,
            progress=progress,
        ),
    )
    ends = [s.pictures.select([row]) for row in s.rows[:2]]
    yield (
        "attribution-layer",
        partial(attribute_layer, model, ends[0], every[-1], seed=seed, progress=progress),
    )
    if len(ends) == 2:
        layers = every[len(every) // 2 :: 2] if s.budget.layers > 2 else every[-1:]
        yield (
            "patching",
            partial(patch_activations, model, *ends, layers=layers, progress=progress),
        )
    yield (
        "attribute",
        lambda: attribute(
            model, s.shown(count), names=s.names(count), seed=seed, progress=progress
        ),
    )


def _space_steps(s: Subject) -> Iterator[Step]:
    def neighbors() -> results.Result:
        rows = {path: row for row, path in enumerate(s.space.pictures.paths)}
        queries = [rows[path] for path in s.names(len(s.rows)) if path in rows]
        return find_neighbors(
            s.space,
            queries[: s.budget.queries] or None,
            k=8,
            model=s.model,
            seed=s.seed,
            progress=s.progress,
        )

    yield "embed", lambda: s.space
    yield "neighbors", neighbors
    yield (
        "atlas",
        lambda: build_atlas(
            s.model,
            s.space,
            seed=s.seed,
            progress=s.progress,
            icons=s.budget.icons,
            icon_side=5,
            icon=IconSettings(steps=64),
        ),
    )


def _robustness_steps(s: Subject) -> Iterator[Step]:
    if s.model.headless:
        return
    count = 2 * s.budget.pictures
    yield (
        "attack",
        lambda: attack(
            s.model, s.shown(count), names=s.names(count), seed=s.seed, progress=s.progress
        ),
    )
    yield (
        "audit",
        partial(
            audit,
            s.model,
            s.pictures,
            count=s.budget.audited,
            steps=s.budget.audit_steps,
            check_steps=s.budget.check_steps,
            queries=s.budget.square_queries,
            parts=(),
            seed=s.seed,
            progress=s.progress,
        ),
    )


def _explorer(s: Subject) -> results.Result:
    return build_explorer(
        s.model,
        s.compared,
        megabytes=s.budget.explorer,
        run=s.folder,
        seed=s.seed,
        progress=s.progress,
    )
