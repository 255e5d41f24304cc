"""`frozen(model)`: evaluation without side effects on the caller's model or on torch's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block: eval mode, no gradients to parameters, plain float32 arithmetic.

    Every module's mode, every parameter's `requires_grad`, the backends' flags and torch's global
    random state (CPU and the current CUDA device) are put back at the end, also after an error.
    """
    # A fixed algorithm, and no TF32: what a picture gives does not change from run to run.
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    net = model if isinstance(model, nn.Module) else nn.Identity()
    fork = torch.random.fork_rng(devices=devices)
    with fork, flags, torch.inference_mode(False), evaluating(net):
        yield
