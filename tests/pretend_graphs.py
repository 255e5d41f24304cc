"""Streams and CUDA graphs of the pretended card (`pretend_cuda`).

A capture keeps the operations with the memory they work on, and computes nothing: what it made
holds NaN until the first replay. A replay makes the same operations on the same memory. As on a
card it sees new values only where they were copied into memory that was recorded, and overwrites
what the replay before has given. Memory that nobody held at the end of the capture is NaN for
everybody else. Refused, beside what CUDA refuses: to read what has been freed since the capture, to
write outside of it, and to read what another stream writes without waiting for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class Card(Protocol):
    """What a graph asks of the card."""

    stream: Stream
    streams: list[Stream]
    capture: Graph | None

    def refuse(self, text: str) -> None: ...
    def count(self, kind: str) -> None: ...
    def on_card(self, x: Tensor) -> bool: ...


@contextmanager
def plain() -> Iterator[None]:
    """Without any mode."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        yield


class Stream:
    """A queue of the card: what others have written is there once it has waited for them."""

    card: Card
    """that of the test that is running; streams may be kept longer"""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.writes = 0
        self.seen: dict[Stream, int] = {}
        self.card.streams.append(self)

    def wait_stream(self, other: Stream) -> None:
        for stream, writes in {**other.seen, other: other.writes}.items():
            self.seen[stream] = max(self.seen.get(stream, 0), writes)

    def read(self, memory: Any) -> None:
        nothing = getattr(memory, "nothing", None)
        if nothing is not None and self.card.capture is None:
            memory.fill_(nothing)
        stream, writes = getattr(memory, "written", (self, 0))
        if stream not in self.card.streams or stream is self:
            return
        if self.seen.get(stream, 0) < writes:
            self.card.refuse("reads what another stream writes, without waiting for it")

    def write(self, memory: Any) -> None:
        self.writes += 1
        if memory is not None:
            memory.written, memory.nothing = (self, self.writes), None

    @contextmanager
    def current(self) -> Iterator[None]:
        if self not in self.card.streams:
            self.card.streams.append(self)
        before, self.card.stream = self.card.stream, self
        try:
            yield
        finally:
            self.card.stream = before


class _Memory:
    """A storage that a graph works on, which does not hold it."""

    def __init__(self, x: Tensor, *, inside: bool) -> None:
        storage = x.untyped_storage()
        self.weak, self.size, self.inside = StorageWeakRef(storage), storage.nbytes(), inside
        self.nothing = 255 if x.dtype.is_floating_point or x.dtype.is_complex else 0
        """of each byte: NaN, or an index that is none out of range"""

    def storage(self) -> torch.UntypedStorage | None:
        return torch.UntypedStorage._new_with_weak_ptr(self.weak.cdata)


@dataclass(frozen=True)
class _View:
    memory: _Memory
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self, card: Card, *_: Any, **__: Any) -> None:
        self.card = card
        self.reset()

    def reset(self) -> None:
        self.operations: list[tuple[Callable[..., Any], list[Any], Any, list[Any]]] = []
        self.memories: dict[int, _Memory] = {}
        self.ended = self.broken = False

    def capture_begin(self, *_: Any, **__: Any) -> None:
        if self.card.stream is self.card.streams[0]:
            self.card.refuse("CUDA graphs must be captured on a non-default stream")
        self.card.capture = self

    def capture_end(self) -> None:
        self.card.capture = None
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        for memory in self.memories.values():
            storage: Any = memory.storage() if memory.inside else None
            if storage is not None:
                storage.nothing = memory.nothing  # has been computed
        self.ended = True

    def pool(self) -> object:
        assert self.ended, "a pool without a capture"
        return self

    def add(self, call: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Keep an operation, unless it only looks at memory in another way."""
        flat, form = tree_flatten((args, kwargs))
        given = [self._view(x, inside=False) for x in flat]
        views = [one for one in given if isinstance(one, _View)]
        found = [self._view(x, inside=True) for x in tree_leaves(out)]
        taken = {one.memory for one in views}
        fresh = [
            one if isinstance(one, _View) and one.memory not in taken else None for one in found
        ]
        if not any(fresh) and not call._schema.is_mutable:
            return
        for argument, value in zip(call._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for x in (x for x in tree_leaves(value) if isinstance(x, Tensor)):
                    if not self.memories[x.untyped_storage()._cdata].inside:
                        self.card.refuse(f"{call}: a capture that writes outside of it")
        self.operations.append((call, given, form, fresh))

    def _view(self, x: Any, *, inside: bool) -> Any:
        if not isinstance(x, Tensor):
            return x
        if not self.card.on_card(x):
            return x.clone()  # a number, which becomes a part of the graph
        assert x.layout == torch.strided
        assert not x.is_conj()
        assert not x.is_neg()
        number = x.untyped_storage()._cdata
        if number not in self.memories:
            self.memories[number] = _Memory(x, inside=inside)
        memory = self.memories[number]
        return _View(memory, x.dtype, x.shape, x.stride(), int(x.storage_offset()))

    def replay(self) -> None:
        if not self.ended:
            self.card.refuse("a replay without a capture")
        self.card.count("launch")
        held: dict[_Memory, Any] = {}
        with plain(), torch.no_grad():
            for call, given, form, fresh in self.operations:
                args, kwargs = tree_unflatten([self._tensor(x, held) for x in given], form)
                for target, made in zip(fresh, tree_leaves(call(*args, **kwargs)), strict=True):
                    if target is not None:
                        self._tensor(target, held).copy_(made)
        for memory in (memory for memory in held if memory.inside):
            self.card.stream.write(held[memory])

    def _tensor(self, view: Any, held: dict[_Memory, Any]) -> Any:
        if not isinstance(view, _View):
            return view
        memory = view.memory
        if memory not in held:
            storage: Any = memory.storage()
            if storage is None and not memory.inside:
                self.card.refuse("a graph that reads what has been freed since its capture")
            if storage is not None:
                self.card.stream.read(storage)
            if storage is None:
                storage = torch.UntypedStorage(memory.size)
                storage.fill_(memory.nothing)
            held[memory] = storage
        empty = torch.empty(0, dtype=view.dtype)
        return empty.set_(held[memory], view.offset, view.size, view.stride)
