"""Grad-CAM against a plain implementation on the whole map, and the layer it takes by default."""

from __future__ import annotations

import pytest
import torch
from catalogue import Reused
from catalogue_laws import check_grad_cam
from torch import Tensor, nn

import featviz
from featviz.attribution.grad_cam import grad_cam_layer
from featviz.errors import UserError


@pytest.mark.parametrize("name", ["alexnet-mini", "shufflenet_v2_x0_5"])
def test_grad_cam_is_that_of_the_whole_map(name: str) -> None:
    check_grad_cam(name)


def test_one_branch_is_not_the_whole() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = torch.cat([self.left(x), self.right(x)], 1)
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits

    assert grad_cam_layer(featviz.wrap(Branches(), input_size=8)) == "stem"
    # The last run of a module is one place: what its earlier runs gave does not go round it.
    assert grad_cam_layer(featviz.wrap(Reused(nn.ReLU()).eval(), input_size=32)) == "act"


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)),
        nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 4)),
    ],
)
def test_a_model_without_maps_is_refused_before_work(net: nn.Module) -> None:
    model, done = featviz.wrap(net, input_size=8), []
    with pytest.raises(UserError, match="no layer that the whole signal passes as a map"):
        featviz.attribute(
            model, torch.rand(1, 3, 8, 8), progress=lambda *report: done.append(report)
        )
    assert not done
