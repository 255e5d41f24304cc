"""`frozen(model)`: evaluation without side effects on the caller's model or on torch's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within the block: eval mode and no gradients to parameters; both are put back at the end."""
    modules = [module for module in net.modules() if module.training]
    parameters = [p for p in net.parameters() if p.requires_grad and p.is_leaf]
    try:
        for module in modules:
            module.training = False
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in modules:
            module.training = True
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def plain_float32() -> Iterator[None]:
    """Within the block: float32 arithmetic without TF32 and by fixed algorithms, on CUDA too.

    What a picture gives does not change from run to run then. All flags are put back at the end,
    whether they were set by torch's older or newer names. Both are set, since torch refuses to
    compute where they contradict each other.
    """
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    mkldnn: Any = torch.backends.mkldnn
    wanted: list[tuple[Any, str, object]] = [
        (cudnn, "enabled", True),
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        (cudnn, "allow_tf32", False),
        (cudnn.conv, "fp32_precision", "ieee"),
        (cudnn.rnn, "fp32_precision", "ieee"),
        (matmul, "fp32_precision", "ieee"),
        (mkldnn.matmul, "fp32_precision", "ieee"),
    ]
    before = [(place, name, _readable(partial(getattr, place, name))) for place, name, _ in wanted]
    products = _readable(torch.get_float32_matmul_precision)
    try:
        torch.set_float32_matmul_precision("highest")
        for place, name, value in wanted:
            setattr(place, name, value)
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for place, name, value in before:
            if value is not None:
                setattr(place, name, value)


def _readable(flag: Callable[[], T]) -> T | None:
    """A flag, or None where the older name cannot tell what the newer one was set to."""
    try:
        return flag()
    except RuntimeError:
        return None


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block: eval mode, no gradients to parameters, plain float32 arithmetic.

    Every module's mode, every parameter's `requires_grad`, the backends' flags and torch's global
    random state (CPU and the CUDA devices of the model) are put back at the end, also after an
    error.
    """
    net = model if isinstance(model, nn.Module) else nn.Identity()
    places = {tensor.device for tensor in (*net.parameters(), *net.buffers()) if tensor.is_cuda}
    devices = sorted(place.index or 0 for place in places)
    fork = torch.random.fork_rng(devices=devices)
    with fork, plain_float32(), torch.inference_mode(False), evaluating(net):
        yield
