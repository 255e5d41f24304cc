"""First-layer kernels at several moments of a training, read from a file.

Comes in: a file of snapshots, or the state of a training under way. Goes out: `Snapshots`, plain
data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from featviz.arrays import read_arrays
from featviz.errors import UserError
from featviz.kernels.tuning import measure_kernels, roughness
from featviz.models.weights_file import read_weights
from featviz.pictures import images


@dataclass(frozen=True, kw_only=True, repr=False)
class Snapshots:
    """Kernels at S moments of a training."""

    kernels: Tensor
    """(S, N, 3, k, k): red, green, blue weights"""
    steps: tuple[int, ...]
    """training steps done at each moment"""
    top1: tuple[float | None, ...]
    """validation accuracy (a fraction) where it is known"""

    @cached_property
    def spread(self) -> Tensor:
        """(S, N): roughness of each kernel at each moment; white noise is 1."""
        return roughness(self.kernels.flatten(0, 1)).view(len(self.steps), -1)

    def pictures(self, moment: int) -> Tensor:
        """(N, 3, k, k) in [0, 1]: each kernel scaled by its own largest weight at that moment."""
        return images.around_gray(self.kernels[moment])


def read_snapshots(path: Path) -> Snapshots:
    """The snapshots of a file, or of the state.npz of a training that is under way.

    Raises:
        UserError: The file has none.
    """
    tensors = _arrays(path) if path.suffix == ".npz" else read_weights(path).tensors
    kernels, steps, top1 = (tensors.get(name) for name in ("kernels", "steps", "top1"))
    if kernels is None or kernels.dim() != 5 or kernels.shape[2] != 3 or steps is None:
        raise UserError(
            f"{path} holds no snapshots of kernels; train with snapshot_steps to keep some"
        )
    known = torch.full((len(kernels),), math.nan) if top1 is None else top1
    wrong = _problem(kernels, steps, known)
    if wrong:
        raise UserError(f"{path} {wrong}; make it again")
    return Snapshots(
        kernels=kernels.float(),
        steps=tuple(int(step) for step in steps.tolist()),
        top1=tuple(None if math.isnan(t) else float(t) for t in known.tolist()),
    )


def _problem(kernels: Tensor, steps: Tensor, top1: Tensor) -> str:
    """What is wrong with the arrays of a file, "" if nothing is."""
    count = len(kernels)
    if not kernels.is_floating_point() or not kernels.numel():
        return f"has kernels of shape {tuple(kernels.shape)} and type {kernels.dtype}"
    if not torch.isfinite(kernels.float()).all():
        return "has kernels that are not finite"
    if steps.shape != (count,) or top1.shape != (count,):
        return f"has {count} snapshots but {steps.numel()} steps and {top1.numel()} accuracies"
    if steps.dtype not in (torch.int32, torch.int64) or bool((steps < 0).any()):
        return "has steps that are not whole numbers from 0"
    if not top1.is_floating_point() or bool(((top1 < 0) | (top1 > 1)).any()):
        return "has accuracies that are not fractions"
    return ""


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of the state of a training under way."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    arrays = read_arrays(path, "state")
    if arrays is None:
        raise UserError(f"{path} is no state of a training, or damaged; take another file")
    known = [name for name in ("kernels", "steps", "top1") if name in arrays]
    return {name: torch.from_numpy(arrays[name]) for name in known}


def spread_units(kernels: Tensor, count: int) -> tuple[int, ...]:
    """At most `count` kernels (N, 3, k, k), spread over edges by orientation and colors by hue.

    Of each bin the one with the largest norm; faint and noisy kernels are left out if possible.
    """
    m = measure_kernels(kernels)
    good = [i for i in range(len(kernels)) if m.group[i] != 3] or list(range(len(kernels)))
    angle = torch.where(m.group == 2, m.hue, m.orientation)
    good.sort(key=lambda i: (int(m.group[i]), float(angle[i])))
    if len(good) <= count:
        return tuple(good)
    bins = [good[i * len(good) // count : (i + 1) * len(good) // count] for i in range(count)]
    return tuple(max(members, key=lambda i: float(m.norm[i])) for members in bins)
