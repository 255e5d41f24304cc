"""Computing in bfloat16 where a processor is fast in it.

bfloat16 keeps 8 bits of a number. That suffices for the direction of a gradient, but not to tell a
picture from one that differs by half a level of 255: the first layer, which reads the picture,
computes in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featviz.errors import UserError
from featviz.types import AutoPrecision, Precision

WORTHWHILE = 100_000
"""parameters that a model has at least for bfloat16 to save more than its casts cost"""


def choose_precision(precision: AutoPrecision | str, faster: Callable[[], bool]) -> Precision:
    """The precision itself; for "auto" bfloat16 where `faster()`, else float32.

    Raises:
        UserError: for another word.
    """
    if precision not in get_args(AutoPrecision):
        raise UserError(f"unknown precision {precision!r}; take auto, float32 or bfloat16")
    lower = faster() if precision == "auto" else precision == "bfloat16"
    return "bfloat16" if lower else "float32"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def exists_in_bfloat16(attempt: Callable[[], object]) -> bool:
    """Whether `attempt()` meets no operation that is not implemented in bfloat16."""
    try:
        attempt()
    except (NotImplementedError, RuntimeError) as error:
        if "not implemented" in str(error) or "dtype" in str(error):
            return False
        raise
    return True


def gains_by_bfloat16(model: Callable[[Tensor], Tensor], pictures: Tensor) -> bool:
    """Whether a model can compute in bfloat16 (every operation exists) and is faster so.

    Where the processor has instructions for it, and for models of at least `WORTHWHILE` parameters.

    Args:
        model: pictures to logits.
        pictures: (N, 3, H, W); one forward and backward pass is tried with the first.
    """
    if pictures.device.type not in ("cpu", "cuda") or not isinstance(model, nn.Module):
        return False
    if pictures.dtype != torch.float32 or not has_bfloat16(pictures.device) or not len(pictures):
        return False
    if sum(p.numel() for p in model.parameters()) < WORTHWHILE:
        return False
    if model in _TRIED:
        return _TRIED[model]
    leaf = pictures[:1].detach().clone().requires_grad_(True)
    differentiable = True

    def attempt() -> None:
        nonlocal differentiable
        with in_bfloat16(model) as fast, torch.enable_grad():
            logits = fast(leaf)
            differentiable = logits.requires_grad  # a model may cut the graph in any precision
            if differentiable:
                torch.autograd.grad(logits.sum(), leaf)

    _TRIED[model] = exists_in_bfloat16(attempt) and differentiable
    return _TRIED[model]


_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""what an attempt has shown; the weights do not matter"""


@contextmanager
def in_bfloat16(
    model: Callable[[Tensor], Tensor], *, whole: bool = False
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, the model as a function that computes in bfloat16, with float32 logits.

    The weights of its convolutions and fully connected layers are cast once; the first of them
    stays in float32, and pictures are passed channels-last, the memory format of bfloat16
    convolutions. The model itself is not changed.

    Args:
        model: pictures to logits.
        whole: also the layer that reads the picture, in the memory format of the pictures: faster,
            for gradients that only need to point in the right direction.
    """
    if not isinstance(model, nn.Module):

        def plain(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                return model(x).float()

        yield plain
        return
    mode = _Cast(whole)

    def fast(x: Tensor) -> Tensor:
        x = x if whole else x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False), mode:
            return model(x).float()  # type: ignore[no-any-return]

    yield fast


@contextmanager
def in_precision(
    model: Callable[[Tensor], Tensor], precision: Precision
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, the model in a precision: itself, or as `in_bfloat16` gives it."""
    if precision == "float32":
        yield model
        return
    with in_bfloat16(model) as fast:
        yield fast


class _Cast(TorchFunctionMode):
    """Weights are cast when they are first used; the first layer of all computes in float32."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.first: Tensor | None = None
        """the weight of the layer that is called first"""
        self.cast: dict[Tensor, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS or len(args) < 2:
            return func(*args, **kwargs)
        x, weight, *rest = args
        if self.first is None:
            self.first = weight
        if weight is self.first and not self.whole:
            with torch.autocast(x.device.type, enabled=False):
                return func(*args, **kwargs)
        if isinstance(weight, nn.Parameter):  # what is computed anew in each pass is not kept
            if weight not in self.cast:
                self.cast[weight] = _in_bfloat16(weight)
            weight = self.cast[weight]
        return func(x, weight, *rest, **kwargs)


def _in_bfloat16(weight: Tensor) -> Tensor:
    layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
    with torch.inference_mode(False):  # what is kept must serve autograd later
        return weight.detach().to(torch.bfloat16, memory_format=layout)


_LAYERS = (F.conv2d, F.linear, torch.conv2d)
