"""Scores and ranks of maximized pictures, taken of the pictures as they are saved.

clean score     of the 8-bit picture, without transforms, in float32
held-out score  mean over fixed shifts of 4 to 6 pixels, the border reflected, each behind a 3x3
                mean. A photograph would lose little by them. Optimization uses shifts, too, but
                none of its transforms blurs, so detail of one or two pixels that scores by itself
                is found out
rank            of the unit among all units of its layer on this picture: 1 is the highest
transfer rank   of the class among those of another model
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.maximization.objectives import PICTURE
from featviz.models.layers import activations
from featviz.pictures.images import mean_3x3, resize

if TYPE_CHECKING:
    from featviz.maximization.objectives import Objective
    from featviz.models.model import Model

HELD_OUT_SHIFTS = ((-6, 0), (6, 0), (0, -6), (0, 6), (-4, 4), (4, -4))
"""(down, right) in pixels"""
_BATCH = 16


def clean_scores(
    model: Model,
    objective: Objective,
    pictures: Tensor,
    targets: Sequence[int] | None = None,
) -> Tensor:
    """The score (N,) of each picture (N, 3, H, W) for its target, without transforms."""
    targets = range(len(pictures)) if targets is None else targets
    with torch.no_grad():
        parts = [
            objective(_read(model, objective, pictures[k : k + _BATCH]), targets[k : k + _BATCH])
            for k in range(0, len(pictures), _BATCH)
        ]
    return torch.cat(parts).float().cpu()


def held_out_scores(
    model: Model, objective: Objective, pictures: Tensor, targets: Sequence[int]
) -> Tensor:
    """The held-out score (N,) of each picture for its target."""

    def score(views: Tensor) -> Tensor:
        return clean_scores(model, objective, views, list(targets) * len(HELD_OUT_SHIFTS))

    return held_out(score, pictures)


def _read(model: Model, objective: Objective, pictures: Tensor) -> dict[str, Tensor]:
    pictures = pictures.to(model.device)
    layers = [name for name in objective.layers if name != PICTURE]
    found = activations(model, pictures, layers) if layers else {}
    return found | {PICTURE: pictures}


def held_out(score: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """The mean score (N,) over the held-out shifts, each behind a 3x3 mean."""
    views = [mean_3x3(shifted(pictures, down, right)) for down, right in HELD_OUT_SHIFTS]
    return score(torch.cat(views)).view(len(views), -1).mean(0)


def shifted(pictures: Tensor, down: int, right: int) -> Tensor:
    """Pictures (N, 3, H, W) moved by whole pixels, reflected at the border, over and over."""
    height, width = pictures.shape[-2:]
    return pictures[..., _moved(height, down), :][..., _moved(width, right)]


def _moved(size: int, shift: int) -> Tensor:
    """Of each of `size` pixels in a row, which one is shown there after a shift."""
    reach = abs(shift)
    mirrored = np.pad(np.arange(size), reach, mode="reflect")
    return torch.from_numpy(mirrored[reach - shift :][:size])


def rank_among(scores: Tensor, unit: int) -> int:
    """The rank of a unit among scores (C,), from the top: 1 if none is higher."""
    return 1 + int((scores > scores[unit]).sum())


def standardized(scores: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Scores (C,) in standard deviations above their means on a data set.

    A unit that is constant there has no such measure: its deviation counts as the layer's median.
    """
    median = sd[sd > 0].median() if bool((sd > 0).any()) else sd.new_ones(())
    return (scores - mean) / torch.where(sd > 1e-3 * median, sd, median)


def same_class(model: Model, index: int, other: Model) -> int | None:
    """The class of another model that means the same: by synset, else by full name, else by a
    part of it ("tabby" of "tabby, tabby cat"); None if it has none."""
    synset, name = model.synsets[index], model.classes[index]
    spellings = [synset, name, *(part.strip() for part in name.split(","))]
    found = (other.find_class(spelling) for spelling in spellings if spelling)
    return next((match for match in found if match is not None), None)


def transfer_rank(picture: Tensor, other: Model, index: int) -> int:
    """The rank of class `index` among all classes of another model, for a picture (3, H, W).

    The picture is resized (bilinear, antialiased) where the model was made for another size.
    """
    seen = resize(picture[None].to(other.device), other.input_size)
    with torch.no_grad():
        return rank_among(other(seen)[0], index)
