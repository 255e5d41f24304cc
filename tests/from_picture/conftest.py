"""A small model and smooth pictures for it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def small() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 5),
        )
    return Model(
        net,
        name="small",
        preprocessing=Preprocessing.of(32, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"conv1": "0", "relu1": "1", "conv2": "2", "relu2": "3", "logits": "6"},
    )


@pytest.fixture
def precise(small: Model) -> Model:
    """The small model in float64."""
    return copy.deepcopy(small).double()


@pytest.fixture(scope="module")
def given() -> torch.Tensor:
    coarse = torch.rand(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (32, 32), mode="bilinear", align_corners=False)
