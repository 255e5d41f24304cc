"""`transfer_matrix`: do the pictures that fool one model fool the others, and a moved copy of them?

A fragile point is a picture that fools one model in one arithmetic, and no longer once it is
shifted by a pixel or saved as a JPEG. A region is one that fools on. The matrix says which was
found: each model's adversarial pictures are judged by every other model that knows the class,
and by the model itself in bf16, after shifts of one pixel, and after JPEG of quality 90.

Only pictures count that both models name right when clean and that fool the model they were made
for. Beside each rate stands the same rate for random noise of the same size.

    Papernot et al., "Transferability in machine learning", 2016 (arXiv:1605.07277)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featviz import images
from featviz.attacks import projections
from featviz.attacks.checks import check_batch_size
from featviz.attacks.loop import classify
from featviz.errors import UserError
from featviz.images import check_pictures
from featviz.models.frozen import frozen
from featviz.statistics import Share, share

if TYPE_CHECKING:
    from featviz.attacks.result import AttackResult
    from featviz.models.model import Model

SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))
JPEG_QUALITY = 90
SELF_CHECKS = ("again", "8 bits", "bfloat16", "shifted by a pixel", "JPEG 90")


@dataclass(frozen=True)
class Cell:
    """Adversarial pictures of one model, judged by another (or in another way)."""

    fooled: Share
    """of the pictures that both name right and that fool the source: how many fool the judge"""
    noise: Share
    """the same for noise of the same size on the same pictures"""


@dataclass(frozen=True)
class Transfer:
    """Which model's adversarial pictures fool which."""

    models: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    """(source, judge) -> the cell; pairs that share no class are left out"""
    checks: Mapping[tuple[str, str], Share]
    """(source, check of `SELF_CHECKS`) -> share of its fooling pictures that still fool it; for the
    shifts, that fool under all four"""

    def rows(self) -> list[tuple[object, ...]]:
        """source, judge or check, fooled, n, rate, low, high, rate of noise: one row each."""
        found: list[tuple[object, ...]] = []
        for (source, judge), cell in self.cells.items():
            s = cell.fooled
            found.append((source, judge, s.hits, s.n, s.value, s.low, s.high, cell.noise.value))
        for (source, check), s in self.checks.items():
            found.append((source, f"itself, {check}", s.hits, s.n, s.value, s.low, s.high, None))
        return found


def transfer_matrix(
    models: Mapping[str, Model],
    pictures: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    found_by_model: Mapping[str, AttackResult | Tensor],
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> Transfer:
    """Judge each model's adversarial pictures by all models.

    models: name -> model
    pictures: name -> (N, 3, S, S) the clean pictures as that model takes them, the same photographs
        in the same order for all
    labels: name -> (N,) the class of each picture as that model counts classes; -1 where it has
        none (see `shared_labels`)
    found_by_model: name -> what an attack found on that model's pictures: an `AttackResult`, or the
        adversarial pictures (N, 3, S, S) themselves. Not every model needs one
    seed: of the noise; slots: see `pgd`

    Between input sizes pictures are resampled (bilinear, antialiased), clean and noisy ones like
    the adversarial ones. Returns a `Transfer`. Raises UserError for what does not fit together.
    """
    _check(models, pictures, labels, found_by_model)
    cells: dict[tuple[str, str], Cell] = {}
    checks: dict[tuple[str, str], Share] = {}
    right = {
        name: _answers(model, pictures[name], batch_size) == labels[name].cpu()
        for name, model in models.items()
    }
    for source, found in found_by_model.items():
        adversarial = check_pictures(found if isinstance(found, Tensor) else found.adversarial)
        clean = pictures[source].cpu()
        own = _answers(models[source], adversarial, batch_size)
        fooling = right[source] & (own != labels[source].cpu())
        noisy = _noise_like(clean, adversarial.cpu(), seed)
        for judge, model in models.items():
            rows = (fooling & right[judge]).nonzero()[:, 0]
            if not bool((labels[judge] >= 0).any()):
                continue
            truth = labels[judge].cpu()[rows]
            side = pictures[judge].shape[-1]
            both = []
            for batch in (adversarial.cpu()[rows], noisy[rows]):
                answers = _answers(model, _at_size(batch, side), batch_size)
                both.append(share(int((answers != truth).sum()), len(rows)))
            cells[source, judge] = Cell(*both)
        rows = fooling.nonzero()[:, 0]
        truth = labels[source].cpu()[rows]
        for check, still in _still(
            models[source], adversarial.cpu()[rows], truth, batch_size
        ).items():
            checks[source, check] = share(int(still.sum()), len(rows))
    return Transfer(tuple(models), cells, checks)


def shared_labels(models: Mapping[str, Model], folders: Sequence[str]) -> dict[str, Tensor]:
    """For each model the class of each picture by its folder (synset or name), -1 where none."""
    labels = {}
    for name, model in models.items():
        known = {folder: model.find_class(folder) for folder in set(folders)}
        found = [known[folder] for folder in folders]
        labels[name] = torch.tensor([-1 if label is None else label for label in found])
    return labels


def _check(
    models: Mapping[str, Model],
    pictures: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    found: Mapping[str, AttackResult | Tensor],
) -> None:
    for name in models:
        if name not in pictures or name not in labels:
            raise UserError(f"{name} has no pictures or no labels; give both for every model")
    counts = {len(pictures[name]) for name in models} | {len(labels[name]) for name in models}
    counts |= {len(made) for made in found.values()}
    if len(counts) != 1:
        raise UserError(
            f"pictures, labels and adversarial pictures differ in number: {sorted(counts)}"
        )
    for name in found:
        if name not in models:
            raise UserError(f"adversarial pictures of {name}, which is none of the models")


def _answers(model: Model, pictures: Tensor, batch_size: int | None) -> Tensor:
    if not len(pictures):
        return torch.zeros(0, dtype=torch.long)
    batch_size = check_batch_size(batch_size, model.device)
    with frozen(model), torch.no_grad():
        return classify(model, pictures.to(model.device), batch_size=batch_size).argmax(1).cpu()


def _noise_like(clean: Tensor, adversarial: Tensor, seed: int) -> Tensor:
    """Each picture with random signs as large as its perturbation is in L2."""
    parts = []
    for picture, changed in zip(clean, adversarial, strict=True):
        stream = projections.generator(projections.picture_key(picture, seed), 50)
        signs = torch.randint(0, 2, picture.shape, generator=stream).mul(2).sub(1)
        size = float((changed.double() - picture.double()).square().mean().sqrt())
        parts.append((picture + size * signs).clamp(0, 1))
    return torch.stack(parts)


def _at_size(pictures: Tensor, side: int) -> Tensor:
    if pictures.shape[-1] == side or not len(pictures):
        return pictures
    return nn.functional.interpolate(
        pictures, (side, side), mode="bilinear", align_corners=False, antialias=True
    ).clamp(0, 1)


def _still(
    model: Model, pictures: Tensor, labels: Tensor, batch_size: int | None
) -> dict[str, Tensor]:
    """check -> (n,) bool: whether the picture still fools its own model."""
    if not len(pictures):
        return {check: torch.zeros(0, dtype=torch.bool) for check in SELF_CHECKS}
    shifted = torch.ones(len(pictures), dtype=torch.bool)
    for down, right in SHIFTS:
        shifted &= _answers(model, shift(pictures, down, right), batch_size) != labels
    half: list[Tensor] = []
    size = check_batch_size(batch_size, model.device)
    with frozen(model), torch.no_grad():
        for start in range(0, len(pictures), size):
            with torch.autocast(model.device.type, dtype=torch.bfloat16):
                logits = model(pictures[start : start + size].to(model.device))
            half.append(logits.float().argmax(1).cpu())
    found = (
        _answers(model, pictures, batch_size),
        _answers(model, images.quantize(pictures).to(pictures.dtype), batch_size),
        torch.cat(half),
        None,
        _answers(model, images.through_jpeg(pictures, JPEG_QUALITY), batch_size),
    )
    return {
        check: shifted if answers is None else answers != labels
        for check, answers in zip(SELF_CHECKS, found, strict=True)
    }


def shift(pictures: Tensor, down: int, right: int) -> Tensor:
    """The pictures moved by whole pixels; what comes in at the border repeats its last line."""
    height, width = pictures.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1).to(pictures.device)
    columns = (torch.arange(width) - right).clamp(0, width - 1).to(pictures.device)
    return pictures[..., rows, :][..., columns]
