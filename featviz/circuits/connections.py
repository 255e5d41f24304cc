"""Plain data of a circuit: a unit's connections, how well few of them follow it, the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from featviz import results

SHOWN = 8
"""inputs of each sign in the figure of a unit"""
RAISING, LOWERING = 3, 1
"""connections of each unit in the graph, in either direction"""
WIDEST = 8
"""units of one level of the graph"""
CONNECTION_COLUMNS = ("weight_norm", "mean", "spread", "share", "where_strongest")


@dataclass(frozen=True)
class Connections:
    """Inputs of a unit, or the units of one layer that it feeds: a row each."""

    names: tuple[str, ...]
    """of the inputs, or of the units that are fed, (C,)"""
    weights: Tensor
    """(C, kh, kw)"""
    mean: Tensor
    """(C,) contribution, over the sampled positions"""
    spread: Tensor
    """(C,) its standard deviation"""
    share: Tensor
    """(C,) its covariance with the unit that it is added to over that unit's variance; over all
    inputs of a unit they sum to 1"""
    top_mean: Tensor
    """(C,) contribution where the unit that it is added to is strongest: the top 1% of positions"""
    between: tuple[str, ...] = ()
    """what lies between the two layers, in words, first the earlier"""

    def raising(self, count: int = SHOWN) -> list[int]:
        """Those that add most where the unit is strongest."""
        order = self.top_mean.argsort(descending=True, stable=True)[:count].tolist()
        return [i for i in order if self.top_mean[i] > 0]

    def lowering(self, count: int = SHOWN) -> list[int]:
        """Those that take most away on average."""
        order = self.mean.argsort(stable=True)[:count].tolist()
        return [i for i in order if self.mean[i] < 0]

    def rows(self) -> Iterator[tuple[str, float, float, float, float, float]]:
        """Name and `CONNECTION_COLUMNS`."""
        norms = self.weights.flatten(1).norm(dim=1)
        measured = (norms, self.mean, self.spread, self.share, self.top_mean)
        yield from zip(self.names, *(v.tolist() for v in measured), strict=True)


@dataclass(frozen=True)
class Followed:
    """How well the sum of k inputs follows the unit, on pictures that chose none of them."""

    k: int
    correlation: float
    low: float
    high: float
    """95% interval over resampled pictures"""
    explained: float
    """share of the unit's variance, 1 - residual / variance"""
    by_weight: float
    """correlation where the k inputs with the largest weights are kept"""
    random: float
    """mean correlation of k random inputs"""


class Edge(NamedTuple):
    """What an input adds to a unit."""

    unit: str
    input: str
    weights: Tensor
    """(kh, kw)"""
    contribution: float
    """mean where the unit is strongest for an input that raises it, else over all positions"""
    mean: float
    spread: float
    share: float
    """of the unit's variance"""
    between: tuple[str, ...]


def edges_in(unit: str, inputs: Connections) -> list[Edge]:
    """From the inputs that the graph shows to their unit."""
    added = (inputs.top_mean, inputs.mean)
    chosen = (inputs.raising(RAISING), inputs.lowering(LOWERING))
    return [
        _edge(inputs, i, unit, inputs.names[i], values)
        for rows, values in zip(chosen, added, strict=True)
        for i in rows
    ]


def edges_out(unit: str, outputs: Sequence[Connections]) -> list[Edge]:
    """From a unit to those of which it makes the largest share, as many of each sign as of inputs.

    The order is that of the share: contributions to different units have no common scale.
    """
    found = [(c, i) for c in outputs for i in range(len(c.names)) if c.share[i] > 0]
    found.sort(key=lambda one: -float(one[0].share[one[1]]))
    raised = [(c, i) for c, i in found if c.mean[i] > 0][:RAISING]
    lowered = [(c, i) for c, i in found if c.mean[i] < 0][:LOWERING]
    return [
        _edge(c, i, c.names[i], unit, c.top_mean if (c, i) in raised else c.mean)
        for c, i in (*raised, *lowered)
    ]


def _edge(of: Connections, i: int, unit: str, source: str, contribution: Tensor) -> Edge:
    return Edge(
        unit,
        source,
        of.weights[i],
        float(contribution[i]),
        float(of.mean[i]),
        float(of.spread[i]),
        float(of.share[i]),
        of.between,
    )


@dataclass(frozen=True)
class Graph:
    """Units level by level, and what each adds to those above it."""

    levels: tuple[tuple[str, ...], ...]
    """first the last layer's"""
    edges: tuple[Edge, ...]
    followed: Mapping[str, Followed]
    """of the units whose inputs were traced: by how many are shown in a figure of one"""

    @property
    def units(self) -> list[str]:
        return [name for level in self.levels for name in level]

    def drawn(self, unit: str) -> float | None:
        """The share of a unit's variance that its inputs in the graph make; None without any."""
        shares = [edge.share for edge in self.edges if edge.unit == unit]
        return sum(shares) if shares else None

    def largest(self, unit: str) -> float:
        """The largest contribution to a unit in the graph; 1 where there is none."""
        return max((abs(e.contribution) for e in self.edges if e.unit == unit), default=0.0) or 1.0

    @property
    def scale(self) -> float:
        """The largest weight of all edges."""
        return max((float(e.weights.abs().max()) for e in self.edges), default=0.0) or 1.0

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "edges.csv",
            (
                *("unit", "input", "weight_sum", "weight_norm"),
                *("contribution", "mean", "spread", "share", "between"),
            ),
            [
                (
                    *(e.unit, e.input, float(e.weights.sum()), float(e.weights.norm())),
                    *(e.contribution, e.mean, e.spread, e.share, ", ".join(e.between)),
                )
                for e in self.edges
            ],
            caption="The edges of the graph. Contribution: mean where the unit is strongest of an "
            "input that raises it, over all positions of one that lowers it; its mean and standard "
            "deviation over all positions; its share of the unit's variance; what lies between the "
            "two layers.",
        )
        yield results.Table(
            "nodes.csv",
            ("unit", "level", "drawn_share", "followed_by_8", "low", "high"),
            [self._row(name, i) for i, level in enumerate(self.levels) for name in level],
            caption="The units of the graph, level 0 the last layer's: share of the unit's "
            "variance that its inputs in the graph make, and the correlation of the unit with its "
            "8 strongest inputs alone, with the 95% interval.",
        )

    def _row(self, name: str, level: int) -> tuple[object, ...]:
        one = self.followed.get(name)
        measured = (one.correlation, one.low, one.high) if one else (None, None, None)
        return (name, level, self.drawn(name), *measured)
