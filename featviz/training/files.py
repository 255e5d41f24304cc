"""Weights and kernels as safetensors files, the same bytes for the same content."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from featviz.models.model import Model
from featviz.models.weights_file import write_tensors


def save_weights(
    model: Model, path: str | Path, *, dtype: torch.dtype = torch.float32, **facts: str
) -> None:
    """Write a model's weights as one safetensors file that `featviz.load` takes.

    The file's metadata hold architecture, classes (JSON pairs of synset and name), mean, std,
    input_size, and `facts` in words. With torch.float16 the file is half as large.

    Raises:
        UserError: The file cannot be written; one that existed is as before.
    """
    pairs = list(zip(model.synsets, model.classes, strict=True))
    metadata = {
        "architecture": model.architecture,
        "classes": json.dumps(pairs, ensure_ascii=False),
        "mean": json.dumps([round(v, 6) for v in model.mean.flatten().tolist()]),
        "std": json.dumps([round(v, 6) for v in model.std.flatten().tolist()]),
        "input_size": "x".join(map(str, dict.fromkeys(model.input_size))),
        **facts,
    }
    tensors = {
        k: t.to("cpu", dtype if t.is_floating_point() else t.dtype)
        for k, t in model.net.state_dict().items()
    }
    write_tensors(tensors, path, metadata)


def save_growth(
    path: str | Path,
    kernels: Tensor,
    steps: Sequence[int],
    top1: Sequence[float | None],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write snapshots of first-layer kernels for `featviz.kernel_growth`.

    Args:
        path: The file.
        kernels: (S, N, 3, k, k).
        steps: Training steps done at each snapshot.
        top1: Accuracy at each, a fraction; None if unknown.
        dtype: Of the kernels in the file.
    """
    write_tensors(growth_tensors(kernels.to(dtype), steps, top1), path)


def growth_tensors(
    kernels: Tensor, steps: Sequence[int], top1: Sequence[float | None]
) -> dict[str, Tensor]:
    """Snapshots of kernels as they are kept in files; an unknown accuracy is NaN."""
    known = [math.nan if t is None else t for t in top1]
    return {
        "kernels": kernels,
        "steps": torch.tensor(steps),
        "top1": torch.tensor(known, dtype=torch.float64),
    }
