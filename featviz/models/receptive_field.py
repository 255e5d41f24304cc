"""Geometry and cost of each module: receptive field, stride, shape and multiply-adds.

One forward pass of one picture is followed at the level of torch's own operations, so functional
layers, branches and reused modules are counted as they are. Per axis a feature map has a size s,
a stride j and a start o (the first input pixel of position 0); a window of k with stride t,
padding p and dilation d turns them into s + d(k-1)j, jt, o - pj (Araujo et al. 2019, Distill,
"Computing receptive fields of convolutional neural networks", eqs. 2 and 5).

The axis of the channels is followed, too, since some nets (ConvNeXt, Swin) have maps (N, H, W, C):
a matrix product puts its channels last, a permutation moves them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels that can change one position of a layer, as (vertical, horizontal)."""

    size: tuple[int, int]
    """pixels"""
    stride: tuple[int, int]
    """pixels from one position to the next"""
    offset: tuple[int, int]
    """first pixel of position (0, 0); negative where it lies in the padding"""

    def box(self, y: int, x: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of position (y, x), half open, not cut at the border."""
        top = self.offset[0] + y * self.stride[0]
        left = self.offset[1] + x * self.stride[1]
        return top, left, top + self.size[0], left + self.size[1]


@dataclass(frozen=True, kw_only=True)
class ModuleRecord:
    """A module as it runs in one forward pass."""

    path: str
    """of the module; "" is the whole net"""
    kind: str
    """the module's class: "Conv2d", "ReLU" ...; of these also where it is derived from them"""
    shape: tuple[int, ...]
    """of the activation of one picture: (C, H, W), (C,) or (tokens, C)"""
    channels_last: bool
    """the module itself gives (H, W, C); featviz permutes it to (C, H, W)"""
    calls: int
    """how often it runs in one pass"""
    call: int
    """which of its runs this is, from 1; the last one has the module's plain name"""
    parameters: int
    macs: int
    """multiply-adds for one picture, children included: of all its runs where this is the last"""
    receptive_field: ReceptiveField | None
    """None where the geometry is not a grid of windows (`whole` tells which)"""
    whole: bool
    """the receptive field of each unit is the whole picture (fully connected, globally pooled)"""
    operation: str
    """torch's name of what computed its values: "convolution", "addmm", "_softmax" ..."""
    random: bool
    """random numbers were drawn in the pass until here"""

    @property
    def key(self) -> str:
        """The path, and "#1" behind it for the first of several runs; the last has none."""
        return self.path if self.call == self.calls else f"{self.path}#{self.call}"


# A tensor's field, "whole", or None for unknown; absent for what does not depend on the input.
_Field = ReceptiveField | str | None

# Without the underscore at the end of in-place variants.
_POINTWISE = frozenset(
    {
        *("abs", "add", "alias", "cat", "chunk", "clamp", "clone", "detach", "div", "exp", "mul"),
        *("neg", "pow", "rsqrt", "rsub", "select", "slice", "split", "split_with_sizes", "sqrt"),
        *("sub", "unbind", "_to_copy", "dropout", "native_dropout", "elu", "gelu", "hardsigmoid"),
        *("hardswish", "hardtanh", "leaky_relu", "relu", "sigmoid", "silu", "softplus", "tanh"),
        *("cudnn_batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"),
    }
)
# Those give the values that they take, but for their order and type.
_COPIES = frozenset({"alias", "clone", "detach", "expand", "select", "slice", "t", "_to_copy"})
_RANDOM = frozenset(
    {
        *("bernoulli", "multinomial", "native_dropout", "normal", "rand", "rand_like", "randint"),
        *("randn", "randn_like", "randperm", "uniform"),
    }
)
CONVOLUTIONS = {"convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution"}
_RESHAPES = {"view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "transpose", "permute"}
_PRODUCTS = {"addmm", "mm", "linear", "bmm", "matmul", "mkldnn_linear"}
_WINDOWS = {
    "avg_pool2d",
    "avg_pool3d",
    "max_pool2d",
    "max_pool2d_with_indices",
    "mkldnn_max_pool2d",
}


class _Trace(TorchDispatchMode):
    """Follow the receptive field of each tensor, and count multiply-adds."""

    def __init__(self, picture: Tensor):
        super().__init__()
        self.fields: dict[int, tuple[Tensor, _Field]] = {}
        self.channels: dict[int, int | None] = {}  # the axis; None where it is not known
        self.operations: dict[int, str] = {}
        self.random = False
        self.macs = 0
        self.mark(picture, ReceptiveField((1, 1), (1, 1), (0, 0)), 1)

    def mark(self, tensor: Tensor, field: _Field, channels: int | None) -> None:
        # The tensor is kept alive, so that its id stays unique.
        self.fields[id(tensor)] = (tensor, field)
        self.channels[id(tensor)] = channels

    def field_of(self, tensor: Tensor) -> _Field:
        return self.fields.get(id(tensor), (tensor, None))[1]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch wraps the method below and imports its compiler at the first operation,
        # which takes longer than everything else that loading a model does.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.random |= name.removesuffix("_") in _RANDOM
        inputs = [t for t in tensors_of(args) if id(t) in self.fields]
        outputs = [t for t in tensors_of(out) if t.dim() > 0]
        if outputs:
            self.macs += _macs(name, args, outputs[0])
        if inputs and outputs:
            axis = self.channels[id(inputs[0])]
            fields = [self.field_of(t) for t in inputs]
            field = _follow(name, args, inputs, fields, axis, outputs[0])
            axis = _channels(name, args, inputs[0], axis, outputs[0])
            copies = name in _RESHAPES or name in _COPIES
            operation = self.operations.get(id(inputs[0]), "") if copies else name
            for tensor in outputs:
                self.mark(tensor, field, axis)
                self.operations[id(tensor)] = operation.removesuffix("_")
        return out


def tensors_of(values: Any) -> list[Tensor]:
    """All tensors in what an operation or a module gives, in their order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = values.values()
    elif is_dataclass(values) and not isinstance(values, type):
        values = vars(values).values()
    elif not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in tensors_of(value)]


def _macs(name: str, args: Sequence[Any], out: Tensor) -> int:
    if name in CONVOLUTIONS:
        return out.numel() * int(math.prod(args[1].shape[1:]))
    if name == "addmm":
        return out.numel() * int(args[1].shape[-1])
    if name in {"mm", "bmm", "linear"}:
        return out.numel() * int(args[0].shape[-1])
    if name.startswith("_scaled_dot_product"):
        heads, keys = args[0], args[1]  # (N, heads, T, D), (N, heads, S, D)
        return 2 * int(heads.numel()) * int(keys.shape[-2])
    if name == "_native_multi_head_attention":
        width = int(args[3])
        tokens = int(args[0].numel()) // width
        return 4 * tokens * width**2 + 2 * tokens * int(args[0].shape[1]) * width
    return 0


def _channels(
    name: str, args: Sequence[Any], one: Tensor, axis: int | None, out: Tensor
) -> int | None:
    """The axis of `out` that holds the channels, which are on `axis` of the input `one`."""
    if name in _PRODUCTS or name == "native_layer_norm":
        return out.dim() - 1
    if "convolution" in name or "adaptive" in name or name in _WINDOWS:
        return 1
    if axis is None:
        return None
    order = _order(name, args, one.dim())
    if order is not None:
        return order.index(axis)
    if name not in _RESHAPES:
        return axis if out.dim() == one.dim() else None
    if axis == one.dim() - 1:  # (N H W, C) to (N, H, W, C) and back
        return out.dim() - 1 if out.shape[-1] == one.shape[-1] else None
    return axis if out.shape[: axis + 1] == one.shape[: axis + 1] else None


def _order(name: str, args: Sequence[Any], count: int) -> list[int] | None:
    """Which input axis each output axis is, if the operation permutes axes."""
    if name == "permute":
        return [int(i) % count for i in args[1]]
    if name in {"transpose", "t"}:
        one, other = (int(i) % count for i in (args[1:] if len(args) > 1 else (0, 1)))
        order = list(range(count))
        order[one], order[other] = order[other], order[one]
        return order
    return None


def _follow(
    name: str,
    args: Sequence[Any],
    inputs: list[Tensor],
    fields: list[_Field],
    axis: int | None,
    out: Tensor,
) -> _Field:
    if any(s is None for s in fields):
        return None
    if "whole" in fields:
        return "whole"
    first = fields[0]
    assert isinstance(first, ReceptiveField)
    if name in CONVOLUTIONS:
        if args[6]:  # transposed
            return None
        kernel = args[1].shape[2:]
        return _window(first, kernel, args[3], args[4], args[5])
    if name in _WINDOWS:
        kernel, *rest = args[1:]
        stride = rest[0] if rest and rest[0] else kernel
        padding = rest[1] if len(rest) > 1 else [0]
        dilation = rest[2] if name.startswith("max") and len(rest) > 2 else [1]
        return _window(first, kernel, stride, padding, dilation)
    if name in {"_adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_avg_pool3d"}:
        before, after = inputs[0].shape[-2:], out.shape[-2:]
        if tuple(after) == (1, 1):
            return "whole"
        if any(b % a for b, a in zip(before, after, strict=True)):
            return None
        kernel = [b // a for b, a in zip(before, after, strict=True)]
        return _window(first, kernel, kernel, [0], [1])
    if name == "constant_pad_nd":
        padding = [*args[1], 0, 0, 0, 0][:4]
        return _window(first, [1], [1], [padding[2], padding[0]], [1])
    if name in {"mean", "sum"} and out.shape[-2:] != inputs[0].shape[-2:]:
        return "whole"
    one = inputs[0]
    last = axis == one.dim() - 1
    if last and (name in _PRODUCTS or (name == "native_layer_norm" and len(args[1]) == 1)):
        return first  # position by position
    if name in _RESHAPES:
        order = _order(name, args, one.dim())
        if order is not None and one.dim() == 4:
            rows_first = [i for i in order if i not in {0, axis}]
            return first if rows_first == sorted(rows_first) else None
        if last and out.shape[-1] == one.shape[-1]:
            # Rows of channels for a matrix product, or back to the map they were taken from.
            return first if {one.dim(), out.dim()} <= {2, 4} else None
        if not last and out.dim() >= 3 and out.shape[-2:] == one.shape[-2:]:
            return first
        # Flattened for a fully connected layer; anything else leaves the grid for the unknown.
        return "whole" if out.dim() == 2 else None
    if name.removesuffix("_") in _POINTWISE and out.dim() >= 3:
        return _union([s for s in fields if isinstance(s, ReceptiveField)])
    return None


def _window(field: ReceptiveField, *windows: Sequence[int]) -> ReceptiveField:
    """The field behind windows of a kernel, stride, padding and dilation."""
    new = []
    for axis, (s, j, o) in enumerate(zip(field.size, field.stride, field.offset, strict=True)):
        # Of the last two axes; a single value is for both.
        k, t, p, d = (values[axis - 2] if len(values) > 1 else values[0] for values in windows)
        new.append((s + d * (k - 1) * j, j * t, o - p * j))
    size, steps, offset = zip(*new, strict=True)
    return ReceptiveField(size, steps, offset)


def _union(fields: list[ReceptiveField]) -> ReceptiveField | None:
    stride = fields[0].stride
    if any(f.stride != stride for f in fields):
        return None
    start = [min(f.offset[i] for f in fields) for i in (0, 1)]
    end = [max(f.offset[i] + f.size[i] for f in fields) for i in (0, 1)]
    return ReceptiveField((end[0] - start[0], end[1] - start[1]), stride, (start[0], start[1]))


def _kind(module: nn.Module) -> str:
    """Its class, or the one of torch's that it is derived from, as parametrizations derive."""
    own = type(module)
    known = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.ReLU, nn.ReLU6)
    return next((one for one in known if issubclass(own, one)), own).__name__


def hookable(net: nn.Module) -> dict[str, nn.Module]:
    """The modules by path, without those of TorchScript, which take no hooks."""
    found = net.named_modules()
    return {path: one for path, one in found if not isinstance(one, torch.jit.ScriptModule)}


def record_modules(
    net: nn.Module, picture: Tensor, pick: Callable[[Any], Tensor] | None = None
) -> dict[str, ModuleRecord]:
    """Run a net once on one picture (1, C, H, W) and describe each run of each module.

    Args:
        net: the network.
        picture: as the net takes it.
        pick: picks the tensor out of what the whole net gives; default: the first one.

    Returns:
        `ModuleRecord.key` to record, in the order in which the runs ended; without runs that do not
        give one row a picture.
    """
    trace = _Trace(picture)
    # path, call, activation, multiply-adds, operation, random
    finished: list[tuple[str, int, Tensor, int, str, bool]] = []
    calls: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    began: dict[str, int] = {}
    handles = []

    def before(path: str, module: nn.Module, inputs: Any) -> None:
        began[path] = trace.macs

    def after(path: str, module: nn.Module, inputs: Any, values: Any) -> None:
        tensors = [pick(values)] if pick and not path else tensors_of(values)
        calls[path] += 1
        own = trace.macs - began[path]
        macs[path] += own
        # Windows of attention, tables of positions: not a row for the picture.
        if tensors and tensors[0].shape[:1] == picture.shape[:1]:
            operation = trace.operations.get(id(tensors[0]), "")
            finished.append((path, calls[path], tensors[0], own, operation, trace.random))

    modules = hookable(net)
    for path, module in modules.items():
        handles.append(module.register_forward_pre_hook(partial(before, path)))
        handles.append(module.register_forward_hook(partial(after, path)))
    try:
        with torch.no_grad(), trace:
            net(picture)
    finally:
        for handle in handles:
            handle.remove()

    records: dict[str, ModuleRecord] = {}
    for path, call, tensor, own, operation, random in finished:
        field = trace.field_of(tensor)
        module = modules[path]
        shape, last = tuple(tensor.shape[1:]), trace.channels.get(id(tensor)) == 3
        channels_last = tensor.dim() == 4 and last
        record = ModuleRecord(
            path=path,
            kind=_kind(module),
            shape=(shape[2], *shape[:2]) if channels_last else shape,
            channels_last=channels_last,
            calls=calls[path],
            call=call,
            parameters=sum(p.numel() for p in module.parameters()),
            macs=macs[path] if call == calls[path] else own,
            receptive_field=field if isinstance(field, ReceptiveField) else None,
            whole=field == "whole",
            operation=operation,
            random=random,
        )
        records[record.key] = record
    return records
