"""The pretended CUDA device refuses what CUDA refuses, computes what the CPU computes, counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pretend_cuda import CARD, HOST, DeviceError, PretendedCuda
from torch import Tensor, nn


@pytest.fixture
def card() -> object:
    with PretendedCuda() as made:
        yield made


class _Strays(torch.autograd.Function):
    """Its backward pass mixes devices."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.ones(2, 3)


def _x() -> Tensor:
    return torch.ones(2, 3, device="cuda")


MISTAKES: dict[str, Callable[[], object]] = {
    "a sum of both devices": lambda: _x() + torch.ones(2, 3),
    "a sum with a number on the card": lambda: torch.ones(2, 3) + _x().sum(),
    "writing the card's number into the host's": lambda: torch.tensor(1.0).add_(_x().sum()),
    "a product": lambda: _x() @ torch.ones(3, 2),
    "joining": lambda: torch.cat([_x(), torch.ones(2, 3)]),
    "a weight on the host": lambda: nn.Linear(3, 1)(_x()),
    "indices on the card": lambda: torch.ones(4)[torch.arange(2, device="cuda")],
    "values on the host": lambda: _x().index_put_((torch.arange(2, device="cuda"),), torch.ones(3)),
    "gathering by indices of the host": lambda: _x().gather(1, torch.zeros(2, 1).long()),
    "numpy": lambda: _x().numpy(),
    "an array": lambda: np.asarray(_x()),
    "the host's generator": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    "the host's generator in place": lambda: _x().normal_(generator=torch.Generator()),
    "a backward pass": lambda: _Strays.apply(_x().requires_grad_()).sum().backward(),
    "a sparse product": lambda: _sparse() @ torch.ones(2, 1),
}


def _sparse() -> Tensor:
    indices = torch.tensor([[0, 1], [0, 1]], device="cuda")
    ones = torch.ones(2, device="cuda")
    return torch.sparse_coo_tensor(indices, ones, (2, 2), check_invariants=False)


@pytest.mark.parametrize("name", MISTAKES)
def test_mixing_of_devices_is_refused(name: str, card: PretendedCuda) -> None:
    with pytest.raises(DeviceError):
        MISTAKES[name]()


def test_results_views_gradients_and_copies_are_where_cuda_puts_them(card: PretendedCuda) -> None:
    x = torch.randn(2, 3, 8, 8, device="cuda", requires_grad=True)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("cuda")
    (net(x).relu().mean() + (x * torch.tensor(3.0)).sum().cpu().to("cuda")).backward()
    assert x.grad is not None
    for found in (
        x[0], x.detach(), x.grad, x.new_zeros(2), x.new_tensor([1.0]), torch.zeros_like(x),
        torch.fft.rfft2(x), x[torch.arange(1)], copy.deepcopy(x.detach()),
        *copy.deepcopy(net).parameters(), *net.buffers(), net[0].weight.grad,
        torch.arange(3, device=x.device), x.to(torch.float64),
        _sparse() @ torch.ones_like(x[0, 0, :2]),
        nn.functional.one_hot(torch.arange(2, device="cuda"), 3),
    ):  # fmt: skip
        assert found is not None
        assert found.device == CARD
    for found in (x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), torch.ones(2)):
        assert found.device == HOST


def test_a_gradient_returns_through_a_move_to_the_first_device(card: PretendedCuda) -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    x.to("cuda").square().sum().backward()
    assert x.grad is not None
    assert x.grad.device == HOST
    assert x.grad.tolist() == [2.0, 4.0]


def test_uploads_waits_and_launches_are_counted(card: PretendedCuda) -> None:
    x = torch.ones(3).to("cuda")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert (card.total("upload"), card.total("wait")) == (1, 0)
    before = card.total("launch")
    y = (x + 1) * 2
    assert card.total("launch") == before + 2
    y.sum().item()
    y.tolist()
    y.cpu()
    y[y > 1]
    assert card.total("wait") == 4
    assert card.total("wait", "test_pretend_cuda.py") == 4


def test_nothing_is_left_behind() -> None:
    with PretendedCuda():
        x = torch.ones(2, device="cuda")
    assert x.device == HOST
    assert not torch.cuda.is_available()
    assert x.numpy().sum() == 2


def _graph(run: Callable[[], Tensor]) -> tuple[Any, Tensor]:
    """A graph, and what it gives."""
    apart, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=apart):
        made = run()
    torch.cuda.current_stream().wait_stream(apart)
    return graph, made


def test_a_graph_computes_at_each_replay_on_the_memory_it_was_recorded_with(
    card: PretendedCuda,
) -> None:
    x = torch.ones(2, device="cuda")
    graph, y = _graph(lambda: (x * 2).relu_() + 1)
    assert y.isnan().all()  # nothing was computed
    launches = card.total("launch")
    graph.replay()
    assert card.total("launch") == launches + 1
    assert y.tolist() == [3.0, 3.0]
    x.copy_(torch.tensor([2.0, -2.0], device="cuda"))
    kept = y.clone()
    graph.replay()
    assert (y.tolist(), kept.tolist()) == ([5.0, 1.0], [3.0, 3.0])


def _reads_without_waiting() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        y = _x()
    y + 1


def _writes_outside() -> None:
    x = _x()
    _graph(lambda: x.add_(1))


def _reads_what_is_gone() -> None:
    held = [_x()]
    graph, _ = _graph(lambda: held[0] * 2)
    held.clear()
    graph.replay()


MISTAKES_OF_GRAPHS: dict[str, Callable[[], object]] = {
    "waiting": lambda: _graph(lambda: _x() * _x().sum().item()),
    "sending": lambda: _graph(lambda: _x() + torch.ones(3).to("cuda")),
    "sending from pinned memory": lambda: _graph(
        lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    ),
    "asking for values": lambda: _graph(lambda: _x()[_x() > 0]),
    "recording on the default stream": lambda: torch.cuda.CUDAGraph().capture_begin(),
    "a replay of nothing": lambda: torch.cuda.CUDAGraph().replay(),
    "writing outside": _writes_outside,
    "reading another stream's": _reads_without_waiting,
    "reading what is gone": _reads_what_is_gone,
}


@pytest.mark.parametrize("name", MISTAKES_OF_GRAPHS)
def test_mistakes_of_graphs_are_refused(name: str, card: PretendedCuda) -> None:
    with pytest.raises(RuntimeError):
        MISTAKES_OF_GRAPHS[name]()


def test_waits_are_refused_where_torch_is_told_to(card: PretendedCuda) -> None:
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        _x().sum().item()
    torch.cuda.set_sync_debug_mode("default")
    assert _x().sum().item() == 6
