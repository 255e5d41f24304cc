"""`frozen(model)`: a model that only answers, and is afterwards exactly what it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen(model: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block: eval mode, no gradients to parameters, plain float32 arithmetic.

    Every module's mode, every parameter's `requires_grad`, the backends' flags and torch's global
    random state (CPU and the current CUDA device) are put back at the end, also after an error.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    wanted = [parameter.requires_grad for parameter in parameters]
    # A fixed algorithm, and no TF32: what a picture gives does not change from run to run.
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), flags, torch.inference_mode(False):
        try:
            for module in modules:
                module.training = False
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for parameter, want in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(want)
