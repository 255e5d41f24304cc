"""A program's weights as the page stores them: one block of bytes, and what is where in it.

Weights of convolutions and matrices are float16 where that is exact, else whole numbers times a
step a row (an output unit): of 16 bits, of 8 bits, or with steps that `fitted` chooses so that the
block has a wanted size. Biases, scales and shifts are float32. `store` gives the program with the
rounded weights, too, so that what rounding changes can be measured in Python.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.explorer.program import RUN, Operation, Program

Rounding = Literal["float16", "int8"]

How = Rounding | float
"""a number: the step, relative to the root mean square of the row"""

FINE = 2e-4
"""step of weights that float16 would change: on average a third of the change by float16, which is
fine near zero only"""

PROBE = 0.05
"""step with which it is measured how much a weight matters"""

ROUNDS = 12
"""tries to meet a size"""


@dataclass
class Block:
    """Tensors one after the other, each at a multiple of 4 bytes."""

    content: bytearray = field(default_factory=bytearray)
    entries: list[dict[str, Any]] = field(default_factory=list)
    """of each tensor: shape, type (a name in `add`), first byte; for whole numbers which tensor
    holds the step of each row (`scale`); where columns are equal, which tensor says for each
    column of the matrix which of the stored ones it is (`columns`)"""

    def add(self, tensor: Tensor, kind: Literal["f32", "f16", "i8", "i16"], **more: Any) -> int:
        """Append a tensor of the type's own numbers; its number is returned.

        Numbers of 16 bits are stored as all low bytes from -128 to 127, then all high bytes: small
        numbers then have zeros as their high bytes, which deflate well.
        """
        entry = {"shape": list(tensor.shape), "type": kind, "start": len(self.content), **more}
        numbers = tensor.contiguous().numpy()
        if numbers.itemsize == 2:
            words = numbers.view("i2").astype("i4").ravel()
            low = (words + 128) % 256 - 128
            numbers = np.stack((low, (words - low) >> 8)).astype("i1")
        self.content += numbers.tobytes()
        self.content += bytes(-len(self.content) % 4)
        self.entries.append(entry)
        return len(self.entries) - 1

    def copy(self) -> Block:
        return Block(bytearray(self.content), list(self.entries))

    def deflated(self) -> bytes:
        """The content as the page has it: frequent bytes take fewer bits."""
        press = zlib.compressobj(9, memLevel=9, strategy=zlib.Z_RLE)
        return press.compress(self.content) + press.flush()

    def rounded(self, weight: Tensor, how: How, columns: int | None = None) -> tuple[int, Tensor]:
        """Append a weight (rows, ...); its number, and what the page will make of it."""
        more = {} if columns is None else {"columns": columns}
        if how == "float16":
            half = weight.half()
            if torch.equal(half.float(), weight):
                return self.add(half, "f16", **more), weight
            how = FINE
        step = _steps(weight, how)
        whole = (weight / step).round()
        scale = self.add(step.flatten(), "f32")
        if whole.abs().max() <= 127:
            number = self.add(whole.to(torch.int8), "i8", scale=scale, **more)
        else:
            number = self.add(whole.to(torch.int16), "i16", scale=scale, **more)
        return number, whole * step

    def matrix(self, weight: Tensor, how: How) -> tuple[int, Tensor]:
        """As `rounded`, for a matrix; equal columns are stored once."""
        kept, places = _distinct(weight)
        if kept.shape[1] > 0.9 * weight.shape[1] or kept.shape[1] > 32767:
            return self.rounded(weight, how)
        number, values = self.rounded(kept, how, self.add(places.to(torch.int16), "i16"))
        return number, values[:, places]


class Stored(NamedTuple):
    """A program as the page has it."""

    block: Block
    ops: list[dict[str, Any]]
    """the operations as the page reads them"""
    program: Program
    """with the weights that the page will have"""

    @property
    def bits(self) -> float:
        """Of a weight, on average, deflated."""
        entries = [self.block.entries[op["weight"]] for op in self.ops if "weight" in op]
        count: int = sum(math.prod(entry["shape"]) for entry in entries)
        return 8 * len(self.block.deflated()) / max(count, 1)


def store(
    program: Program, how: Rounding | Sequence[float], exact: Sequence[Tensor] = ()
) -> Stored:
    """The weights of a program in a block.

    Args:
        program: With weights as the model has them.
        how: Type of all weights, or for each operation the step relative to the root mean square
            of a row.
        exact: The program's values for some pictures. Biases are shifted so that rounding leaves
            the mean of each unit on them as it is; without values, biases stay.
    """
    block, ops, operations = Block(), [], []
    for i, one in enumerate(program.operations):
        numbers: dict[str, int] = {}
        kept = dict(one.weights)
        if "weight" in kept:
            add = block.matrix if one.kind == "linear" else block.rounded
            step = how if isinstance(how, str) else how[i]
            numbers["weight"], kept["weight"] = add(kept["weight"], step)
            if exact:
                kept["bias"] = _centered(replace(one, weights=kept), exact, i + 1)
        numbers |= {name: block.add(kept[name], "f32") for name in kept if name != "weight"}
        place = {"op": one.kind, "value": i + 1, "inputs": one.inputs, "shape": one.shape}
        ops.append({**place, **one.settings, **numbers})
        operations.append(replace(one, weights=kept))
    return Stored(block, ops, replace(program, operations=tuple(operations)))


def _centered(one: Operation, exact: Sequence[Tensor], value: int) -> Tensor:
    """A bias with which the means of an operation's units are those of the exact value."""
    with torch.no_grad():
        moved = exact[value] - RUN[one.kind](one, *(exact[i] for i in one.inputs))
    shift = moved.transpose(0, 1).flatten(1).mean(1)
    return one.weights["bias"] + shift if "bias" in one.weights else shift


def fitted(program: Program, pictures: Tensor, most: int) -> Stored:
    """The weights in a block that deflates to at most `most` bytes: whole numbers whose steps
    change the last value the least.

    A weight of n numbers with step k changes the last value by A k^2 (in squares), and costs
    -n log2 k bits. The sum of changes at a given cost is least where k^2 is in proportion to n / A.

    Args:
        program: With weights as the model has them.
        pictures: (N, C, H, W) in [0, 1], on which A and the shifts of biases are measured.
        most: Bytes.
    """
    exact = program.run(pictures)
    count, steps = _balanced(program, exact)
    best, fine, coarse, factor = None, 0.0, math.inf, 1.0
    for _ in range(ROUNDS):
        stored = store(program, [factor * step for step in steps], exact)
        size = len(stored.block.deflated())
        if size <= most:
            best, coarse = stored, factor
        else:
            fine = factor
        if 0.99 * most <= size <= most:
            break
        factor *= 2 ** (8 * (size - 0.995 * most) / count)
        if not fine < factor < coarse:  # sizes jump where a type changes
            factor = math.sqrt(fine * coarse)
    if best is not None:
        return best
    raise UserError(
        f"a page of this size has {max(0, most) / 1e6:.2g} MB for weights, which is too little "
        f"for {count:,} numbers; allow a larger page, or give fewer pictures"
    )


def _balanced(program: Program, exact: Sequence[Tensor]) -> tuple[int, list[float]]:
    """How many numbers the weights are, and a step for each operation up to a common factor."""
    total, steps = 0, []
    for i, one in enumerate(program.operations):
        step = 0.0
        if "weight" in one.weights:
            block = Block()
            add = block.matrix if one.kind == "linear" else block.rounded
            number, weight = add(one.weights["weight"], PROBE)
            changed = [*program.operations]
            changed[i] = replace(one, weights={**one.weights, "weight": weight})
            values = replace(program, operations=tuple(changed)).run(exact[0], exact[: i + 1])
            change = (values[program.last] - exact[program.last]).square().mean()
            count = math.prod(block.entries[number]["shape"])
            total += count
            step = math.sqrt(count / max(float(change), 1e-30))
        steps.append(step)
    return total, [step / max(steps) for step in steps]


def _steps(weight: Tensor, how: How) -> Tensor:
    """The step of each row (rows, 1, ...)."""
    rows = weight.flatten(1)
    largest = rows.abs().amax(1)
    if how == "int8":
        step = largest / 127
    else:
        step = torch.maximum(float(how) * rows.square().mean(1).sqrt(), largest / 32767)
    step = torch.where(step > 0, step, 1.0)
    return step.view(-1, *[1] * (weight.dim() - 1))


def _distinct(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The columns that differ, and for each column of the matrix which of them it is."""
    first: dict[bytes, int] = {}
    columns = matrix.T.contiguous().numpy()
    equal = [first.setdefault(column.tobytes(), i) for i, column in enumerate(columns)]
    kept, places = torch.tensor(equal).unique(return_inverse=True)
    return matrix[:, kept], places
