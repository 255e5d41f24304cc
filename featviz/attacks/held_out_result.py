"""`HeldOutResult`: what a perturbation and a patch have in common, learned and judged apart."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from featviz import results
from featviz.statistics import Share, share
from featviz.wording import counted

_FEW = 50
"""held-out pictures below which the intervals are wide"""


@dataclass(frozen=True, kw_only=True, repr=False)
class HeldOutResult(results.Result):
    """Something learned from some pictures that fools a model on others."""

    model_name: str
    data_name: str
    classes: tuple[str, ...]
    target: int | None
    names: tuple[str, ...]
    """of the held-out pictures"""
    clean: Tensor
    """(M,) the model's predictions for them"""
    trained_on: int
    trace: Tensor
    """(steps,) share of each batch that was fooled (with a target: that reached it)"""
    examples: Tensor
    """(k, 3, S, S) some held-out pictures, as the figure takes them"""
    shown: tuple[int, ...]
    """which of `names` they are"""
    forwards: int
    backwards: int
    seconds: float

    def fooled(self, predicted: Tensor) -> Share:
        """Share of the held-out pictures whose prediction changes.

        With a target: of the other pictures, the share that becomes it.
        """
        return fooling_rate(self.clean, predicted, self.target)

    def caveats(self) -> list[str]:
        """What limits the meaning of the rates."""
        n = len(self.clean)
        return (
            [f"only {counted(n, 'held-out picture')}: the intervals are wide"] if n < _FEW else []
        )

    def costs(self) -> dict[str, results.Number]:
        spent = f"forward, and {self.backwards} backward, of single pictures"
        return {
            "passes": results.Number(self.forwards, "", spent),
            "seconds": results.Number(round(self.seconds, 1), "s", "for all of it"),
        }


def fooling_rate(clean: Tensor, predicted: Tensor, target: int | None) -> Share:
    """Share of the pictures whose prediction changes; with a target: of the others, reaches it."""
    if target is None:
        return share(int((predicted != clean).sum()), len(clean))
    others = clean != target
    return share(int((predicted[others] == target).sum()), int(others.sum()))
