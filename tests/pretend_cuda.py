"""A pretended CUDA device: tensors stay in the host's memory and are marked as being on "cuda:0".

    with PretendedCuda() as card:
        featviz.maximize(featviz.load("alexnet-mini"), "conv5", units=[0])  # "auto" finds the card
    card.total("wait")

The mark is an attribute of the storage, so views, detached and saved tensors share it. Inside the
block `Tensor.device`, `.to`, `.cpu`, `.numpy` and their like follow the mark, and a dispatch mode
sees each operation of the forward and the backward pass. It raises `DeviceError` where devices are
mixed, as CUDA would, and counts by line of featviz:

- launch: operations that write results on the card
- upload: copies to the card from memory that is not pinned, or that block
- wait: the host waits for the card: copies back, `.item()`, `.tolist()`, masks as indices

Streams and CUDA graphs: `pretend_graphs`. It knows nothing of kernels' rounding, of the amount of
memory, or of other threads and processes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from pretend_graphs import Graph, Stream
from pretend_graphs import plain as _plain
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD, HOST = torch.device("cuda", 0), torch.device("cpu")
_PACKAGE = f"{Path(__file__).parents[1] / 'featviz'}/"
_TORCH = f"{Path(torch.__file__).parent}/"
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_MOVES = {"aten::_to_copy", "aten::copy_"}
_INDEXED = {"aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_",
            "aten::_index_put_impl_", "aten::_unsafe_index_put"}  # fmt: skip
_TAKE_SCALARS = {"aten::where", "aten::fill", "aten::fill_", "aten::masked_fill",
                 "aten::masked_fill_", "aten::index_fill", "aten::index_fill_", "aten::clamp",
                 "aten::clamp_"}  # fmt: skip
"""operations not marked as pointwise that accept a number on the host all the same"""
_WAITING = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select",
            "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
            "aten::_linalg_eigh", "aten::_linalg_svd", "aten::linalg_inv_ex",
            "aten::_linalg_solve_ex", "aten::linalg_cholesky_ex",
            "aten::repeat_interleave"}  # fmt: skip
"""operations whose CUDA kernels copy something to the host, or check it there"""
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)
_VIEWS = ("aten::empty", "aten::new_empty", "aten::detach", "aten::alias")


class DeviceError(RuntimeError):
    """What CUDA would refuse."""


def on_card(x: Tensor) -> bool:
    """Whether a tensor is marked as being on the card."""
    with _plain():
        return bool(getattr(_storage(x), "on_card", False))


def _put_on_card(x: Tensor, *, there: bool = True) -> Tensor:
    with _plain():
        if _host_device(x).type == "cpu":
            setattr(_storage(x), "on_card", there)  # noqa: B010
    return x


def _storage(x: Tensor) -> torch.UntypedStorage | None:
    if x.layout in _COMPRESSED:
        x = x.values()
    elif x.layout == torch.sparse_coo:
        x = x._values()
    try:
        return x.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None  # wrappers without memory


def _host_device(x: Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():
        found: torch.device = torch._C.TensorBase.device.__get__(x)
    return found


def _host_to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    with torch._C.DisableTorchFunction():
        return torch._C.TensorBase.to(x, *args, **kwargs)


class PretendedCuda:
    """The card; see the module. `counts` has (kind, line) -> how often."""

    def __init__(self, *, bfloat16: bool = True) -> None:
        self.bfloat16 = bfloat16
        self.counts: Counter[tuple[str, str]] = Counter()
        self.caller: FrameType | None = None
        """who called the torch function with arguments on the card that is running"""
        self.capture: Graph | None = None
        self.forbids_waits = False
        """torch's mode that refuses what waits"""
        self.streams: list[Stream] = []
        """all; the first is the default one"""
        Stream.card = self
        self.stream = Stream()
        self._stack = ExitStack()

    on_card = staticmethod(on_card)

    def total(self, kind: str, where: str = "") -> int:
        """How often something happened, in lines that contain `where`."""
        return sum(n for (k, line), n in self.counts.items() if k == kind and where in line)

    def count(self, kind: str) -> None:
        if kind != "launch" and self.capture is not None:
            self.refuse("operation not permitted when stream is capturing")
        if kind != "launch" and self.forbids_waits:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.counts[kind, _line()] += 1

    def refuse(self, text: str) -> None:
        if self.capture is not None:
            self.capture.broken = True
        raise DeviceError(f"{text} ({_line()})")

    def __enter__(self) -> PretendedCuda:
        for owner, name, value in self._patches():
            self._stack.enter_context(patch.object(owner, name, value, create=True))
        self._stack.enter_context(_Calls(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _patches(self) -> Iterator[tuple[Any, str, Any]]:
        def device(x: Tensor) -> torch.device:
            return CARD if on_card(x) else _host_device(x)

        def on_host(name: str) -> Callable[..., Any]:
            own = getattr(torch.Tensor, name)

            def method(x: Tensor, *args: Any, **kwargs: Any) -> Any:
                if on_card(x):
                    self.refuse(f"can't convert cuda:0 tensor by {name}; use Tensor.cpu()")
                with torch._C.DisableTorchFunction():
                    return own(x, *args, **kwargs)

            return method

        def tolist(x: Tensor) -> Any:
            if on_card(x):
                self.count("wait")
            with _plain():
                return torch._C.TensorBase.tolist(x.detach())

        def like(x: Tensor, data: Any, **kwargs: Any) -> Tensor:
            place = torch.device(kwargs.pop("device", None) or device(x))
            with _plain():
                made = torch._C.TensorBase.new_tensor(x, data, **kwargs)
            return self.move(made, place)

        def pinned(x: Tensor) -> Tensor:
            with _plain():
                copy = x.clone()
                setattr(_storage(copy), "pinned", True)  # noqa: B010
            return copy

        deep = torch.Tensor.__deepcopy__

        def deepcopy(x: Tensor, memo: Any) -> Any:
            copy = deep(x, memo)
            return _put_on_card(copy) if on_card(x) else copy

        begin = torch.autocast.__init__

        def autocast(me: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
            begin(me, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

        def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return self._to(x, *args, **kwargs)

        t = torch.Tensor
        yield t, "device", property(device)
        yield t, "is_cuda", property(on_card)
        yield t, "get_device", lambda x: 0 if on_card(x) else -1
        yield t, "to", to
        yield t, "cpu", lambda x, **kwargs: self.move(x, HOST, **kwargs)
        yield t, "cuda", lambda x, *args, **kwargs: self.move(x, CARD, **kwargs)
        yield from ((t, name, on_host(name)) for name in ("numpy", "__array__", "__dlpack__"))
        yield t, "tolist", tolist
        yield t, "new_tensor", like
        yield t, "pin_memory", pinned
        yield t, "__deepcopy__", deepcopy
        yield torch.autocast, "__init__", autocast
        cuda = torch.cuda
        yield from (
            (cuda, name, lambda *args, value=value, **kwargs: value)
            for name, value in {
                "is_available": True, "device_count": 1, "is_initialized": True,
                "current_device": 0, "get_device_name": "pretended", "_lazy_init": None,
                "get_device_capability": (9, 0), "is_bf16_supported": self.bfloat16,
                "empty_cache": None, "max_memory_allocated": 0, "reset_peak_memory_stats": None,
                "mem_get_info": (64 << 30, 80 << 30),
                "get_rng_state": torch.empty(0, dtype=torch.uint8), "set_rng_state": None,
                "manual_seed": None, "manual_seed_all": None,
            }.items()
        )  # fmt: skip
        yield cuda, "synchronize", self._synchronize
        yield from self._graphs()

    def _graphs(self) -> Iterator[tuple[Any, str, Any]]:
        def forbid_waits(mode: str | int) -> None:
            self.forbids_waits = mode in {2, "error"}

        def graph(*args: Any) -> Graph:
            return Graph(self)

        cuda = torch.cuda
        yield cuda, "Stream", Stream
        yield cuda, "stream", lambda one: one.current()
        yield cuda, "current_stream", lambda *args: self.stream
        yield cuda, "CUDAGraph", graph
        yield cuda, "get_sync_debug_mode", lambda: 2 * self.forbids_waits
        yield cuda, "set_sync_debug_mode", forbid_waits
        yield torch._C, "_host_emptyCache", lambda: None

    def _synchronize(self, *args: Any) -> None:
        self.count("wait")
        for one in self.streams:
            for other in self.streams:
                one.wait_stream(other)

    def _to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tensor.to in all its forms."""
        place, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        given = [*args, *([kwargs.pop("other")] if "other" in kwargs else [])]
        for value in given:
            if isinstance(value, Tensor):
                place, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)):
                place = value
        place = x.device if place is None else torch.device(place)
        return self.move(x, place, dtype=dtype, **kwargs)

    def move(self, x: Tensor, place: torch.device, **kwargs: Any) -> Tensor:
        """A tensor on a device: itself, or a copy through which gradients go back."""
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        waits = not (kwargs.pop("non_blocking", False) and self._is_pinned(x))
        if _host_device(x).type != "cpu":
            return _host_to(x, place, **kwargs)
        if (place.type == "cuda") == on_card(x):
            return _host_to(x, **kwargs) if kwargs else x
        if self.capture is not None:
            self.refuse("a copy between card and host within a capture")
        if place.type == "cpu":
            self.count("wait")
        elif waits:
            self.count("upload")
        return _Move.apply(x, place.type == "cuda", kwargs)  # type: ignore[no-any-return]

    @staticmethod
    def _is_pinned(x: Tensor) -> bool:
        with _plain():
            return bool(getattr(_storage(x), "pinned", False))


class _Move(torch.autograd.Function):
    """A copy to the other device; its gradient goes back to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: bool, kwargs: dict[str, Any]) -> Tensor:
        ctx.there, ctx.dtype = on_card(x), x.dtype
        with _plain():
            moved = _host_to(x.detach(), **{"dtype": x.dtype, **kwargs, "copy": True})
        return _put_on_card(moved, there=there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with _plain():
            moved = _host_to(gradients[0].detach(), ctx.dtype, copy=True)
        return _put_on_card(moved, there=ctx.there), None, None


class _Calls(TorchFunctionMode):
    """Notes who called a torch function with tensors on the card, for what C++ makes within it."""

    def __init__(self, card: PretendedCuda) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        card, kwargs = self.card, dict(kwargs or {})
        if func in _FROM_DATA and kwargs.get("device") is not None:
            place = torch.device(kwargs.pop("device"))
            return card.move(func(*args, **kwargs), place)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        named = kwargs.get("device") is not None
        if named or card.caller is not None or not any(on_card(x) for x in given):
            return func(*args, **kwargs)
        card.caller = sys._getframe(1)
        try:
            return func(*args, **kwargs)
        finally:
            card.caller = None


class _Operations(TorchDispatchMode):
    """Checks the devices of every operation, and marks and counts its results."""

    def __init__(self, card: PretendedCuda) -> None:
        super().__init__()
        self.card = card

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler at the first operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(on_card(x) for x in given)
        wanted = kwargs.get("device")
        made_on_card = wanted is not None and torch.device(wanted).type == "cuda"
        if made_on_card:
            kwargs["device"] = HOST
            self._check_generator(name, kwargs)
        elif wanted is not None and given and name.endswith("_like"):
            there = there and self._is_inside()  # C++ names the device that it sees
        elif not given:
            made_on_card = self._is_inside()
        if there and name not in _MOVES:
            there = self._check(func, name, args, kwargs, given)
        before = {id(_storage(x)) for x in given if x.layout == torch.strided}
        for x in given:
            if on_card(x):
                self.card.stream.read(_storage(x))
        out = func(*args, **kwargs)
        if name == "aten::copy_":
            self._count_copy(*given[:2])
        elif name == "aten::_to_copy" and made_on_card and not there:
            self.card.count("upload")
        if there or made_on_card:
            self._mark(func, name, out, before)
            if self.card.capture is not None:
                self.card.capture.add(func, args, kwargs, out)
        return out

    def _mark(self, func: Any, name: str, out: Any, before: set[int]) -> None:
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        fresh = [x for x in results if x.layout != torch.strided or id(_storage(x)) not in before]
        if name != "aten::copy_":
            for x in fresh:
                _put_on_card(x)
        for x in results if func._schema.is_mutable else fresh:
            self.card.stream.write(_storage(x))
        if (fresh or func._schema.is_mutable) and not name.startswith(_VIEWS):
            self.card.count("launch")
        if name in _WAITING:
            self.card.count("wait")

    def _count_copy(self, to: Tensor, source: Tensor) -> None:
        if on_card(to) and not on_card(source):
            self.card.count("upload")
        elif on_card(source) and not on_card(to):
            self.card.count("wait")

    def _is_inside(self) -> bool:
        """Whether C++ asked, within a torch function with tensors on the card."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
            frame = frame.f_back
        return frame is not None and frame is self.card.caller

    def _check_generator(self, name: str, kwargs: dict[str, Any]) -> None:
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            self.card.refuse(f"{name}: expected a cuda generator, found one of the cpu")

    def _check(
        self, func: Any, name: str, args: Any, kwargs: dict[str, Any], given: list[Tensor]
    ) -> bool:
        """Refuse mixed devices; whether the result is on the card."""
        if name in _INDEXED:
            return self._check_indices(name, args)
        if on_card(given[0]):
            self._check_generator(name, kwargs)
        strangers = [x for x in given if not on_card(x)]
        numbers = torch.Tag.pointwise in func.tags or name in _TAKE_SCALARS or "_foreach" in name
        written = [
            id(x)
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for x in tree_leaves(value)
        ]
        if any(x.dim() or not numbers or id(x) in written for x in strangers):
            shapes = ", ".join(f"{tuple(x.shape)} {x.device}" for x in given)
            self.card.refuse(f"{name}: expected all tensors on the same device, found {shapes}")
        return True

    def _check_indices(self, name: str, args: Any) -> bool:
        there = on_card(args[0])
        for index in (x for x in args[1] if isinstance(x, Tensor)):
            if on_card(index) and not there:
                self.card.refuse(f"{name}: indices on the card for a tensor on the host")
            if there and not on_card(index):
                self.card.count("upload")
            if there and index.dtype in (torch.bool, torch.uint8):
                self.card.count("wait")
        for value in (x for x in args[2:] if isinstance(x, Tensor)):
            if on_card(value) != there and (value.dim() or not there):
                self.card.refuse(f"{name}: a value on the other device")
        return there


def _line() -> str:
    """The line of featviz that is running, or else the first one outside torch."""
    frame: FrameType | None = sys._getframe(1)
    outer = "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"{name.removeprefix(_PACKAGE)}:{frame.f_lineno}"
        if outer == "?" and not name.startswith((_TORCH, __file__, "<")):
            outer = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return outer
