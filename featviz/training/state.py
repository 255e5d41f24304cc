"""The state of a training run as one piece of a checkpoint, replaced after each epoch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from featviz.checkpoints import Arrays, Checkpoint
from featviz.errors import UserError
from featviz.training.files import growth_tensors
from featviz.training.processes import Processes
from featviz.training.result import Epoch

_PIECE = "state"


class Elsewhere(Checkpoint):
    """A checkpoint that another process writes."""

    def write(self, name: str, arrays: Arrays, *, size: int = 1) -> None:
        self.sizes[name] = size


@dataclass
class State:
    """What a run needs to go on, beside weights and momentum."""

    history: list[Epoch] = field(default_factory=list)
    kernels: list[Tensor] = field(default_factory=list)
    kernel_steps: list[int] = field(default_factory=list)
    kernel_top1: list[float | None] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.history)


def write_state(
    kept: Checkpoint, net: nn.Module, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Replace the state in a checkpoint. Raises UserError if it cannot be written."""
    tensors = {f"net.{name}": t for name, t in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    if state.kernels:  # as in a file of snapshots, so that `featviz kernels --growth` reads it
        tensors |= growth_tensors(torch.stack(state.kernels), state.kernel_steps, state.kernel_top1)
    arrays = {name: t.detach().cpu().contiguous().numpy() for name, t in tensors.items()}
    history = json.dumps([asdict(epoch) for epoch in state.history])
    kept.write(_PIECE, arrays | {"history": np.array(history)}, size=state.epoch)


def read_state(
    kept: Checkpoint, net: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes
) -> State | None:
    """The first process's state, with net and optimizer of all set to it; None if there is none.

    Raises:
        UserError: The state is damaged.
    """
    arrays = kept.read(_PIECE)
    if arrays is None and kept.is_damaged(_PIECE):
        raise UserError(
            f"the state in {kept.folder} is damaged; begin anew (--restart), or choose "
            "another --out"
        )
    arrays = processes.of_first(arrays)
    if arrays is None:
        return None
    history = [Epoch(**epoch) for epoch in json.loads(str(arrays.pop("history")))]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    net.load_state_dict(
        {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    )
    for name, parameter in net.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    state = State(history)
    if "kernels" in tensors:
        state.kernels = list(tensors["kernels"])
        state.kernel_steps = tensors["steps"].tolist()
        state.kernel_top1 = [None if math.isnan(t) else t for t in tensors["top1"].tolist()]
    kept.sizes[_PIECE] = state.epoch
    return state
