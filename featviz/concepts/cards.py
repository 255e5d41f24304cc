"""`concept_cards`: what each concept looks like, where it is, and what it does to the classes.

For every concept of a dictionary: its maximized picture, its top patches with masks, its effect on
each logit where it is strongest; which concepts occur in the same pictures; and for some classes
which concepts the logit depends on (total Sobol indices).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featviz import results
from featviz.checkpoints import Arrays, Checkpoint, open_checkpoint
from featviz.concepts.cards_measured import ClassConcepts, LogitEffects
from featviz.concepts.cards_result import ConceptCards
from featviz.concepts.dictionary import Dictionary
from featviz.concepts.effects import concept_effects
from featviz.concepts.importance import DESIGNS, Sampled, sample_function, total_indices
from featviz.concepts.parts import like_layer, parts_of, rows_of
from featviz.concepts.patches import Patches, find_patches
from featviz.concepts.result import Concepts, open_concepts
from featviz.data.from_python import Data, as_pictures
from featviz.descriptions.activations import describe_activations
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError, public
from featviz.maximization.maximize import maximize_directions
from featviz.models.frozen import frozen
from featviz.models.layers import activations
from featviz.models.rest import rest_of
from featviz.statistics import rank_correlation, rank_correlations, resampled_means
from featviz.types import BatchSize, Count, Engine, Progress, Seed, Steps, Top
from featviz.wording import counted, unread

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.descriptions.result import Descriptions
    from featviz.models.model import Layer, Model

_SHUFFLES = 200
"""searches under shuffled labels, for descriptions"""
_COMPARED = 200
"""pictures whose scores are compared with those of the maximized pictures"""


@public
def concept_cards(
    model: Model,
    concepts: Concepts | str | Path,
    pictures: Data,
    *,
    classes: Sequence[int | str] | None = None,
    count: Count = 2000,
    patches: Top = 8,
    class_pictures: Count = 5,
    designs: Count = DESIGNS,
    steps: Steps | None = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    engine: Engine = "here",
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> ConceptCards:
    """What each concept looks like, where it is, and what it does to the classes.

    Args:
        model: The model that the concepts are of. Without a head nothing is said of classes.
        concepts: As `find_concepts` gives them, or their folder.
        pictures: What `as_pictures` takes. Those with labels also describe the concepts
            (`describe_activations`, of the largest code of each picture).
        classes: Whose concepts are ranked, by name or index; default: the six that the model
            predicts most often on these pictures.
        count: At most so many pictures are searched, evenly spread.
        patches: Of each concept; on the pictures of these its effect on the logits is measured.
        class_pictures: The importance for a class is the mean over so many pictures, those to which
            the model gives it the highest probability.
        designs: Of the Sobol indices, a power of two; the cost is designs * (concepts + 1) passes
            from the layer to the logits for each of the pictures.
        steps: Of the maximized pictures; default 256.
        seed: Of the maximized pictures, the designs and the intervals.
        batch_size: Pictures, or versions of one, that the model computes at once.
        engine: "here", or "ray": patches, maximized pictures, effects and indices are made by a Ray
            cluster.
        checkpoint: A folder in which finished pieces are kept, and from which the same call goes on
            after it was stopped; the caller removes it.
        progress: Called with (done, total, text).

    Raises:
        UserError: The concepts are of another model, a class is unknown, or no picture can be read.
        Stopped: After Ctrl-C; the checkpoint holds what is finished.

    Example:
        >>> cards = featviz.concept_cards(model, "run/concepts-relu5", "photographs")
        >>> cards.save("run/cards-relu5")
    """
    started = time.perf_counter()
    found = concepts if isinstance(concepts, Concepts) else open_concepts(concepts)
    found.check_model(model)
    place, data = model.layer(found.layer), as_pictures(pictures, model=model).spread(count)
    wanted = None if classes is None else [model.class_index(name) for name in classes]
    parameters: dict[str, Any] = {
        "layer": place.name,
        "concepts": found.names[0].rpartition(":")[0],
        "classes": wanted,
        "count": count,
        "patches": patches,
        "class_pictures": class_pictures,
        "designs": designs,
        "steps": steps,
    }
    job = parameters | {"model": model.sha256, "data": data.sha256, "seed": seed}
    job["directions"] = found.directions.sum(0).tolist()
    with frozen(model), open_checkpoint(checkpoint, job, engine=engine) as kept:
        seen = find_patches(
            model,
            place,
            found.dictionary,
            data,
            count=min(patches, len(data)),
            batch_size=batch_size,
            kept=kept.part("patches"),
            progress=progress,
        )
        icons = maximize_directions(
            model,
            place.name,
            found.directions,
            names=found.names,
            width="auto",
            steps=steps,
            seed=seed,
            pictures=data.spread(_COMPARED),
            checkpoint=kept.part("pictures"),
            progress=progress,
        )
        effects = None
        ranked: tuple[ClassConcepts, ...] = ()
        if not model.headless and place.name != model.layer("logits").name:
            work = _Work(model, place, found.dictionary, data, designs, seed, batch_size)
            effects = _effects(work, seen, kept.part("effects"), progress)
            chosen = _most_predicted(seen.logits) if wanted is None else wanted
            ranked = _importance(
                work,
                chosen,
                _class_rows(seen, chosen, class_pictures),
                kept.part("importance"),
                progress,
            )
    described, notes = _described(model, found, data, seen, seed)
    return ConceptCards(
        origin=results.origin(model, parameters=parameters, started=started, data=data, seed=seed),
        warnings=(*_warnings(model, found, seen), *notes),
        model_name=model.name,
        layer=place.name,
        names=found.names,
        classes=model.class_names,
        icons=replace(icons, pages=found.names),
        places=seen.places,
        patches=seen.pictures,
        masks=seen.masks,
        strong=(seen.largest >= 0.5 * seen.top.values[:, 0]).float().mean(0),
        count=seen.top.count,
        effects=effects,
        together=rank_correlations(seen.largest.T, seen.largest.T).float(),
        importance=ranked,
        descriptions=described,
    )


def _described(
    model: Model, found: Concepts, data: Pictures, seen: Patches, seed: int
) -> tuple[Descriptions | None, list[str]]:
    """The classes that each concept's largest codes tell apart, for pictures with labels."""
    if not data.classes:
        return None, []
    labels = [data.folders[row] for row in seen.rows.tolist()]
    known = zip(data.folders, data.labels(model), strict=True)
    words = {name: model.class_name(index) for name, index in known if index is not None}
    try:
        made = describe_activations(
            seen.largest,
            labels,
            units=found.names,
            subject=f"concepts of {found.layer}",
            class_names=words,
            permutations=_SHUFFLES,
            seed=seed,
        )
    except UserError as error:
        return None, [f"concepts are not described by classes: {error}"]
    return made, []


def _warnings(model: Model, found: Concepts, seen: Patches) -> tuple[str, ...]:
    texts = []
    largest = seen.top.values[:, 0].tolist()
    absent = [name for name, most in zip(found.names, largest, strict=True) if most <= 0]
    if absent:
        none = f"{counted(len(absent), 'concept')} in none of the pictures"
        texts.append(f"{none}: {', '.join(absent[:8])}")
    if seen.top.skipped:
        texts.append(unread(len(seen.top.skipped)))
    if model.headless:
        texts.append(f"{model.name} has no logits: nothing is said of classes")
    if not model.layer(found.layer).spatial:
        texts.append(
            f"{found.layer} has no rows and columns: patches are whole pictures, without masks"
        )
    return tuple(texts)


def _effects(
    work: _Work, seen: Patches, kept: Checkpoint, progress: Progress | None
) -> LogitEffects:
    """The effect of each concept on all logits, on the pictures of its top patches."""
    rows = seen.top.rows  # (k, n)
    places = {row: (rows == row).nonzero().T for row in sorted(set(rows.flatten().tolist()))}
    pieces = [
        Piece(f"picture-{row:07}", (row, concepts), len(concepts))
        for row, (concepts, _) in places.items()
    ]
    made = map_pieces(
        work.effects,
        pieces,
        kept,
        device=work.model.device.type,
        progress=progress,
        text="effects of concepts on logits",
    )
    gradient = torch.zeros(*rows.shape, len(work.model.classes))
    removal = torch.zeros_like(gradient)
    for (concepts, ranks), found in zip(places.values(), made, strict=True):
        gradient[concepts, ranks] = torch.from_numpy(found["gradient"])
        removal[concepts, ranks] = torch.from_numpy(found["removal"])
    # (200, classes) each
    drawn = [resampled_means(one, draws=200, seed=work.seed) for one in removal]
    ends = [one.quantile(torch.tensor([0.025, 0.975]).double(), dim=0) for one in drawn]
    mean = removal.mean(1)
    agreement = [
        rank_correlation(one, other) for one, other in zip(gradient.mean(1), mean, strict=True)
    ]
    low, high = torch.stack(ends, 1).float()
    return LogitEffects(
        gradient=gradient.mean(1),
        removal=mean,
        low=low,
        high=high,
        pictures=rows.shape[1],
        agreement=torch.tensor([a for a in agreement if a is not None]),
    )


@dataclass(frozen=True)
class _State:
    """A picture at the layer, as codes of a dictionary."""

    picture: Tensor
    """(1, C, H, W)"""
    values: Tensor
    """(1, ...): its activations"""
    codes: Tensor
    """(P, k)"""
    directions: Tensor
    """(k, channels)"""
    place: Layer

    @classmethod
    def of(
        cls, model: Model, place: Layer, dictionary: Dictionary, data: Pictures, row: int
    ) -> _State:
        picture = data.read(row, model.preprocessing)[None].to(model.device)
        with torch.no_grad():
            values = activations(model, picture, [place.name])[place.name]
        codes = dictionary.encode(rows_of(values, place)[0])
        return cls(picture, values, codes, dictionary.directions.to(values.device), place)

    def parts(self, concepts: Tensor) -> Tensor:
        """(n, ...): what some concepts add to the activations."""
        found = parts_of(self.codes[:, concepts], self.directions[concepts])
        return like_layer(found, self.values, self.place)

    def kept(self, factors: Tensor) -> Tensor:
        """(M, ...): the activations with each concept kept by its factor, (M, k)."""
        less = (self.codes[None] * (factors[:, None] - 1)) @ self.directions
        return self.values + like_layer(less, self.values, self.place)


def _most_predicted(logits: Tensor, most: int = 6) -> list[int]:
    """The classes that are predicted most often."""
    counts = logits.argmax(1).bincount(minlength=logits.shape[1])
    order = counts.argsort(descending=True, stable=True)[:most].tolist()
    return [one for one in order if counts[one] > 0]


def _class_rows(seen: Patches, classes: Sequence[int], most: int) -> list[list[int]]:
    """For each class the rows of the pictures with the highest probability."""
    chance = seen.logits.softmax(1)[:, list(classes)]
    best = chance.argsort(dim=0, descending=True, stable=True)[:most]
    return [seen.rows[column].tolist() for column in best.T]


@dataclass(frozen=True)
class _Work:
    """What pieces of work are made from: effects on pictures, and the importance for classes."""

    model: Model
    place: Layer
    dictionary: Dictionary
    data: Pictures
    designs: int
    seed: int
    batch_size: int

    def effects(self, work: tuple[int, Tensor], report: Callable[[int], None]) -> Arrays:
        """What some concepts of a picture do to all logits, (n, classes)."""
        row, concepts = work
        with frozen(self.model):
            state = _State.of(self.model, self.place, self.dictionary, self.data, row)
            found = concept_effects(
                rest_of(self.model, self.place, state.picture),
                state.values,
                state.parts(concepts.to(state.values.device)),
                batch_size=self.batch_size,
            )
        return {name: value.cpu().numpy() for name, value in found._asdict().items()}

    def importance(self, work: tuple[int, list[int]], report: Callable[[int], None]) -> Arrays:
        index, rows = work
        made: list[Sampled] = []
        with frozen(self.model), torch.no_grad():
            for rank, row in enumerate(rows):
                state = _State.of(self.model, self.place, self.dictionary, self.data, row)
                made.append(
                    sample_function(
                        self._logit(state, index),
                        len(self.dictionary),
                        designs=self.designs,
                        seed=self.seed + rank,  # errors of one design are not those of another
                    )
                )
                report(len(made))
        arrays = [torch.stack(column).numpy() for column in zip(*made, strict=True)]
        return dict(zip(Sampled._fields, arrays, strict=True))

    def _logit(self, state: _State, index: int) -> Callable[[Tensor], Tensor]:
        """The logit of a class as a function of factors (M, k)."""
        rest = rest_of(self.model, self.place, state.picture)

        def score(factors: Tensor) -> Tensor:
            parts = factors.to(state.values.device).split(self.batch_size)
            return torch.cat([rest(state.kept(some))[:, index] for some in parts])

        return score


def _importance(
    work: _Work,
    classes: Sequence[int],
    rows: Sequence[list[int]],
    kept: Checkpoint,
    progress: Progress | None,
) -> tuple[ClassConcepts, ...]:
    pieces = [
        Piece(f"class-{index}", (index, which), len(which))
        for index, which in zip(classes, rows, strict=True)
    ]
    text = "importance of concepts for classes"
    device = work.model.device.type
    made = map_pieces(work.importance, pieces, kept, device=device, progress=progress, text=text)
    found = []
    for piece, arrays in zip(pieces, made, strict=True):
        columns = (torch.from_numpy(arrays[name]) for name in Sampled._fields)
        sampled = [Sampled(*pair) for pair in zip(*columns, strict=True)]
        found.append(ClassConcepts(piece.work[0], total_indices(sampled, seed=work.seed)))
    return tuple(found)
