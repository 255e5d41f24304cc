"""Caricature: a closed form on a linear layer, and what the power does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import featviz
from featviz.from_picture.caricature import caricature
from featviz.from_picture.settings import method_settings
from featviz.maximization.transforms import Transforms
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing


def test_the_caricature_of_a_linear_layer_is_its_kernels_weighted_by_their_activations() -> None:
    """<values, reference> of a linear layer is linear in the picture: the best is that gradient."""
    net = nn.Sequential(nn.Conv2d(3, 10, 12), nn.Flatten(), nn.Linear(10, 3))
    with torch.no_grad():
        for i, layer in enumerate(("0", "2")):
            weight = net.get_parameter(f"{layer}.weight")
            weight.normal_(generator=torch.Generator().manual_seed(i))
            net.get_parameter(f"{layer}.bias").zero_()
    model = Model(
        net,
        name="linear",
        preprocessing=Preprocessing.of(12, mean=(0.5,) * 3, std=(1.0,) * 3),
        aliases={"conv1": "0", "logits": "2"},
    )
    given = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(2))
    base = method_settings(
        "caricature", model, "conv1", height=12, width=12, steps=150, precision="float32"
    )
    settings = replace(
        base,
        transforms=Transforms(),
        roughness_weight=0.0,
        saturation_weight=0.0,
        contrast_weight=12.0,
        local_normalization=0.0,
        coarse_to_fine=0.0,
    )
    made = caricature(model, given, "conv1", power=0, settings=settings)
    kernels = net.get_parameter("0.weight")
    activation = (kernels * (given - 0.5)).sum((1, 2, 3))
    gradient = (kernels * activation.clamp(min=0)[:, None, None, None]).sum(0)
    both = torch.stack([made.images[0, 0, 0] - 0.5, gradient]).flatten(1)
    assert torch.corrcoef(both)[0, 1] > 0.9
    found = (kernels * (made.images[0, 0, 0] - 0.5)).sum((1, 2, 3)).clamp(min=0)
    target = activation.clamp(min=0)
    assert made.measured["exaggeration"].item() == pytest.approx(
        ((found * target).sum() / target.square().sum()).item(), rel=1e-3
    )
    assert made.measured["cosine"].item() == pytest.approx(
        torch.cosine_similarity(found, target, dim=0).item(), rel=1e-3
    )


def test_more_power_keeps_closer_to_the_mixture(mini: Model) -> None:
    samples = featviz.sample_pictures(1)
    given = samples.shown(samples.paths.index("flower/00"), 64)
    loose, close = (caricature(mini, given, "conv3", power=power, steps=40) for power in (0.0, 4.0))
    assert close.measured["cosine"].item() > loose.measured["cosine"].item()
    assert loose.measured["exaggeration"].item() > 1


def test_mistakes_are_named(small: Model, given: torch.Tensor) -> None:
    with pytest.raises(featviz.UserError, match="restarts is 0"):
        caricature(small, given, "conv1", restarts=0)


def test_pictures_do_not_mix_in_float64(precise: Model, given: torch.Tensor) -> None:
    options: dict[str, Any] = {"steps": 3, "precision": "float32"}
    alone = caricature(precise, given[1], "conv2", **options)
    for size in (1, 2, 6):
        among = caricature(precise, given, ["conv1", "conv2"], batch_size=size, **options)
        assert (among.images[1, 1] - alone.images[0, 0]).abs().max() < 1e-9
        assert torch.allclose(among.trace[1, 1], alone.trace[0, 0], rtol=0, atol=1e-9)
