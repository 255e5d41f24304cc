"""`Output`: the logits out of what a network gives: a tensor, tuple, list, dict or dataclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from featviz.errors import UserError, nearest

Choice = str | int | Callable[[Any], Tensor]
"""a name, an index, or a function of what the network gives"""

PROBABILITIES = {
    "_softmax": "it gives probabilities (a softmax); their logarithms are its logits",
    "sigmoid": "it gives probabilities (a sigmoid); their log odds are its logits",
}
"""torch's last operation of a network that gives probabilities, and what is said of it"""


@dataclass(frozen=True)
class Output:
    """Picks logits (N, classes), or what else the network is read for.

    Without a choice: a tensor itself; the part named `logits`; else the one part of shape
    (N, classes), or the first tensor where none is of such a shape.
    """

    choice: Choice | None = None
    classes: int | None = None
    """how many there are, which may decide between several parts"""
    one: bool = False
    """a single logit z is read by a sigmoid: as the logits (-z/2, z/2) of two classes"""
    operation: str = ""
    """"_softmax" or "sigmoid": what the network gives are probabilities, whose logits are taken"""

    def __call__(self, values: Any) -> Tensor:
        """The tensor; (N,) becomes (N, 1). Raises UserError if there is none, or no single one."""
        if callable(self.choice):
            found = self.choice(values)
        elif self.choice is None:
            found = values if isinstance(values, Tensor) else self._likeliest(_parts(values))
        else:
            found = _part(_parts(values), self.choice)
        if not isinstance(found, Tensor):
            raise UserError(
                f"output {self.choice!r} is a {type(found).__name__}, not a tensor; the network "
                f"gives {_listed(_parts(values))}"
            )
        found = found[:, None] if found.dim() == 1 else found
        if self.operation in PROBABILITIES and found.is_floating_point():
            limits = torch.finfo(found.dtype)
            softmax = self.operation == "_softmax"
            found = found.clamp(min=limits.tiny).log() if softmax else found.logit(limits.eps)
        return torch.cat([-found / 2, found / 2], 1) if self.one else found

    def _likeliest(self, parts: Mapping[str, Any]) -> Any:
        if isinstance(parts.get("logits"), Tensor):
            return parts["logits"]
        tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        heads = {name: part for name, part in tensors.items() if part.dim() == 2}
        fitting = [part for part in heads.values() if part.shape[1] == self.classes]
        if len(heads) > 1 and len(fitting) != 1:
            raise UserError(
                f"the network has several outputs, {_listed(heads)}; choose one with output="
            )
        if not tensors:
            raise UserError(f"the network gives no tensor but {_listed(parts)}; give output=")
        return (fitting or [*heads.values(), *tensors.values()])[0]


def _parts(values: Any) -> dict[str, Any]:
    """What a network gives, by name or else by number."""
    if isinstance(values, Mapping):
        return {str(name): part for name, part in values.items() if part is not None}
    if is_dataclass(values) and not isinstance(values, type):
        names = [field.name for field in fields(values)]
        return {name: getattr(values, name) for name in names if getattr(values, name) is not None}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return dict(zip(values._fields, values, strict=True))
    if isinstance(values, Sequence) and not isinstance(values, str):
        return {str(i): part for i, part in enumerate(values)}
    logits = getattr(values, "logits", None)
    return {"output": values} if logits is None else {"logits": logits}


def _part(parts: Mapping[str, Any], choice: str | int) -> Any:
    names = list(parts)
    if isinstance(choice, int) and -len(names) <= choice < len(names):
        return parts[names[choice]]
    if str(choice) not in parts:
        raise UserError(
            f"the network has no output {choice!r}{nearest(str(choice), names)} "
            f"(it gives {_listed(parts)})"
        )
    return parts[str(choice)]


def _listed(parts: Mapping[str, Any]) -> str:
    shown = [
        f"{name} {tuple(part.shape)}" if isinstance(part, Tensor) else f"{name}"
        for name, part in parts.items()
    ]
    return ", ".join(shown[:8]) + (" ..." if len(shown) > 8 else "")
