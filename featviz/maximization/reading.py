"""Activations of pictures in a given precision, for many passes through one network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz.indices import index_below
from featviz.maximization.objectives import PICTURE, index
from featviz.models.blocks import InBlocks
from featviz.models.layers import activations
from featviz.models.model import Model, check_finite
from featviz.models.precision import in_bfloat16
from featviz.types import Precision


def channel_means(values: Tensor) -> Tensor:
    """Means over positions, (N, C), of values (N, C, H, W), (N, tokens, C) or (N, C)."""
    if values.dim() == 4:
        return values.mean((2, 3))
    return values.mean(1) if values.dim() == 3 else values


@contextmanager
def reading(
    model: Model, layers: Sequence[str], precision: Precision, *, entering: Collection[str] = ()
) -> Iterator[Reader]:
    """Within the block, a function from pictures to float32 activations by layer.

    Args:
        entering: those of the layers that are read as they enter their module.
    """
    names = [name for name in dict.fromkeys(layers) if name != PICTURE]
    low = precision == "bfloat16" and bool(names)
    cast = in_bfloat16(model.net, whole=True) if low else nullcontext(model.net)
    with cast as forward:
        yield Reader(model, names, forward, low, entering)


class Reader:
    """From pictures to float32 activations by layer; `reading` makes one."""

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        forward: Callable[[Tensor], object],
        low: bool,
        entering: Collection[str],
    ) -> None:
        self.model, self.names, self.forward = model, names, forward
        self.low, self.entering = low, entering
        self.blocks = InBlocks()
        self.fresh = True
        """a network of NaN is refused; a picture that becomes NaN is the loop's business"""
        self.parts: dict[tuple[int, ...], tuple[Tensor, Tensor | None]] = {}
        """weights and biases of some units of the layer"""

    def __call__(self, pictures: Tensor, *, exact: bool = False) -> dict[str, Tensor]:
        """Activations of all layers that are read, and the pictures themselves as `PICTURE`.

        exact: in float32 whatever the precision is, and every layer as it leaves its module; else
            those in `entering` are read as they enter it
        """
        if not self.names:
            return {PICTURE: pictures}
        values = self._read(pictures, self.entering, exact=exact, check=self.fresh)
        self.fresh = False
        return {PICTURE: pictures} | {name: _single(value) for name, value in values.items()}

    def own(self, pictures: Tensor, units: Sequence[int]) -> Tensor | None:
        """Values (N, ...) of one unit a picture, in the only layer that is read.

        Others of its units are not computed. None where the layer does not allow it, or where these
        are too many of its units for that to be worthwhile.
        """
        (name,) = self.names
        module, wanted = self._computing(name), tuple(dict.fromkeys(units))
        if module is None or 2 * len(wanted) > len(module.weight):
            return None
        if wanted not in self.parts:
            self.parts[wanted] = _part(module, wanted, self.low)
        weight, bias = self.parts[wanted]
        x = self._read(pictures, [name])[name].to(weight.dtype)
        if isinstance(module, nn.Conv2d):
            values = F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation)
        else:
            values = F.linear(x, weight, bias).movedim(-1, 1)
        rows = index(tuple(range(len(units))), x.device)
        seen = _single(values[rows, index(tuple(map(wanted.index, units)), x.device)])
        if self.fresh:
            check_finite(seen, f"values of {self.model.name} at {name}")
        self.fresh = False
        return seen

    def _read(
        self,
        pictures: Tensor,
        entering: Collection[str],
        *,
        exact: bool = False,
        check: bool = False,
    ) -> dict[str, Tensor]:
        low = self.low and not exact
        # With the colors of a pixel side by side, convolutions of CPUs and tensor cores are faster.
        last = (low or pictures.device.type == "cpu") and (exact or not self.blocks.kernels)
        layout = torch.channels_last if last else torch.contiguous_format
        normal = self.model.normalize(pictures.contiguous(memory_format=layout))
        forward, before = (self.model.net, ()) if exact else (self.forward, entering)
        with nullcontext() if exact else self.blocks:
            return activations(
                self.model, normal, self.names, forward=forward, entering=before, check=check
            )

    def _computing(self, name: str) -> nn.Conv2d | nn.Linear | None:
        """The module of a layer whose units can be computed without one another."""
        place = self.model.layer(name)
        module = self.model.net.get_submodule(place.path)
        hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if name in self.entering or not place.path or place.channels_last or hooks:
            return None
        if type(module) is nn.Linear:
            return module
        if type(module) is not nn.Conv2d or module.groups > 1 or module.padding_mode != "zeros":
            return None
        return module


def _part(
    module: nn.Conv2d | nn.Linear, units: Sequence[int], low: bool
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of some of a module's units."""
    for unit in units:
        index_below(unit, len(module.weight), "unit")
    weight = module.weight.detach()[list(units)]
    bias = None if module.bias is None else module.bias.detach()[list(units)]
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    if not low:
        return weight, bias
    return weight.bfloat16(), None if bias is None else bias.bfloat16()


def _single(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.bfloat16 else values
