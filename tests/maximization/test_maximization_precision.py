"""What cannot be computed in bf16 is computed in float32, without a word from the user."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import featviz
from featviz.maximization import maximize
from featviz.models.model import Model


def test_a_net_with_local_response_norm_is_climbed_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maximize, "has_bfloat16", lambda device: True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Conv2d(3, 4, 5, stride=2), nn.Conv2d(4, 6, 3)
    nn.init.constant_(first.bias, 2.0)  # so that no ReLU blocks the start
    net = nn.Sequential(first, nn.ReLU(), nn.LocalResponseNorm(3), last)
    model = Model(
        nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten()), name="t", input_size=32
    )
    normed = featviz.maximize(model, "0.3", units=[0, 1], steps=4)
    plain = featviz.maximize(model, "0.0", units=[0, 1], steps=4, objective="channel")
    assert normed.origin.parameters["precision"] == "float32"
    assert plain.origin.parameters["precision"] == "bfloat16"
    assert bool(normed.alive.all())
