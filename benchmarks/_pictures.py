"""The pictures that attacks are compared on: right when clean, evenly spread over the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import featviz


def right_ones(model: Any, folder: str, count: int, kept: Path) -> tuple[Tensor, Tensor]:
    """At most `count` pictures of class folders that the model gets right, and their labels.

    folder: "" takes the sample pictures with the model's own answers
    kept: a safetensors file; read where it exists, so that all runs have the same pictures
    """
    if not kept.exists():
        data = featviz.open_pictures(folder) if folder else featviz.sample_pictures()
        known = [i for i, c in enumerate(data.labels(model)) if c is not None]
        spread = (data.select(known) if folder else data).spread(4 * count)
        right, found = [], []
        for i, label in enumerate(spread.labels(model)):
            picture = spread.read(i, model.preprocessing)
            answer = int(model(picture[None]).argmax())
            label = label if folder else answer
            if answer == label:
                right.append(picture)
                found.append(label)
        every = [k * len(right) // min(count, len(right)) for k in range(count)]
        every = sorted({k for k in every if k < len(right)})
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                "pictures": torch.stack([right[k] for k in every]),
                "labels": torch.tensor([found[k] for k in every]),
            },
            kept,
        )
    read = load_file(kept)
    return read["pictures"], read["labels"]
