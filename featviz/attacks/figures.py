"""Pieces of figures that attacks and what builds on them share: a change made visible, bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def shown_perturbation(change: Tensor) -> tuple[Tensor, float]:
    """A change (3, H, W) round mid-grey, and the factor it was multiplied with to be seen.

    The factor is a round number that brings the 99.5th percentile near full contrast; 0 means
    that nothing changed. What exceeds the range is clipped.
    """
    strong = float(torch.quantile(_thinned(change.abs()), 0.995)) or float(change.abs().max())
    if strong == 0:
        return torch.full_like(change, 0.5), 0.0
    exact = 0.5 / strong
    power = 10 ** math.floor(math.log10(exact))
    factor = max([f * power for f in (1, 2, 5) if f * power <= exact * 1.001], default=1.0)
    factor = max(1.0, factor)
    return (0.5 + factor * change).clamp(0, 1), factor


def _thinned(values: Tensor) -> Tensor:
    """At most a million of the values, evenly spread (`quantile` takes no more than 16 million)."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // 1_000_000)]


def draw_bars(ax: Axes, before: Tensor, after: Tensor, classes: Sequence[str], k: int = 5) -> None:
    """Probabilities of the classes that are among the top k before, then of those after."""
    k = min(k, len(classes))
    first, then = before.topk(k).indices.tolist(), after.topk(k).indices.tolist()
    shown = list(dict.fromkeys([then[0], first[0], *then, *first]))[: k + 2]
    shown.sort(key=lambda c: -max(float(before[c]), float(after[c])))
    places = torch.arange(len(shown)).numpy()
    ax.barh(
        places - 0.2,
        [100 * float(before[c]) for c in shown],
        0.38,
        color=plotting.BLUE,
        label="before",
    )
    ax.barh(
        places + 0.2,
        [100 * float(after[c]) for c in shown],
        0.38,
        color=plotting.RED,
        label="after",
    )
    ax.set_yticks(places, [short(classes[c]) for c in shown])
    ax.invert_yaxis()
    plotting.lines(ax, xlabel="probability (%)", ylabel="")
    ax.xaxis.label.set_fontsize(7)
    ax.tick_params(labelsize=7)
    ax.set_xlim(0, 100)
    ax.legend(fontsize=7, frameon=False, loc="lower right")


def short(name: str, most: int = 20) -> str:
    """A class name that fits beside a bar."""
    return name if len(name) <= most else name[: most - 1] + "…"
