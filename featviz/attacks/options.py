"""`AttackOptions`: what all attacks have in common; and checks of what every attack takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Annotated

import torch
from torch import Tensor, nn

from featviz.arguments import Bounds
from featviz.attacks import projections
from featviz.errors import UserError, check_fields, nearest
from featviz.models import precision as lower_precision
from featviz.models.frozen import frozen
from featviz.types import AutoPrecision, BatchSize, Precision, Progress, Restarts, Seed

Classifier = Callable[[Tensor], Tensor]
"""pictures (N, 3, H, W) in [0, 1] to logits (N, classes)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackOptions:
    """Settings that every attack takes.

    Attributes:
        targeted: The labels are classes to be reached; otherwise classes to be left.
        restarts: How often a picture is attacked anew from another random point, until one attempt
            succeeds. Only attacks with a random start repeat anything.
        eight_bit: Show the model only pictures that 8 bits can hold, so that what is found can be
            saved. The pictures themselves are rounded first, and eps counts whole levels of 1/255.
        margin: By how many logits the wrong class must lead. Above 0, a success survives the
            last-bit differences between batch sizes and devices.
        clean: (N, classes) logits of the pictures, or (N,) their classes, where they are known: no
            pass is spent on judging the pictures then.
        seed: Of all random numbers, which are drawn per picture, from its own values.
        batch_size: Pictures that the model sees at once. None is 8 on a CPU and 128 on CUDA.
        precision: "bfloat16" searches in bfloat16 and judges in float32 what was found; "auto" does
            so on processors that are faster at it.
        cuda_graph: On CUDA, launch the model's passes of the search as CUDA graphs: fewer launches,
            which bind batches of few pictures. It has never run on a GPU.
        progress: Called with (pictures decided, pictures, name of the attack).
    """

    targeted: bool = False
    restarts: Restarts = 1
    eight_bit: bool = False
    margin: Annotated[float, Bounds(0, 1e6)] = 0.0
    clean: Tensor | None = None
    seed: Seed = 0
    batch_size: BatchSize | None = None
    precision: AutoPrecision = "float32"
    cuda_graph: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def refuse(self, attack: str, *names: str) -> None:
        """Raise UserError where an option is set that this attack does not have."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UserError(f"{attack} has no option {field.name}; leave it at {field.default}")


def choose_precision(
    model: Classifier, pictures: Tensor, precision: AutoPrecision | str
) -> Precision:
    """float32 or bfloat16; "auto" is bfloat16 where that is faster.

    Raises:
        UserError: The precision is none of the three.
    """

    def faster() -> bool:
        with frozen(model):
            return lower_precision.gains_by_bfloat16(model, pictures)

    return lower_precision.choose_precision(precision, faster)


def device_of(model: Classifier, pictures: Tensor) -> torch.device:
    """Where a module's weights are; the pictures' device for other functions."""
    if not isinstance(model, nn.Module):
        return pictures.device
    values = chain(model.parameters(), model.buffers())
    return next((value.device for value in values), pictures.device)


def check_labels(labels: Tensor, count: int) -> Tensor:
    """The labels, (count,) whole numbers of 0 or more. Raises UserError."""
    other = labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    if labels.shape != (count,) or other:
        raise UserError(
            f"labels must be {count} whole numbers, one a picture; "
            f"got shape {tuple(labels.shape)} of {labels.dtype}"
        )
    if count and int(labels.min()) < 0:
        raise UserError(f"label {int(labels.min())} is no class; classes are counted from 0")
    return labels.long()


def check_eps(eps: float | Tensor, norm: str, count: int) -> Tensor:
    """One radius a picture, (N,) in float64. Raises UserError."""
    radii = torch.as_tensor(eps, dtype=torch.float64).cpu()
    if radii.shape not in {(), (count,)}:
        raise UserError(f"eps must be one number or {count}, got shape {tuple(radii.shape)}")
    bad = [float(e) for e in radii.reshape(-1) if not 0 <= e < float("inf")]
    if bad:
        raise UserError(f"eps {bad[0]:g} is out of range; it is a distance, 0 or more")
    largest = float(radii.max())
    if norm == "linf" and largest > 1:
        raise UserError(
            f"eps {largest:g} is more than the whole range of a pixel (0 to 1); "
            f"for {largest:g} levels of 255 write {largest:g}/255"
        )
    return radii.expand(count)


def check_norm(norm: str, norms: Sequence[str] = projections.NORMS) -> str:
    """The norm, if the attack supports it. Raises UserError."""
    if norm not in norms:
        known = f"{', '.join(norms[:-1])} and {norms[-1]}" if len(norms) > 1 else norms[0]
        raise UserError(f"unknown norm {norm!r}{nearest(norm, norms)} (there are {known})")
    return norm


def check_batch_size(batch_size: int | None, device: torch.device) -> int:
    """How many pictures the model sees at once. Raises UserError."""
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; the model must see 1 picture or more at once")
    return batch_size or (128 if device.type == "cuda" else 8)
