"""Attribution on models small enough to compute by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz.attribution.attribute import attribute
from featviz.models.model import Model
from featviz.pictures.preprocessing import Preprocessing

SIDE = 8


class Linear(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weights)


@pytest.fixture
def linear(generator: torch.Generator) -> tuple[Model, Tensor]:
    weights = torch.randn(3, 3, SIDE, SIDE, generator=generator)
    model = Model(
        Linear(weights),
        name="linear",
        preprocessing=Preprocessing.of(SIDE, mean=(0.4, 0.5, 0.6), std=(0.5, 0.25, 0.2)),
    )
    return model, weights / model.std


@pytest.fixture
def pictures(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=generator)


def test_saliency_of_a_linear_model_is_its_weights(
    linear: tuple[Model, Tensor], pictures: Tensor
) -> None:
    model, w = linear
    found = attribute(model, pictures, target=[1, 2], methods=["saliency"])
    torch.testing.assert_close(found.maps["saliency"], w[[1, 2]].abs().amax(1))


@pytest.mark.parametrize("baseline", ["mean", "black", "white", 0.3])
def test_integrated_gradients_of_a_linear_model_are_exact_and_complete(
    linear: tuple[Model, Tensor], pictures: Tensor, baseline: str | float
) -> None:
    model, w = linear
    found = attribute(
        model, pictures, target=1, methods=["integrated_gradients"], baseline=baseline, steps=7
    )
    start: Any = {"mean": model.mean, "black": 0.0, "white": 1.0}.get(str(baseline), baseline)
    values = found.maps["integrated_gradients"]
    torch.testing.assert_close(values, (w[1] * (pictures - start)).sum(1), rtol=1e-4, atol=1e-5)
    base = torch.zeros_like(pictures) + start
    gain = model(pictures)[:, 1] - model(base)[:, 1]
    torch.testing.assert_close(values.sum((1, 2)), gain, rtol=1e-4, atol=1e-3)
    assert found.completeness is not None
    assert float(found.completeness.max()) < 1e-4
    assert not any("incomplete" in w for w in found.warnings)


def test_integrated_gradients_report_how_incomplete_they_are(pictures: Tensor) -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = torch.relu(x.mean((1, 2, 3)) - 0.45) * 10
            return torch.stack([score, -score], 1)

    model = Model(Steep(), name="steep", preprocessing=SIDE)
    found = attribute(
        model, pictures, target=0, methods=["integrated_gradients"], baseline="black", steps=2
    )
    gain = model(pictures)[:, 0]
    missing = found.maps["integrated_gradients"].sum((1, 2)) - gain
    assert found.completeness is not None
    assert found.completeness_logits is not None
    torch.testing.assert_close(found.completeness_logits.float(), missing, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.completeness.float(), missing.abs() / gain, rtol=1e-4, atol=1e-5
    )
    assert float(found.completeness.max()) > 0.05
    assert any("take more steps" in w for w in found.warnings)


def test_occlusion_of_a_linear_model_by_hand(
    linear: tuple[Model, Tensor], pictures: Tensor
) -> None:
    model, w = linear
    found = attribute(
        model,
        pictures,
        target=2,
        methods=["occlusion"],
        window=1 / 2,
        stride=1 / 4,
        baseline="black",
        batch_size=3,
    )
    effect = (w[2] * pictures).sum(1)  # what covering one pixel with black takes away
    total, covers = torch.zeros(2, SIDE, SIDE), torch.zeros(SIDE, SIDE)
    for top in range(0, SIDE - 3, 2):
        for left in range(0, SIDE - 3, 2):
            square = (..., slice(top, top + 4), slice(left, left + 4))
            total[square] += effect[square].sum((1, 2))[:, None, None]
            covers[square] += 1
    torch.testing.assert_close(found.maps["occlusion"], total / covers, rtol=1e-4, atol=1e-4)


class TwoConvolutions(nn.Module):
    """Two convolutions, a mean over positions, a linear head."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)
        for parameter in self.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.act(self.first(x))).mean((2, 3)))
        return logits


def test_grad_cam_by_hand(generator: torch.Generator, pictures: Tensor) -> None:
    net = TwoConvolutions(generator)
    model = Model(net, name="two", preprocessing=SIDE)
    found = attribute(model, pictures, target=1, methods=["grad_cam"], layer="second")
    with torch.no_grad():
        maps = net.second(F.relu(net.first(pictures)))  # (2, 5, 4, 4)
        # The logit is head . mean(maps): each position's gradient is head / 16.
        weights = net.head.weight[1] / 16
        coarse = F.relu((weights[None, :, None, None] * maps).sum(1, keepdim=True))
        expected = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(found.maps["grad_cam"], expected, rtol=1e-4, atol=1e-6)
    assert float(expected.max()) > 0
    assert found.layer == "second"


def test_grad_cam_sees_the_map_before_an_in_place_relu(
    generator: torch.Generator, pictures: Tensor
) -> None:
    net = TwoConvolutions(generator)
    model = Model(net, name="two", preprocessing=SIDE)
    found = attribute(model, pictures, target=1, methods=["grad_cam"], layer="first")
    plain = TwoConvolutions(generator)
    plain.load_state_dict(net.state_dict())
    plain.act = nn.ReLU()
    other = attribute(
        Model(plain, name="two", preprocessing=SIDE),
        pictures,
        target=1,
        methods=["grad_cam"],
        layer="first",
    )
    assert torch.equal(found.maps["grad_cam"], other.maps["grad_cam"])


def test_the_deletion_check_confirms_a_map_of_the_region_that_matters() -> None:
    class Corner(nn.Module):
        """Depends on the upper left quarter alone."""

        def forward(self, x: Tensor) -> Tensor:
            score = 20 * (x[:, :, :7, :7].mean((1, 2, 3)) - 0.5)
            return torch.stack([score, -score], 1)

    model = Model(Corner(), name="corner", preprocessing=28)
    found = attribute(
        model, torch.full((3, 28, 28), 0.9), methods=["occlusion"], baseline="black", target=0
    )
    left, elsewhere = found.deletion["occlusion"], found.deletion_random["occlusion"]
    assert float(left[0]) < 0.01
    assert float(elsewhere[0]) > 0.3
