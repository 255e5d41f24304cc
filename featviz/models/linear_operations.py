"""Convolutions and linear layers with the weights that they compute with.

Weight and spectral normalization, standardized weights, and paddings made within the layer (timm's
`StdConv2d`, `Conv2dSame`) change on each call what stands in the module.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featviz.errors import UserError
from featviz.models.layers import StopForward, tap
from featviz.models.model import Layer, Model
from featviz.models.receptive_field import tensors_of


def computing(model: Model, layer: Layer) -> nn.Conv2d | nn.Linear:
    """A convolution or linear layer as a plain module that gives the same for its input.

    Raises:
        UserError: the layer is more than a single such operation.
    """
    module = model.net.get_submodule(layer.path)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    if type(module) in {nn.Conv2d, nn.Linear} and not module._forward_pre_hooks:
        return module
    seen = _Operation()
    handles = [
        module.register_forward_pre_hook(seen.begin, prepend=True, with_kwargs=True),
        module.register_forward_hook(seen.end),
    ]
    picture = torch.linspace(0, 1, model.blank().numel(), device=model.device)
    try:
        with (
            torch.no_grad(),
            seen,
            tap(model, [layer.name], stop=True),
            suppress(StopForward),
        ):
            model(picture.view_as(model.blank()).to(model.mean))
    finally:
        for handle in handles:
            handle.remove()
    plain = seen.plain(module)
    if plain is None:
        raise UserError(
            f"{layer.name} is a {type(model.net.get_submodule(layer.path)).__name__} that computes "
            "more than one product of weights and input; take another layer"
        )
    return plain


class _Operation(TorchFunctionMode):
    """Within it the last product of weights and input of a module's last run."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.given: dict[str, Any] = {}
        self.input = self.output = torch.empty(0)

    def begin(self, module: nn.Module, arguments: Any, named: Any) -> None:
        self.inside, self.given = True, {}
        self.input = tensors_of((arguments, named))[0]

    def end(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self.inside, self.output = False, output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.inside and func in {F.conv2d, F.linear}:
            names = ("input", "weight", "bias")
            self.given = {"bias": None} | dict(zip(names, args, strict=False)) | (kwargs or {})
        return func(*args, **(kwargs or {}))

    def plain(self, module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear | None:
        """The same operation as a plain module; None if there is none."""
        if not self.given:
            return None
        weight, bias = self.given["weight"], self.given["bias"]
        made: nn.Conv2d | nn.Linear
        if isinstance(module, nn.Linear):
            made = nn.Linear(1, 1, bias is not None)
            made.in_features, made.out_features = module.in_features, module.out_features
        else:
            geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
            channels, groups = (module.in_channels, module.out_channels), module.groups
            mode = module.padding_mode
            with torch.device("meta"):
                made = nn.Conv2d(*channels, *geometry, groups, bias is not None, mode)  # type: ignore[arg-type]
            _pad_as(made, self.input, self.given["input"])
        made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        made.bias = None if bias is None else nn.Parameter(bias.detach().clone(), False)
        with torch.no_grad():
            again = made(self.input)
        same = again.shape == self.output.shape and torch.allclose(
            again, self.output, rtol=1e-4, atol=1e-5 * float(self.output.abs().max())
        )
        return made if same else None


def _pad_as(made: nn.Conv2d, before: Tensor, padded: Tensor) -> None:
    """Let a convolution pad by itself as its input was padded with zeros, if it was."""
    rows, columns = (padded.shape[i] - before.shape[i] for i in (2, 3))
    if not (rows or columns) or min(rows, columns) < 0 or made.padding_mode != "zeros":
        return
    for top in range(rows + 1):
        for left in range(columns + 1):
            pads = [left, columns - left, top, rows - top]
            if torch.equal(F.pad(before, pads), padded):
                made.padding_mode = "constant"  # type: ignore[assignment]  # as F.pad calls it
                made._reversed_padding_repeated_twice = pads
                return
