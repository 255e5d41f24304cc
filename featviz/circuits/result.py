"""What `trace_circuit` returns: a unit, its inputs, and the circuits of its strongest inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from featviz import results
from featviz.circuits.figures import draw_circuit, draw_graph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.circuits.expanded import ExpandedWeights

SHOWN = 8
"""inputs of each sign in the figure"""
RAISING, LOWERING = 3, 1
"""inputs of each unit in the graph"""
WIDEST = 8
"""units of one level of the graph"""


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

    input: str
    unit: str
    weights: Tensor
    """(kh, kw)"""
    contribution: float
    """mean where the unit is strongest for an input that raises it, else over all positions"""
    share: float
    """of the unit's variance"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Circuit(results.Result):
    """A unit and the units of the layer before that build it."""

    kind: ClassVar[str] = "circuit"

    model_name: str
    unit: str
    inputs: tuple[str, ...]
    """the input units by name, (C,)"""
    weights: Tensor
    """(C, kh, kw)"""
    bias: float
    mean: Tensor
    """(C,) contribution, over the sampled positions"""
    spread: Tensor
    """(C,) its standard deviation"""
    share: Tensor
    """(C,) covariance with the unit over the unit's variance; they sum to 1"""
    top_mean: Tensor
    """(C,) contribution where the unit is strongest: the top 1% of the positions"""
    samples: int
    followed: tuple[Followed, ...]
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """of units by name, (3, h, w) in [0, 1]"""
    shown_as: str = ""
    """what the pictures are, in words"""
    colors: tuple[str, ...] = ()
    """names of the model's input channels"""
    classes: tuple[str, ...] = ()
    effect: tuple[float, ...] = ()
    """on each logit: its mean over the pictures less the same with the unit's value at 0"""
    levels: tuple[tuple[str, ...], ...] = ()
    """the units of the graph: this one, its strongest inputs, theirs ...; empty at depth 1"""
    before: dict[str, Circuit] = field(default_factory=dict)
    """the circuits of the inputs that were traced, by unit"""
    expanded: ExpandedWeights | None = None
    """weights on the units two layers back, where the graph reaches them"""

    @property
    def title(self) -> str:
        return f"What builds {self.unit} in {self.model_name}"

    @property
    def parts(self) -> Mapping[str, results.Result]:
        expanded = {"expanded": self.expanded} if self.expanded else {}
        return {**self.before, **expanded}

    @property
    def strongest(self) -> tuple[Tensor, Tensor]:
        """Inputs that raise the unit most where it is strongest, and that lower it most overall."""
        raising = self.top_mean.argsort(descending=True, stable=True)[:SHOWN]
        lowering = self.mean.argsort(stable=True)[:SHOWN]
        return raising[self.top_mean[raising] > 0], lowering[self.mean[lowering] < 0]

    def edges(self) -> Iterator[Edge]:
        """From the inputs that the graph shows to this unit."""
        raising, lowering = self.strongest
        for rows, added in ((raising[:RAISING], self.top_mean), (lowering[:LOWERING], self.mean)):
            for i in rows.tolist():
                share = float(self.share[i])
                yield Edge(self.inputs[i], self.unit, self.weights[i], float(added[i]), share)

    def graph_edges(self) -> Iterator[Edge]:
        """All edges between the units of `levels`."""
        for upper, lower in pairwise(self.levels):
            for name in upper:
                circuit = self if name == self.unit else self.before.get(name)
                for edge in circuit.edges() if circuit else ():
                    if edge.input in lower:
                        yield edge._replace(unit=name)

    @property
    def served(self) -> list[tuple[str, float]]:
        """The classes whose logits the unit changes most, with its effect; at most four."""
        order = sorted(range(len(self.effect)), key=lambda i: -abs(self.effect[i]))[:4]
        return [(self.classes[i], self.effect[i]) for i in order if self.effect[i]]

    def label(self, unit: str) -> str:
        """A unit's name for a figure; a channel of the model's input by its color."""
        layer, _, index = unit.rpartition(":")
        return self.colors[int(index)] if layer == "input" and self.colors else unit

    def numbers(self) -> dict[str, results.Number]:
        found = {}
        for one in self.followed:
            if one.k in {8, 32, 128}:
                found[f"followed by {one.k} inputs"] = results.Number(
                    one.correlation,
                    "",
                    f"correlation of the unit with its {one.k} strongest inputs alone, of "
                    f"{len(self.inputs)}; by weight norm {one.by_weight:.2f}, at random "
                    f"{one.random:.2f}",
                    one.low,
                    one.high,
                )
        raising, _ = self.strongest
        if len(raising):
            best = int(raising[0])
            found["strongest input"] = results.Number(
                self.label(self.inputs[best]),
                "",
                f"adds {float(self.top_mean[best]):+.3g} on average where the unit is strongest",
            )
        if self.served:
            name, added = self.served[0]
            found["class"] = results.Number(
                name,
                "",
                f"whose logit the unit changes most, by {added:+.3g} on average: the difference "
                "when its value is set to 0",
            )
        return found | {
            "connected": results.Number(
                int((self.weights.flatten(1).abs().amax(1) > 0).sum()),
                f"of {len(self.inputs)}",
                "inputs with a weight that is not 0",
            ),
            "positions": results.Number(self.samples, "", "on which contributions were measured"),
        }

    def write(self, folder: results.Folder) -> None:
        beside = f" Above the weights: {self.shown_as}." if self.shown_as else ""
        folder.figure(
            "circuit.svg",
            self.plot(),
            caption=f"Left: the inputs that add most to {self.unit} where it is strongest (its top "
            "1% of positions), and below those that take most away on average, with their weights "
            f"(red raises, blue lowers; one scale).{beside} Right: how well the sum of k inputs "
            "follows the unit on other pictures; eight inputs show as much of it as the curve at 8 "
            "says.",
            alt=f"Weights of the strongest inputs of {self.unit} and the curve of correlation",
            units=[self.unit],
        )
        if self.levels:
            folder.figure(
                "graph.svg",
                draw_graph(self),
                caption=f"{self.unit}, below it the {RAISING} inputs that raise it most and the "
                "one that lowers it most, below them theirs. Lines: red raises, blue lowers; their "
                "width is the contribution in proportion to the largest of the same unit. The "
                "weights lie on the lines of the first level; all edges are in edges.csv.",
                alt=f"Graph of the units that build {self.unit}, layer by layer",
                units=[self.unit, *self.before],
            )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "inputs.csv",
            ("input", "weight_norm", "mean", "spread", "share", "where_strongest"),
            [
                (name, *(float(v) for v in row))
                for name, *row in zip(
                    self.inputs,
                    self.weights.flatten(1).norm(dim=1),
                    self.mean,
                    self.spread,
                    self.share,
                    self.top_mean,
                    strict=True,
                )
            ],
            caption="Every input: norm of its weights, mean and standard deviation of its "
            "contribution, its share of the unit's variance, and its mean contribution where the "
            "unit is strongest.",
        )
        yield results.Table(
            "followed.csv",
            ("k", "correlation", "low", "high", "explained", "by_weight", "random"),
            [tuple(vars(one).values()) for one in self.followed],
            caption="Correlation of the unit with the sum of k inputs, on pictures that chose none "
            "of them.",
        )
        if self.levels:
            yield results.Table(
                "edges.csv",
                ("unit", "input", "weight_sum", "weight_norm", "contribution", "share"),
                [
                    (e.unit, e.input, float(e.weights.sum()), float(e.weights.norm()), *e[3:])
                    for e in self.graph_edges()
                ],
                caption="The edges of the graph. Contribution: mean where the unit is strongest of "
                "an input that raises it, over all positions of one that lowers it.",
            )

        if self.effect:
            yield results.Table(
                "classes.csv",
                ("class", "effect"),
                list(zip(self.classes, self.effect, strict=True)),
                caption="Mean of each logit less its mean with the unit's value set to 0.",
            )

    def plot(self) -> Figure:
        return draw_circuit(self)
