"""Every family of torchvision, and some of timm: taps, scores and Grad-CAM are those of the net."""

from __future__ import annotations

from typing import Any

import pytest
from catalogue import TIMM, TORCHVISION, calibrated
from catalogue_laws import check_grad_cam, check_scores, check_taps

# These take one size and no other; the pictures of the others are small.
FIXED = ("vit", "swin", "mixer")


@pytest.mark.long
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_numbers_of_every_family_are_those_of_the_net(name: str) -> None:
    check_taps(name)
    check_grad_cam(name)
    layers = calibrated(name).layers
    spread = [list(layers)[len(layers) // 2]]
    acting = [n for n, one in layers.items() if one.calls > 1 or one.kind.endswith("LU")][-1:]
    size: dict[str, Any] = {} if any(part in name for part in FIXED) else {"size": 64}
    check_scores(name, [*spread, *acting, "logits"], steps=1, **size)
