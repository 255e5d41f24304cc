"""An adversarial picture that is known to exist is found, and random search does not find it."""

from __future__ import annotations

import pytest
import torch
from adversarial_models import photographs, tiny_net
from oracles.planted import plant

from featviz.adversarial.minimal import minimal

STEPS = 60


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
def test_the_planted_adversarial_is_found_and_not_by_chance(norm, eps):
    net = tiny_net(seed=3).eval()
    features = net[:-2]
    generator = torch.Generator().manual_seed(5)
    found, by_chance = 0, 0
    pictures = 0.1 + 0.8 * photographs(8)
    label = torch.zeros(1, dtype=torch.long)
    for i, picture in enumerate(pictures):
        model, planted = plant(features, picture, eps, norm, seed=i)
        with torch.no_grad():
            assert model(torch.stack([picture, planted])).argmax(1).tolist() == [0, 1]
            noise = torch.randn(STEPS, *picture.shape, generator=generator)
            noise = noise.sign() if norm == "linf" else (
                noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            )  # fmt: skip
            by_chance += bool(model((picture + eps * noise).clamp(0, 1)).argmax(1).any())
        result = minimal(model, picture[None], label, norm=norm, steps=STEPS, slots=1)
        found += bool(result.distance[0] <= eps)
    assert found == 8
    assert by_chance <= 1
