"""A tap gives what a layer gave, whatever the net does with it afterwards: of every layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from catalogue import OWN, calibrated, random_pictures
from catalogue_laws import check_taps
from torch import Tensor, nn

from featviz.models.layers import tap
from featviz.models.model import Model


@pytest.mark.parametrize("name", [*OWN, "alexnet-mini", "shufflenet_v2_x0_5"])
def test_taps_are_clones_taken_at_the_time(name: str) -> None:
    check_taps(name)


@pytest.mark.parametrize("name", ["relu reused", "relu reused in place", "tuples"])
def test_gradients_pass_through_what_was_taken(name: str) -> None:
    """The derivative of a logit at every place, against small changes of what a module gives."""
    model = copy.deepcopy(calibrated(name)).double()
    x = random_pictures(1, 32, 2).double()
    for layer in model.layers:
        place = model.layer(layer)
        with tap(model, [layer]) as taken:
            logit = model(x.clone().requires_grad_())[0, 0]
            (slope,) = torch.autograd.grad(logit, taken[layer])
        step = 1e-6 * torch.randn(slope.shape, generator=torch.Generator().manual_seed(1)).double()
        ends = [_changed(model, x, place.path, place.call, sign * step) for sign in (1, -1)]
        assert (slope * step).sum().isclose((ends[0] - ends[1]) / 2, rtol=1e-3, atol=1e-12), layer


def _changed(model: Model, x: Tensor, path: str, call: int, step: Tensor) -> Tensor:
    """The first logit with a step added to what a module gives at one of its runs."""
    runs = 0

    def change(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal runs
        runs += 1
        if runs != call:
            return None
        if isinstance(output, tuple):
            return (output[0] + step, *output[1:])
        if isinstance(output, dict):
            return {"maps": [output["maps"][0] + step, *output["maps"][1:]]}
        return output + step

    handle = model.net.get_submodule(path).register_forward_hook(change)
    with torch.no_grad():
        logit: Tensor = model(x)[0, 0]
    handle.remove()
    return logit
