"""Activations of named layers, read by forward hooks that are removed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featviz.errors import public
from featviz.models.model import Model


class StopForward(Exception):
    """All tapped layers have run; the rest of the forward pass is not needed."""


@contextmanager
def tap(model: Model, layers: Sequence[str], *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
    """Within the block each forward pass of the model fills the yielded dict, name to activation.

    Activations keep their graph, so gradients flow. A later in-place operation does not change
    what was taken (the rest of the net works on a copy). Hooks are removed at the end, also after
    an error.

    Args:
        model: the model.
        layers: aliases or module paths.
        stop: end a forward pass by raising `StopForward` as soon as the last of the layers has
            run.

    Raises:
        UserError: for an unknown layer.
    """
    taken: dict[str, Tensor] = {}
    pending: dict[str, int] = {}
    places = {name: model.layer(name) for name in layers}

    def reset(module: nn.Module, inputs: Any) -> None:
        taken.clear()
        pending.update({name: place.calls for name, place in places.items()})

    def take(name: str, module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        pending[name] -= 1
        if pending[name] > 0:
            return None
        value = _first_tensor(output)
        taken[name] = value.permute(0, 3, 1, 2) if places[name].channels_last else value
        if stop and all(count <= 0 for count in pending.values()):
            raise StopForward
        # Later in-place operations (ReLU(inplace=True)) must not reach what was taken.
        return output.clone() if isinstance(output, Tensor) else None

    modules = dict(model.net.named_modules())
    handles = [model.net.register_forward_pre_hook(reset)]
    handles += [modules[p.path].register_forward_hook(partial(take, n)) for n, p in places.items()]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    return next(v for v in values if isinstance(v, Tensor))


@public
def activations(
    model: Model,
    pictures: Tensor,
    layers: Sequence[str],
    *,
    forward: Callable[[Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """Activations of pictures at the named layers.

    The forward pass ends at the deepest of the layers. Gradients flow to the pictures if they
    require them.

    Args:
        model: the model.
        pictures: (N, 3, H, W) in [0, 1], on the model's device.
        layers: aliases or module paths.
        forward: what runs the model's modules, if not the model itself (`precision.in_bfloat16`).

    Returns:
        Layer name to activation: (N, C, H, W), (N, C) or (N, tokens, C).

    Raises:
        UserError: for an unknown layer and for pictures of another shape.
    """
    with tap(model, layers, stop=True) as taken, suppress(StopForward):
        (forward or model)(pictures)
    return dict(taken)


def read_layer(model: Model, pictures: Tensor, layer: str, *, batch_size: int = 16) -> Tensor:
    """Activations (N, ...) of pictures (N, 3, H, W) at one layer, without gradients, in batches."""
    with torch.no_grad():
        parts = [activations(model, part, [layer])[layer] for part in pictures.split(batch_size)]
    return torch.cat(parts)
