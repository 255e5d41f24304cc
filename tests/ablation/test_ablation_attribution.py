"""Attribution between layers: completeness, closed forms, and the check against silencing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ablation_nets import Decides, Skips, Tokens, small

import featviz
from featviz import results
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.receptive_field import hookable


def test_integrated_attributions_are_complete(mini: Model, generator: torch.Generator) -> None:
    data = featviz.sample_pictures().spread(2)
    for layer, steps in (("relu3", 64), ("fc6", 128)):
        found = featviz.attribute_layer(mini, data, layer, steps=steps)
        assert float(found.completeness_error.max()) < 0.02
    pictures = torch.rand(2, 3, 16, 16, generator=generator)
    for net, place in ((Skips, "second#1"), (Tokens, "block.linear1")):
        found = featviz.attribute_layer(small(net), pictures, place, target=1, steps=256)
        assert float(found.completeness_error.max()) < 0.03


def test_in_fc7_both_are_weight_times_activation(mini: Model) -> None:
    data = featviz.sample_pictures().spread(1)
    found = featviz.attribute_layer(mini, data, "relu7", target="goldfish", steps=3)
    values = activations(mini, featviz.read_batch(mini, data).pictures, ["relu7"])["relu7"]
    weight = hookable(mini.net)["classifier.6"].weight
    assert isinstance(weight, torch.Tensor)
    expected = (values * weight[mini.class_index("goldfish")]).detach()
    for method in ("gradient", "integrated"):
        torch.testing.assert_close(found.by_unit(method), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(-found.removed.float(), expected, rtol=1e-3, atol=1e-4)
    for number in found.agreement.values():
        assert number.value == pytest.approx(1.0, abs=0.02)


def test_a_later_unit_without_anything_between_is_linear(mini: Model) -> None:
    """From relu4 to conv5 the two methods and silencing say the same."""
    data = featviz.sample_pictures().spread(2)
    found = featviz.attribute_layer(mini, data, "relu4", target="conv5:12@3,4", steps=2)
    torch.testing.assert_close(
        found.maps["gradient"], found.maps["integrated"], rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(
        found.by_unit("gradient").double(), -found.removed, rtol=1e-3, atol=1e-4
    )
    assert found.targets == ("conv5:12@3,4",) * 2
    position = found.by_position("gradient")
    assert position is not None
    outside = position.clone()
    outside[:, 2:5, 3:6] = 0  # the 3 x 3 window of the unit
    assert float(outside.abs().max()) == 0


def test_code_that_decides_and_the_folder(generator: torch.Generator, tmp_path: Path) -> None:
    model = small(Decides)
    pictures = torch.rand(2, 3, 16, 16, generator=generator)
    found = featviz.attribute_layer(model, pictures, "conv")
    folder = found.save(tmp_path / "attribution")
    document = results.read_result(folder)
    assert document["kind"] == "layer-attribution"
    assert {"low", "high", "n"} <= set(document["numbers"]["rank correlation, integrated"])
    with pytest.raises(UserError, match="first is not behind second"):
        featviz.attribute_layer(small(Skips), pictures, "second", target="first:0")
