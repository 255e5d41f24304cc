"""The rest of a network: from the activations of one of its layers to the logits.

`logits_from` starts at given activations alone; `rest_of` starts at those of one picture, of which
it takes many versions at a time; `recorded_pass` at those of a batch, with as many rows again. All
serve networks whose later layers read more than that layer, as residual sums do.

A recording is the fastest. One forward pass records the operations that depend on the layer's
output, below autograd, where a skip connection is an operation like any other. `Recorded.run`
repeats these alone with other values of the layer; what does not depend on it is taken from the
recording. Where one unit reaches the first linear layer through operations channel by channel,
`Recorded.run_unit` follows it alone, and adds what it changes to what that layer gave. Where they
cannot be repeated (Python code reads a value that depends on the layer), each run is a whole pass
in which a hook replaces the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from featviz.errors import UserError
from featviz.models.frozen import evaluating
from featviz.models.layers import StopForward, activations, with_tensor
from featviz.models.model import Layer, Model
from featviz.models.receptive_field import hookable, tensors_of
from featviz.wording import counted

Rest = Callable[[Tensor], Tensor]
"""from activations (M, ...) that take the place of one picture's to logits (M, classes)"""


def logits_from(model: Model, place: Layer, values: Tensor) -> Tensor:
    """The logits (N, classes) where a layer's activations are replaced by `values` (N, ...)."""
    return _logits(model, place, values, model.blank())


def rest_of(model: Model, place: Layer, picture: Tensor) -> Rest:
    """The logits as a function of what a layer gives for a picture (1, C, H, W).

    What lies before the layer runs once for all versions where the network allows it: where it
    gives the same logits as running it for each.
    """
    if place.key not in model.shares_rest:
        model.shares_rest[place.key] = _can_share(model, place, picture)
    shared = model.shares_rest[place.key]

    def rest(values: Tensor) -> Tensor:
        pictures = picture if shared else picture.expand(len(values), -1, -1, -1)
        return _logits(model, place, values, pictures)

    return rest


def _can_share(model: Model, place: Layer, picture: Tensor) -> bool:
    """Whether two versions behind one picture give the logits of two pictures."""
    with torch.no_grad():
        values = activations(model, picture, [place.name])[place.name]
        whole = model(picture)
        try:
            shared = _logits(model, place, torch.cat([values, values]), picture)
        except RuntimeError:  # a concatenation of one row with two
            return False
    return shared.shape == (2, whole.shape[1]) and torch.allclose(
        shared, whole.expand(2, -1), rtol=1e-3, atol=1e-4 * float(whole.abs().max())
    )


def _logits(model: Model, place: Layer, values: Tensor, pictures: Tensor) -> Tensor:
    # A copy: an in-place ReLU must not change the caller's values.
    own = _own_channels(values, place)
    logits = _pass(model, pictures, place, None, lambda old: own.to(old.dtype, copy=True))
    # Where the rest of the network reads nothing of the layer, there is one row for all.
    return logits.expand(len(values), -1) if len(logits) == 1 else logits


@dataclass(frozen=True)
class _Slot:
    """A place in the recording for a value that depends on the layer."""

    number: int


@dataclass
class _Step:
    """One recorded operation."""

    call: Callable[..., Any]
    inputs: list[Any]
    """flat; a `_Slot` where a value depends on the layer"""
    form: Any
    outputs: list[int | None]
    """the slot of each flat output"""
    freed: tuple[int, ...] = ()
    """slots that no later step reads"""


class _Recorder(TorchDispatchMode):
    """Keep the operations on what depends on one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.refusal = ""
        self.in_place = False
        self.linear: tuple[Tensor, Tensor] | None = None
        """what the first linear layer took and gave"""
        self._slots = WeakIdKeyDictionary()
        self._storages: dict[int, StorageWeakRef] = {}
        self._count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler at the first operation

    def add(self, tensor: Tensor) -> int:
        """The slot of a tensor that depends on the layer."""
        slot = self.slot(tensor)
        if slot is None:
            slot = self._slots[tensor] = self._count
            self._count += 1
            storage = StorageWeakRef(tensor.untyped_storage())
            self._storages[storage.cdata] = storage
        return slot

    def slot(self, tensor: Tensor) -> int | None:
        found: int | None = self._slots.get(tensor)
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        flat, form = tree_flatten((args, kwargs))
        tensors = [one for one in flat if isinstance(one, Tensor)]
        depends = [one for one in tensors if self.slot(one) is not None]
        if any(self._shares(one) for one in tensors if self.slot(one) is None):
            self.refusal = "a tensor that depends on the layer is changed through another view"
        if not depends:
            return func(*args, **kwargs)
        for one in _written(func, args, kwargs):
            self.in_place = True
            if self.slot(one) is None:
                kept = one.clone()
                self.steps.append(
                    _Step(torch.clone, [kept], tree_flatten(((kept,), {}))[1], [self.add(one)])
                )
        inputs = [
            one if not isinstance(one, Tensor) or (at := self.slot(one)) is None else _Slot(at)
            for one in flat
        ]
        out = func(*args, **kwargs)
        found = tree_flatten(out)[0]
        if not any(isinstance(one, Tensor) for one in found) and found != [None]:
            self.refusal = "a value that depends on the layer decides what is computed"
        if func is _LINEAR and self.linear is None and self.slot(args[1]) is not None:
            self.linear = (args[1].clone(), out.clone())
        outputs = [self.add(one) if isinstance(one, Tensor) else None for one in found]
        self.steps.append(_Step(func, inputs, form, outputs))
        return out

    def _shares(self, tensor: Tensor) -> bool:
        """Whether its memory is that of a value that depends on the layer."""
        if tensor.layout != torch.strided or not self._storages:
            return False
        known = self._storages.get(tensor.untyped_storage()._cdata)
        return known is not None and not known.expired()


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation changes in place."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from tensors_of(value)


_aten = torch.ops.aten
_LINEAR = _aten.addmm.default
_CHANNELWISE = {
    *(_aten.relu.default, _aten.relu_.default, _aten.clone.default, _aten.gelu.default),
    *(_aten.silu.default, _aten.hardtanh.default, _aten.leaky_relu.default, _aten.elu.default),
    *(_aten.max_pool2d_with_indices.default, _aten.avg_pool2d.default),
    _aten._adaptive_avg_pool2d.default,
}
_FLATTENS = {_aten.view.default, _aten._unsafe_view.default}


@dataclass(frozen=True)
class _Chain:
    """The operations from a layer to the first linear one, each on what the one before gave."""

    before: list[_Step]
    taken: Tensor
    """(N, C * P): what the linear layer took"""
    given: Tensor
    """(N, D)"""
    weight: Tensor
    """(C * P, D)"""
    behind: list[_Step]
    slot: int
    """of what the linear layer gives"""

    def change(self, unit: int, units: int, values: Tensor) -> Tensor:
        """What the linear layer gives where a unit has other values (N, ...)."""
        part = values[:, None].clone()  # which an operation may change in place
        for step in self.before:
            if step.call in _FLATTENS:
                part = part.flatten(1)
            else:
                args, kwargs = tree_unflatten([part, *step.inputs[1:]], step.form)
                part = tree_flatten(step.call(*args, **kwargs))[0][0]
        size = self.taken.shape[1] // units
        own = slice(unit * size, (unit + 1) * size)
        return torch.addmm(self.given, part - self.taken[:, own], self.weight[own])


def _chain(recorder: _Recorder, values: Tensor, end: int | None) -> _Chain | None:
    """The chain of a recording, None where the net has another form."""
    if recorder.linear is None or recorder.refusal or values.dim() not in {2, 4}:
        return None
    steps, at, count = recorder.steps, 0, 0
    for step in steps:
        reads = [one for one in step.inputs if isinstance(one, _Slot)]
        if reads != [_Slot(at)]:
            return None
        flat = step.call in _FLATTENS
        if step.call is _LINEAR and step.inputs[1] == _Slot(at):
            break
        count += 1
        if not (step.inputs[0] == _Slot(at) and (flat or step.call in _CHANNELWISE)):
            return None
        at = step.outputs[0] if step.outputs[0] is not None else at
    else:
        return None
    behind, slot = steps[count + 1 :], step.outputs[0]
    if slot is None or end is None:
        return None
    earlier = {one.number for s in behind for one in s.inputs if isinstance(one, _Slot)}
    taken, given = recorder.linear
    # Only (N, C, ...) made flat is (N, C * P) with the values of a unit side by side.
    whole = taken.shape[0] == len(values) and taken.shape[1] % values.shape[1] == 0
    plain = len(step.inputs) == 3 and end >= slot
    if not (whole and plain and all(number >= slot for number in earlier)):
        return None
    return _Chain(steps[:count], taken, given, step.inputs[2], behind, slot)


@dataclass(frozen=True)
class Recorded:
    """Pictures that have passed a net as far as a layer.

    Attributes:
        values: Activations at the layer, (N, C, H, W), (N, C) or (N, tokens, C).
        output: What the net gives without any change: logits (N, classes), or activations at the
            layer that was asked for.
        refusal: Why each run is a whole pass; "" where only what depends on the layer is computed.
    """

    values: Tensor
    output: Tensor
    refusal: str
    _run: Callable[[Tensor], Tensor]
    _run_unit: Callable[[int, Tensor], Tensor] | None

    def run(self, values: Tensor) -> Tensor:
        """The output with other values at the layer; gradients flow back to them."""
        return self._run(values)

    def run_unit(self, unit: int, values: Tensor) -> Tensor:
        """The output with other values (N, ...) of one unit."""
        if self._run_unit is not None:
            return self._run_unit(unit, values)
        changed = self.values.clone()
        changed.select(channel_axis(changed), unit).copy_(values)
        return self.run(changed)


def recorded_pass(model: Model, layer: str, pictures: Tensor, *, to: str | None = None) -> Recorded:
    """Pass pictures through a model, ready to go on from a layer with other values.

    Args:
        model: The model; call within `frozen(model)`.
        layer: Alias or module path, of a module that runs several times also "relu#1".
        pictures: (N, 3, H, W) in [0, 1] on the model's device.
        to: A later layer at which the pass ends; default: the logits.

    Raises:
        UserError: The layer does not give one row a picture, or `to` is not behind it.
    """
    place = model.layer(layer)
    target = None if to in {None, "logits"} else model.layer(to)
    if to is None:
        model.need_classes()
    recorder = _Recorder()
    begun: list[Tensor] = []
    with ExitStack() as recording, torch.no_grad():

        def begin(value: Tensor) -> Tensor:
            begun.append(value.clone())
            own = value.clone()  # which the net may change in place
            recorder.add(own)
            recording.enter_context(recorder)
            return own

        found = _pass(model, pictures, place, target, begin)
    if not begun:
        raise UserError(f"{to} is not behind {layer} in {model.name}; take a later layer")
    values, dtype = _single(_first_channels(begun[0], place)), begun[0].dtype

    def last(output: Tensor) -> Tensor:
        return _single(output if target is None else _first_channels(output, target))

    end = recorder.slot(found)
    chain = _chain(recorder, values, end)
    run_unit = None
    if chain is not None and not place.channels_last and dtype == values.dtype:
        chained = chain  # for the type checker
        behind = _with_frees(chain.behind, end)

        def run_unit(unit: int, new: Tensor) -> Tensor:
            given = chained.change(unit, values.shape[1], new)
            assert end is not None
            return last(_repeat(behind, given, end, chained.slot))

    if recorder.refusal:

        def run(new: Tensor) -> Tensor:
            own = _own_channels(new, place).to(dtype)
            return last(_pass(model, pictures, place, target, lambda _: own))

    else:
        steps = _with_frees(recorder.steps, end)

        def run(new: Tensor) -> Tensor:
            if end is None:
                return last(found)
            own = _own_channels(new, place).to(dtype)
            return last(_repeat(steps, own.clone() if recorder.in_place else own, end))

    return Recorded(values, last(found), recorder.refusal, run, run_unit)


def _repeat(steps: list[_Step], start: Tensor, end: int, at: int = 0) -> Tensor:
    """The value in slot `end` when the steps are made again from another start in slot `at`."""
    slots = {at: start}
    for step in steps:
        flat = [slots[one.number] if isinstance(one, _Slot) else one for one in step.inputs]
        args, kwargs = tree_unflatten(flat, step.form)
        found = tree_flatten(step.call(*args, **kwargs))[0]
        for slot, value in zip(step.outputs, found, strict=True):
            if slot is not None:
                slots[slot] = value
        for slot in step.freed:
            del slots[slot]
    return slots[end]


def _with_frees(steps: list[_Step], end: int | None) -> list[_Step]:
    """The steps, each with the slots that are not needed after it."""
    needed = {end}
    for step in reversed(steps):
        read = {one.number for one in step.inputs if isinstance(one, _Slot)}
        made = {slot for slot in step.outputs if slot is not None}
        step.freed = tuple((read | made) - needed)
        needed |= read | made
    return steps


def _pass(
    model: Model,
    pictures: Tensor,
    place: Layer,
    target: Layer | None,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """The logits, or what the target gives, of a pass in which `change` replaces a layer's value.

    Values are as the modules themselves give them.
    """
    modules = hookable(model.net)
    calls = {"place": place.call, "target": target.call if target else 0}
    reached: list[Tensor] = []

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        calls["place"] -= 1
        if calls["place"] != 0:
            return None
        value = tensors_of(output)[0]
        if value.dim() == 0 or len(value) != len(pictures):
            rows = len(value) if value.dim() else 0
            raise UserError(
                f"{place.name} gives {counted(rows, 'row')} for "
                f"{counted(len(pictures), 'picture')}; take a layer that gives one each"
            )
        return with_tensor(output, value, change(value))

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        calls["target"] -= 1
        if calls["target"] == 0:
            reached.append(tensors_of(output)[0])
            raise StopForward

    with evaluating(model.net), _slow_attention():
        if place.path == "":
            return change(model.pick(model.net(model.normalize(pictures))))
        handles = [modules[place.path].register_forward_hook(replace)]
        if target is not None:
            handles.append(modules[target.path].register_forward_hook(stop))
        try:
            return model.pick(model.net(model.normalize(pictures)))
        except StopForward:
            if not reached:
                raise
            return reached[0]
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Without torch's fused attention, which has no gradient and skips the hooks of its parts."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _first_channels(values: Tensor, place: Layer) -> Tensor:
    """(N, C, H, W) also of a module that gives (N, H, W, C)."""
    return values.permute(0, 3, 1, 2) if place.channels_last else values


def _own_channels(values: Tensor, place: Layer) -> Tensor:
    return values.permute(0, 2, 3, 1) if place.channels_last else values


def _single(values: Tensor) -> Tensor:
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values


def channel_axis(values: Tensor) -> int:
    """Where the units of activations are: behind the tokens of (N, tokens, C)."""
    return 2 if values.dim() == 3 else 1
