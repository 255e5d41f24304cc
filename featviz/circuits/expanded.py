"""`expanded_weights`: the weights of a unit on an earlier layer, through the layers between.

They are the derivative of the unit in the middle of its map by the earlier layer. Where only
convolutions, sums, average pools and batch normalization lie between, it is the composition of
their weights, exactly. ReLUs, max pools and response normalization are passed over, and named; or,
with pictures, they act as they do there, and the derivatives are averaged.

    Voss et al., "Visualizing Weights", Distill 2021
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.circuits.contributions import linear_layer
from featviz.circuits.figures import draw_expanded
from featviz.circuits.icons import kernel_pictures
from featviz.data.datasets import Pictures, batches
from featviz.data.from_python import as_pictures
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.models.layers import StopForward, tap
from featviz.models.linear_net import LinearNet
from featviz.models.receptive_field import hookable
from featviz.models.units import parse_unit
from featviz.types import BatchSize, Count
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model


@dataclass(frozen=True, kw_only=True, repr=False)
class ExpandedWeights(results.Result):
    """The weights of a unit on the units of an earlier layer."""

    kind: ClassVar[str] = "circuit"

    model_name: str
    unit: str
    layer: str
    weights: Tensor
    """(C, kh, kw), of the unit in the middle of its map"""
    left_out: tuple[str, ...]
    """what is not linear between the layers; empty where the weights are exact"""
    averaged: int
    """pictures over which derivatives were averaged; 0: none"""
    pictures: Mapping[str, Tensor]
    """kernels of the units of a first layer, (3, h, w)"""

    @property
    def title(self) -> str:
        return f"Weights of {self.unit} on {self.layer} in {self.model_name}"

    @property
    def exact(self) -> bool:
        """Whether everything between the two layers is linear."""
        return not self.left_out and not self.averaged

    @property
    def how(self) -> str:
        """How they were made, in words."""
        if self.averaged:
            through = ", ".join(self.left_out) or "what is not linear"
            pictures = counted(self.averaged, "picture")
            return f"linearised: mean derivative over {pictures}, through {through}"
        if self.left_out:
            return f"linearised: {', '.join(self.left_out)} left out"
        return "exact: all between is linear"

    @property
    def strongest(self) -> Tensor:
        """The inputs of largest norm, first the largest; at most 16."""
        norms = self.weights.flatten(1).norm(dim=1)
        order: Tensor = norms.argsort(descending=True, stable=True)[:16]
        return order[norms[order] > 0]

    def numbers(self) -> dict[str, results.Number]:
        found = {"weights": results.Number(self.how)}
        if len(self.strongest):
            best = int(self.strongest[0])
            norm = float(self.weights[best].norm())
            found["strongest input"] = results.Number(
                f"{self.layer}:{best}", "", f"norm of its weights {norm:.3g}"
            )
        connected = int((self.weights.flatten(1).abs().amax(1) > 0).sum())
        return found | {
            "connected": results.Number(
                connected, f"of {len(self.weights)}", "inputs with a weight that is not 0"
            ),
            "window": results.Number("x".join(map(str, self.weights.shape[1:])), "positions"),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "expanded.svg",
            self.plot(),
            caption=f"The weights of {self.unit} on the units of {self.layer} with the largest "
            f"norms ({self.how}). Red raises, blue lowers; one scale.",
            alt=f"Weights of {self.unit} on {counted(len(self.strongest), 'unit')} of {self.layer}",
            units=[self.unit],
        )
        folder.arrays(
            "expanded.npz", {"weights": self.weights.numpy()}, caption="(C, kh, kw) weights."
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "expanded.csv",
            ("input", "weight_norm", "weight_sum"),
            [
                (f"{self.layer}:{i}", float(one.norm()), float(one.sum()))
                for i, one in enumerate(self.weights)
            ],
            caption=f"Every unit of {self.layer}: norm and sum of its weights.",
        )

    def plot(self) -> Figure:
        shown = self.strongest.tolist()
        names = [f"{self.layer}:{i}" for i in shown]
        end = float(self.weights.abs().max()) or 1.0
        return draw_expanded(names, [self.weights[i] for i in shown], self.pictures, end)


@public
def expanded_weights(
    model: Model,
    unit: str,
    layer: str | None = None,
    *,
    pictures: Pictures | Tensor | str | Path | None = None,
    count: Count = 50,
    batch_size: BatchSize = 16,
) -> ExpandedWeights:
    """The weights of a unit on the units of an earlier layer, through the layers between.

    Args:
        model: A model.
        unit: "conv4:12", "logits:tabby".
        layer: The earlier layer, whose output is meant; default: the convolution or linear layer
            before the one before the unit's.
        pictures: Over which the derivatives are averaged, with the ReLUs and pools as these
            pictures set them, where something between the layers is not linear; default: that is
            passed over, and named.
        count: At most so many pictures, evenly spread.
        batch_size: Pictures that the model computes at once.

    Raises:
        UserError: The unit does not depend on the layer, or something between cannot be made
            linear (attention, gates) and no pictures were given.

    Example:
        featviz.expanded_weights(model, "conv3:12", "conv1").save("run/expanded")
    """
    started = time.perf_counter()
    place = parse_unit(model, unit)
    source = model.layer(layer or _two_back(model, place.layer)).name
    data = None if pictures is None else as_pictures(pictures, model=model).spread(count)
    try:
        weights, left_out = _linearised(model, place.layer, place.index, source)
    except _NotLinear as error:
        if data is None:
            raise UserError(str(error)) from None
        left_out = ("products with the picture itself",)
    if data is not None and left_out:
        derivatives = [
            _derivatives(model, place.layer, place.index, source, batch.images).cpu()
            for batch in batches(data, model.preprocessing, batch_size=batch_size)
        ]
        weights = torch.cat(derivatives).mean(0)
    made = ExpandedWeights(
        origin=results.origin(
            model, parameters={"unit": unit, "layer": source}, started=started, data=data
        ),
        model_name=model.name,
        unit=f"{place.layer}:{place.index}",
        layer=source,
        weights=_cropped(weights),
        left_out=left_out,
        averaged=len(data) if data and left_out else 0,
        pictures={},
    )
    shown = made.strongest.tolist()
    kernels = kernel_pictures(model, source, shown) if shown else None
    if kernels is None:
        return made
    named = {f"{source}:{i}": kernel for i, kernel in zip(shown, kernels, strict=True)}
    return replace(made, pictures=named)


class _NotLinear(Exception):
    """Something between two layers cannot be made linear."""


def _two_back(model: Model, layer: str) -> str:
    for _ in range(2):
        before = linear_layer(model, layer).sources
        if not before:
            raise UserError(f"{layer} takes the picture itself: there are no layers between")
        layer = before[0].layer
    return layer


def _linearised(model: Model, layer: str, unit: int, source: str) -> tuple[Tensor, tuple[str, ...]]:
    """Weights in the net made linear, and what was passed over between the two layers."""
    height, width = model.input_size
    if model.layer(layer).spatial and (field := model.layer(layer).receptive_field):
        # Padding must not cut the window: the middle lies well inside a picture that is large
        # enough.
        spans = (2 * (size + stride) for size, stride in zip(field.size, field.stride, strict=True))
        height, width = map(max, model.input_size, spans)
    blank = model.blank().new_zeros(1, model.preprocessing.channels, height, width)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(blank.shape, generator=generator).to(blank)
    with LinearNet(mean_pools=True) as linear:
        # What comes before the earlier layer is not left out of these weights.
        ended = hookable(model.net)[model.layer(source).path].register_forward_hook(
            lambda *_: linear.ignored.clear()
        )
        try:
            one, other = _derivatives(model, layer, unit, source, torch.cat([blank, noise])).cpu()
        finally:
            ended.remove()
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max())):
        raise _NotLinear(
            f"something between {source} and {layer} multiplies or normalizes by the picture "
            "itself and cannot be made linear; give pictures, over which derivatives are averaged"
        )
    return one, tuple(linear.ignored)


def _derivatives(model: Model, layer: str, unit: int, source: str, pictures: Tensor) -> Tensor:
    """(N, C, h, w) or (N, C, 1, 1): of the unit in the middle of its map by the earlier layer."""
    if len(model.layer(layer).shape) == 2 or len(model.layer(source).shape) == 2:
        raise UserError(f"{source} or {layer} is a layer of tokens; take layers of maps or vectors")
    pictures = pictures.to(model.device).requires_grad_(True)
    with frozen(model), torch.enable_grad():
        with tap(model, [source, layer], stop=True) as taken, suppress(StopForward):
            model(pictures)
        values = taken[layer]
        middle = values[:, unit]
        if values.dim() == 4:
            middle = middle[:, values.shape[2] // 2, values.shape[3] // 2]
        (found,) = torch.autograd.grad(middle.sum(), taken[source], allow_unused=True)
    if found is None:
        raise UserError(f"{layer} does not depend on {source}; take a layer before it")
    return found if found.dim() == 4 else found[..., None, None]


def _cropped(weights: Tensor) -> Tensor:
    """Without the rows and columns at the borders that are 0 in all inputs."""
    used = weights.abs().amax(0)
    rows, columns = used.amax(1).nonzero()[:, 0], used.amax(0).nonzero()[:, 0]
    if not len(rows):
        return weights[:, :1, :1]
    return weights[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].contiguous()
