"""Strided convolutions of pictures, computed over blocks of pixels: the same sums, in less time.

With three input channels most lanes of a processor's vectors are empty, above all on the way back
to the picture. The s x s pixels of a block as channels (space to depth) make of a convolution with
stride s one with stride 1 and s^2 times as many channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_FEW = 4  # channels
_WORDS = {4: torch.int32, 8: torch.int64, 16: torch.complex128}
"""by its bytes, the type in which a row of a block is copied at once"""


class InBlocks(TorchFunctionMode):
    """Within the block, strided convolutions of few channels on the CPU are computed over blocks.

    Gradients flow to the input alone, so weights must not ask for any, nor change.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: dict[int, tuple[Tensor, Tensor]] = {}
        """by the id of a convolution's weights: these, which keeps the id, and those of blocks"""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and len(args) > 4 and _worthwhile(*args):
            return self._convolved(*args[:5])
        return func(*args, **(kwargs or {}))

    def _convolved(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        step = stride[0]
        low = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if low else x.dtype
        if id(weight) not in self.kernels:
            rows, columns = (-size % step for size in weight.shape[2:])
            wide = F.pixel_unshuffle(F.pad(weight.detach(), (0, columns, 0, rows)), step)
            kernel = wide.to(dtype, memory_format=torch.channels_last)
            self.kernels[id(weight)] = weight, kernel
        _, kernel = self.kernels[id(weight)]
        # As many blocks as the convolution meets; pixels that it leaves out have no block.
        places = [
            (side + 2 * margin - size) // step + blocks
            for side, margin, size, blocks in zip(
                x.shape[2:], padding, weight.shape[2:], kernel.shape[2:], strict=True
            )
        ]
        return torch.conv2d(_Blocks.apply(x, step, padding, places, dtype), kernel, bias)


def _worthwhile(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    plain = isinstance(stride, tuple) and isinstance(padding, tuple) and groups == 1
    if not plain or x.dim() != 4 or x.device.type != "cpu" or weight.requires_grad:
        return False
    width = 2 if torch.is_autocast_enabled("cpu") else x.element_size()
    return (
        x.shape[1] <= _FEW
        and x.requires_grad
        and 1 < stride[0] == stride[1] <= min(weight.shape[2:])
        and dilation in (1, (1, 1))
        and stride[0] * width in _WORDS
    )


class _Blocks(torch.autograd.Function):
    """Blocks of the padded pictures as pixels with more channels, channels-last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: int, margin: tuple[int, int], places: list[int], dtype: Any
    ) -> Tensor:
        ctx.shape, ctx.dtype, ctx.step, (rows, columns) = x.shape, x.dtype, step, places
        down, right = margin
        tall, wide = min(x.shape[2], rows * step - down), min(x.shape[3], columns * step - right)
        ctx.seen = slice(down, down + tall), slice(right, right + wide)
        room = x.new_zeros(*x.shape[:2], rows * step, columns * step, dtype=dtype)
        room[:, :, *ctx.seen] = x[:, :, :tall, :wide]
        words = room.view(_WORDS[step * room.element_size()]).unflatten(2, (rows, step))
        blocks = words.permute(0, 2, 4, 1, 3).contiguous()  # (N, rows, columns, C, step)
        pixels: Tensor = blocks.view(dtype).flatten(3).permute(0, 3, 1, 2)
        return pixels

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows = gradient.permute(0, 2, 3, 1).contiguous()  # (N, rows, columns, C step step)
        words = rows.view(_WORDS[ctx.step * rows.element_size()]).unflatten(3, (-1, ctx.step))
        room = words.permute(0, 3, 1, 4, 2).contiguous().flatten(2, 3).view(gradient.dtype)
        seen = room[:, :, *ctx.seen].to(ctx.dtype)
        if seen.shape != ctx.shape:
            missing = [a - b for a, b in zip(ctx.shape, seen.shape, strict=True)]
            seen = F.pad(seen, (0, missing[3], 0, missing[2]))
        return seen, None, None, None, None
