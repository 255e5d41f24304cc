"""Lack of memory: told from other errors, and what helps."""

from __future__ import annotations

import errno
import re
from collections.abc import Collection

# As PyTorch, NumPy, the C++ library and CUDA's cuBLAS, cuDNN and cuFFT put it.
_TEXTS = re.compile(
    r"not enough memory|out of memory|can(no|')t allocate memory|unable to allocate|bad_alloc|"
    r"storage size calculation overflowed|invalid buffer size|exceeds.* maximum .*buffer size|"
    r"(cublas_status|cudnn_status|cufft|cusolver_status|cusparse_status)_alloc_failed|"
    r"alloc_failed|array is too big|maximum allowed dimension exceeded|failed to allocate|"
    r"unable to find an engine to execute",
    re.IGNORECASE,
)
_OPTIONS = {"batch_size": "a smaller batch_size (--batch-size)", "size": "a smaller size (--size)"}


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ValueError) and bool(_TEXTS.search(str(error)))


def shortage(error: BaseException, options: Collection[str]) -> str:
    """A line for the user: how much was asked for, and which of the options named helps."""
    asked = re.search(r"(\d{6,}) bytes|([\d.]+ [KMGT]i?B)", str(error))
    much = ""
    if asked is not None:
        much = f" ({asked[2] or f'{int(asked[1]) / 2**30:,.1f} GiB'} more at once)"
    helps = [text for name, text in _OPTIONS.items() if name in options]
    remedy = " or ".join(helps) or "fewer or smaller pictures"
    return f"not enough memory{much}; give {remedy}"
