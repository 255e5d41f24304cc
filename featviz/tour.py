"""The tour: every analysis once over one model and one data set, each into its result folder.

This is what `featviz demo` runs. It is a plain list of steps; a step is a folder's name and a
function that makes a result. A step whose folder is there already, made from the same model, data
and seed, is kept, so a tour that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from featviz import results
from featviz.atlas.build import build_atlas
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
from featviz.training.loop import evaluate

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Step:
    """One result of the tour."""

    folder: str
    make: Callable[[Progress | None], results.Result]


@dataclass(frozen=True)
class Taken:
    """What became of a step."""

    folder: Path
    seconds: float
    kept: bool
    """it was there already"""
    refused: str = ""
    """why it could not be made, in words; the tour goes on without it"""


@dataclass(frozen=True)
class Tour:
    """Where everything lies when the tour is over."""

    taken: tuple[Taken, ...]
    gallery: Path
    seconds: float


def take_tour(
    model: Model,
    pictures: Pictures,
    out: str | Path,
    *,
    quick: bool = False,
    units: int = 12,
    seed: int = 0,
    class_names: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[Taken], None] | None = None,
) -> Tour:
    """Run every analysis on a model and a data set and build the gallery.

    class_names: how people call the class folders that the model does not know
    quick: fewer units, steps and pictures; seconds instead of minutes
    units: how many of each layer are shown, the first ones
    overwrite: make every result again, also those that are there
    announce: called after each step

    Raises UserError if the data holds no picture or `out` cannot be written.
    """
    started = time.perf_counter()
    folder = Path(out)
    guide = _Guide(
        model, pictures, folder, quick, 4 if quick else units, seed, class_names or {}, progress
    )
    taken = []
    for step in guide.steps():
        taken.append(_take(step, guide, overwrite=overwrite, progress=progress))
        if announce is not None:
            announce(taken[-1])
    gallery = build_gallery(folder, overwrite=True)
    return Tour(tuple(taken), gallery, time.perf_counter() - started)


def _take(step: Step, guide: _Guide, *, overwrite: bool, progress: Progress | None) -> Taken:
    target = guide.folder / step.folder
    began = time.perf_counter()
    if not overwrite and guide.made(target):
        return Taken(target, 0.0, kept=True)
    try:
        result = step.make(progress)
    except UserError as error:
        return Taken(target, time.perf_counter() - began, kept=False, refused=str(error))
    if not guide.made(target) or overwrite:
        result.save(target, overwrite=True)
    return Taken(target, time.perf_counter() - began, kept=False)


@dataclass
class _Guide:
    """What the steps share: which layers, units and pictures to show, and the fc7 space."""

    model: Model
    pictures: Pictures
    folder: Path
    quick: bool
    shown: int
    seed: int
    class_names: Mapping[str, str]
    progress: Progress | None

    def steps(self) -> Iterator[Step]:
        """The story: the model, what it looks for, what it sees, its space, where it breaks."""
        model, seed, quick = self.model, self.seed, self.quick
        yield Step("layers", lambda _: summarize(model))
        if bundled(model.name).with_suffix(".kernels.safetensors").is_file():
            yield Step("growth-conv1", lambda p: kernel_growth())
        labelled = self.labelled
        if labelled is not None and not model.headless:
            yield Step("eval", lambda p: evaluate(model, labelled, progress=p))
        first, *deeper = self.convolutions
        yield Step(
            f"kernels-{_file(first.name)}", lambda p: kernel_sheet(model, first.name, progress=p)
        )
        if deeper and not quick:
            yield Step(
                f"kernels-{_file(deeper[0].name)}",
                lambda p: kernel_sheet(
                    model, deeper[0].name, units=self.units(deeper[0]), progress=p
                ),
            )
        for layer in deeper[-1:] if quick else deeper:
            yield self._maximize(layer)
        if not model.headless:
            yield Step(
                "maximize-logits",
                lambda p: maximize(
                    model,
                    "logits",
                    units=self.shown_classes,
                    natural=self.natural,
                    steps=self.ascent,
                    seed=seed,
                    progress=p,
                ),
            )
        for layer in [first, *deeper[-1:]] if quick else self.convolutions:
            yield self._examples(layer.name, self.units(layer))
        middle = deeper[(len(deeper) - 1) // 2 : -1][:1]
        for layer in [first, *([] if quick else middle), *deeper[-1:]]:
            yield self._maps(layer)
        if not model.headless and not quick:
            yield self._examples("logits", self.shown_classes)
        yield Step("patch-times-kernel", lambda _: self._patch_times_kernel(first))
        yield Step("inversion", self._invert)
        if not model.headless:
            yield Step("accentuation", self._accentuate)
        yield Step("embed", lambda _: self.space)
        yield Step("neighbors", self._neighbors)
        yield Step("atlas", self._atlas)
        if not model.headless:
            yield Step("attribute", self._attribute)
            yield Step("attack", self._attack)
            yield Step("audit", self._audit)

    @property
    def ascent(self) -> int:
        """Steps of an image's optimisation."""
        return 32 if self.quick else 192

    def made(self, target: Path) -> bool:
        """Whether a folder holds a result from this model, seed and (if it used any) data."""
        if not (target / "result.json").is_file():
            return False
        try:
            document = results.read_result(target)
        except UserError:
            return False
        data = document["data"]
        return (
            (document["model"] is None or document["model"]["sha256"] == self.model.sha256)
            and (document["seed"] in (None, self.seed))
            and (
                data is None
                or data["count"] != len(self.pictures)
                or data["sha256"] == self.pictures.sha256
            )
        )

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

    def units(self, layer: Layer) -> list[int]:
        """The units that the tour shows of a layer: the first ones, so that none is picked out."""
        return list(range(min(layer.units, self.shown)))

    @cached_property
    def labels(self) -> tuple[int | None, ...]:
        return self.pictures.labels(self.model)

    @cached_property
    def labelled(self) -> Pictures | None:
        """The pictures whose class folder the model knows, or None."""
        rows = [i for i, label in enumerate(self.labels) if label is not None]
        return self.pictures.select(rows) if rows else None

    @cached_property
    def shown_classes(self) -> list[int]:
        """Those of the pictures looked at closely, then others that occur, spread over the data.

        Without labels the first classes.
        """
        known = sorted({label for label in self.labels if label is not None})
        known = known or list(range(len(self.model.classes)))
        count = min(len(known), self.shown)
        spread = [known[i * len(known) // count] for i in range(count)]
        close = [label for row in self.rows_to_show[:2] if (label := self.labels[row]) is not None]
        return sorted(list(dict.fromkeys([*close, *spread]))[:count])

    @cached_property
    def rows_to_show(self) -> list[int]:
        """Pictures to look at closely: of up to 200, the right answers the model is surest of.

        At most one a class; without labels simply the surest, without a head just eight of them.
        """
        if self.model.headless:
            count = len(self.pictures)
            return [i * count // 8 for i in range(min(8, count))]
        some = (self.labelled or self.pictures).spread(64 if self.quick else 200)
        labels = some.labels(self.model)
        sure: list[tuple[float, int, int]] = []
        for batch in batches(some, resize=self.model.resize, crop=self.model.input_size):
            with torch.no_grad():
                chances = self.model(batch.images.to(self.model.device)).softmax(1).cpu()
            for row, chance in zip(batch.rows, chances, strict=True):
                label = labels[row]
                guess = int(chance.argmax())
                if label in (None, guess):
                    sure.append((float(chance[guess]), guess, row))
        sure.sort(reverse=True)
        first = {guess: some.paths[row] for _, guess, row in reversed(sure)}
        ranked = sorted(first, key=lambda guess: -max(c for c, g, _ in sure if g == guess))
        places = {path: row for row, path in enumerate(self.pictures.paths)}
        return [places[first[guess]] for guess in ranked] or [0]

    def picture(self, rank: int = 0) -> Tensor:
        """One of the pictures to look at closely, (3, S, S)."""
        rows = self.rows_to_show
        row = rows[min(rank, len(rows) - 1)]
        return self.pictures.read(row, self.model.resize, self.model.input_size)

    def _shown(self, count: int) -> tuple[Tensor, list[str]]:
        """The first pictures to look at closely, (N, 3, S, S), and their names."""
        rows = self.rows_to_show[:count]
        names = [self.pictures.paths[row] for row in rows]
        return torch.stack([self.picture(rank) for rank in range(len(rows))]), names

    @cached_property
    def space(self) -> Store:
        """The fc7 space, made once for three results."""
        pictures = self.pictures.spread(64 if self.quick else 5000)
        return embed(self.model, pictures, class_names=self.class_names, progress=self.progress)

    def _maximize(self, layer: Layer) -> Step:
        return Step(
            f"maximize-{_file(layer.name)}",
            lambda p: maximize(
                self.model,
                layer.name,
                units=self.units(layer),
                natural=self.natural,
                seed=self.seed,
                progress=p,
                steps=self.ascent,
            ),
        )

    @cached_property
    def natural(self) -> Pictures:
        """The pictures with whose scores the synthetic images' are compared."""
        return self.pictures.spread(32 if self.quick else 200)

    def _examples(self, layer: str, units: list[int]) -> Step:
        some = self.pictures.spread(64 if self.quick else 2000)
        return Step(
            f"examples-{_file(layer)}",
            lambda p: top_patches(self.model, some, layer, units=units, progress=p),
        )

    def _maps(self, layer: Layer) -> Step:
        return Step(
            f"maps-{_file(layer.name)}",
            lambda _: activation_maps(
                self.model, self.picture(), layer.name, units=self.units(layer)
            ),
        )

    def _patch_times_kernel(self, layer: Layer) -> results.Result:
        """Of the units that the tour shows, the one that answers to the picture most strongly."""
        picture = self.picture()
        values = activations(self.model, picture[None].to(self.model.device), [layer.name])
        best = values[layer.name][0].flatten(1).max(1).values[self.units(layer)].argmax()
        return patch_times_kernel(self.model, picture, f"{layer.name}:{int(best)}")

    def _neighbors(self, progress: Progress | None) -> results.Result:
        rows = {path: row for row, path in enumerate(self.space.pictures.paths)}
        shown = [self.pictures.paths[row] for row in self.rows_to_show]
        queries = [rows[path] for path in shown if path in rows][: 3 if self.quick else 8]
        return find_neighbors(
            self.space, queries or None, k=8, model=self.model, seed=self.seed, progress=progress
        )

    def _atlas(self, progress: Progress | None) -> results.Result:
        return build_atlas(
            self.model,
            self.space,
            seed=self.seed,
            progress=progress,
            icons="sample" if self.quick else "both",
            icon_side=5,
            icon_steps=64,
        )

    def _invert(self, progress: Progress | None) -> results.Result:
        """Two photographs, from an early layer, a middle one and the last."""
        shown, names = self._shown(1 if self.quick else 2)
        maps = [layer.name for layer in self.convolutions]
        layers = [maps[0], maps[len(maps) // 2], maps[-1]]
        layers += [] if self.model.headless else ["logits"]
        return invert(
            self.model,
            shown,
            layers,
            names=names,
            steps=24 if self.quick else 120,
            natural=self.natural,
            seed=self.seed,
            progress=progress,
        )

    def _accentuate(self, progress: Progress | None) -> results.Result:
        shown, names = self._shown(1)
        return accentuate(
            self.model,
            shown,
            names=names,
            steps=8 if self.quick else 64,
            seed=self.seed,
            progress=progress,
        )

    def _attribute(self, progress: Progress | None) -> results.Result:
        shown, names = self._shown(1 if self.quick else 2)
        return attribute(self.model, shown, names=names, seed=self.seed, progress=progress)

    def _attack(self, progress: Progress | None) -> results.Result:
        shown, names = self._shown(2 if self.quick else 4)
        return attack(self.model, shown, names=names, seed=self.seed, progress=progress)

    def _audit(self, progress: Progress | None) -> results.Result:
        return audit(
            self.model,
            self.pictures,
            count=12 if self.quick else 40,
            steps=20 if self.quick else 60,
            check_steps=10 if self.quick else 30,
            queries=20 if self.quick else 50,
            sections=(),
            seed=self.seed,
            progress=progress,
        )


def _file(layer: str) -> str:
    """A layer's name as part of a folder's name."""
    return layer.replace("/", "-").replace(".", "-")
