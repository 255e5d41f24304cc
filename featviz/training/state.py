"""The state of a training run as one piece of a checkpoint, replaced after each epoch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from featviz.checkpoints import Checkpoint
from featviz.errors import UserError
from featviz.training.result import Epoch

_PIECE = "state"


@dataclass
class State:
    """What a run needs to go on, beside weights and momentum."""

    epoch: int = 0
    """epochs that are done"""
    history: list[Epoch] = field(default_factory=list)
    kernels: list[Tensor] = field(default_factory=list)
    kernel_steps: list[int] = field(default_factory=list)
    kernel_top1: list[float | None] = field(default_factory=list)


def write_state(
    kept: Checkpoint, net: nn.Module, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Replace the state in a checkpoint. Raises UserError if it cannot be written."""
    tensors = {f"net.{name}": t for name, t in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    if state.kernels:
        tensors["kernels"] = torch.stack(state.kernels)
    record = asdict(state) | {"kernels": None}
    arrays = {name: t.detach().cpu().contiguous().numpy() for name, t in tensors.items()}
    kept.write(_PIECE, arrays | {"record": np.array(json.dumps(record))}, size=state.epoch)


def read_state(kept: Checkpoint, net: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
    """The state in a checkpoint, with net and optimizer set to it; None if there is none.

    Raises:
        UserError: The state is damaged.
    """
    arrays = kept.read(_PIECE)
    if arrays is None:
        if kept.is_damaged(_PIECE):
            raise UserError(
                f"the state in {kept.folder} is damaged; begin anew (--restart), or choose "
                "another --out"
            )
        return None
    record = json.loads(str(arrays.pop("record")))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    net.load_state_dict(
        {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    )
    for name, parameter in net.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer
    state = State(**record)
    state.history = [Epoch(**epoch) for epoch in record["history"]]
    state.kernels = list(tensors["kernels"]) if "kernels" in tensors else []
    kept.sizes[_PIECE] = state.epoch
    return state
