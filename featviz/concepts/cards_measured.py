"""What is measured of the concepts of a layer; no words, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from featviz.concepts.importance import Indices
from featviz.concepts.patches import masked

if TYPE_CHECKING:
    from featviz.descriptions.result import Descriptions
    from featviz.maps.top_patches_result import Place
    from featviz.maximization.result import Maximized


class LogitEffects(NamedTuple):
    """What each of k concepts adds to each logit, on the pictures of its top patches."""

    gradient: Tensor
    """(k, classes): mean of gradient x part"""
    removal: Tensor
    """(k, classes): mean of the logit less the logit without the concept"""
    low: Tensor
    """(k, classes): ends of the 95% interval of `removal`"""
    high: Tensor
    pictures: int
    """of each concept"""
    agreement: Tensor
    """(k,): rank correlation over the classes of `gradient` and `removal`"""


class ClassConcepts(NamedTuple):
    """How much the logit of a class depends on each concept."""

    target: int
    """of the class"""
    indices: Indices

    @property
    def order(self) -> list[int]:
        """The concepts, the most important first."""
        found: list[int] = self.indices.total.argsort(descending=True, stable=True).tolist()
        return found


class Change(NamedTuple):
    """What a concept adds to one logit, less what it adds to all on average."""

    target: int
    """of the class"""
    removal: float
    low: float
    high: float
    gradient: float


@dataclass(frozen=True, kw_only=True, repr=False)
class MeasuredCards:
    """What each concept looks like, where it is, and what it does to the classes."""

    model_name: str
    layer: str
    names: tuple[str, ...]
    """of the k concepts: "relu5/nmf32:3" """
    classes: tuple[str, ...]
    icons: Maximized
    """their maximized pictures"""
    places: tuple[tuple[Place, ...], ...]
    """(k, n): where their top patches are"""
    patches: Tensor
    """(k, n, 3, P, P) uint8"""
    masks: Tensor
    """(k, n, P, P) in [0, 1]"""
    strong: Tensor
    """(k,): share of the pictures in which its code reaches half of its largest"""
    count: int
    """pictures that were searched"""
    effects: LogitEffects | None
    """None of a model without a head"""
    together: Tensor
    """(k, k): rank correlation over pictures of the concepts' largest codes"""
    importance: tuple[ClassConcepts, ...]
    descriptions: Descriptions | None = None
    """of pictures with labels: the classes that each concept's largest codes tell apart"""

    def described(self, concept: int) -> str:
        """The class or group of classes that describes a concept; "" where none does."""
        if self.descriptions is None:
            return ""
        chosen = self.descriptions.units[concept].chosen
        return chosen.words if chosen else ""

    def shown(self, concept: int) -> Tensor:
        """(n, 3, P, P): the patches of a concept, faded where it is not."""
        return masked(self.patches[concept].float() / 255, self.masks[concept])

    def changes(self, concept: int) -> list[Change]:
        """The logits by what the concept adds to each, the most raised first.

        The mean over all logits is subtracted: what raises all alike changes no prediction.
        """
        if self.effects is None:
            return []
        removal, low, high = (one[concept] for one in self.effects[1:4])
        gradient, shift = self.effects.gradient[concept], removal.mean()
        table = torch.stack(
            [removal - shift, low - shift, high - shift, gradient - gradient.mean()]
        )
        order = removal.argsort(descending=True, stable=True).tolist()
        return [Change(index, *table[:, index].tolist()) for index in order]
