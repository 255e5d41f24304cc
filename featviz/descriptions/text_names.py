"""Names for units by another model that embeds pictures and texts in one space, as CLIP does.

For each word, its similarity to every picture (cosine), standardized over the pictures; a unit's
name is the word whose similarity is highest on average on the unit's top pictures. Chance: as many
pictures at random, with the same search over all words. It is the other model's opinion of these
pictures, not a property of the network that is described.

    Oikarinen and Weng, "CLIP-Dissect", 2023, for the idea; the score here is simpler
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from featviz.data.datasets import Pictures, batches
from featviz.errors import UserError
from featviz.models import own

if TYPE_CHECKING:
    from featviz.models.model import Model

_TOP = 0.01
"""of the pictures, at least `_LEAST`, on which a unit is named"""
_LEAST = 10


@dataclass(frozen=True)
class TextModel:
    """Two towers whose vectors can be compared."""

    name: str
    images: Callable[[Tensor], Tensor]
    """pictures (N, 3, H, W) in [0, 1] to (N, D)"""
    texts: Callable[[list[str]], Tensor]
    """texts to (N, D)"""


class TextName(NamedTuple):
    """The word that another model has for a unit's top pictures."""

    unit: str
    word: str
    score: float
    """mean standardized similarity times the square root of the number of pictures"""
    p: float
    """share of random sets of pictures whose best word scores as high"""


@dataclass(frozen=True)
class TextNames:
    """Names by another model, and how they were found."""

    model: str
    words: int
    pictures: int
    """of each unit"""
    names: tuple[TextName, ...]


def read_vocabulary(words: Sequence[str] | str | Path) -> list[str]:
    """Words of a list, or of the lines of a file. Raises UserError."""
    if isinstance(words, str | Path):
        try:
            lines = Path(words).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise UserError(f"{words} cannot be read as a vocabulary: {why}") from None
    else:
        lines = list(words)
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(found) < 2:
        raise UserError(f"the vocabulary has {len(found)} words; give two or more, one a line")
    return found


def open_text_model(given: TextModel | str) -> TextModel:
    """From "FILE.py:FUNCTION" or "open_clip/NAME:WEIGHTS". Raises UserError."""
    if isinstance(given, TextModel):
        return given
    if given.startswith("open_clip/"):
        return _open_clip(given)
    if not own.is_own(given):
        raise UserError(
            f"text model {given!r}: give FILE.py:FUNCTION, whose function returns two functions "
            "(pictures to vectors, texts to vectors), or open_clip/NAME:WEIGHTS"
        )
    made, name = own.returned(given)
    if not (isinstance(made, tuple | list) and len(made) == 2 and all(map(callable, made))):
        raise UserError(
            f"{given} returned a {type(made).__name__}; it must return two functions: pictures "
            "(N, 3, H, W) in [0, 1] to (N, D), and a list of texts to (N, D)"
        )
    return TextModel(name, *made)


def _open_clip(given: str) -> TextModel:
    name, _, weights = given.removeprefix("open_clip/").partition(":")
    if not Path(weights).is_file():
        raise UserError(f"text model {given!r}: give a file of weights, open_clip/{name}:FILE")
    try:
        import open_clip
    except ImportError:
        raise UserError(
            "open_clip is not installed: pip install open_clip_torch, or give FILE.py:FUNCTION"
        ) from None
    made: Any = open_clip.create_model_and_transforms(name, pretrained=weights)
    net, prepare, tokenize = made[0].eval(), made[2], open_clip.get_tokenizer(name)

    def embed(pictures: Tensor) -> Tensor:
        from featviz.pictures import images

        batch = torch.stack([prepare(images.to_pillow(picture)) for picture in pictures])
        return torch.as_tensor(net.encode_image(batch))

    return TextModel(
        f"open_clip {name}", embed, lambda texts: torch.as_tensor(net.encode_text(tokenize(texts)))
    )


def name_units(
    tower: TextModel,
    words: list[str],
    data: Pictures,
    model: Model,
    values: Tensor,
    names: Sequence[str],
    permutations: int,
    seed: int,
) -> TextNames:
    """The best word for each unit, from values (N, U) on the pictures of `data`."""
    with torch.no_grad():
        texts = _vectors(tower, "texts", tower.texts(words), len(words))
        parts = [
            _vectors(tower, "pictures", tower.images(batch.images), len(batch.images))
            for batch in batches(data, model.preprocessing)
        ]
    seen = torch.cat(parts)
    if seen.shape[1] != texts.shape[1]:
        raise UserError(
            f"{tower.name} gives pictures {seen.shape[1]} numbers and texts {texts.shape[1]}; both "
            "must lie in one space"
        )
    similar = seen @ texts.T  # (N, W)
    similar = (similar - similar.mean(0)) / similar.std(0).clamp(min=1e-12)
    top = min(len(similar) // 2, max(_LEAST, round(_TOP * len(similar))))
    random = torch.Generator().manual_seed(seed)
    chance = torch.stack(
        [
            similar[torch.randperm(len(similar), generator=random)[:top]].mean(0).max()
            for _ in range(permutations)
        ]
    )
    found = []
    for column, name in zip(values.T, names, strict=True):
        if bool((column == column[0]).all()):
            continue
        rows = column.argsort(descending=True, stable=True)[:top]
        score, best = similar[rows].mean(0).max(0)
        p = (int((chance >= score).sum()) + 1) / (permutations + 1)
        found.append(TextName(name, words[int(best)], float(score) * top**0.5, p))
    return TextNames(tower.name, len(words), top, tuple(found))


def _vectors(tower: TextModel, what: str, made: Tensor, count: int) -> Tensor:
    """Unit vectors (count, D). Raises UserError for anything else."""
    if not isinstance(made, Tensor) or made.dim() != 2 or len(made) != count:
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UserError(f"{tower.name} gives {shape} for {count} {what}; it must give (N, D)")
    vectors = made.detach().cpu().float()
    if not vectors.isfinite().all():
        raise UserError(f"{tower.name} gives values that are not finite for {what}")
    return torch.nn.functional.normalize(vectors, dim=1)
