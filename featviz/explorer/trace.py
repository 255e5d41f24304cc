"""From a model to a `Program`: one forward pass, followed at the level of torch's own operations.

Functional layers, branches, in-place operations and modules that run several times are seen as they
are. What the page cannot run is a `UserError` that names operation and module.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from featviz.errors import UserError
from featviz.explorer.program import UNARY, Operation, Program, largest_difference
from featviz.models.frozen import evaluating
from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.models.receptive_field import CONVOLUTIONS, hookable, tensors_of

TOLERANCE = 1e-4
"""largest relative difference of a traced value from the model's own"""

_SAME = {"alias", "clone", "detach", "expand", "_to_copy", "dropout", "contiguous", "lift_fresh"}
_VIEWS = {"view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten"}
_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"}

_Made = tuple[str, dict[str, Any], dict[str, Tensor]]


def trace(model: Model) -> Program:
    """The operations that a model runs, checked against the model itself on random pictures.

    Raises:
        UserError: for an operation that the page cannot run, and for a net whose operations depend
            on the picture or on chance.
    """
    recorder = _Recorder(model)
    picture = torch.rand(model.blank().shape, generator=torch.Generator().manual_seed(0))
    program = _simplified(recorder.record(picture.to(model.mean)))
    _check(model, program)
    return program


class _Recorder(TorchDispatchMode):
    """Within it every operation on what comes from the picture is written down."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.operations: list[Operation] = []
        self.shapes: list[tuple[int, ...]] = []  # of the values
        self.values: dict[int, tuple[Tensor, int]] = {}  # by id; kept alive, so that ids are unique
        self.running: list[str] = []  # paths of the modules that run now
        self.whole = False  # within an operation that is written down as one

    def record(self, picture: Tensor) -> Program:
        """Run the model on one picture (1, C, H, W)."""
        self._mark(picture, 0)
        self.shapes.append(tuple(picture.shape[1:]))
        layers, handles = self._hooks()
        net = self.model.net
        try:
            with torch.no_grad(), evaluating(net), self, _Wholes(self):
                out = net(self.model.normalize(picture))
                logits = None if self.model.headless else self.index(self.model.pick(out))
        finally:
            for handle in handles:
                handle.remove()
        return Program(tuple(self.operations), layers, logits)

    def _hooks(self) -> tuple[dict[Layer, int], list[Any]]:
        """Hooks that fill the returned dictionary: which value is which layer's."""
        found: dict[Layer, int] = {}
        calls: Counter[str] = Counter()
        wanted = {(one.path, one.call): one for one in self.model.layers.values()}

        def before(path: str, module: nn.Module, inputs: Any) -> None:
            self.running.append(path)

        def after(path: str, module: nn.Module, inputs: Any, values: Any) -> None:
            self.running.pop()
            calls[path] += 1
            layer = wanted.get((path, calls[path]))
            if layer is not None:
                whole = not path and not self.model.headless
                tensors = [self.model.pick(values)] if whole else tensors_of(values)
                found[layer] = self.index(tensors[0], f"layer {layer.name}")

        handles: list[Any] = []
        for path, module in hookable(self.model.net).items():
            handles.append(module.register_forward_pre_hook(partial(before, path)))
            handles.append(module.register_forward_hook(partial(after, path)))
        return found, handles

    def index(self, tensor: Tensor, what: str = "the output") -> int:
        """Which value a tensor is."""
        if id(tensor) not in self.values:
            raise self._refused(f"{what}, which does not come from the picture,")
        return self.values[id(tensor)][1]

    def _mark(self, tensor: Tensor, value: int) -> None:
        self.values[id(tensor)] = (tensor, value)

    def add(self, kind: str, sources: Sequence[int], out: Tensor, made: _Made | None = None) -> int:
        """Write an operation down; `out` is its value."""
        settings, weights = made[1:] if made else ({}, {})
        kept = {name: w.detach().float().cpu().contiguous() for name, w in weights.items()}
        shape = tuple(out.shape[1:])
        self.operations.append(Operation(kind, tuple(sources), shape, settings, kept))
        self.shapes.append(shape)
        self._mark(out, len(self.operations))
        return len(self.operations)

    def known(self, value: Any) -> bool:
        """Whether it is a tensor that comes from the picture."""
        return isinstance(value, Tensor) and id(value) in self.values

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see receptive_field

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        before = [self.values[id(t)][1] for t in tensors_of(args) if self.known(t)]
        out = func(*args, **kwargs)
        if before and not self.whole:
            name = func.overloadpacket.__name__
            self._follow(name if name in _NORMS else name.rstrip("_"), args, kwargs, out, before)
        return out

    def _follow(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], out: Any, sources: list[int]
    ) -> None:
        first = tensors_of(out)[0] if tensors_of(out) else None
        if first is None:
            return
        shape = self.shapes[sources[0]]
        if name in _SAME and tuple(first.shape[1:]) == shape:
            self._mark(first, sources[0])
        elif name in _VIEWS and first.shape[0] == 1:
            self.add("reshape", sources, first)
        elif name in {"split", "split_with_sizes", "slice", "flip"}:
            self._select(name, args, tensors_of(out), sources[0])
        elif name == "select" and args[1] == 1 and len(shape) == 3:
            channel = {"channels": [args[2] % shape[0]]}
            self.add("select", sources, first[:, None], ("select", channel, {}))
            self.add("reshape", [len(self.operations)], first)
        elif name == "mean" and sorted(i % 4 for i in args[1]) == [2, 3] and len(shape) == 3:
            self.add("adaptive", sources, first.reshape(1, -1, 1, 1))
            self.add("reshape", [len(self.operations)], first)
        else:
            made = self._translate(name, args, kwargs, first, shape)
            if made is None:
                raise self._refused(f"the operation {name}")
            if made[0] == "mul":  # the larger first
                sources = sorted(sources, key=lambda i: -math.prod(self.shapes[i]))
            self.add(made[0], sources, first, made)

    def _translate(  # noqa: PLR0911 - one return an operation
        self,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        out: Tensor,
        shape: tuple[int, ...],
    ) -> _Made | None:
        """Kind, settings and weights of an operation; None where there is none."""
        if name in CONVOLUTIONS:
            return _convolution(args)
        if name in {"addmm", "mm"} and not self.known(args[-1]) and self.known(args[-2]):
            bias = {"bias": args[0].expand(out.shape[1])} if name == "addmm" else {}
            return "linear", {}, {"weight": args[-1].t(), **bias}
        if name in _NORMS:
            return _batch_norm(name, args)
        if name.startswith("max_pool2d"):
            kernel, stride, padding, dilation = _window(args)
            settings = {"kernel": kernel, "stride": stride, "padding": padding}
            return "maxpool", {**settings, "dilation": dilation}, {}
        if name == "avg_pool2d":
            return _average_pool(args)
        if name == "_adaptive_avg_pool2d":
            return "adaptive", {}, {}
        if name == "constant_pad_nd":
            given = [*args[1], 0, 0, 0, 0][:4]
            value = float(args[2]) if len(args) > 2 else 0.0
            return ("pad", {"padding": given, "value": value}, {}) if len(args[1]) <= 4 else None
        if name == "cat":
            axis = (args[1] if len(args) > 1 else 0) % out.dim()
            return ("concat", {}, {}) if axis == 1 and all(map(self.known, args[0])) else None
        if name == "_softmax":
            return ("softmax", {}, {}) if args[1] % out.dim() == 1 else None
        if name in {"add", "sub", "mul", "div", "rsub"}:
            return self._arithmetic(name, args, kwargs, shape)
        return _unary(name, args)

    def _arithmetic(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], shape: tuple[int, ...]
    ) -> _Made | None:
        """Two values, or one with a number or a number a channel."""
        one, other = args[:2]
        if self.known(one) and self.known(other):
            same = one.shape == other.shape
            gated = one.shape[:2] == other.shape[:2] and 1 in {
                one[0, 0].numel(),
                other[0, 0].numel(),
            }
            if name == "add" and same and kwargs.get("alpha", 1) == 1:
                return "add", {}, {}
            return ("mul", {}, {}) if name == "mul" and (same or gated) else None
        vector = _per_channel(one if self.known(other) else other, shape)
        if vector is None or kwargs.get("alpha", 1) != 1:
            return None
        ones, zeros = torch.ones_like(vector), torch.zeros_like(vector)
        if name == "sub" and self.known(other):
            name = "rsub"
        if name == "div" and self.known(other):
            return None
        scale, shift = {
            "add": (ones, vector),
            "sub": (ones, -vector),
            "rsub": (-ones, vector),
            "mul": (vector, zeros),
            "div": (1 / vector.double(), zeros),
        }[name]
        return "affine", {}, {"scale": scale, "shift": shift}

    def _select(self, name: str, args: Sequence[Any], out: list[Tensor], source: int) -> None:
        """Channels of a value: slices, parts, or all the other way round."""
        shape = self.shapes[source]
        if name == "slice" and tuple(out[0].shape[1:]) == shape and out[0].shape[0] == 1:
            self._mark(out[0], source)
            return
        axis = args[1][0] if name == "flip" else args[1 if name == "slice" else 2 : 3]
        axis = axis if isinstance(axis, int) else (axis[0] if axis else 0)
        if axis % (len(shape) + 1) != 1 or (name == "flip" and len(args[1]) > 1):
            raise self._refused(f"the operation {name} over another axis than the channels")
        count, done = shape[0], 0
        for part in out:
            if name == "flip":
                channels = list(range(count))[::-1]
            elif name == "slice":
                _, _, start, stop, step = [*args, None, None, 1][:5] if len(args) < 5 else args
                channels = list(range(count))[slice(start, stop, step)]
            else:
                channels = list(range(done, done + part.shape[1]))
            done += part.shape[1]
            self.add("select", [source], part, ("select", {"channels": channels}, {}))

    def _refused(self, what: str) -> UserError:
        place = next((path for path in reversed(self.running) if path), "") or "the net itself"
        kind = ""
        if place != "the net itself":
            kind = f" ({type(self.model.net.get_submodule(place)).__name__})"
        return UserError(
            f"{self.model.name} cannot run in a page: {what} in {place}{kind} is none that the "
            "page has; explore a convolutional net (as AlexNet, VGG, ResNet, MobileNet), no "
            "transformer: its operations are convolution, linear, batch norm, LRN, pooling, "
            "activations, add, multiply and concat"
        )


class _Wholes(TorchFunctionMode):
    """Within it local response normalization is one operation, not the eight that it is made of."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.local_response_norm:
            return func(*args, **kwargs)
        names = ("input", "size", "alpha", "beta", "k")
        given: dict[str, Any] = {"alpha": 1e-4, "beta": 0.75, "k": 1.0}
        given |= dict(zip(names, args, strict=False)) | kwargs
        source = self.recorder.index(given.pop("input"))
        self.recorder.whole = True
        out = func(*args, **kwargs)
        self.recorder.whole = False
        self.recorder.add("lrn", [source], out, ("lrn", given, {}))
        return out


def _convolution(args: Sequence[Any]) -> _Made | None:
    _, weight, bias, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed or weight.dim() != 4:
        return None
    settings = {"stride": _two(stride), "padding": _two(padding), "dilation": _two(dilation)}
    biases = {} if bias is None else {"bias": bias}
    return "conv", {**settings, "groups": groups}, {"weight": weight, **biases}


def _batch_norm(name: str, args: Sequence[Any]) -> _Made | None:
    _, weight, bias, mean, var = args[:5]
    if mean is None or (name != "_native_batch_norm_legit_no_training" and args[5]):
        return None
    scale = (var.double() + args[-1]).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * scale
    return "affine", {}, {"scale": scale, "shift": shift}


def _average_pool(args: Sequence[Any]) -> _Made:
    kernel, stride, padding, _ = _window(args[:4])
    more: list[Any] = [*args[4:], *(False, True, None)[max(0, len(args) - 4) :]]
    ceil, padded, divisor = more
    settings = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": bool(ceil)}
    return "avgpool", {**settings, "padded": bool(padded), "divisor": divisor or 0}, {}


def _window(args: Sequence[Any]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, stride, padding and dilation of a pool."""
    _, kernel, stride, padding, dilation = (
        [*args, [], 0, 1][:5]
        if len(args) == 2
        else [
            *args[:5],
            *([], 0, 1)[len(args) - 2 :],
        ][:5]
    )
    return _two(kernel), _two(stride or kernel), _two(padding), _two(dilation)


def _two(values: Any) -> list[int]:
    listed = [values] if isinstance(values, int) else list(values)
    return [int(v) for v in (listed * 2 if len(listed) == 1 else listed)]


_ARGUMENTS: dict[str, tuple[str, Callable[[Sequence[Any]], list[float] | None]]] = {
    "hardtanh": ("clamp", lambda given: [*given, *(-1.0, 1.0)[len(given) :]]),
    "relu6": ("clamp", lambda given: [0.0, 6.0]),
    "clamp": (
        "clamp",
        lambda given: [
            -math.inf if not given or given[0] is None else given[0],
            math.inf if len(given) < 2 or given[1] is None else given[1],
        ],
    ),
    "clamp_min": ("clamp", lambda given: [given[0], math.inf]),
    "leaky_relu": ("leaky_relu", lambda given: list(given) or [0.01]),
    "elu": ("elu", lambda given: list(given[:1]) or [1.0] if set(given[1:]) <= {1} else None),
}
"""torch's name: the program's, and the numbers"""


def _unary(name: str, args: Sequence[Any]) -> _Made | None:
    kind, numbers = _ARGUMENTS.get(name, (name, lambda given: None if given else []))
    found = numbers(args[1:])
    if kind not in UNARY or found is None:
        return None
    return kind, {"numbers": [max(-3e38, min(3e38, float(v))) for v in found]}, {}


def _per_channel(value: Any, shape: tuple[int, ...]) -> Tensor | None:
    """(C,) of a number or a tensor that is the same at all positions; None for another."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    try:
        full = tensor.broadcast_to(1, *shape).reshape(shape[0], -1)
    except RuntimeError:
        return None
    return full[:, 0].clone() if bool((full == full[:, :1]).all()) else None


def _simplified(program: Program) -> Program:
    """Without operations that no layer needs; two scalings in a row are one."""
    operations = list(program.operations)
    named = {*program.layers.values(), program.logits}
    uses = Counter(i for one in operations for i in one.inputs)
    for i, one in enumerate(operations):
        source = one.inputs[0]
        before = operations[source - 1]
        alone = source and uses[source] == 1 and source not in named
        if one.kind == before.kind == "affine" and alone:
            scale, shift = (one.weights[name].double() for name in ("scale", "shift"))
            first, then = (before.weights[name].double() for name in ("scale", "shift"))
            weights = {"scale": (scale * first).float(), "shift": (scale * then + shift).float()}
            operations[i] = replace(one, inputs=before.inputs, weights=weights)
    needed = {i for i in named if i}
    for i in range(len(operations), 0, -1):
        if i in needed:
            needed |= {j for j in operations[i - 1].inputs if j}
    number = {0: 0} | {old: new for new, old in enumerate(sorted(needed), 1)}
    return Program(
        tuple(
            replace(operations[i - 1], inputs=tuple(number[j] for j in operations[i - 1].inputs))
            for i in sorted(needed)
        ),
        {layer: number[i] for layer, i in program.layers.items()},
        None if program.logits is None else number[program.logits],
    )


def _check(model: Model, program: Program) -> None:
    """Raise UserError unless the program gives what the model gives."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(2, *model.blank().shape[1:], generator=generator)
    names = [layer.name for layer in program.layers]
    with torch.no_grad():
        own = activations(model, pictures.to(model.mean), names)
    values = program.run(pictures)
    expected = [own[name].float().cpu().flatten(1) for name in names]
    found = [values[i].flatten(1) for i in program.layers.values()]
    difference = largest_difference(found, expected)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{model.name} cannot run in a page: followed on one picture its layers differ by "
            f"{difference:.1e} on others (operations that depend on the picture or on chance?); "
            "explore a net whose operations are always the same"
        )
