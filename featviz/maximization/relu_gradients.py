"""ReLUs that redirect the gradient of a picture that they would block: `RedirectedReLUs`.

Where a picture leaves every unit of some ReLU silent, or the one that is maximized, the ordinary
gradient is zero and the optimization cannot begin. Within the block, the backward pass of a picture
whose gradient a ReLU would stop altogether is let through, as far as it pushes silent inputs up;
what would push them further down is not. Pictures with any gradient of their own keep exactly that.
Mordvintsev and others, Lucid 2018 (misc/redirected_relu_grad.py).

The net stays as it is: calls are caught on their way, so modules, functions and in-place versions
of ReLU and ReLU6 are all alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class RedirectedReLUs(TorchFunctionMode):
    """Within the block, ReLUs redirect the gradients of pictures that they would silence.

    blocked: (N,) bool, the pictures for which this is allowed, one a row of the batch
    redirected: (N,) bool, after the backward pass: for which it was done
    """

    def __init__(self, blocked: Tensor):
        super().__init__()
        self.blocked = blocked
        self.redirected = torch.zeros_like(blocked)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        asked = _READ.get(func)
        call = asked(*args, **kwargs) if asked is not None else None
        if call is None:
            return func(*args, **kwargs)
        x, top, inplace = call
        if x.dim() == 0 or len(x) != len(self.blocked):
            return func(*args, **kwargs)
        return _Redirected.apply(x, top, inplace, self)


class _Redirected(torch.autograd.Function):
    """min(max(x, 0), top), with the gradient of the block."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, top: float | None, inplace: bool, block: RedirectedReLUs
    ) -> Tensor:
        low = x <= 0
        high = x >= top if top is not None else torch.zeros((), dtype=torch.bool, device=x.device)
        ctx.save_for_backward(low, high)
        ctx.block = block
        if not inplace:
            return x.clamp(0, top)
        ctx.mark_dirty(x)
        return x.clamp_(0, top)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        low, high = ctx.saved_tensors
        block: RedirectedReLUs = ctx.block
        passed = gradient.masked_fill(low | high, 0)
        asked = gradient.flatten(1).any(1)
        silent = block.blocked & asked & ~passed.flatten(1).any(1)  # (N,)
        block.redirected |= silent
        up = (low & (gradient > 0)) | (high & (gradient < 0))
        row = silent.view(-1, *(1,) * (gradient.dim() - 1))
        return torch.where(row & up, gradient, passed), None, None, None


Call = tuple[Tensor, float | None, bool]
"""a ReLU's input, the value at which it is cut off, and whether it works in place"""


def _relu(input: Tensor, inplace: bool = False) -> Call:
    return input, None, inplace


def _relu_in_place(input: Tensor) -> Call:
    return input, None, True


def _relu6(input: Tensor, inplace: bool = False) -> Call:
    return input, 6.0, inplace


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Call | None:
    return (input, max_val, inplace) if min_val == 0 else None


_READ: dict[Any, Callable[..., Call | None]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_in_place,
    Tensor.relu_: _relu_in_place,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
}
