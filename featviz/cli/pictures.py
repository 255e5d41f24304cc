"""Pictures named on the command line, or one of the bundled ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from featviz.models.model import Model


def read_pictures(
    paths: Sequence[Path] | None, model: Model, size: int | None = None
) -> tuple[list[str], Tensor]:
    """(names, pictures (N, 3, S, S)) at the model's input size. Raises BadPicture.

    Without paths: a bundled picture of a class that the model has, else the bundled flower.
    `size` is another side than the model's own.
    """
    import torch

    from featviz.images import read_square
    from featviz.samples import sample_pictures

    crop = size or model.input_size
    resize = round(crop * model.resize / model.input_size)
    if paths:
        squares = [read_square(path, resize, crop) for path in paths]
        return [path.name for path in paths], torch.stack(squares)
    samples = sample_pictures()
    known = [kind for kind in samples.classes if model.find_class(kind) is not None]
    kind = "goldfish" if "goldfish" in known else (*known, "flower")[0]
    row = samples.paths.index(f"{kind}/00")
    return [samples.paths[row]], samples.read(row, resize, crop)[None]
