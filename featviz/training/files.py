"""Weights and kernels as safetensors files, the same bytes for the same content."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from featviz.errors import UserError
from featviz.models.model import Model


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
        "architecture": model.name,
        "classes": json.dumps(pairs, ensure_ascii=False),
        "mean": json.dumps([round(v, 6) for v in model.mean.flatten().tolist()]),
        "std": json.dumps([round(v, 6) for v in model.std.flatten().tolist()]),
        "input_size": "x".join(map(str, dict.fromkeys(model.input_size))),
        **facts,
    }
    tensors = {k: t.detach().to("cpu", dtype) for k, t in model.net.state_dict().items()}
    _save(tensors, Path(path), metadata)


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
    _save(growth_tensors(kernels.to(dtype), steps, top1), Path(path), {})


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


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file, whole or as it was before."""
    content = _in_order(save({k: t.contiguous() for k, t in tensors.items()}, metadata))
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error}); choose another place") from None


def _in_order(content: bytes) -> bytes:
    """The bytes of a safetensors file with sorted metadata; the library's order is random.

    The file is 8 bytes with the header's length, the header (JSON), and the tensors.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
