"""Activations of pictures in a given precision, for many passes through one network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from featviz.maximization.objectives import PICTURE
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.precision import in_bfloat16
from featviz.types import Precision


def channel_means(values: Tensor) -> Tensor:
    """Means over positions, (N, C), of values (N, C, H, W), (N, tokens, C) or (N, C)."""
    if values.dim() == 4:
        return values.mean((2, 3))
    return values.mean(1) if values.dim() == 3 else values


class Reader(Protocol):
    def __call__(self, pictures: Tensor, *, exact: bool = False) -> dict[str, Tensor]: ...


@contextmanager
def reading(
    model: Model, layers: Sequence[str], precision: Precision, *, entering: Collection[str] = ()
) -> Iterator[Reader]:
    """Within the block, a function from pictures to float32 activations by layer.

    Under the name `PICTURE` it gives the pictures themselves. `exact` reads in float32 whatever the
    precision is, and every layer as it leaves its module; else those in `entering` are read as they
    enter it.
    """
    names = [name for name in dict.fromkeys(layers) if name != PICTURE]
    low = precision == "bfloat16" and bool(names)
    # With the colors of a pixel side by side, convolutions of CPUs and tensor cores are faster.
    last = low or model.device.type == "cpu"
    layout = torch.channels_last if last else torch.contiguous_format
    fresh = True  # a network of NaN is refused; a picture that becomes NaN is the loop's business
    cast = in_bfloat16(model.net, model.blank(), whole=True) if low else nullcontext(model.net)
    with cast as forward:

        def read(pictures: Tensor, *, exact: bool = False) -> dict[str, Tensor]:
            nonlocal fresh
            if not names:
                return {PICTURE: pictures}
            normal = model.normalize(pictures.contiguous(memory_format=layout))
            run, before = (model.net, ()) if exact else (forward, entering)
            values = activations(model, normal, names, forward=run, entering=before, check=fresh)
            fresh = False
            single = {n: v.float() if v.dtype == torch.bfloat16 else v for n, v in values.items()}
            return {PICTURE: pictures} | single

        yield read
