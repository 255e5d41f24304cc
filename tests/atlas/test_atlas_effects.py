"""Effects of directions on the logits: closed forms of linear heads, else finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from featviz.atlas.effects import attribution, logit_effects, top_effects
from featviz.atlas.levels import weighted_text
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.rest import logits_from

POSITIONS = torch.tensor([[0, 0], [3, 2], [6, 6], [1, 5]])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(6 * 9, 7)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.pool(self.relu(self.conv(x)))
        logits: torch.Tensor = self.head(self.act(self.fc(h.flatten(1))))
        return logits


def _head(model: Model) -> nn.Linear:
    head = model.net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    return head


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Two()
    aliases = {"conv1": "conv", "relu1": "relu", "fc7": "fc", "relu7": "act", "logits": "head"}
    return Model(net, name="two", preprocessing=15, aliases=aliases)


def test_behind_the_last_relu_the_effect_is_the_heads_matrix(
    model: Model, generator: torch.Generator
) -> None:
    vectors = torch.rand(9, 7, generator=generator)
    found = logit_effects(model, "relu7", vectors)
    torch.testing.assert_close(found, vectors @ _head(model).weight.T)
    # together with the bias it is the logits themselves
    bias = _head(model).bias
    torch.testing.assert_close(logits_from(model, model.layer("relu7"), vectors), found + bias)


def test_before_a_relu_only_active_units_have_an_effect(
    model: Model, generator: torch.Generator
) -> None:
    vectors = torch.randn(9, 7, generator=generator)
    expected = vectors.clamp_min(0) @ _head(model).weight.T
    torch.testing.assert_close(logit_effects(model, "fc7", vectors), expected)


@pytest.mark.parametrize("placed", [False, True])
def test_in_a_map_it_is_the_finite_difference(
    model: Model, placed: bool, generator: torch.Generator
) -> None:
    model = copy.deepcopy(model).double()
    pictures = torch.rand(4, 3, 15, 15, generator=generator).double()
    vectors = torch.randn(4, 6, generator=generator).double()
    found = logit_effects(
        model, "conv1", vectors, pictures=pictures, positions=POSITIONS if placed else None
    ).double()
    start = activations(model, pictures, ["conv1"])["conv1"].detach()
    change = vectors[:, :, None, None].expand_as(start).clone()
    if placed:
        for row, (y, x) in enumerate(POSITIONS.tolist()):
            kept = change[row, :, y, x].clone()
            change[row] = 0
            change[row, :, y, x] = kept
    place, step = model.layer("conv1"), 1e-7
    up = logits_from(model, place, start + step * change)
    down = logits_from(model, place, start - step * change)
    torch.testing.assert_close(found, (up - down) / (2 * step), atol=1e-6, rtol=1e-5)


def test_at_the_logits_the_effect_is_the_vector(model: Model, generator: torch.Generator) -> None:
    vectors = torch.randn(3, 5, generator=generator)
    torch.testing.assert_close(logit_effects(model, "logits", vectors), vectors)


def test_effects_add_up(model: Model, generator: torch.Generator) -> None:
    """Of a linear rest, the effect of a mean is the mean of the effects."""
    vectors = torch.rand(20, 7, generator=generator)
    each = logit_effects(model, "relu7", vectors)
    whole = logit_effects(model, "relu7", vectors.mean(0, keepdim=True))
    torch.testing.assert_close(each.mean(0, keepdim=True), whole)


def test_the_model_is_left_as_it_was(model: Model, generator: torch.Generator) -> None:
    picture = torch.rand(1, 3, 15, 15, generator=generator)
    before = model(picture)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    logit_effects(model, "fc7", torch.rand(2, 7, generator=generator))
    torch.testing.assert_close(model(picture), before, rtol=0, atol=0)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    with pytest.raises(RuntimeError):
        logits_from(model, model.layer("fc7"), torch.rand(2, 6, generator=generator))
    torch.testing.assert_close(model(picture), before, rtol=0, atol=0)


def test_what_raises_all_logits_names_no_class(model: Model) -> None:
    effects = torch.tensor([[3.0, 3.0, 3.0, 3.0, 3.0], [0.0, 5.0, 0.0, 0.0, 0.0]])
    assert top_effects(model, effects, most=1) == (
        ((model.class_name(0), 0.0),),
        ((model.class_name(1), 4.0),),
    )
    assert attribution(effects, 1).tolist() == [0.0, 4.0]
    assert weighted_text([("a", 1.0), ("b", -2.5)]) == "a +1.00; b -2.50"


def test_a_map_needs_pictures_and_a_trunk_has_no_effects(model: Model) -> None:
    with pytest.raises(ValueError, match="give pictures"):
        logit_effects(model, "conv1", torch.rand(2, 6))
    trunk = Model(nn.Sequential(nn.Conv2d(3, 4, 3)), name="t", preprocessing=8, headless=True)
    with pytest.raises(UserError):
        logit_effects(trunk, "0", torch.rand(2, 4), pictures=torch.rand(2, 3, 8, 8))


def test_the_bundled_model_has_effects_at_every_named_layer(mini: Model) -> None:
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ("conv5", "fc6", "relu7"):
        place = mini.layer(name)
        vectors = torch.rand(2, place.units, generator=torch.Generator().manual_seed(1))
        found = logit_effects(mini, name, vectors, pictures=pictures)
        assert found.shape == (2, len(mini.classes))
        assert found.isfinite().all()
        torch.testing.assert_close(
            logit_effects(mini, name, vectors[:1], pictures=pictures[:1]),
            found[:1],
            atol=1e-4,
            rtol=1e-4,
        )
