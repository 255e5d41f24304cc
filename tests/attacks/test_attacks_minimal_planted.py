"""An adversarial picture that is known to exist is found, and random search does not find it."""

from __future__ import annotations

import pytest
import torch
from attack_models import photographs, tiny_net
from flat_attacks import ensemble, minimal
from oracles.planted import plant

import featviz
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

STEPS = 60


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
def test_the_planted_adversarial_is_found_and_not_by_chance(norm: str, eps: float) -> None:
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
            noise = (
                noise.sign()
                if norm == "linf"
                else (noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
            )
            by_chance += bool(model((picture + eps * noise).clamp(0, 1)).argmax(1).any())
        result = minimal(model, picture[None], label, norm=norm, steps=STEPS, batch_size=1)
        found += bool(result.distance[0] <= eps)
    assert found == 8
    assert by_chance <= 1


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
def test_the_suite_finds_the_planted_adversarial(norm: str, eps: float) -> None:
    features = tiny_net(seed=3).eval()[:-2]
    label = torch.zeros(1, dtype=torch.long)
    for i, picture in enumerate(0.1 + 0.8 * photographs(8)):
        model, _ = plant(features, picture, eps, norm, seed=i)
        # The planted point is on the surface, measured in float64 a last bit outside it.
        found = ensemble(model, picture[None], label, eps=eps * (1 + 1e-5), norm=norm, batch_size=1)
        assert bool(found.success[0]), f"picture {i} stands"
        assert model(found.adversarial).argmax(1).tolist() == [1]


def test_the_audit_finds_the_planted_adversarial() -> None:
    features = tiny_net(seed=3).eval()[:-2]
    eps = 8 / 255
    for i, picture in enumerate(0.1 + 0.8 * photographs(3)):
        planted, _ = plant(features, picture, eps, "linf", seed=i)
        model = Model(
            planted,
            name="planted",
            preprocessing=Preprocessing.of(16, mean=(0.0,) * 3, std=(1.0,) * 3),
            classes=[("", "as it was"), ("", "planted")],
        )
        found = featviz.audit(
            model, picture[None], [0], norms=["linf"], eps=[eps / 2, eps], parts=(), queries=0
        )
        assert float(found.norms[0].distance[0]) <= eps
        assert float(found.norms[0].distance[0]) > 0
