"""A batch that is shared by processes, as if one had it: dropout and batch normalization.

torch draws dropout from one stream of random numbers, so that a picture's mask depends on its place
in the batch and on the thread or process that computes it. Here each picture of a batch has a key,
and its mask is a hash of the key: the same wherever the picture is computed. Batch normalization
takes mean and variance of the whole batch, of all processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Odd numbers with mixed bits, as signed 32-bit numbers: Weyl's increment (the golden ratio), and
# the multipliers of MurmurHash3's finalizer.
_STEP, _FIRST, _SECOND = -1640531527, -2048144789, -1028477387


class SharedBatch(TorchFunctionMode):
    """Within the block, `F.dropout` and `F.batch_norm` (so torch's modules) are of a shared batch.

    keys: (B,) int32, one for each picture of this process
    total: the sum of a tensor over all processes; None: there is one
    """

    def __init__(self, keys: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.keys = keys
        self.total = total
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.batch_norm and self.total is not None and kwargs.get("training"):
            return _batch_norm(self.total, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return x
        self.calls += 1
        kept = uniform_bits(self.keys + self.calls * _FIRST, x[:1].numel()) >= _threshold(p)
        return torch.where(kept.view(x.shape), x / (1 - p) if p < 1 else x, 0)


def _batch_norm(
    total: Callable[[Tensor], Tensor],
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """`F.batch_norm` in training, with mean and variance over the pictures of all processes."""
    over = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    wide = x.float()
    sums = total(torch.cat([wide.sum(over), wide.new_full((1,), x.numel() // x.shape[1])]))
    mean, count = sums[:-1] / sums[-1], sums[-1]
    centered = wide - mean.view(shape)
    variance = total(centered.square().sum(over)) / count
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    y = centered * scale.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(x.dtype)


def _threshold(p: float) -> int:
    """The number that so large a share of all 32-bit numbers is below."""
    return min(round((p - 0.5) * 2**32), 2**31 - 1)


def uniform_bits(keys: Tensor, count: int) -> Tensor:
    """(B, count) int32, evenly spread over all 32-bit numbers: a hash of key and place.

    Args:
        keys: (B,) int32.
        count: Numbers for each key.
    """
    places = torch.arange(count, dtype=torch.int32, device=keys.device).mul_(_STEP)
    x = _mixed(keys)[:, None] + places
    return _mixed(x)


def _mixed(x: Tensor) -> Tensor:
    """MurmurHash3's finalizer; products overflow, as they should."""
    x = (x ^ ((x >> 16) & 0xFFFF)).mul_(_FIRST)
    x ^= (x >> 13).bitwise_and_(0x7FFFF)
    x.mul_(_SECOND)
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x
