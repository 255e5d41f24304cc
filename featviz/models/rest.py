"""The rest of a network: from the activations of one of its layers to the logits.

`logits_from` starts at given activations alone; `rest_of` starts at those of one picture, of which
it takes many versions at a time, and also serves networks whose later layers read more than that
layer (residual sums and concatenations around it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featviz.models.frozen import evaluating
from featviz.models.layers import activations, with_tensor
from featviz.models.model import Layer, Model
from featviz.models.receptive_field import tensors_of

Rest = Callable[[Tensor], Tensor]
"""from activations (M, ...) that take the place of one picture's to logits (M, classes)"""


def logits_from(model: Model, place: Layer, values: Tensor) -> Tensor:
    """The logits (N, classes) where a layer's activations are replaced by `values` (N, ...)."""
    return _run(model, place, values, model.blank())


def rest_of(model: Model, place: Layer, picture: Tensor) -> Rest:
    """The logits as a function of what a layer gives for a picture (1, C, H, W).

    What lies before the layer runs once for all versions where the network allows it: where it
    gives the same logits as running it for each.
    """
    if place.key not in model.shares_rest:
        model.shares_rest[place.key] = _can_share(model, place, picture)
    shared = model.shares_rest[place.key]

    def rest(values: Tensor) -> Tensor:
        return _run(
            model, place, values, picture if shared else picture.expand(len(values), -1, -1, -1)
        )

    return rest


def _can_share(model: Model, place: Layer, picture: Tensor) -> bool:
    """Whether two versions behind one picture give the logits of two pictures."""
    with torch.no_grad():
        values = activations(model, picture, [place.name])[place.name].expand(2, -1, *_ones(place))
        whole = model(picture)
        try:
            shared = _run(model, place, values, picture)
        except RuntimeError:  # a concatenation of one row with two
            return False
    return shared.shape == (2, whole.shape[1]) and torch.allclose(
        shared, whole.expand(2, -1), rtol=1e-3, atol=1e-4 * float(whole.abs().max())
    )


def _ones(place: Layer) -> tuple[int, ...]:
    return (-1,) * (len(place.shape) - 1)


def _run(model: Model, place: Layer, values: Tensor, pictures: Tensor) -> Tensor:
    # Not through the model's own call, which refuses another number of rows than of pictures.
    with _replaced(model, place, values), evaluating(model.net):
        logits: Tensor = model.pick(model.net(model.normalize(pictures)))
    # Where the rest of the network reads nothing of the layer, there is one row for all.
    return logits.expand(len(values), -1) if len(logits) == 1 else logits


@contextmanager
def _replaced(model: Model, place: Layer, values: Tensor) -> Iterator[None]:
    """Within the block the layer's output is `values`, whatever its input."""
    calls = 0

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != place.call:
            return None
        # A copy: an in-place ReLU must not change the caller's values.
        old = tensors_of(output)[0]
        given = values.permute(0, 2, 3, 1) if place.channels_last else values
        return with_tensor(output, old, given.to(old.dtype).clone())

    handle = model.net.get_submodule(place.path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
