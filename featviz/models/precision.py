"""Arithmetic in bf16 where a processor is fast in it.

bf16 keeps 8 bits of a number. That is enough to find a direction to go, not to tell a picture from
one that differs by half a level of 255: the first layer, which sees the picture, stays in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

WORTHWHILE = 100_000
"""weights that a model has at least for bf16 to make up for what the casts cost"""


def cpu_computes_bf16() -> bool:
    """Whether the CPU has instructions for bf16, so that it is faster than fp32."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())


def gains_by_bf16(model: Callable[[Tensor], Tensor], pictures: Tensor) -> bool:
    """Whether the model can be run in bf16 (every operation exists) where that is faster.

    A model of fewer than `WORTHWHILE` weights gains nothing.

    pictures: (N, 3, H, W); the first is passed through, forward and backward.
    """
    if pictures.device.type != "cpu" or not isinstance(model, nn.Module):
        return False
    if pictures.dtype != torch.float32 or not cpu_computes_bf16() or not len(pictures):
        return False
    if sum(p.numel() for p in model.parameters()) < WORTHWHILE:
        return False
    leaf = pictures[:1].detach().clone().requires_grad_(True)
    try:
        with lowered(model, pictures) as fast, torch.enable_grad():
            answer = fast(leaf)
            if not answer.requires_grad:  # it cuts the graph itself, in any precision
                return False
            torch.autograd.grad(answer.sum(), leaf)
    except (NotImplementedError, RuntimeError) as error:
        if "not implemented" in str(error) or "dtype" in str(error):
            return False
        raise
    return True


@contextmanager
def lowered(
    model: Callable[[Tensor], Tensor], pictures: Tensor
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, the model as a function that computes in bf16 and gives float32 logits.

    Its convolutions and fully connected layers have their weights cast once; the first of them
    stays in float32. Pictures go in with their channels last, which is the order that bf16
    convolutions compute in. The model itself is not changed.

    pictures: (N, 3, H, W); the first is passed through to see which layer meets it first.
    """
    if not isinstance(model, nn.Module):

        def plain(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                return model(x).float()

        yield plain
        return
    mode = _FirstInFloat32()
    with torch.no_grad(), mode:
        model(pictures[:1])
    cast: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight is not mode.first:
            for own, value in module.named_parameters(recurse=False):
                cast[f"{name}.{own}" if name else own] = value.detach().bfloat16()

    def fast(x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False), mode:
            return functional_call(model, cast, (x,)).float()  # type: ignore[no-any-return]

    yield fast


class _FirstInFloat32(TorchFunctionMode):
    """The convolution or fully connected layer that is called first computes in float32."""

    first: Tensor | None = None
    """its weight"""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS and len(args) > 1:
            if self.first is None:
                self.first = args[1]
            if args[1] is self.first:
                with torch.autocast(args[0].device.type, enabled=False):
                    return func(*args, **kwargs)
        return func(*args, **kwargs)


_LAYERS = (F.conv2d, F.linear, torch.conv2d)
