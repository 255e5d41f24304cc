"""`graphed(run)`: passes of a fixed shape as CUDA graphs, recorded once and launched as a whole.

A step of a few pictures is bound by the launches of its kernels. A CUDA graph launches all of a
pass at once, on the memory that it was recorded with: inputs are copied there, results out of it.
The first passes of a shape are ordinary ones; one more is recorded; the one after it is made both
ways and compared. Where recording fails or the two differ, ordinary passes go on, and a warning
says so. NVIDIA, "CUDA C++ Programming Guide", section CUDA graphs; PyTorch notes, "CUDA semantics".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from featviz.errors import UserError

Run = Callable[..., Tensor]
"""tensors to a tensor: always the same operations for a shape, and none that waits for the card"""

RECORDING: ContextVar[bool] = ContextVar("a pass is being recorded", default=False)
"""checks that wait for the card leave such a pass alone"""

ORDINARY = 3  # passes of a shape before it is recorded
KEPT = 4  # shapes whose graphs are held, those used last
TOLERANCE = 1e-3
"""of a replayed pass, as a share of the largest number of the ordinary one"""


def need_cuda(device: torch.device) -> None:
    """Raise UserError on a device without CUDA graphs."""
    if device.type != "cuda":
        raise UserError(
            f"cuda_graph is for models on CUDA, this one is on {device.type}; leave it out, or "
            "take device cuda"
        )


@contextmanager
def graphed(run: Run, *, wanted: bool, device: torch.device) -> Iterator[Run]:
    """Within the block, `run` with its passes as CUDA graphs where `wanted`, else `run` itself.

    The result is the same function of the same tensors. Gradients flow to the first of them, where
    it requires one, and to no parameters (`frozen`); not a second time.

    Raises:
        UserError: The device is no CUDA device.
    """
    if not wanted:
        yield run
        return
    need_cuda(device)
    made = _Graphed(run, device)
    try:
        yield made
    finally:
        made.release()


class _Graphed:
    """A function of tensors with a graph for each of their shapes."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        self.shapes: dict[Hashable, _Shape] = {}
        """the one that was used last is the last"""
        self.refused = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.refused:
            return self.run(*inputs)
        differentiable = torch.is_grad_enabled() and inputs[0].requires_grad
        key = differentiable, *((x.shape, x.dtype) for x in inputs)
        shape = self.shapes[key] = self.shapes.pop(key, _Shape())
        shape.calls += 1
        try:
            if shape.calls == ORDINARY + 1:
                self.release(KEPT - 1)
                shape.recorded = _Recorded(self.run, inputs)
            elif shape.calls == ORDINARY + 2:
                self._compare(shape.recorded, inputs)
        except RuntimeError as error:
            self.refused = True
            self.release()
            text = " ".join(str(error).partition("\n\n")[0].split())
            warnings.warn(f"no CUDA graph is used ({text}); results are the same", stacklevel=2)
        ready = shape.recorded is not None and shape.calls > ORDINARY + 1
        return _Replay.apply(shape.recorded, *inputs) if ready else self.run(*inputs)

    def _compare(self, recorded: _Recorded | None, inputs: Sequence[Tensor]) -> None:
        """Refuse a graph that does not give what an ordinary pass gives, gradients included."""
        replayed = _values(partial(_Replay.apply, recorded), inputs)
        for want, found in zip(_values(self.run, inputs), replayed, strict=True):
            room = TOLERANCE * float(want.nan_to_num().abs().amax())
            if not torch.allclose(found, want, rtol=0, atol=room, equal_nan=True):
                raise RuntimeError("a recorded pass gives other values than an ordinary one")

    def release(self, most: int = 0) -> None:
        """Release the graphs, but for so many that were used last, and their memory."""
        held = [shape for shape in self.shapes.values() if shape.recorded is not None]
        if len(held) > most:
            torch.cuda.synchronize(self.device)
        for shape in held[: len(held) - most]:
            shape.calls, shape.recorded = 0, None


def _values(run: Run, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a function gives, and its gradient, the result itself taken as the weights."""
    x = inputs[0].detach().requires_grad_(inputs[0].requires_grad)
    y = run(x, *inputs[1:])
    return [y.detach(), *torch.autograd.grad(y, x, y.detach())] if y.requires_grad else [y]


@dataclass
class _Shape:
    calls: int = 0
    recorded: _Recorded | None = None


class _Recorded:
    """A forward and a backward pass as two graphs, on memory of their own.

    Raises RuntimeError where the passes cannot be recorded.
    """

    def __init__(self, run: Run, inputs: Sequence[Tensor]) -> None:
        self.turn = 0
        """how often the forward pass was replayed"""
        self.inputs = [x.detach().clone() for x in inputs]
        self.inputs[0].requires_grad_(inputs[0].requires_grad)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        device = inputs[0].device
        apart, here = _apart(device), torch.cuda.current_stream(device)
        apart.wait_stream(here)
        token = RECORDING.set(True)
        try:
            with torch.cuda.stream(apart):
                with _without_waits():  # what cannot be recorded fails here, where it does no harm
                    _values(run, self.inputs)
                with _Held() as self.held:
                    self._record(run, apart)
        finally:
            RECORDING.reset(token)
            here.wait_stream(apart)

    def _record(self, run: Run, apart: torch.cuda.Stream) -> None:
        with torch.cuda.graph(self.forward, stream=apart):
            self.output = run(*self.inputs)
        if not self.output.requires_grad:
            return
        self.weights = torch.empty_like(self.output)
        with torch.cuda.graph(self.backward, pool=self.forward.pool(), stream=apart):
            # What the forward pass has kept is kept: several gradients may be asked for.
            (self.gradient,) = torch.autograd.grad(
                self.output, self.inputs[0], self.weights, retain_graph=True
            )

    def replay(self, inputs: Sequence[Tensor]) -> None:
        """Make the forward pass with other inputs."""
        with torch.no_grad():
            for mine, given in zip(self.inputs, inputs, strict=True):
                mine.copy_(given)
        self.forward.replay()
        self.turn += 1


class _Held(TorchDispatchMode):
    """Holds the memory that operations read and have not made, such as constants in caches."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[int] = set()
        self.storages: dict[int, torch.UntypedStorage] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler at the first operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self.made:
                self.storages[storage._cdata] = storage
        self.made |= {storage._cdata for storage in _storages(out)} - self.storages.keys()
        return out


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor)]


@cache
def _apart(device: torch.device) -> torch.cuda.Stream:
    """One stream for all recordings: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _without_waits() -> Iterator[None]:
    """Within the block, what waits for the card raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class _Replay(torch.autograd.Function):
    """A recorded pass for autograd: copies go in and come out."""

    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *inputs: Tensor) -> Tensor:
        recorded.replay(inputs)
        ctx.recorded, ctx.turn = recorded, recorded.turn
        ctx.save_for_backward(*inputs)
        return recorded.output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        recorded: _Recorded = ctx.recorded
        if ctx.turn != recorded.turn:  # another forward pass came between
            recorded.replay(ctx.saved_tensors)
        recorded.weights.copy_(weights)
        recorded.backward.replay()
        return None, recorded.gradient.clone(), *[None] * (len(recorded.inputs) - 1)
