"""Optimizers: Adam and NAdam of torch with a falling rate, and the ascent of Yosinski et al.

`Settings.optimizer` is a small frozen dataclass; `build(parameters, lr, steps)` makes the
`torch.optim.Optimizer` and its schedule for one batch. Optimizers here work elementwise or picture
by picture: no sum runs over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler


class Optimizer(Protocol):
    """What the loop needs of an optimizer."""

    @property
    def shaped(self) -> bool:
        """Whether it takes the normalized gradient less its penalties (`regularizers`)."""

    def build(
        self, parameters: Tensor, lr: float, steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimizer of a batch of parameters (N, ...), which maximizes, and its schedule."""


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015); the rate falls along half a cosine.

    betas: share of the mean of gradients, and of the mean of their squares, kept at each step. The
        first is short, since the gradient of a transformed picture turns from step to step
    final_lr: rate at the end, as a share of that of the first step; 1 keeps it constant
    nesterov: NAdam (Dozat 2016) as in torch
    shaped: whether the gradient is normalized and the penalties are subtracted
    """

    betas: tuple[float, float] = (0.5, 0.99)
    final_lr: float = 0.1
    nesterov: bool = False
    shaped: bool = True

    def build(
        self, parameters: Tensor, lr: float, steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        # One kernel on CUDA. On the CPU its rounding depends on a parameter's place in the batch.
        one = partial(torch.optim.Adam, fused=parameters.is_cuda)
        kind = torch.optim.NAdam if self.nesterov else one
        optimizer = kind([parameters], lr=lr, betas=self.betas, eps=1e-12, maximize=True)
        return optimizer, CosineAnnealingLR(optimizer, steps, eta_min=self.final_lr * lr)


@dataclass(frozen=True)
class PlainAscent:
    """Steps along the bare gradient with decay, blur and clipping, for parameters that are pixels.

    Yosinski et al. 2015, section 4 and table 1; the order of the operations, and that the last step
    is followed by none of them, are those of their program (deep-visualization-toolbox). Pixels
    stay in [0, 1]; `lr` is step over gradient, both in units of 1/255.

    desired: in place of a constant rate, the rise of the score to aim at in each step: the rate is
        `desired` over the gradient's squared length, at most `lr`
    decay: share by which a picture is drawn back to `mean` in each step
    blur: sigma in pixels of a Gaussian blur after every `blur_every` steps; 0 for none
    norm_percentile: pixels whose distance from the mean is below this percentile of the picture
        are set to the mean
    contribution_percentile: so are pixels whose contribution to the score, the gradient times the
        pixel's distance from the mean, is (in absolute value) below this percentile
    mean: the color, in [0, 1], that counts as nothing
    """

    desired: float | None = None
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 1
    norm_percentile: float = 0.0
    contribution_percentile: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    shaped: bool = False

    def build(
        self, parameters: Tensor, lr: float, steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = _PlainAscent(self, parameters, lr, steps)
        return optimizer, ConstantLR(optimizer, factor=1.0)


class _PlainAscent(torch.optim.Optimizer):
    def __init__(self, options: PlainAscent, parameters: Tensor, lr: float, steps: int):
        super().__init__([parameters], {"lr": lr})
        self.options, self.steps, self.taken = options, steps, 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        (group,), options = self.param_groups, self.options
        (pixels,) = group["params"]  # (N, 3, H, W)
        gradient, mean = pixels.grad, pixels.new_tensor(options.mean).view(1, 3, 1, 1)
        lr = pixels.new_full((len(pixels), 1, 1, 1), group["lr"])
        if options.desired is not None:  # in units of 1/255 the gradient is 255 times smaller
            length = (gradient / 255).square().sum((1, 2, 3), keepdim=True)
            lr = torch.minimum(lr, options.desired / length.clamp(min=1e-30))
        x = pixels + lr * gradient / 255**2 - mean
        if self.taken + 1 < self.steps:
            x = x * (1 - options.decay)
            if options.blur and self.taken % options.blur_every == 0:
                x = gaussian_blur(x, options.blur)
            if options.norm_percentile:
                x = _without_low(x, x.norm(dim=1), options.norm_percentile)
            if options.contribution_percentile:
                contribution = (x * gradient).sum(1).abs()
                x = _without_low(x, contribution, options.contribution_percentile)
        pixels.copy_((x + mean).clamp(0, 1))
        self.taken += 1


@torch.no_grad()
def step_where(free: Tensor, parameters: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimizer, of which only the `free` parameters are changed."""
    if free.device.type == "cpu" and bool(free.all()):  # on CUDA asking costs more than masking
        optimizer.step()
        return
    before = parameters.clone()
    optimizer.step()
    parameters.copy_(torch.where(free, parameters, before))


def gaussian_blur(pictures: Tensor, sigma: float) -> Tensor:
    """Pictures (N, C, H, W) under a Gaussian of `sigma` pixels, edges repeated."""
    reach = max(1, math.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=pictures.dtype, device=pictures.device)
    weights = (-0.5 * (at / sigma) ** 2).exp()
    kernel = (weights / weights.sum()).expand(pictures.shape[1], 1, 1, -1)
    wide = F.pad(pictures, (reach,) * 4, mode="replicate")
    rows = F.conv2d(wide, kernel, groups=pictures.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=pictures.shape[1])


def _without_low(pictures: Tensor, values: Tensor, percentile: float) -> Tensor:
    """Pictures with zeros where `values` (N, H, W) are under their picture's percentile."""
    least = torch.quantile(values.flatten(1), percentile / 100, dim=1)
    return pictures * (values >= least.view(-1, 1, 1))[:, None]
