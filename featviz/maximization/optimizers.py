"""How free parameters are changed by a gradient: Adam, and the plain ascent of Yosinski et al.

A rule is a small frozen dataclass:

    steered                  whether it wants the gradient evened and restrained (see `ascent`), or
                             the bare gradient of the score
    begin(parameters)        what it remembers of each picture, by name, (N, ...) each
    change(parameters, slope, memory, taken, steps)
                             what to add to the parameters (N, ...). `slope` is their gradient,
                             upwards; `memory` is brought up to date in place; `taken` (N,) says how
                             many of the `steps` each picture has behind it

Every picture is changed on its own: no sum runs over the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.maximization.colours import pieces


class Rule(Protocol):
    """What `ascend` needs of a rule."""

    @property
    def steered(self) -> bool: ...

    def begin(self, parameters: Tensor) -> dict[str, Tensor]: ...

    def change(
        self,
        parameters: Tensor,
        slope: Tensor,
        memory: dict[str, Tensor],
        taken: Tensor,
        steps: int,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015), upwards, its rate falling along half a cosine to a tenth.

    rate: of the first step, in the units of the parameters
    short, long: how much of the mean of the gradients, and of their squares, is kept at each step.
        The mean is short, as the gradient of a moved picture turns from step to step.
    least: share of the rate that is left at the end; 1 keeps it constant
    nesterov: look a step ahead, as NAdam does (Dozat 2016), without its schedule of `short`
    """

    rate: float = 0.1
    short: float = 0.5
    long: float = 0.99
    steered: bool = True
    least: float = 0.1
    nesterov: bool = False

    def begin(self, parameters: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros_like(parameters), "square": torch.zeros_like(parameters)}

    def change(
        self,
        parameters: Tensor,
        slope: Tensor,
        memory: dict[str, Tensor],
        taken: Tensor,
        steps: int,
    ) -> Tensor:
        step = taken.double()
        fall = self.least + (1 - self.least) / 2 * (1 + torch.cos(math.pi * step / steps))
        # What Adam divides the squares by is put into the rate, so that it costs one number.
        spread = (1 - self.long ** (step + 1)).sqrt()
        rate = self.rate * fall * spread / (1 - self.short ** (step + 1))
        change = torch.empty_like(parameters)
        for out, g, mean, square, r in zip(
            pieces(change),
            pieces(slope),
            pieces(memory["mean"]),
            pieces(memory["square"]),
            pieces(_over(rate, parameters)),
            strict=True,
        ):
            mean.lerp_(g, 1 - self.short)
            square.mul_(self.long).addcmul_(g, g, value=1 - self.long)
            root = torch.sqrt(square, out=out).add_(1e-12)
            ahead = mean.lerp(g, 1 - self.short) if self.nesterov else mean
            torch.div(ahead, root, out=out).mul_(r)
        return change


@dataclass(frozen=True)
class PlainAscent:
    """Steps along the bare gradient with decay, blur and clipping, for parameters that are pixels.

    rate: step over gradient, both in units of 1/255 (Caffe's pixels)
    desired: instead of the constant rate, aim at this rise of the score at each step: the rate is
        `desired` over the gradient's squared length, at most `rate`
    decay: share by which a picture is drawn back to `mean` at each step
    blur: sigma in pixels of a Gaussian blur after every `blur_every` steps; 0 for none
    norm_percentile: pixels whose distance from the mean is below this percentile of the picture
        are set to the mean
    contribution_percentile: so are pixels whose contribution to the score, the gradient times the
        pixel's distance from the mean, is (in absolute value) below this percentile
    mean: the colour, in [0, 1], that counts as nothing

    Yosinski et al. 2015, section 4 and table 1; the order of the operations, and that the last step
    is not followed by any of them, are those of their program. Pixels are held in [0, 1].
    """

    rate: float = 100.0
    desired: float | None = None
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 1
    norm_percentile: float = 0.0
    contribution_percentile: float = 0.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    steered: bool = False

    def begin(self, parameters: Tensor) -> dict[str, Tensor]:
        return {}

    def change(
        self,
        parameters: Tensor,
        slope: Tensor,
        memory: dict[str, Tensor],
        taken: Tensor,
        steps: int,
    ) -> Tensor:
        grey = parameters.new_tensor(self.mean).view(1, 3, 1, 1)
        rate = parameters.new_full((len(parameters), 1, 1, 1), self.rate)
        if self.desired is not None:
            # In 1/255 the gradient is 255 times smaller.
            length = torch.stack([(g / 255).square().sum() for g in slope]).view(-1, 1, 1, 1)
            rate = torch.minimum(rate, self.desired / length.clamp(min=1e-30))
        x = parameters + rate * slope / 255**2
        last = (taken + 1 >= steps).to(x.device).view(-1, 1, 1, 1)
        regular = (x - grey) * (1 - self.decay)
        if self.blur:
            due = (taken % self.blur_every == 0).to(x.device).view(-1, 1, 1, 1)
            regular = torch.where(due, gaussian_blur(regular, self.blur), regular)
        if self.norm_percentile:
            regular = _without_low(regular, regular.norm(dim=1), self.norm_percentile)
        if self.contribution_percentile:
            contribution = (regular * slope).sum(1).abs()
            regular = _without_low(regular, contribution, self.contribution_percentile)
        x = torch.where(last, x, grey + regular).clamp(0, 1)
        return x - parameters


def gaussian_blur(pictures: Tensor, sigma: float) -> Tensor:
    """Pictures (N, C, H, W) under a Gaussian of `sigma` pixels, edges repeated."""
    reach = max(1, math.ceil(3 * sigma))
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    total = sum(weights)
    # Summed tap by tap: a convolution would round by the number of pictures.
    for axis in (-1, -2):
        margin = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        wide, size = F.pad(pictures, margin, mode="replicate"), pictures.shape[axis]
        pictures = torch.zeros_like(pictures)
        for i, weight in enumerate(weights):
            pictures = pictures.add_(wide.narrow(axis, i, size), alpha=weight / total)
    return pictures


def _without_low(pictures: Tensor, values: Tensor, percentile: float) -> Tensor:
    """Pictures with zeros where `values` (N, H, W) are under their picture's percentile."""
    least = torch.quantile(values.flatten(1), percentile / 100, dim=1)
    return pictures * (values >= least.view(-1, 1, 1))[:, None]


def _over(values: Tensor, like: Tensor) -> Tensor:
    """(N,) as float32 on the device of `like`, to be multiplied with its rows."""
    return values.to(like.device, like.dtype).view(-1, *(1,) * (like.dim() - 1))
