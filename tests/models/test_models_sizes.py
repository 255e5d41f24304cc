"""Sizes of pictures that a net does not take: known before the work begins, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.models.layers import check_size, takes
from featviz.models.model import Model


class OneSize(nn.Module):
    """A net as transformers are: it checks the size before its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.head = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (32, 32):
            raise AssertionError(f"expected 32,\n got {x.shape[-1]}")
        logits: Tensor = self.head(self.patches(x).relu().flatten(1))
        return logits


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return featviz.wrap(OneSize(), input_size=32, mean=(0, 0, 0), std=(1, 1, 1), name="fixed")


LINE = r"^fixed does not take pictures of 64 pixels \(expected 32, got 64\); give 32$"


def test_every_door_refuses_another_size_in_one_line(model: Model, tmp_path: Path) -> None:
    large = torch.rand(1, 3, 64, 64)
    assert takes(model, (32, 32))
    assert not takes(model, (64, 64))
    doors = (
        lambda: model(large),
        lambda: check_size(model, (64, 64)),
        lambda: featviz.activations(model, large, ["patches"]),
        lambda: featviz.attribute(model, large, target=0),
        lambda: featviz.deepdream(model, large, "patches", steps=1),
        lambda: featviz.maximize(
            model, "patches", units=[0], steps=1, size=64, checkpoint=tmp_path / "kept"
        ),
    )
    for door in doors:
        with pytest.raises(UserError, match=LINE):
            door()
    assert not (tmp_path / "kept").exists()


def test_sizes_that_were_not_asked_for_are_the_models_own(model: Model) -> None:
    assert featviz.maximize(model, "patches", units=[0], steps=1).images.shape[-2:] == (32, 32)
    dreamed = featviz.deepdream(model, torch.rand(3, 32, 32), "patches", steps=1)
    assert dreamed.images.shape[-2:] == (32, 32)


def test_a_size_is_taken_as_far_as_a_layer(mini: Model) -> None:
    assert takes(mini, (96, 80))
    assert takes(mini, (16, 16), "conv1")
    assert not takes(mini, (16, 16))
