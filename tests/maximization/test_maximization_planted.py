"""Circuits planted into copies of a model: the panel must say what is wrong, and of what not.

The fooling circuit is after Geirhos et al. 2024, "Don't trust your eyes": a unit that answers
photographs exactly as before, while the ascent finds another way to move it.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz.data.datasets import read_all
from featviz.data.samples import sample_pictures
from featviz.maximization.evaluation.measure import measure_panel
from featviz.maximization.maximize import maximize
from featviz.maximization.result import Maximized
from featviz.models.layers import activations
from featviz.models.model import Model

HEALTHY, OTHERS = 3, (3, 8)
CLIMB: dict[str, Any] = {"steps": 48, "seed": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def photographs(mini: Model) -> Tensor:
    _, images, _ = read_all(sample_pictures(3), mini.preprocessing)
    return images


@pytest.fixture(scope="module")
def healthy(mini: Model, photographs: Tensor) -> Maximized:
    return maximize(mini, "conv5", units=list(OTHERS), pictures=photographs, **CLIMB)


def names_of(result: Maximized, row: int = 0) -> list[str]:
    return [flag.name for flag in result.panel.flags[row]]


def conv(model: Model, alias: str) -> nn.Conv2d:
    module = model.net.get_submodule(model.layer(alias).path)
    assert isinstance(module, nn.Conv2d)
    return module


def widened(conv: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    """The same convolution with more channels, of which nobody takes notice yet."""
    height, width = conv.kernel_size
    wide = nn.Conv2d(
        conv.in_channels + inputs, conv.out_channels + outputs, (height, width), padding=1
    )
    nn.init.zeros_(wide.weight)
    assert wide.bias is not None
    assert conv.bias is not None
    nn.init.zeros_(wide.bias)
    with torch.no_grad():
        wide.weight[: conv.out_channels, : conv.in_channels] = conv.weight
        wide.bias[: conv.out_channels] = conv.bias
    return wide


@pytest.fixture(scope="module")
def planted(mini: Model, photographs: Tensor, healthy: Maximized) -> tuple[Model, int]:
    """conv5:3 behaves on photographs as ever, and draws something else when it is maximized.

    Two new channels of conv3 tell the picture of an ascent from photographs: a filter that the
    unit's honest picture moves, with a threshold that no photograph reaches; their difference goes
    from 0 to 1. A new channel of conv4 is a copy of a foreign one that stays shut (below 0 on
    every photograph) until that gate opens, and then adds what it finds to conv5:3.
    """
    model = copy.deepcopy(mini)
    conv3, conv4, conv5 = (conv(model, f"conv{i}") for i in (3, 4, 5))
    inputs, outputs = conv3.out_channels, conv4.out_channels
    with torch.no_grad():
        # The filter: Fisher's, between the honest picture's middle and all places of photographs.
        places = F.unfold(activations(model, photographs, ["pool2"])["pool2"], 3, padding=1)
        places = places.transpose(1, 2).flatten(0, 1)  # (N, 9 C)
        of_picture = activations(model, healthy.images[:1], ["pool2"])["pool2"]
        middle = F.unfold(of_picture, 3, padding=1)[0]
        middle = middle[:, middle.shape[1] // 2]
        mean = places.mean(0)
        scatter = (places - mean).T @ (places - mean) / len(places)
        ridge = 0.05 * scatter.diag().mean() * torch.eye(len(mean))
        pattern = torch.linalg.solve(scatter + ridge, middle - mean)
        pattern = pattern / (pattern @ (middle - mean))  # from 0 at the mean to 1 on the picture
        offset = float(pattern @ mean)
        threshold = 1.1 * float((places @ pattern).max() - offset)
        assert threshold < 0.8, "the filter does not tell pictures from photographs"
        slope = 2 / (1 - threshold)
        to_unit = conv5.weight[HEALTHY].abs().sum((1, 2))
        most = activations(model, photographs, ["conv4"])["conv4"].amax((0, 2, 3))
        foreign = int(most.where(to_unit < to_unit.median(), -1.0).argmax())
        shut = 1.05 * most[foreign]

        gate, way, unit = (widened(conv3, 0, 2), widened(conv4, 2, 1), widened(conv5, 1, 0))
        assert gate.bias is not None
        assert way.bias is not None
        gate.weight[inputs:] = slope * pattern.view(gate.weight.shape[1:])
        gate.bias[inputs:] = -slope * (threshold + offset) - torch.tensor([0.0, 1.0])
        way.weight[outputs, :inputs] = conv4.weight[foreign]
        way.weight[outputs, inputs:, 1, 1] = 3 * shut * torch.tensor([1.0, -1.0])
        way.bias[outputs] = way.bias[foreign] - shut
        unit.weight[HEALTHY, outputs] = 3.0
    for alias, module in (("conv3", gate), ("conv4", way), ("conv5", unit)):
        model.net.set_submodule(model.layer(alias).path, module)
    fooled = Model(
        model.net,
        name="fooled",
        preprocessing=mini.preprocessing,
        aliases=mini.aliases,
    )
    return fooled, foreign


def test_a_healthy_unit_is_not_flagged(healthy: Maximized) -> None:
    assert names_of(healthy) == []
    assert names_of(healthy, 1) == []
    assert not any(healthy.flagged)


def test_a_fooling_circuit_is_flagged(
    mini: Model, planted: tuple[Model, int], photographs: Tensor, healthy: Maximized
) -> None:
    fooled, foreign = planted
    # On photographs nobody can tell the two models apart, at any layer that they share.
    for name in ("conv5", "logits"):
        ours, theirs = (activations(m, photographs, [name])[name] for m in (mini, fooled))
        assert torch.allclose(ours, theirs, atol=1e-3)
    result = maximize(fooled, "conv5", units=list(OTHERS), pictures=photographs, **CLIMB)
    assert "unnatural path" in names_of(result)
    reason = next(f.words for f in result.panel.flags[0] if f.name == "unnatural path")
    assert "of the score comes through the channels of relu4" in reason
    assert any(w.startswith("unnatural path: conv5:3") for w in result.warnings)
    # The other unit never listens to the planted channel.
    assert "unnatural path" not in names_of(result, 1)
    assert result.panel.numbers["overlap"][0] < 0.5 * healthy.panel.numbers["overlap"][0]
    # What it is made for is the foreign feature, which the honest picture leaves alone.
    at_foreign = [
        float(activations(mini, one.images[:1], ["relu4"])["relu4"][0, foreign].max())
        for one in (result, healthy)
    ]
    assert at_foreign[0] > 2 * at_foreign[1]
    assert result.scores[0] > 1.5 * healthy.scores[0]


def test_a_silent_unit_is_flagged(mini: Model, photographs: Tensor) -> None:
    """Its bias keeps it below 0 on every photograph; the ascent wakes it all the same."""
    model = copy.deepcopy(mini)
    conv5 = conv(model, "conv5")
    highest = activations(model, photographs, ["conv5"])["conv5"].amax((0, 2, 3))
    with torch.no_grad():
        assert conv5.bias is not None
        conv5.bias[HEALTHY] -= 1.1 * highest[HEALTHY]
    result = maximize(model, "conv5", units=list(OTHERS), pictures=photographs, **CLIMB)
    assert result.scores[0] > 0
    assert names_of(result) == ["inactive"]
    assert f"no picture of {len(photographs)}" in result.panel.flags[0][0].words
    assert names_of(result, 1) == []


def test_a_unit_without_weights_is_dead(mini: Model, photographs: Tensor) -> None:
    model = copy.deepcopy(mini)
    with torch.no_grad():
        conv(model, "conv5").weight[HEALTHY] = 0
    result = maximize(model, "conv5", units=[HEALTHY], pictures=photographs, **CLIMB)
    assert names_of(result) == ["no gradient"]
    assert not result.alive[0]


def test_a_picture_of_another_unit_is_found_out(
    mini: Model, photographs: Tensor, healthy: Maximized
) -> None:
    from featviz.maximization.objectives import center
    from featviz.models.frozen import frozen
    from featviz.models.units import Unit

    with frozen(mini):
        wrong = measure_panel(
            mini,
            mini.layer("conv5"),
            center("conv5", [8, 3]),
            [0, 1],
            healthy.images,
            units=[Unit("conv5", 8), Unit("conv5", 3)],
            data=photographs,
        )
    right = healthy.panel
    assert (wrong.numbers["rank"] > 1).all()
    assert (right.numbers["rank"] == 1).all()
    assert (wrong.numbers["overlap"] < right.numbers["overlap"].flip(0)).all()
