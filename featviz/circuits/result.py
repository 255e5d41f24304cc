"""What `trace_circuit` returns: a unit, its inputs, what it feeds, and the graph around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.circuits.connections import (
    CONNECTION_COLUMNS,
    RAISING,
    Connections,
    Followed,
    Graph,
)
from featviz.circuits.expanded import ExpandedWeights
from featviz.circuits.figures import draw_circuit, draw_followed, draw_graph
from featviz.circuits.icons import first_named
from featviz.circuits.page import render_page
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELATED = 24  # pixels of a side up to which a picture is shown without smoothing


@dataclass(frozen=True, kw_only=True, repr=False)
class Circuit(results.Result):
    """A unit, the units of the layer before that build it, and those that it feeds."""

    kind: ClassVar[str] = "circuit"

    model_name: str
    unit: str
    inputs: Connections
    bias: float
    samples: int
    followed: tuple[Followed, ...]
    graph: Graph
    outputs: tuple[Connections, ...] = ()
    """what the unit adds to those of each layer that takes it"""
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    """of units by name, (3, h, w) in [0, 1]"""
    shown_as: str = ""
    """what the pictures are, in words"""
    colors: tuple[str, ...] = ()
    """names of the model's input channels"""
    classes: tuple[str, ...] = ()
    effect: tuple[float, ...] = ()
    """on each logit: its mean over the pictures less the same with the unit's value at 0"""
    expanded: tuple[ExpandedWeights, ...] = ()
    """weights on the units of earlier layers"""

    @property
    def title(self) -> str:
        return f"Circuit of {self.unit} in {self.model_name}"

    @property
    def parts(self) -> Mapping[str, results.Result]:
        return {f"expanded-{one.layer}": one for one in self.expanded}

    @property
    def served(self) -> list[tuple[str, float]]:
        """The classes whose logits the unit changes most, with its effect; at most four."""
        order = sorted(range(len(self.effect)), key=lambda i: -abs(self.effect[i]))[:4]
        return [(self.classes[i], self.effect[i]) for i in order if self.effect[i]]

    def label(self, unit: str) -> str:
        """A unit's name for people: a channel of the picture by its color, a logit by its class."""
        layer, _, index = unit.rpartition(":")
        if layer == "input" and self.colors:
            return self.colors[int(index)]
        if layer == "logits" and int(index) < len(self.classes):
            return self.classes[int(index)].partition(",")[0]
        return unit

    def numbers(self) -> dict[str, results.Number]:
        found = {}
        for one in self.followed:
            if one.k in {8, 32, 128}:
                found[f"followed by {one.k} inputs"] = results.Number(
                    one.correlation,
                    "",
                    f"correlation of the unit with its {one.k} strongest inputs alone, of "
                    f"{len(self.inputs.names)}; by weight norm {one.by_weight:.2f}, at random "
                    f"{one.random:.2f}",
                    one.low,
                    one.high,
                )
        if best := self.inputs.raising(1):
            found["strongest input"] = results.Number(
                self.label(self.inputs.names[best[0]]),
                "",
                f"adds {float(self.inputs.top_mean[best[0]]):+.3g} on average where the unit is "
                "strongest",
            )
        shares = [
            (float(s), n) for c in self.outputs for s, n in zip(c.share, c.names, strict=True)
        ]
        if shares:
            share, name = max(shares)
            found["feeds most"] = results.Number(
                self.label(name), "", f"makes {share:.1%} of its variance, the largest such share"
            )
        if self.served:
            name, added = self.served[0]
            found["class"] = results.Number(
                name,
                "",
                f"whose logit the unit changes most, by {added:+.3g} on average: the difference "
                "when its value is set to 0",
            )
        for other in self.expanded:
            found[f"weights on {other.layer}"] = results.Number(other.how)
        return found | {
            "connected": results.Number(
                int((self.inputs.weights.flatten(1).abs().amax(1) > 0).sum()),
                f"of {len(self.inputs.names)}",
                "inputs with a weight that is not 0",
            ),
            "positions": results.Number(self.samples, "", "on which contributions were measured"),
        }

    def write(self, folder: results.Folder) -> None:
        units = [name for name in self.graph.units if not name.startswith("input:")]
        page = render_page(self.title, self.unit, self.graph, self.pictures, self.label, self.words)
        (folder.path / "circuit.html").write_text(page, encoding="utf-8", errors="backslashreplace")
        folder.figure(
            "circuit.html",
            None,
            caption=f"The graph around {self.unit}, to walk through: select a unit to see what it "
            "is built from and what it feeds.",
            alt=f"Graph of the units that build {self.unit} and that it feeds",
        )
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
        folder.figure(
            "graph.svg",
            draw_graph(self.graph, self.unit, self.pictures, self.label),
            caption=f"Below {self.unit} the {RAISING} inputs that raise it most and the one that "
            "lowers it most, below them theirs; above it the units of which it makes the largest "
            "share. Lines: orange raises, blue lowers; their width is the contribution in "
            "proportion to the largest of the same unit. Small maps: the weights of a unit on the "
            "input that the line leads to, all on one scale. circuit.html is the same to walk "
            "through.",
            alt=f"Graph of the units that build {self.unit} and that it feeds, layer by layer",
            units=list(dict.fromkeys(first_named(name) for name in units)),
        )
        for name in units:
            if name in self.pictures:
                self._write_picture(folder, name)

    def _write_picture(self, folder: results.Folder, name: str) -> None:
        picture = self.pictures[name]
        small = max(picture.shape[1:]) <= _PIXELATED
        folder.figure(
            f"units/{results.file_stem(name)}.{'png' if small else 'jpg'}",
            picture,
            caption=f"{name}: {'its kernel' if small else self.shown_as}.",
            alt=f"Picture of {name}",
            units=[first_named(name)],
            pixelated=small,
            detail=True,
        )

    @property
    def words(self) -> list[str]:
        """What the page says about its graph, in sentences."""
        found = [
            f"Contributions were measured on {counted(self.samples, 'position')} of "
            f"{counted((self.origin.data or {}).get('count', 0), 'picture')}."
        ]
        if self.shown_as:
            found.append(f"Pictures: {self.shown_as}; units of the first layer by their kernels.")
        if self.served:
            effects = ", ".join(
                f"{name.partition(',')[0]} {added:+.2g}" for name, added in self.served
            )
            found.append(f"What {self.unit} adds to logits on average, by all ways: {effects}.")
        return found

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "inputs.csv",
            ("input", *CONNECTION_COLUMNS),
            list(self.inputs.rows()),
            caption="Every input: norm of its weights, mean and standard deviation of its "
            "contribution, its share of the unit's variance, and its mean contribution where the "
            "unit is strongest.",
        )
        if self.outputs:
            yield results.Table(
                "outputs.csv",
                ("output", *CONNECTION_COLUMNS),
                [row for layer in self.outputs for row in layer.rows()],
                caption="Every unit that takes this one, with what this one contributes to it: the "
                "same columns, for the unit that is fed.",
            )
        yield results.Table(
            "followed.csv",
            ("k", "correlation", "low", "high", "explained", "by_weight", "random"),
            [tuple(vars(one).values()) for one in self.followed],
            caption="Correlation of the unit with the sum of k inputs, on pictures that chose none "
            "of them.",
        )
        yield from self.graph.tables()
        if self.effect:
            yield results.Table(
                "classes.csv",
                ("class", "effect"),
                list(zip(self.classes, self.effect, strict=True)),
                caption="Mean of each logit less its mean with the unit's value set to 0.",
            )

    def plot(self) -> Figure:
        return draw_circuit(self.inputs, self.followed, self.pictures, self.label)


@dataclass(frozen=True, kw_only=True, repr=False)
class Circuits(results.Result):
    """The circuits of several units, each a part."""

    kind: ClassVar[str] = "circuit"

    circuits: tuple[Circuit, ...]

    @property
    def title(self) -> str:
        layers = dict.fromkeys(one.unit.rpartition(":")[0] for one in self.circuits)
        count = f"{counted(len(self.circuits), 'unit')} of {', '.join(layers)}"
        return f"Circuits of {count} in {self.circuits[0].model_name}"

    @property
    def parts(self) -> Mapping[str, results.Result]:
        return {one.unit: one for one in self.circuits}

    def followed(self, k: int) -> list[Followed]:
        """How well k inputs follow each unit that has more than k."""
        return [one for circuit in self.circuits for one in circuit.followed if one.k == k]

    def numbers(self) -> dict[str, results.Number]:
        found = {}
        for k in (8, 32, 64, 128):
            if len(of := self.followed(k)) == len(self.circuits):
                values = [one.correlation for one in of]
                found[f"followed by {k} inputs"] = results.Number(
                    median(values),
                    "",
                    f"median over units ({min(values):.2f} to {max(values):.2f}) of the "
                    f"correlation with the {k} strongest inputs alone; by weight norm "
                    f"{median(one.by_weight for one in of):.2f}, at random "
                    f"{median(one.random for one in of):.2f}",
                    n=len(of),
                )
        return found

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "units.csv",
            ("unit", "strongest_input", "k", "correlation", "low", "high", "by_weight", "random"),
            [
                (
                    circuit.unit,
                    next((circuit.inputs.names[i] for i in circuit.inputs.raising(1)), ""),
                    *(one.k, one.correlation, one.low, one.high, one.by_weight, one.random),
                )
                for circuit in self.circuits
                for one in circuit.followed
            ],
            caption="How well k inputs follow each unit, on pictures that chose none of them.",
        )

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "followed.svg",
            self.plot(),
            caption="Correlation of each unit with the sum of k of its inputs, on pictures that "
            "chose none of them: thin lines the units by contribution, thick lines medians.",
            alt="Curves of correlation against the number of inputs kept",
        )

    def plot(self) -> Figure:
        return draw_followed([one.followed for one in self.circuits])
