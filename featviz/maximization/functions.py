"""Objectives of one's own: any function from activations to a score for each picture.

    pull = lambda acts: acts["conv5"][:, 3].mean((1, 2)) - acts["conv4"][:, 7].mean((1, 2))
    objective = from_function(model, pull)

Which layers it reads is found out by calling it once. It is checked before any work: the shape of
its scores, that they are finite, that a gradient reaches the pictures, and that no picture's score
depends on the others in its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.maximization.objectives import PICTURE, Activations, Objective, Targets
from featviz.models.frozen import frozen
from featviz.models.layers import activations

if TYPE_CHECKING:
    from featviz.models.model import Model

Function = Callable[[Activations], Tensor]
"""from the activations of layers by name, (N, ...), to scores (N,)"""

_PROBES = 3
_TOLERANCE = 1e-3  # of the largest score: batches of other sizes round differently


def from_function(model: Model, function: Function, count: int = 1) -> Objective:
    """The objective of a function, with `count` targets that are all the same.

    Raises:
        UserError: The function reads no layer, or what it gives is no score for each picture alone.
    """
    called = getattr(function, "__name__", type(function).__name__)
    name = "the function" if called == "<lambda>" else called
    blank = model.blank(_PROBES)
    noise = torch.rand(blank.shape, generator=torch.Generator().manual_seed(0))
    x = noise.to(blank).requires_grad_(True)
    with frozen(model), torch.enable_grad():
        read = _Read(model, x)
        scores = _scores(function, name, read, _PROBES)
        places = {asked: PICTURE if asked == PICTURE else model.layer(asked).name for asked in read}
        if not set(places.values()) - {PICTURE}:
            raise UserError(f'{name} reads no layer; take activations by name: acts["logits"]')
        if not bool(scores.isfinite().all()):
            raise UserError(f"{name} gives scores that are not finite for pictures of noise")
        if not scores.requires_grad:
            raise UserError(f"no gradient passes through {name}; compute in torch, detach nothing")
        (slope,) = torch.autograd.grad(scores[0], x, allow_unused=True)
        if slope is None:
            raise UserError(f"no gradient of {name} reaches the picture; let it read a layer")
        alone = torch.cat(
            [_scores(function, name, _Read(model, x[i : i + 1]), 1) for i in range(_PROBES)]
        )
    apart = (scores - alone).abs().amax() > _TOLERANCE * scores.abs().amax().clamp(min=1e-6)
    if bool(slope[1:].any()) or bool(apart):
        raise UserError(
            f"{name} gives a picture another score alone than beside others; take no mean, maximum "
            "or sort over the first axis, which are pictures, and draw no random numbers"
        )

    def score(values: Activations, targets: Targets) -> Tensor:
        named = {asked: values[place] for asked, place in places.items()}
        return _scores(function, name, named, len(targets))

    return Objective(tuple(dict.fromkeys(places.values())), count, called, score)


def _scores(function: Function, name: str, values: Activations, count: int) -> Tensor:
    """The scores (N,), or UserError where they are something else."""
    try:
        scores = function(values)
    except (TypeError, IndexError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{name} does not take a dictionary of activations, (N, ...) each, by layer "
            f"({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (count,):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(
            f"{name} returns {found} for {count} pictures; return one score for each, ({count},)"
        )
    return scores


class _Read(Mapping[str, Tensor]):
    """Activations of pictures at any layer that is asked for; iterates over those that were."""

    def __init__(self, model: Model, pictures: Tensor):
        self.model, self.pictures = model, pictures
        self.asked: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.asked:
            found = {PICTURE: self.pictures} if name == PICTURE else None
            found = found or activations(self.model, self.pictures, [name])
            self.asked[name] = found[name]
        return self.asked[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.asked)

    def __len__(self) -> int:
        return len(self.asked)
