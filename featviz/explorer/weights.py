"""A program's weights as the page stores them: one block of bytes, and what is where in it.

Weights of convolutions and matrices are float16, or int8 with a scale a row (an output unit);
biases, scales and shifts are float32. `store` gives the program with the rounded weights, too, so
that what rounding changes can be measured in Python.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from featviz.explorer.program import Operation, Program

Rounding = Literal["float16", "int8"]


@dataclass
class Block:
    """Tensors one after the other, each at a multiple of 4 bytes."""

    content: bytearray = field(default_factory=bytearray)
    entries: list[dict[str, Any]] = field(default_factory=list)
    """of each tensor: shape, type ("f32", "f16", "i8"), first byte, and for int8 which tensor holds
    the scale of each row"""

    def add(self, tensor: Tensor, kind: str, **more: Any) -> int:
        """Append a tensor of the type's own numbers; its number is returned."""
        entry = {"shape": list(tensor.shape), "type": kind, "start": len(self.content), **more}
        self.content += tensor.contiguous().numpy().tobytes()
        self.content += bytes(-len(self.content) % 4)
        self.entries.append(entry)
        return len(self.entries) - 1

    def deflated(self) -> bytes:
        """The content as the page has it: int8 an eighth, float16 a thirteenth smaller."""
        return zlib.compress(self.content, 9)

    def rounded(self, weight: Tensor, how: Rounding) -> tuple[int, Tensor]:
        """Append a weight (rows, ...); its number, and what the page will make of it."""
        if how == "int8":
            scale = weight.flatten(1).abs().amax(1) / 127
            scale = torch.where(scale > 0, scale, 1.0)
            by_row = scale.view(-1, *[1] * (weight.dim() - 1))
            whole = (weight / by_row).round().to(torch.int8)
            number = self.add(whole, "i8", scale=self.add(scale, "f32"))
            return number, whole.float() * by_row
        half = weight.half()
        if not half.isfinite().all():
            return self.add(weight, "f32"), weight
        return self.add(half, "f16"), half.float()


def store(program: Program, how: Rounding) -> tuple[Block, list[dict[str, Any]], Program]:
    """The weights of a program in a block, the operations as the page reads them, and the program
    with the weights that the page will have."""
    block, ops, operations = Block(), [], []
    for i, one in enumerate(program.operations):
        numbers: dict[str, int] = {}
        kept: dict[str, Tensor] = {}
        for name, tensor in one.weights.items():
            if name == "weight":
                numbers[name], kept[name] = block.rounded(tensor, how)
            else:
                numbers[name], kept[name] = block.add(tensor, "f32"), tensor
        place = {"op": one.kind, "value": i + 1, "inputs": one.inputs, "shape": one.shape}
        ops.append({**place, **one.settings, **numbers})
        operations.append(replace(one, weights=kept))
    return block, ops, replace(program, operations=tuple(operations))


def low_rank(program: Program, rank: int) -> Program:
    """The same with each matrix that becomes smaller by it as the product of two of this rank.

    The best approximation in the sum of squares of the weights (Eckart and Young).
    """
    operations: list[Operation] = []
    number = {0: 0}
    for i, one in enumerate(program.operations):
        inputs = tuple(number[j] for j in one.inputs)
        weight = one.weights.get("weight")
        if one.kind == "linear" and weight is not None and _saves(weight, rank):
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            root = values[:rank].sqrt()
            first = Operation(
                "linear", inputs, (rank,), {}, {"weight": root[:, None] * right[:rank]}
            )
            operations.append(first)
            inputs = (len(operations),)
            one = replace(one, weights={**one.weights, "weight": left[:, :rank] * root})
        operations.append(replace(one, inputs=inputs))
        number[i + 1] = len(operations)
    layers = {layer: number[i] for layer, i in program.layers.items()}
    logits = None if program.logits is None else number[program.logits]
    return Program(tuple(operations), layers, logits)


def _saves(weight: Tensor, rank: int) -> bool:
    rows, columns = weight.shape
    return rank < min(rows, columns) and rank * (rows + columns) < rows * columns
