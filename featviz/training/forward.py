"""Dropout that is a function of the picture, within any network.

torch draws dropout from one stream of random numbers, so that a picture's mask depends on its place
in the batch and on the thread or process that computes it. Here each picture of a batch has a key,
and its mask is a hash of the key: the same wherever the picture is computed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Odd numbers with mixed bits, as signed 32-bit numbers: Weyl's increment (the golden ratio), and
# the multipliers of MurmurHash3's finalizer.
_STEP, _FIRST, _SECOND = -1640531527, -2048144789, -1028477387


class PictureDropout(TorchFunctionMode):
    """Within the block, `F.dropout` (so `nn.Dropout`) draws each picture's mask from its key.

    keys: (B,) int32, one for each picture of the batch
    """

    def __init__(self, keys: Tensor) -> None:
        super().__init__()
        self.keys = keys
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        return self._dropout(*args, **(kwargs or {}))

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return x
        self.calls += 1
        kept = uniform_bits(self.keys + self.calls * _FIRST, x[:1].numel()) >= _threshold(p)
        return torch.where(kept.view(x.shape), x / (1 - p) if p < 1 else x, 0)


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
