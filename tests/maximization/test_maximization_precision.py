"""What cannot be computed in bfloat16 is computed in float32, without an option."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featviz
from featviz.models import precision
from featviz.models.model import Model


class OnlyFloat32(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            raise NotImplementedError("\"special\" not implemented for 'BFloat16'")
        return 2 * x


@pytest.mark.parametrize(("special", "expected"), [(True, "float32"), (False, "bfloat16")])
def test_a_net_without_bfloat16_kernels_is_optimized_in_float32(
    special: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Conv2d(3, 64, 5, stride=2), nn.Conv2d(64, 256, 3)
    nn.init.constant_(first.bias, 2.0)  # type: ignore[arg-type] # so that no ReLU blocks the start
    norm = OnlyFloat32() if special else nn.LocalResponseNorm(3)
    net = nn.Sequential(first, nn.ReLU(), last, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Model(net, name="t", preprocessing=32)
    made = featviz.maximize(model, "3", units=[0, 1], steps=4)
    assert made.origin.parameters["precision"] == expected
    assert bool(made.alive.all())
