"""`transfer_matrix`: do the pictures that fool one model fool other models, or a modified copy?

An adversarial example may be specific to one model in one arithmetic, and fail once it is shifted
by a pixel or saved as a JPEG. Each model's adversarial pictures are judged by every other model
that has the class, and by the model itself in bfloat16, after shifts of one pixel, and after JPEG
of quality 90.

Only pictures count that both models classify right when clean and that fool the model they were
made for. Beside each rate is the same rate for random noise of the same size.

    Papernot et al., "Transferability in machine learning", 2016 (arXiv:1605.07277)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from featviz import results
from featviz.attacks import projections
from featviz.attacks.evaluation import classify
from featviz.attacks.options import check_batch_size
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.pictures import images
from featviz.robustness.figures import plot_transfer
from featviz.statistics import Share, share
from featviz.types import BatchSize, Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.attacks.result import AttackResult
    from featviz.models.model import Model

SHIFTS = ((0, 1), (0, -1), (1, 0), (-1, 0))
JPEG_QUALITY = 90
SELF_CHECKS = ("again", "8 bits", "bfloat16", "shifted by a pixel", "JPEG 90")


class Cell(NamedTuple):
    """Adversarial pictures of one model, judged by another."""

    fooled: Share
    """of the pictures that both classify right and that fool the source: how many fool the judge"""
    noise: Share
    """the same for noise of the same size on the same pictures"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Transfer(results.Result):
    """Which model's adversarial pictures fool which."""

    kind: ClassVar[str] = "transfer"

    models: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    """(source, judge) -> the cell; pairs that share no class are left out"""
    checks: Mapping[tuple[str, str], Share]
    """(source, check of `SELF_CHECKS`) -> share of its fooling pictures that still fool it; for the
    shifts, that fool under all four"""
    size: str = ""
    """how the pictures were attacked, in words"""

    @property
    def title(self) -> str:
        return f"Transfer of adversarial pictures: {', '.join(self.models)}"

    def numbers(self) -> dict[str, results.Number]:
        found = {}
        for (source, judge), cell in self.cells.items():
            if judge != source:
                noise = 100 * (cell.noise.value or 0)
                found[f"{source} to {judge}"] = cell.fooled.number(
                    "of the pictures that both classify right fool the second model too; noise of "
                    f"equal size {noise:.1f}%",
                )
        for (_, check), s in self.checks.items():
            found[f"still fools, {check}"] = s.number("of the pictures that fool the model")
        return found

    def rows(self) -> list[tuple[object, ...]]:
        """source, judge or check, fooled, n, rate, low, high, rate of noise: one row each."""
        found: list[tuple[object, ...]] = []
        for (source, judge), cell in self.cells.items():
            s = cell.fooled
            found.append((source, judge, s.hits, s.n, s.value, s.low, s.high, cell.noise.value))
        for (source, check), s in self.checks.items():
            found.append((source, f"itself, {check}", s.hits, s.n, s.value, s.low, s.high, None))
        return found

    def plot(self) -> Figure:
        bars: dict[str, tuple[Share, Share | None]] = {
            check: (s, None) for (_, check), s in self.checks.items()
        }
        for (source, judge), cell in self.cells.items():
            if judge != source:
                bars[f"by {judge}"] = (cell.fooled, cell.noise)
        return plot_transfer(bars)

    def write(self, folder: results.Folder) -> None:
        how = f" ({self.size})" if self.size else ""
        folder.figure(
            "transfer.svg",
            self.plot(),
            caption=f"Pictures that fool the model{how}, classified again: in 8 bits, in bfloat16, "
            "shifted by a pixel (all four ways), saved as JPEG of quality 90, and by other models. "
            "Bars: share that is still misclassified, with 95% Wilson interval; green: noise of "
            "the same size.",
            alt="Bars of the share of adversarial pictures that still fool under each condition",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "transfer.csv",
            ("source", "judge", "fooled", "n", "rate", "low", "high", "noise_rate"),
            [tuple("" if v is None else v for v in row) for row in self.rows()],
            caption="Pictures made to fool the source, judged by others and under small changes; "
            "only pictures that both models classify right when clean count.",
        )


@public
def transfer_matrix(
    models: Mapping[str, Model],
    pictures: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    adversarial: Mapping[str, AttackResult | Tensor],
    *,
    size: str = "",
    seed: Seed = 0,
    batch_size: BatchSize | None = None,
) -> Transfer:
    """Judge each model's adversarial pictures by all models.

    Between input sizes pictures are resampled (bilinear, antialiased), clean and noisy ones like
    the adversarial ones.

    Args:
        models: Name -> model.
        pictures: Name -> (N, 3, S, S) the clean pictures in [0, 1] as that model takes them, the
            same ones in the same order for all.
        labels: Name -> (N,) the class of each picture as an index of that model; -1 where it has
            none (see `shared_labels`).
        adversarial: Name -> what an attack found on that model's pictures, or the adversarial
            pictures (N, 3, S, S) themselves. Not every model needs one.
        size: How the pictures were attacked, in words for the caption.
        seed: Of the noise.
        batch_size: Pictures that a model computes at once; default: by its device.

    Raises:
        UserError: The arguments do not fit together.
    """
    started = time.perf_counter()
    _check(models, pictures, labels, adversarial)
    truth = {name: labels[name].cpu() for name in models}
    right = {
        name: _predictions(model, pictures[name], batch_size) == truth[name]
        for name, model in models.items()
    }
    cells: dict[tuple[str, str], Cell] = {}
    checks: dict[tuple[str, str], Share] = {}
    for source, found in adversarial.items():
        moved = found if isinstance(found, Tensor) else found.adversarial
        moved = models[source].check(moved).cpu()
        noisy = _noise_like(pictures[source].cpu(), moved, seed)
        own = _predictions(models[source], moved, batch_size)
        fooling = right[source] & (own != truth[source])
        for judge, model in models.items():
            if not bool((truth[judge] >= 0).any()):
                continue
            rows = (fooling & right[judge]).nonzero()[:, 0]
            rates = []
            for batch in (moved[rows], noisy[rows]):
                height, width = pictures[judge].shape[-2:]
                resized = images.resize(batch, (height, width))
                wrong = _predictions(model, resized, batch_size) != truth[judge][rows]
                rates.append(share(int(wrong.sum()), len(rows)))
            cells[source, judge] = Cell(*rates)
        rows = fooling.nonzero()[:, 0]
        still = _self_checks(models[source], moved[rows], truth[source][rows], batch_size)
        for check, wrong in zip(SELF_CHECKS, still, strict=True):
            checks[source, check] = share(int(wrong.sum()), len(rows))
    parameters = {"models": list(models), "adversarial": list(adversarial)}
    return Transfer(
        origin=results.origin(None, parameters=parameters, started=started, seed=seed),
        models=tuple(models),
        cells=cells,
        checks=checks,
        size=size,
    )


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
    adversarial: Mapping[str, AttackResult | Tensor],
) -> None:
    for name in models:
        if name not in pictures or name not in labels:
            raise UserError(f"{name} has no pictures or no labels; give both for every model")
    counts = {len(pictures[name]) for name in models} | {len(labels[name]) for name in models}
    counts |= {len(made) for made in adversarial.values()}
    if len(counts) != 1:
        raise UserError(
            f"pictures, labels and adversarial pictures differ in number: {sorted(counts)}"
        )
    for name in adversarial:
        if name not in models:
            raise UserError(f"adversarial pictures of {name}, which is none of the models")


def _predictions(
    model: Model, pictures: Tensor, batch_size: int | None, *, bfloat16: bool = False
) -> Tensor:
    """(N,) classes, on the CPU."""
    if not len(pictures):
        return torch.zeros(0, dtype=torch.long)
    device = model.device
    batch_size = check_batch_size(batch_size, device)
    with (
        frozen(model),
        torch.no_grad(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16),
    ):
        logits = classify(model, pictures.to(device), batch_size=batch_size)
    return logits.float().argmax(1).cpu()


def _noise_like(clean: Tensor, adversarial: Tensor, seed: int) -> Tensor:
    """Each picture with random signs as large as its perturbation is in L2."""
    streams = projections.picture_streams(clean, seed, 50)
    signs = torch.stack([projections.random_signs(clean.shape[1:], s) for s in streams])
    size = projections.l2_distance(clean, adversarial) / clean[0].numel() ** 0.5
    return (clean + projections.column(size).to(clean.dtype) * signs).clamp(0, 1)


def _self_checks(
    model: Model, pictures: Tensor, labels: Tensor, batch_size: int | None
) -> list[Tensor]:
    """For each of `SELF_CHECKS` (n,) bool: whether the picture still fools its own model."""

    def wrong(batch: Tensor, *, bfloat16: bool = False) -> Tensor:
        return _predictions(model, batch, batch_size, bfloat16=bfloat16) != labels

    if not len(pictures):
        return [torch.zeros(0, dtype=torch.bool)] * len(SELF_CHECKS)
    shifted = torch.stack([wrong(shift(pictures, down, right)) for down, right in SHIFTS])
    return [
        wrong(pictures),
        wrong(images.quantize(pictures).to(pictures.dtype)),
        wrong(pictures, bfloat16=True),
        shifted.all(0),
        wrong(images.through_jpeg(pictures, JPEG_QUALITY)),
    ]


def shift(pictures: Tensor, down: int, right: int) -> Tensor:
    """The pictures moved by whole pixels; the border's last line is repeated."""
    height, width = pictures.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1).to(pictures.device)
    columns = (torch.arange(width) - right).clamp(0, width - 1).to(pictures.device)
    return pictures[..., rows, :][..., columns]
