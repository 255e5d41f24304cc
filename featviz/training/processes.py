"""Processes that train one net together, as torchrun starts them: on one machine or on several.

    torchrun --nproc-per-node 8 -m featviz train --data FOLDER

Each process computes the gradients of its part of every batch; DistributedDataParallel adds them
up, by NCCL between cards and by Gloo between CPUs, so that all take the same step.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from featviz.errors import UserError
from featviz.models.load import resolve_device
from featviz.torchrun import here, several

T = TypeVar("T")

_LOST = ("gloo", "Connection", "NCCL", "Broken pipe")
"""in what torch says where another process has ended"""


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as one of them sees them."""

    device: torch.device
    """on which this one computes"""
    rank: int = 0
    count: int = 1

    def shared(self, net: nn.Module) -> nn.Module:
        """The net, whose backward pass adds up the gradients of all processes."""
        if self.count == 1:
            return net
        return DistributedDataParallel(net, gradient_as_bucket_view=True)

    def part(self, rows: Tensor) -> Tensor:
        """The rows that this process works on; every row is in the part of one."""
        return rows.tensor_split(self.count)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' values."""
        return AllReduce.apply(values) if self.count > 1 else values

    def of_first(self, value: T) -> T:
        """The value that the first process has, in all."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def is_loss(self, error: RuntimeError) -> bool:
        """Whether an error says that another process has ended."""
        return self.count > 1 and any(word in str(error) for word in _LOST)


class AllReduce(torch.autograd.Function):
    """The sum over all processes; so is that of its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """This process among those that torchrun has started, or alone.

    After an error the others are not told: whoever sees it first can say so before they notice.

    Args:
        device: As `resolve_device` takes it; of several cards each process of a machine has one.

    Raises:
        UserError: There are fewer cards than processes, or the others cannot be reached.
    """
    if not several() and not dist.is_initialized():
        yield Processes(resolve_device(device))
        return
    place = _own(resolve_device(device))
    begins = not dist.is_initialized()
    if begins:
        try:
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the other processes of the training do not answer ({reason}); start them with "
                "torchrun"
            ) from None
    yield Processes(place, dist.get_rank(), dist.get_world_size())
    if begins:
        # A DistributedDataParallel that is freed after the group (it is in reference cycles) frees
        # the group's threads with Python's lock held, and one of them may wait for that lock.
        gc.collect()
        dist.destroy_process_group()


def _own(place: torch.device) -> torch.device:
    """The card of this process among those of its machine."""
    if place.type != "cuda":
        return place
    number, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if here() > cards:
        raise UserError(
            f"{here()} processes for {cards} CUDA devices; start as many as there are "
            f"(--nproc-per-node {cards}), or give --device cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
