"""Sanity checks of attributions on models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from featviz.attribution.sanity import RANDOM, area, check_attributions
from featviz.models.model import Model
from featviz.models.wrap import wrap

SIDE = 14


class Linear(nn.Module):
    """Two logits: a weighted sum of the pixels, and 0."""

    def __init__(self, weights: Tensor, *, learned: bool):
        super().__init__()
        self.bias = nn.Linear(1, 1)  # a parameter that changes nothing
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.bias.bias)
        if learned:
            self.sum = nn.Conv2d(3, 1, SIDE, bias=False)
            with torch.no_grad():
                self.sum.weight.copy_(weights)
        self.learned = learned
        self.register_buffer("fixed", weights)
        self.fixed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        whole = self.sum(x).flatten(1) if self.learned else (self.fixed * x).sum((1, 2, 3))[:, None]
        one = self.bias(whole) + whole
        return torch.cat([one, torch.zeros_like(one)], 1)


def linear(weights: Tensor, *, learned: bool) -> Model:
    return wrap(Linear(weights, learned=learned), input_size=SIDE, channels=3)


@pytest.fixture
def weights(generator: torch.Generator) -> Tensor:
    return torch.randn(3, SIDE, SIDE, generator=generator)


def test_a_map_of_the_weights_changes_with_them(weights: Tensor) -> None:
    model = linear(weights, learned=True)
    before = model.sha256
    picture = torch.full((1, 3, SIDE, SIDE), 0.9)
    found = check_attributions(model, picture, target=0, methods=["saliency"], stages=1)
    assert abs(float(found.similarity["saliency"])) < 0.25  # 196 pixels: sd 0.07
    assert found.warnings == ()
    del model.sha256
    assert model.sha256 == before


def test_a_map_that_ignores_the_weights_is_named(weights: Tensor) -> None:
    model = linear(weights, learned=False)
    picture = torch.full((1, 3, SIDE, SIDE), 0.9)
    found = check_attributions(model, picture, target=0, methods=["saliency"])
    assert found.similarity["saliency"].min() == pytest.approx(1.0)
    assert "saliency hardly depends on the weights" in found.warnings[0]


def test_curves_of_a_model_that_sees_one_corner() -> None:
    """A fifth of the cells holds all that counts: covered first, the logit is gone at 20%."""
    weights = torch.zeros(3, SIDE, SIDE)
    cells = round(0.2 * SIDE * SIDE)
    weights.view(3, -1)[:, :cells] = 1.0
    model = linear(weights, learned=True)
    picture = torch.full((1, 3, SIDE, SIDE), 0.5)
    found = check_attributions(
        model, picture, target=0, methods=["integrated_gradients"], baseline="black"
    )
    whole = torch.sigmoid(torch.tensor(0.5 * 3 * cells))
    levels = torch.linspace(0, SIDE * SIDE, 11).round()
    left = (cells - levels).clamp(min=0) * 1.5
    expected = torch.sigmoid(left)
    deletion = found.deletion["integrated_gradients"][0]
    assert torch.allclose(deletion, expected, atol=1e-5)
    insertion = found.insertion["integrated_gradients"][0]
    assert torch.allclose(insertion, torch.sigmoid(cells * 1.5 - left), atol=1e-5)
    assert float(insertion[-1]) == pytest.approx(float(whole), abs=1e-6)
    assert found.better("integrated_gradients") == (1, 1)
    assert set(found.deletion) == {"integrated_gradients", RANDOM}


def test_areas_are_those_of_trapezoids() -> None:
    line = torch.linspace(1, 0, 11)[None]
    assert float(area(line)) == pytest.approx(0.5)
    assert float(area(torch.ones(1, 11))) == pytest.approx(1.0)
