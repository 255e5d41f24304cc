"""Attribution methods for one picture (1, 3, H, W), and the deletion check.

    saliency               |gradient| of the logit, the largest of the three channels
                           (Simonyan et al. 2013, arXiv:1312.6034)
    integrated_gradients   gradient averaged on the way from a baseline to the picture, times the
                           difference (Sundararajan et al. 2017, arXiv:1703.01365). Its sum must be
                           logit(picture) - logit(baseline); by how much it is not is reported
    grad_cam               maps of a layer weighted by their mean gradients, summed, ReLU'd
                           (Selvaraju et al. 2017), enlarged to the picture: `grad_cam.py`
    occlusion              by how much the logit falls when a square is covered (Zeiler & Fergus
                           2013, arXiv:1311.2901), averaged over the squares that cover a pixel

Maps are in units of the logit (saliency: logit per unit of pixel value).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from featviz.models.model import Model

_CELLS = 14  # the deletion check works on a grid of so many cells a side
_DELETED = 0.2  # of the cells
_DRAWS = 8  # random positions of the same area


class Method(NamedTuple):
    """How a method is called, and how its maps are read."""

    title: str
    unit: str
    signed: bool


METHODS = {
    "saliency": Method("saliency", "logit per pixel value", signed=False),
    "integrated_gradients": Method("integrated gradients", "logit", signed=True),
    "grad_cam": Method("Grad-CAM", "logit, arbitrary scale", signed=False),
    "occlusion": Method("occlusion", "logit", signed=True),
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Attributions:
    """The maps of each picture, and checks of them."""

    model_name: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    pictures: Tensor
    """(N, 3, H, W)"""
    targets: tuple[int, ...]
    """(N,): the explained class"""
    probabilities: Tensor
    """(N, classes)"""
    maps: Mapping[str, Tensor]
    """method -> (N, H, W)"""
    layer: str | None
    """of Grad-CAM"""
    baseline: str
    completeness: Tensor | None
    """(N,) |sum of the map - (logit(picture) - logit(baseline))| / |that difference|"""
    completeness_logits: Tensor | None
    """(N,) the same error in logits, signed"""
    deletion: Mapping[str, Tensor]
    """method -> (N,) probability of the target with the map's highest fifth deleted"""
    deletion_random: Mapping[str, Tensor]
    """method -> (N,) the same with that area moved to random positions, mean"""

    @property
    def target_probabilities(self) -> Tensor:
        """(N,): of the explained class."""
        return self.probabilities[torch.arange(len(self.names)), torch.tensor(self.targets)]


def saliency(model: Model, x: Tensor, target: int) -> Tensor:
    """(H, W): the largest absolute gradient of the three channels."""
    from captum.attr import Saliency

    gradient = Saliency(model).attribute(x.clone().requires_grad_(True), target=target, abs=True)
    values: Tensor = gradient[0].amax(0)
    return values


def integrated_gradients(
    model: Model, x: Tensor, target: int, baseline: Tensor, steps: int, batch_size: int
) -> Tensor:
    """(H, W): its sum must be the logit's difference from the baseline to the picture."""
    from captum.attr import IntegratedGradients

    parts = IntegratedGradients(model).attribute(
        x.clone().requires_grad_(True),
        baselines=baseline.contiguous(),
        target=target,
        n_steps=steps,
        internal_batch_size=min(batch_size, steps),
    )
    values: Tensor = parts[0].sum(0)
    return values


def occlusion(
    model: Model, x: Tensor, target: int, cover: Tensor, window: int, stride: int, batch_size: int
) -> Tensor:
    """(H, W): the effect of covering squares of `window` pixels, `stride` pixels apart."""
    from captum.attr import Occlusion

    with torch.no_grad():
        effects = Occlusion(model).attribute(
            x,
            sliding_window_shapes=(x.shape[1], window, window),
            strides=(x.shape[1], stride, stride),
            baselines=cover.contiguous(),
            target=target,
            perturbations_per_eval=batch_size,
        )
    # captum gives each channel the whole effect of the square that covers all three.
    values: Tensor = effects[0].mean(0)
    return values


def deletion(
    model: Model,
    x: Tensor,
    target: int,
    cover: Tensor,
    values: Tensor,
    *,
    seed: int,
    batch_size: int,
) -> tuple[float, float]:
    """Probability of the target without the map's highest cells, and with them moved at random.

    The moved areas (shifted around the edges, mirrored) have the same size and the same pieces:
    many small holes change a prediction more than one large hole, wherever they are.
    """
    cells = min(_CELLS, x.shape[-1])
    coarse = F.adaptive_avg_pool2d(values[None, None], cells).flatten()
    highest = coarse.argsort(descending=True, stable=True)[: round(_DELETED * cells * cells)]
    mask = torch.zeros(cells * cells).index_fill_(0, highest, 1.0).view(cells, cells)
    masks = [mask]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_DRAWS):
        down, right = torch.randint(cells, (2,), generator=generator).tolist()
        mirrored = mask.flip(1) if torch.rand((), generator=generator) < 0.5 else mask
        masks.append(mirrored.roll((down, right), (0, 1)))
    deleted = F.interpolate(torch.stack(masks)[:, None], x.shape[-2:], mode="nearest").to(x.device)
    pictures = torch.where(deleted > 0, cover, x)
    with torch.no_grad():
        logits = torch.cat([model(part) for part in pictures.split(batch_size)])
    own, *moved = logits.softmax(1)[:, target].tolist()
    return own, sum(moved) / _DRAWS
