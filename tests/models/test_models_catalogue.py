"""Every family of torchvision, and some of timm: taps, scores and Grad-CAM are those of the net."""

from __future__ import annotations

from typing import Any

import pytest
from catalogue import calibrated
from catalogue_laws import check_grad_cam, check_scores, check_taps

SMALL = (
    *("resnet18", "squeezenet1_1", "densenet121", "googlenet", "mobilenet_v3_small", "mnasnet0_5"),
    *("efficientnet_b0", "regnet_y_400mf", "swin_t", "timm/resnet10t", "timm/convnext_atto"),
    *(
        "timm/vit_tiny_patch16_224",
        "timm/mixer_s32_224",
        "timm/lcnet_035",
        "timm/edgenext_xx_small",
    ),
)
"""one of each family; others of `catalogue`, larger ones, pass the same laws and take longer"""
# These take one size and no other; the pictures of the others are small.
FIXED = ("vit", "swin", "mixer")


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_numbers_of_every_family_are_those_of_the_net(name: str) -> None:
    check_taps(name)
    check_grad_cam(name)
    layers = calibrated(name).layers
    spread = [list(layers)[len(layers) // 2]]
    acting = [n for n, one in layers.items() if one.calls > 1 or one.kind.endswith("LU")][-1:]
    size: dict[str, Any] = {} if any(part in name for part in FIXED) else {"size": 96}
    check_scores(name, [*spread, *acting, "logits"], steps=1, **size)
