"""Activations of named layers, read by forward hooks that are removed afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featviz.errors import UserError
from featviz.models.model import Model, check_finite
from featviz.models.receptive_field import tensors_of


class StopForward(Exception):
    """All tapped layers have run; the rest of the forward pass is not needed."""


@contextmanager
def tap(
    model: Model, layers: Sequence[str], *, stop: bool = False, entering: Collection[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """Within the block each forward pass of the model fills the yielded dict, name to activation.

    Activations keep their graph, so gradients flow, and nothing changes them later: neither they
    nor the net's own values are what in-place operations of the other work on. Hooks are removed
    at the end, also after an error.

    Args:
        model: the model.
        layers: aliases or module paths; of a module that runs several times its last run, or
            another as "relu#1".
        stop: end a forward pass by raising `StopForward` as soon as the last of the layers has
            run.
        entering: those of the layers whose input is taken in place of their output.

    Raises:
        UserError: for an unknown layer, and for one that does not give one row a picture.
    """
    taken: dict[str, Tensor] = {}
    pending: dict[str, int] = {}
    count = 0  # of pictures
    places = {name: model.layer(name) for name in layers}

    def reset(module: nn.Module, inputs: Any) -> None:
        nonlocal count
        count = len(inputs[0])
        taken.clear()
        pending.update({name: place.call for name, place in places.items()})

    def take(name: str, values: Any) -> Any:
        """Keep a copy of the first tensor; where gradients flow, the net goes on from there."""
        pending[name] -= 1
        if pending[name] != 0:
            return None
        whole = places[name].path == "" and name not in entering
        value = model.pick(values) if whole else tensors_of(values)[0]
        rows = len(value) if value.dim() else 0
        if rows != count:
            raise UserError(
                f"{name} gives {rows} rows for {count} pictures; take a layer that gives one each"
            )
        last = places[name].channels_last
        taken[name] = kept = _single(value.clone().permute(0, 3, 1, 2) if last else value.clone())
        if stop and all(left <= 0 for left in pending.values()):
            raise StopForward
        if not kept.requires_grad:
            return None
        own = (kept.permute(0, 2, 3, 1) if last else kept).to(value.dtype, copy=True)
        return with_tensor(values, value, own)

    def before(name: str, module: nn.Module, inputs: Any, named: Any) -> Any:
        return take(name, (inputs, named))

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        return take(name, output)

    modules = dict(model.net.named_modules())
    handles = [model.net.register_forward_pre_hook(reset)]
    for name, place in places.items():
        module = modules[place.path]
        if name in entering:
            hook = partial(before, name)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(partial(after, name)))
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def _single(values: Tensor) -> Tensor:
    """Values of half precision as float32."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values


def with_tensor(values: Any, old: Tensor, new: Tensor) -> Any:
    """What a module gives or takes, with one tensor replaced, wherever it stands."""
    if values is old:
        return new
    if is_dataclass(values) and not isinstance(values, type):
        parts = {field.name: getattr(values, field.name) for field in fields(values)}
        return replace(
            values, **{name: with_tensor(part, old, new) for name, part in parts.items()}
        )
    if isinstance(values, dict):
        return type(values)((key, with_tensor(value, old, new)) for key, value in values.items())
    if isinstance(values, list | tuple):
        items = [with_tensor(value, old, new) for value in values]
        return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)
    return values


def activations(
    model: Model,
    pictures: Tensor,
    layers: Sequence[str],
    *,
    forward: Callable[[Tensor], object] | None = None,
    entering: Collection[str] = (),
    check: bool = True,
) -> dict[str, Tensor]:
    """Activations of pictures at the named layers.

    The forward pass ends at the deepest of the layers. Gradients flow to the pictures if they
    require them.

    Args:
        model: the model.
        pictures: (N, 3, H, W) in [0, 1], on the model's device.
        layers: aliases or module paths.
        forward: what runs the model's modules, if not the model itself (`precision.in_bfloat16`).
        entering: those of the layers whose input is read in place of their output.
        check: whether values that are not finite are refused.

    Returns:
        Layer name to activation: (N, C, H, W), (N, C) or (N, tokens, C).

    Raises:
        UserError: for an unknown layer, for what is no pictures in [0, 1], and for values that are
            not finite.
    """
    if forward is None:
        model.check(pictures, empty=True)
    with tap(model, layers, stop=True, entering=entering) as taken, suppress(StopForward):
        (forward or model)(pictures)
    if check:
        for name, values in taken.items():
            check_finite(values, f"values of {model.name} at {name}")
    return dict(taken)


def need_gradients(model: Model, layers: Sequence[str], *, cut: bool = False) -> None:
    """Raise UserError unless gradients flow from layers to the pictures.

    cut: whether a network that cuts the graph will do, but not one that fails on the way back
    """
    picture = model.blank().requires_grad_(True)
    quiet = warnings.catch_warnings(action="ignore")  # of torch, about quantized layers
    with torch.inference_mode(False), torch.enable_grad(), quiet:
        for name, values in activations(model, picture, layers, check=False).items():
            if cut and not values.requires_grad:
                continue
            try:
                torch.autograd.grad(values.sum(), picture, retain_graph=True)
            except (RuntimeError, NotImplementedError):
                raise UserError(
                    f"no gradient of {name} reaches the picture in {model.name} (quantized layers "
                    "have none); take an earlier layer, or the model before it was quantized"
                ) from None


def read_layer(model: Model, pictures: Tensor, layer: str, *, batch_size: int = 16) -> Tensor:
    """Activations (N, ...) of pictures (N, 3, H, W) at one layer, without gradients, in batches."""
    with torch.no_grad():
        parts = [activations(model, part, [layer])[layer] for part in pictures.split(batch_size)]
    return torch.cat(parts)


def check_size(model: Model, size: tuple[int, int], layer: str | None = None) -> None:
    """Raise UserError for a height and width that the net does not take, by a trial pass.

    With a layer only as far as that layer.
    """
    if size != model.input_size and (size, layer) not in model.taken:
        last = [one.name for one in model.layers.values() if one.path][-1]
        picture = model.mean.new_zeros(1, model.preprocessing.channels, *size)
        with torch.no_grad():
            activations(model, picture, [layer or last])
        model.taken.add((size, layer))


def takes(model: Model, size: tuple[int, int], layer: str | None = None) -> bool:
    """Whether pictures of this height and width pass `check_size`."""
    try:
        check_size(model, size, layer)
    except UserError:
        return False
    return True
