"""The work that `invert`, `caricature`, `deepdream` and `accentuate` share around the one loop.

Photographs come in as a batch; for each column (a layer, a unit) `Redrawing.climb` makes `tries`
pictures of each photograph; the numbers are taken picture by picture, so that none depends on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.images import check_pictures
from featviz.maximization.loop import BATCH, Optimized, optimize
from featviz.maximization.settings import Settings
from featviz.maximization.shards import seed_of
from featviz.models.layers import activations

if TYPE_CHECKING:
    from featviz.datasets import Pictures
    from featviz.maximization.objectives import Objective
    from featviz.models.model import Model

Progress = Callable[[int, int, str], None]

# So many unrelated pictures say what is far.
_OTHERS = 32
# Layers whose pictures are drawn when none is named.
_KINDS = ("Conv2d", "Linear")


class Made(NamedTuple):
    """The pictures of a run; see the fields of `Redrawn`."""

    images: Tensor
    """(P, K, T, 3, H, W)"""
    trace: Tensor
    """(P, K, T, steps)"""
    frames: Tensor
    """(P, K, T, F, 3, H, W) uint8, or empty"""


@dataclass
class Redrawing:
    """One run: what all columns have in common, and what has been made so far."""

    model: Model
    given: Tensor
    """(P, 3, H, W)"""
    tries: int = 1
    film: int = 0
    batch_size: int | None = None
    progress: Progress | None = None
    pictures: list[Tensor] = field(default_factory=list)
    """of each column (P, T, 3, H, W)"""
    traces: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)

    def climb(
        self,
        goal: Objective,
        settings: Settings,
        keys: Sequence[str],
        *,
        seed: int,
        start: Tensor | None = None,
        besides: Objective | None = None,
        group: int = 1,
        text: str,
        part: tuple[int, int],
    ) -> Optimized:
        """Climb P * T pictures, photograph by photograph.

        keys: (T,): what the noise of each try is drawn from, with the seed; photographs share it
        start: (P * T * group, 3, H, W), in place of noise
        group: so many rows of `goal` belong to one picture, which is the first of them
        part: (which, of how many) of the whole work this is, for `progress`
        """
        own = [seed_of(seed, key) for key in keys for _ in range(group)]
        seeds = own * len(self.given)

        def report(done: int, total: int, _: str) -> None:
            if self.progress is not None:
                self.progress(part[0] * total + done, part[1] * total, text)

        climb = optimize(
            self.model,
            goal,
            range(len(seeds)),
            seeds,
            settings,
            start=start,
            regularizer=besides,
            frames=self.film,
            batch_size=group * (self.batch_size or BATCH),
            progress=report,
        )
        return climb.rows(range(0, len(seeds), group))

    def keep(self, climb: Optimized) -> Tensor:
        """Take a column's pictures; returns them as (P, T, 3, H, W)."""
        shape = (len(self.given), self.tries)
        pictures: Tensor = climb.images.unflatten(0, shape)
        self.pictures.append(pictures)
        self.traces.append(climb.trace.unflatten(0, shape))
        if climb.frames.numel():
            self.frames.append(climb.frames.unflatten(0, shape))
        return pictures

    def made(self) -> Made:
        """What all columns came to."""
        frames = torch.stack(self.frames, 1) if self.frames else torch.empty(0, dtype=torch.uint8)
        return Made(
            torch.stack(self.pictures, 1).cpu(), torch.stack(self.traces, 1).cpu(), frames.cpu()
        )


def clean_scores(model: Model, goal: Objective, pictures: Tensor) -> Tensor:
    """The score of each picture for its own target, without transforms, (N,); one at a time."""
    with torch.no_grad():
        scores = [
            goal(activations(model, one[None], goal.layers), [row])
            for row, one in enumerate(pictures)
        ]
    return torch.cat(scores).cpu()


def as_batch(model: Model, pictures: Tensor) -> Tensor:
    """Pictures as (P, 3, H, W) on the model's device. Raises UserError if they are none."""
    batch = check_pictures(pictures, single=True).to(model.device, torch.float32)
    height, width = batch.shape[-2:]
    if (height, width) != (model.input_size, model.input_size):
        last = [layer.name for layer in model.layers.values() if layer.path][-1:]
        try:
            activations(model, torch.zeros_like(batch[:1]), last)
        except RuntimeError:
            raise UserError(
                f"{model.name} cannot read pictures of {height} x {width} pixels; "
                f"give {model.input_size} x {model.input_size}"
            ) from None
    return batch


def picture_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """A name for each picture."""
    if names is None:
        return tuple("picture" if count == 1 else f"picture {i + 1}" for i in range(count))
    if len(names) != count:
        raise UserError(f"{len(names)} names for {count} pictures; give one for each")
    return tuple(names)


def chosen_layers(model: Model, layers: str | Sequence[str] | None) -> list[str]:
    """Names of layers from "conv1,conv5", a sequence or None.

    None: the convolutions and fully connected layers with names of their own, and where there are
    none eight of all, spread over the model. Raises UserError for an unknown layer.
    """
    if layers is None:
        weighty = [layer.name for layer in model.layers.values() if layer.kind in _KINDS]
        named = [name for name in weighty if name in model.aliases and name != "logits"]
        named += ["logits"] * ("logits" in model.layers)
        count = min(8, len(weighty))
        spread = [weighty[round(i * (len(weighty) - 1) / max(1, count - 1))] for i in range(count)]
        return named if len(named) > 2 else spread
    items = layers.split(",") if isinstance(layers, str) else list(layers)
    found = [model.layer(item.strip()).name for item in items if item.strip()]
    if not found:
        raise UserError("no layer was named; give some, as in conv1,conv5,fc7")
    return list(dict.fromkeys(found))


def check_counts(**counts: int) -> None:
    """Raise UserError for a count below 1."""
    low = [f"{name} is {count}" for name, count in counts.items() if count < 1]
    if low:
        raise UserError(f"{', '.join(low)}; 1 is the least")


def each_alone(model: Model, pictures: Tensor, layer: str) -> Tensor:
    """The activations (N, ...) of pictures (N, 3, H, W), one at a time: no company, no rounding."""
    with torch.no_grad():
        return torch.cat([activations(model, one[None], [layer])[layer] for one in pictures])


def ranks_kept(model: Model, given: Tensor, pictures: Tensor) -> Tensor:
    """At which rank each of (P, T, 3, H, W) has its photograph's class, (P, T); NaN without logits.

    1: the picture is answered as its photograph is.
    """
    if model.headless:
        return torch.full(pictures.shape[:2], float("nan"))
    answers = each_alone(model, given, "logits").argmax(1)
    logits = each_alone(model, pictures.flatten(0, 1), "logits")
    own = logits.gather(1, answers.repeat_interleave(pictures.shape[1])[:, None])
    ranks: Tensor = (1 + (logits > own).sum(1)).float()
    return ranks.view(pictures.shape[:2])


def unrelated(natural: Pictures | Tensor | None) -> Pictures | Tensor:
    """Up to 32 pictures that have nothing to do with the given ones; default: bundled ones."""
    if isinstance(natural, Tensor):
        return natural[:_OTHERS]
    from featviz.samples import sample_pictures

    return (sample_pictures() if natural is None else natural).spread(_OTHERS)


def read_pictures(model: Model, pictures: Pictures | Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as the model sees them."""
    if isinstance(pictures, Tensor):
        return as_batch(model, pictures)
    from featviz.datasets import read_all

    _, found, _ = read_all(pictures, resize=model.resize, crop=model.input_size)
    return found.to(model.device)


def stacked(columns: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each column's numbers (P, T) as (P, K, T)."""
    return {name: torch.stack([c[name].cpu().float() for c in columns], 1) for name in columns[0]}
