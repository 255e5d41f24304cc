"""A batch shared by threads: each computes the gradients of a part of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Self

import torch
from torch import Tensor, nn

from featviz.training.batches import Batch


class Workers:
    """The net and its copies, one for each worker; they share weights and add up gradients."""

    def __init__(self, net: nn.Module, workers: int):
        self.nets = [net]
        for _ in range(workers - 1):
            copy = deepcopy(net)
            for mine, theirs in zip(copy.parameters(), net.parameters(), strict=True):
                mine.data = theirs.data
            self.nets.append(copy)
        self.threads = torch.get_num_threads()
        self.pool: ThreadPoolExecutor | None = None
        if workers > 1:
            self.pool = ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            )

    def __enter__(self) -> Self:
        if self.pool is not None:
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()
            torch.set_num_threads(self.threads)

    def run(self, gradients: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Tensor:
        """Leave the batch's gradients in the first net; returns its summed loss."""
        for net in self.nets:
            net.train().zero_grad(set_to_none=True)
        if self.pool is None:
            return gradients(self.nets[0], batch)
        parts = zip(self.nets, batch.chunk(len(self.nets)), strict=False)
        jobs = [self.pool.submit(gradients, net, part) for net, part in parts]
        losses = [job.result() for job in jobs]
        for same in zip(*(net.parameters() for net in self.nets[: len(jobs)]), strict=True):
            for other in same[1:]:
                if other.grad is not None and same[0].grad is not None:
                    same[0].grad += other.grad
        return torch.stack(losses).sum()
