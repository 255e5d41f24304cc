"""Pictures named on the command line, or one of the bundled ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from featviz.data.datasets import Pictures
    from featviz.models.model import Model


def read_pictures(
    paths: Sequence[Path] | None, model: Model, size: int | None = None
) -> tuple[list[str], Tensor]:
    """(names, pictures (N, C, H, W)) as the model takes them. Raises BadPicture.

    Without paths: `bundled_picture`. `size` is another side than the model's own.
    """
    import torch

    from featviz.errors import visible
    from featviz.pictures.images import read_picture

    how = model.preprocessing
    if size is not None:
        how = how.resized((size, size))
    if paths:
        pictures = [read_picture(path, how) for path in paths]
        return [visible(path.name) for path in paths], torch.stack(pictures)
    sample = bundled_picture(model)
    return [sample.paths[0]], sample.read(0, how)[None]


def bundled_picture(model: Model) -> Pictures:
    """A bundled picture of a class that the model has, else the bundled flower."""
    from featviz.data.samples import sample_pictures

    samples = sample_pictures()
    known = [kind for kind in samples.classes if model.find_class(kind) is not None]
    kind = "goldfish" if "goldfish" in known else (*known, "flower")[0]
    return samples.select([samples.paths.index(f"{kind}/00")])
