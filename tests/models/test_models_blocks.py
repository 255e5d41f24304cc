"""Convolutions over blocks of pixels are those of torch, forward and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz.models.blocks import InBlocks

CASES = [  # kernel, stride, padding, height and width
    (11, 4, 2, (63, 70)),
    (9, 2, 3, (32, 33)),
    (7, 2, 3, (30, 41)),
    (4, 4, 0, (19, 16)),  # the last pixels are in no window
    (5, 2, 0, (12, 12)),
]


def both(x: Tensor, call: Any) -> list[tuple[Tensor, Tensor]]:
    """Value and gradient by torch and in blocks."""
    found = []
    for block in (None, InBlocks()):
        leaf = x.clone().requires_grad_()
        if block is None:
            y = call(leaf)
        else:
            with block:
                y = call(leaf)
            assert len(block.kernels) == 1
        weight = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, weight)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), CASES)
def test_values_and_gradients_are_those_of_torch(
    kernel: int, stride: int, padding: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    if stride == 4:
        dtype = torch.float32  # rows of 32 bytes are left to torch
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3, kernel, max(kernel - 1, stride), generator=generator, dtype=dtype)
    bias = torch.randn(6, generator=generator, dtype=dtype)
    x = torch.rand(2, 3, *size, generator=generator, dtype=dtype)
    step, margin = (stride, stride), (padding, padding - 1 if padding > 2 else padding)
    for layout in (torch.contiguous_format, torch.channels_last):
        want, found = both(
            x.contiguous(memory_format=layout), lambda x: F.conv2d(x, weight, bias, step, margin)
        )
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_same_numbers_are_rounded() -> None:
    torch.manual_seed(1)
    net = nn.Conv2d(3, 8, 11, stride=4, padding=2).requires_grad_(False)
    x = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        want, found = both(x, net)
    assert found[0].dtype == torch.bfloat16
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, 3, stride=2, dilation=2),
        nn.Conv2d(3, 3, 3, stride=2, groups=3),
        nn.Conv2d(3, 4, 3, stride=(1, 2)),
        nn.Conv2d(5, 4, 3, stride=2),
        nn.Conv2d(3, 4, 2, stride=3),
        nn.Conv2d(3, 4, 3, padding="same"),
    ],
    ids=str,
)
def test_others_are_left_alone(net: nn.Conv2d) -> None:
    net.requires_grad_(False)
    x = torch.rand(1, net.in_channels, 12, 12, requires_grad=True)
    with InBlocks() as block:
        assert torch.equal(net(x), net(x))
        with torch.no_grad():
            nn.Conv2d(3, 4, 3, stride=2)(torch.rand(1, 3, 9, 9))
        nn.Conv2d(3, 4, 3, stride=2)(torch.rand(1, 3, 9, 9, requires_grad=True))  # learns
    assert not block.kernels
