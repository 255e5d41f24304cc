"""Dropout as a function of each picture's key."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz.training.forward import SharedBatch, uniform_bits


def _keys(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32, generator=generator)


def _dropped(keys: Tensor, x: Tensor, p: float = 0.3) -> Tensor:
    net = nn.Sequential(nn.Dropout(p), nn.Identity(), nn.Dropout(p))
    with SharedBatch(keys):
        found: Tensor = net(x)
    return found


def test_a_mask_belongs_to_the_picture_not_to_its_place_in_the_batch() -> None:
    keys, x = _keys(12), torch.rand(12, 5, 3, 3) + 1
    whole = _dropped(keys, x)
    order = torch.randperm(12)
    assert torch.equal(_dropped(keys[order], x[order]), whole[order])
    parts = [_dropped(k, v) for k, v in zip(keys.split(5), x.split(5), strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(_dropped(keys, last), whole)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_values_are_dropped_at_their_rate_and_the_mean_stays(p: float) -> None:
    x = torch.ones(400, 500, requires_grad=True)
    with SharedBatch(_keys(400)):
        found = F.dropout(x, p)
    kept = found != 0
    sd = (p * (1 - p)) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - p)) <= 4 * sd / (400 * 500) ** 0.5
    # Within a picture and at a place the counts scatter as those of independent draws.
    for dim, n in ((0, 400), (1, 500)):
        spread = float(kept.double().mean(dim).std())
        assert spread == pytest.approx(sd / n**0.5, rel=0.15)
    assert torch.equal(found[kept], torch.full_like(found[kept], 1 / (1 - p) if p < 1 else 1))
    found.sum().backward()
    assert torch.equal(x.grad if x.grad is not None else x, found.detach())


def test_two_layers_and_two_keys_drop_unrelated_values() -> None:
    keys, x = _keys(200), torch.ones(200, 300)
    with SharedBatch(keys):
        first, second = ((F.dropout(x, 0.5) != 0).double() - 0.5 for _ in range(2))
    for one, other in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        assert abs(float((one * other).mean())) < 4 * 0.25 / one.numel() ** 0.5


def test_every_bit_is_even_and_eval_mode_changes_nothing() -> None:
    bits = uniform_bits(_keys(300), 400).long()
    for k in range(32):
        assert float(((bits >> k) & 1).double().mean()) == pytest.approx(0.5, abs=6e-3)
    x = torch.rand(4, 3)
    with SharedBatch(_keys(4)):
        assert F.dropout(x, 0.5, training=False) is x
