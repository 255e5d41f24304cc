"""What a model says of the pictures of an attack, and what an attack has to say of itself.

In: pictures with labels and radii (`Batch`), and the loss that an `Attack` ascends. Out: an
`Evaluation` with logits, margins and gradients; the model sees at most `batch_size` pictures at
once, so that memory is bounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from featviz.attacks import losses, projections
from featviz.attacks.options import Classifier
from featviz.errors import UserError

_Rows = TypeVar("_Rows", "Batch", "Evaluation")


def _select(item: _Rows, rows: Tensor | slice) -> _Rows:
    """The same for some rows of all its tensors."""
    values = {f.name: getattr(item, f.name) for f in fields(item)}
    part: dict[str, Any] = {k: v[rows] for k, v in values.items() if isinstance(v, Tensor)}
    return replace(item, **part)


@dataclass(frozen=True)
class Batch:
    """Pictures that are attacked side by side; all tensors have a row a picture."""

    pictures: Tensor
    """(n, 3, H, W)"""
    labels: Tensor
    """(n,) the classes to leave; with `targeted`, to reach"""
    eps: Tensor
    """(n,) float64 radii; inf where there is no ball"""
    rows: Tensor
    """(n,) which pictures of the whole attack they are"""
    keys: Tensor
    """(n,) of their random numbers (`projections.picture_key`)"""
    aims: Tensor
    """(n,) classes that a loss goes for, where it goes for one"""
    starts: Tensor | None
    """(n, 3, H, W) where the first attempt begins, for attacks that can"""
    targeted: bool = False
    eight_bit: bool = False
    attempt: int = 0
    """how many attempts at these pictures have failed"""

    def __getitem__(self, rows: Tensor | slice) -> Batch:
        return _select(self, rows)

    def __len__(self) -> int:
        return len(self.pictures)

    def streams(self, *numbers: int) -> list[torch.Generator]:
        """The random numbers of each picture in this attempt."""
        keys = self.keys.tolist()
        return [projections.generator(key, self.attempt, *numbers) for key in keys]


@dataclass(frozen=True)
class Evaluation:
    """What the model says of some pictures; all tensors have a row a picture."""

    pictures: Tensor
    """(n, 3, H, W) as the model saw them"""
    logits: Tensor
    """(n, classes) float64"""
    predicted: Tensor
    """(n,)"""
    margin: Tensor
    """(n,) float64: by how many logits the attack has won (above 0) or has not yet"""
    hit: Tensor
    """(n,) bool: it has won"""
    value: Tensor
    """(n,) or (n, K) float64: the attack's losses; empty where no gradient was wanted"""
    gradient: Tensor
    """(n, 3, H, W) or (n, K, 3, H, W): their gradients, 0 where they are not finite"""
    zero: Tensor
    """(n,) how many of the gradients were 0 everywhere or not finite"""

    def __getitem__(self, rows: Tensor | slice) -> Evaluation:
        return _select(self, rows)

    @property
    def gradients(self) -> int:
        """How many backward passes were made."""
        if not self.value.numel():
            return 0
        return self.value.shape[1] if self.value.dim() == 2 else 1


class Attack(ABC):
    """How an attack moves. Its state are the tensors among its attributes, with a row a picture."""

    norm: str = "linf"
    passes: int
    """pictures that an attempt shows to the model at most: its steps + 1"""
    starts_at_picture = True
    """the first picture shown is the clean one itself"""
    leaves_at_hit = True
    """the first success decides; otherwise the nearest one of all steps counts"""

    stays_in_ball = True
    """what is shown lies within the ball, if there is one"""
    uses_gradient = True

    x: Tensor
    """(n, 3, H, W) what is shown to the model next, within ball and box"""

    @abstractmethod
    def start(self, batch: Batch) -> None:
        """Begin an attempt: set `x` and the rest of the state."""

    def loss(self, seen: Evaluation, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        """The loss to ascend and its weights at the logits; the cross-entropy by default.

        `seen` and `batch` are the part `rows` of all pictures. Returns (n,) and (n, classes), or
        (n, K) and (n, K, classes) for K losses.
        """
        return losses.cross_entropy(seen.logits, batch.labels, targeted=batch.targeted)

    @abstractmethod
    def step(self, seen: Evaluation, batch: Batch, step: int) -> None:
        """Set the next `x` from what the model says of the last one."""

    def wants_gradient(self, step: int) -> bool:
        """Whether `step` reads the gradient."""
        return self.uses_gradient and step + 1 < self.passes

    def counts(self, step: int) -> bool:
        """Whether what is shown at a step lies within the ball."""
        return True

    def in_low_precision(self, step: int) -> bool:
        """Whether bfloat16 does for a step; what it shows is no success then."""
        return False

    def finished(self, seen: Evaluation, batch: Batch) -> Tensor | None:
        """(n,) bool: rows with nothing more to try after an evaluation."""
        return None

    def keep(self, rows: Tensor) -> None:
        """Close up the state when other rows leave."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


def evaluate(
    model: Classifier,
    pictures: Tensor,
    batch: Batch,
    *,
    attack: Attack | None = None,
    margin: float = 0.0,
    batch_size: int,
) -> Evaluation:
    """What the model says of pictures, with the gradient of the attack's loss if one is given."""
    parts = []
    for rows in _chunks(len(pictures), batch_size):
        leaf = pictures[rows].detach().requires_grad_(attack is not None)
        raw = _logits(model, leaf, attack is not None)
        part, z = batch[rows], raw.detach().double()
        _check(z, part.labels)
        none = z.new_zeros(len(z), 0)
        ahead, hit = won(z, part.labels, targeted=batch.targeted, margin=margin)
        count = torch.zeros_like(part.labels)
        seen = Evaluation(leaf.detach(), z, z.argmax(1), ahead, hit, none, none, count)
        if attack is not None:
            value, weights = attack.loss(seen, part, rows)
            gradient, zero = _gradient(raw, leaf, weights)
            seen = replace(seen, value=value, gradient=gradient, zero=zero)
        parts.append(seen)
    if len(parts) == 1:
        return parts[0]
    return Evaluation(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Evaluation)))


def _check(logits: Tensor, labels: Tensor) -> None:
    """Raise UserError for labels out of range or logits not finite; a card waits once for it."""
    out = labels.max() >= logits.shape[1]
    if not bool(out | ~logits.isfinite().all()):
        return
    if bool(out):
        raise UserError(
            f"label {int(labels.max())} is out of range: the model has {logits.shape[1]} "
            "classes, counted from 0"
        )
    raise UserError("the model gives logits that are not finite; no attack can go on")


def won(
    logits: Tensor, labels: Tensor, *, targeted: bool, margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(n,) by how many logits the attack is ahead, and (n,) bool whether that is a success."""
    ahead, _ = losses.margin(logits, labels, targeted=targeted)
    return ahead, ahead > margin if margin > 0 else (logits.argmax(1) == labels) == targeted


def _chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows, all of about the same length."""
    parts = -(-count // size)
    for k in range(parts):
        yield slice(k * count // parts, (k + 1) * count // parts)


def _gradient(raw: Tensor, leaf: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the sums of weights * logits at the pictures, and how many are of no use."""
    several = weights if weights.dim() == 3 else weights[:, None]
    found = []
    for k in range(several.shape[1]):
        more = k + 1 < several.shape[1]
        ascent = several[:, k].to(raw.dtype)
        found.append(torch.autograd.grad(raw, leaf, ascent, retain_graph=more)[0])
    gradients = torch.stack(found, 1)  # (n, K, 3, H, W)
    size = gradients.flatten(2).abs().amax(2)
    usable = (size > 0) & size.isfinite()
    gradients = torch.where(usable[:, :, None, None, None], gradients, 0)
    return gradients if weights.dim() == 3 else gradients[:, 0], (~usable).sum(1)


def _logits(model: Classifier, pictures: Tensor, with_gradient: bool) -> Tensor:
    with torch.set_grad_enabled(with_gradient):
        logits = model(pictures)
    if logits.dim() != 2 or logits.shape[0] != len(pictures) or logits.shape[1] < 2:
        raise UserError(
            f"an attack needs logits of shape ({len(pictures)}, classes) with 2 classes or more, "
            f"the model gives {tuple(logits.shape)}"
        )
    return logits


def classify(model: Classifier, pictures: Tensor, *, batch_size: int) -> Tensor:
    """Logits (N, classes) of pictures (N, 3, H, W), `batch_size` at a time, without a graph."""
    return torch.cat([_logits(model, part, False) for part in pictures.split(batch_size)])


def with_graph(model: Classifier, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures as a leaf of autograd, and their logits with the graph between."""
    leaf = pictures.detach().requires_grad_(True)
    return leaf, _logits(model, leaf, True)
