"""Silencing units: what is shared, what it equals, and what does not matter."""

from __future__ import annotations

import pytest
import torch
from ablation_nets import Decides, Skips, Tokens, small
from torch import Tensor, nn

import featviz
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.models.model import Model
from featviz.models.receptive_field import hookable
from featviz.models.rest import channel_axis, recorded_pass

SKIPS = ("first", "second", "second#1", "relu#1", "relu#2", "relu", "head")


def _cases(mini: Model) -> list[tuple[Model, tuple[str, ...]]]:
    return [
        (mini, ("conv1", "relu2", "conv5", "fc6", "fc7", "logits")),
        (featviz.load("resnet18", input_size=64), ("conv1", "layer2.0.relu#1", "layer3.0")),
        (featviz.load("alexnet-2012", input_size=227), ("norm2", "relu7")),
        (small(Skips), SKIPS),
        (small(Tokens), ("patch", "block.linear1", "block")),
        (small(Decides), ("conv",)),
    ]


def _whole_pass(model: Model, layer: str, pictures: Tensor, unit: int) -> Tensor:
    """The oracle: a hook that sets a unit to 0, in a whole pass."""
    place = model.layer(layer)
    calls = 0

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if calls != place.call:
            return None
        output = output.clone()
        output[(slice(None), unit) if output.dim() != 3 else (..., unit)] = 0
        return output

    handle = hookable(model.net)[place.path].register_forward_hook(hook)
    try:
        logits: Tensor = model(pictures)
        return logits
    finally:
        handle.remove()


def test_the_rest_alone_equals_a_whole_pass(mini: Model, generator: torch.Generator) -> None:
    for model, layers in _cases(mini):
        pictures = torch.rand(2, 3, *model.input_size, generator=generator)
        with frozen(model), torch.no_grad():
            for layer in layers:
                found = recorded_pass(model, layer, pictures)
                assert bool(found.refusal) == (model.layer(layer).path == "conv"), layer
                torch.testing.assert_close(found.output, model(pictures))
                torch.testing.assert_close(found.run(found.values), found.output)
                silent = found.values.clone()
                silent[(slice(None), 1) if silent.dim() != 3 else (..., 1)] = 0
                expected = _whole_pass(model, layer, pictures, 1)
                torch.testing.assert_close(found.run(silent), expected)
                unit = torch.zeros_like(silent.select(channel_axis(silent), 1))
                torch.testing.assert_close(found.run_unit(1, unit), expected)
                torch.testing.assert_close(found.run(found.values), found.output)  # as before


def test_only_what_is_behind_the_layer_runs_again(generator: torch.Generator) -> None:
    model = small(Skips)
    ran = []
    model.net.get_submodule("first").register_forward_hook(lambda *_: ran.append(1))
    with frozen(model), torch.no_grad():
        found = recorded_pass(model, "second#1", torch.rand(2, 3, 16, 16, generator=generator))
        before = len(ran)
        found.run(found.values)
    assert len(ran) == before


def test_an_activation_of_a_later_layer(mini: Model, generator: torch.Generator) -> None:
    pictures = torch.rand(2, 3, *mini.input_size, generator=generator)
    with frozen(mini), torch.no_grad():
        found = recorded_pass(mini, "conv3", pictures, to="conv5")
        expected = featviz.models.layers.activations(mini, pictures, ["conv5"])["conv5"]
        torch.testing.assert_close(found.output, expected)
        with pytest.raises(UserError, match="conv2 is not behind conv3"):
            recorded_pass(mini, "conv3", pictures, to="conv2")


def test_zero_equals_next_weights_of_zero(mini: Model) -> None:
    import copy

    pictures = featviz.sample_pictures()
    found = featviz.ablate(mini, "conv4:7", pictures, count=8)
    other = copy.deepcopy(mini)
    with torch.no_grad():
        weight = hookable(other.net)[other.layer("conv5").path].weight
        assert isinstance(weight, Tensor)
        weight[:, 7] = 0
    data = pictures.select([pictures.paths.index(name) for name in found.pictures])
    batch = featviz.read_batch(mini, data)
    own = batch.labels if batch.labels is not None else found.labels
    change = (other(batch.pictures) - mini(batch.pictures)).gather(1, own[:, None])[:, 0]
    torch.testing.assert_close(found.logit_change[0], change, rtol=1e-4, atol=1e-5)


def test_in_fc7_the_change_is_weight_times_activation(mini: Model) -> None:
    units = [3, 500, 17]
    found = featviz.ablate(mini, "fc7", featviz.sample_pictures(), units=units, count=12)
    data = featviz.sample_pictures()
    batch = featviz.read_batch(
        mini, data.select([data.paths.index(name) for name in found.pictures])
    )
    values = featviz.models.layers.activations(mini, batch.pictures, ["relu7"])["relu7"]
    weight = hookable(mini.net)[mini.layer("logits").path or "classifier.6"].weight
    assert isinstance(weight, Tensor)
    expected = -(weight[found.labels][:, units] * values[:, units]).T.detach()
    torch.testing.assert_close(found.logit_change, expected, rtol=1e-3, atol=1e-5)


def test_order_batch_and_pieces_do_not_matter(mini: Model) -> None:
    data = featviz.sample_pictures()
    one = featviz.ablate(mini, "conv5:3,12,40", data, count=20, how="resample")
    other = featviz.ablate(mini, "conv5:40,3,12", data, count=20, how="resample", batch_size=7)
    torch.testing.assert_close(one.logit_change, other.logit_change[[1, 2, 0]], rtol=0, atol=1e-4)
    both = featviz.ablate(mini, "conv5:3,12", data, count=20, together=True, controls=0)
    turned = featviz.ablate(mini, "conv5:12,3", data, count=20, together=True, controls=0)
    torch.testing.assert_close(both.logit_change, turned.logit_change, rtol=0, atol=0)


def test_a_unit_is_the_direction_of_its_axis(mini: Model) -> None:
    data = featviz.sample_pictures()
    axes = torch.eye(256)[[5, 9]] * torch.tensor([[2.0], [-3.0]])
    for how in ("zero", "mean", "resample"):
        units = featviz.ablate(mini, "conv5:5,9", data, count=12, how=how, controls=0)
        ways = featviz.ablate(mini, "conv5", data, directions=axes, count=12, how=how, controls=3)
        torch.testing.assert_close(units.logit_change, ways.logit_change, rtol=0, atol=1e-4)
        assert ways.control_change.shape == (3, 12)
    mixed = torch.tensor([[1.0, 1.0], [1.0, -0.5]]) @ axes  # spans the same plane
    plane = featviz.ablate(mini, "conv5", data, directions=mixed, together=True, count=12)
    pair = featviz.ablate(mini, "conv5:5,9", data, together=True, count=12)
    torch.testing.assert_close(plane.logit_change, pair.logit_change, rtol=0, atol=1e-4)


def test_a_neuron_at_its_position_only(mini: Model) -> None:
    data = featviz.sample_pictures()
    every = [f"5@{y},{x}" for y in range(7) for x in range(7)]
    whole = featviz.ablate(mini, "conv5:5", data, count=6, controls=0)
    together = featviz.ablate(mini, "conv5", data, units=every, together=True, count=6, controls=0)
    torch.testing.assert_close(whole.logit_change, together.logit_change, rtol=0, atol=1e-5)
