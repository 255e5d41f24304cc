"""Batches that are made ready in threads while the batch before is trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

S = TypeVar("S")
T = TypeVar("T")

AHEAD = 2
"""batches that are being made ready"""


class Batch(NamedTuple):
    """A batch, or a part of one, with all that is drawn for its pictures."""

    pictures: Tensor
    """(B, 3, S, S) uint8"""
    labels: Tensor
    """(B,) int64"""
    draws: Tensor
    """(B, DRAWS) uniform in [0, 1), for `augment`"""
    keys: Tensor
    """(B,) int32, for `dropout`"""
    teacher: Tensor | None
    """(B, classes): logits to learn from"""

    def chunk(self, parts: int) -> list[Batch]:
        """At most so many parts of about the same size."""
        split = [None if t is None else t.chunk(parts) for t in self]
        count = len(split[0] or ())
        return [Batch(*(s if s is None else s[i] for s in split)) for i in range(count)]  # type: ignore[arg-type]

    def pinned(self) -> Batch:
        """In memory from which a card copies without a wait."""
        return Batch(*(t if t is None else t.pin_memory() for t in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Batch:
        """On a device; from pinned memory without a wait."""
        return Batch(*(t if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[arg-type]


def ahead(make: Callable[[S], T], items: Iterable[S]) -> Generator[T, None, None]:
    """make(item) of every item, in order; the next ones are made while one is used."""
    with ThreadPoolExecutor(AHEAD, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        upcoming = iter(items)
        waiting: deque[Future[T]] = deque(pool.submit(make, i) for i in islice(upcoming, AHEAD))
        try:
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(make, i) for i in islice(upcoming, 1))
                yield found
        finally:
            pool.shutdown(cancel_futures=True)
