"""What an attack is given, checked at the door: pictures, labels, eps, norm, slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from featviz.attacks import projections
from featviz.errors import UserError, nearest


def check_labels(labels: Tensor, count: int) -> Tensor:
    """The labels, (count,) whole numbers. Raises UserError."""
    if labels.shape != (count,) or labels.is_floating_point():
        raise UserError(
            f"labels must be {count} whole numbers, one a picture; "
            f"got shape {tuple(labels.shape)} of {labels.dtype}"
        )
    return labels


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
    """The norm, if it is one of those that an attack knows. Raises UserError."""
    if norm not in norms:
        known = f"{', '.join(norms[:-1])} and {norms[-1]}" if len(norms) > 1 else norms[0]
        raise UserError(f"unknown norm {norm!r}{nearest(norm, norms)} (there are {known})")
    return norm


def check_batch_size(batch_size: int | None, device: torch.device) -> int:
    """How many pictures the model sees at once. Raises UserError."""
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; the model must see 1 picture or more at once")
    return batch_size or (128 if device.type == "cuda" else 8)
