"""A net made linear while it runs: what is not linear passes everything.

Within `LinearNet` the gradient of a unit is what its weights alone make of those below it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

IDENTITIES = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "gelu", "silu"),
        *("hardswish", "hardtanh", "hardtanh_", "local_response_norm"),
    }
)
"""functions that pass everything in the linear net"""


class LinearNet(TorchFunctionMode):
    """Within it ReLUs and response normalization pass everything.

    A max pool takes the center of its window, or with `mean_pools` the mean.
    """

    def __init__(self, *, mean_pools: bool = False) -> None:
        super().__init__()
        self.mean_pools = mean_pools
        self.ignored: dict[str, None] = {}
        """what was passed over, in words"""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in IDENTITIES:
            normalizes = name == "local_response_norm"
            self.ignored["local response normalization" if normalizes else "ReLUs"] = None
            return args[0]
        if name in {"max_pool2d", "max_pool2d_with_indices"}:
            taken = "mean" if self.mean_pools else "center"
            self.ignored[f"the choice of max pools (their {taken} is taken)"] = None
            pool = _pool_means if self.mean_pools else _pool_centers
            return pool(*args, **kwargs)
        return func(*args, **kwargs)


def _pool_centers(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The value in the middle of each window of a max pool."""
    windows = (kernel_size, stride or kernel_size, padding, dilation)
    with torch.no_grad():
        shape = torch.max_pool2d(x.detach(), *windows, ceil_mode).shape
    axes = []
    for axis in (0, 1):
        kernel, step, pad, wide = (v if isinstance(v, int) else v[axis] for v in windows)
        centers = torch.arange(shape[2 + axis]) * step + wide * (kernel // 2) - pad
        axes.append(centers.clamp(0, x.shape[2 + axis] - 1).to(x.device))
    return x[..., axes[0][:, None], axes[1]]


def _pool_means(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The mean of each window of a max pool, of the values inside the map."""
    if dilation not in (1, (1, 1), [1, 1]):
        return _pool_centers(x, kernel_size, stride, padding, dilation, ceil_mode)
    return F.avg_pool2d(
        x, kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad=False
    )
