"""Random weights with which a net's answers depend on the picture, and pictures to try them on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def calibrate(net: nn.Module, size: tuple[int, int], *, seed: int = 0, batches: int = 2) -> None:
    """Draw what is initialized as a constant, and set the statistics of batch normalization.

    Many nets begin with a head of zeros or with blocks that are almost switched off.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in net.named_parameters():
            constant = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            if constant and (parameter.dim() > 1 and min(parameter.shape[:2]) > 1):
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif constant and float(parameter.abs().max()) < 0.1 and "bias" not in name:
                parameter.fill_(0.3)
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        net.train()
        for _ in range(batches if norms else 0):
            net(torch.randn(2, 3, *size))
        net.eval()


def pictures(seed: int = 0) -> list[Image.Image]:
    """Blurred noise, one picture wide and one high."""
    draw = np.random.default_rng(seed)
    sizes = ((320, 211), (250, 333))
    small = [draw.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in sizes]
    return [
        Image.fromarray(s).resize(size, Image.Resampling.BICUBIC)
        for s, size in zip(small, sizes, strict=True)
    ]


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of logits (N, classes), by how far they differ between pictures."""
    spread = (theirs - theirs.mean(0)).square().mean().sqrt()
    assert float(spread) > 0
    return float((ours - theirs).abs().max() / spread)


def torchvision_state(name: str, models: Any) -> Any:
    """Calibrated weights of a torchvision net, as its own files of weights have them."""
    default = models.get_model_weights(name).DEFAULT
    side = default.transforms().crop_size[0]
    options: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        options = {"aux_logits": True, "init_weights": False}
    if name.startswith("vit_"):
        options = {"image_size": side}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.get_model(name, weights=None, **options)
    calibrate(net, (side, side))
    return net.state_dict()
