"""`trace_circuit`: which units build a unit and which it feeds, measured on pictures.

For each input unit: its weights, and what it contributes at positions of many pictures (mean,
spread, share of the variance). Then how far a picture of a few inputs goes: the correlation of the
unit with the sum of the k strongest inputs alone, chosen on one half of the pictures and measured
on the other, beside k chosen by the norm of their weights and k at random. The strongest inputs
are traced in their turn, level by level, down to the model's first layer; and so are the units
that it feeds, up to the logits.

    Olah et al., "Zoom In: An Introduction to Circuits", Distill 2020, for the figures of weights
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from featviz import results
from featviz.checkpoints import open_checkpoint
from featviz.circuits.connections import (
    SHOWN,
    WIDEST,
    Connections,
    Edge,
    Followed,
    Graph,
    edges_in,
    edges_out,
)
from featviz.circuits.contributions import Wiring
from featviz.circuits.expanded import ExpandedWeights, expanded_weights
from featviz.circuits.icons import IN_WORDS, Icons, input_colors
from featviz.circuits.measure import Measurements, Task
from featviz.circuits.result import Circuit, Circuits
from featviz.data.datasets import Pictures
from featviz.data.from_python import as_pictures
from featviz.errors import UserError, public
from featviz.models.units import parse_units
from featviz.types import BatchSize, Count, Depth, Engine, Height, Progress, Seed
from featviz.wording import counted

if TYPE_CHECKING:
    from featviz.models.model import Model

FAR = 8
"""layers that are followed in each direction where nothing is said"""


@public
def trace_circuit(
    model: Model,
    unit: str,
    pictures: Pictures | Tensor | str | Path,
    *,
    depth: Depth | None = None,
    height: Height | None = None,
    expand: str | Sequence[str] = (),
    icons: Icons = "patches",
    count: Count = 150,
    positions: Count = 64,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Circuit:
    """What each unit of the layer before contributes to a unit, and this to those behind it.

    Args:
        model: A model.
        unit: "conv4:12", "logits:tabby", of a convolution or a linear layer, or of a ReLU, pool,
            normalization or block that passes its units on (their value before it is followed).
        pictures: On which contributions are measured; at least 4.
        depth: Layers below that are followed: the strongest inputs are traced in their turn (three
            that raise each unit and one that lowers it, at most eight a level). Default: down to
            the first layer, at most 8.
        height: Layers above: the units of which it makes the largest share, and those that these
            feed. 0: none; default: up to the logits, at most 8.
        expand: Earlier layers, on whose units the weights are made, too (`expanded_weights`; over
            `pictures` where something between is not linear).
        icons: What stands beside each unit: the patch of `pictures` that activates it most, its
            maximized picture (seconds a layer), or nothing. Units of the first layer are shown by
            their kernels.
        count: At most so many pictures, evenly spread.
        positions: Of a map at most so many, drawn at random for each picture.
        batch_size: Pictures that the model computes at once.
        seed: Of the positions, the halves, the random inputs and the maximized pictures.
        checkpoint: A folder in which finished pieces are kept, and from which the same call goes
            on after it was stopped; the caller removes it.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: The layer is no linear operation, or there are too few pictures.

    Example:
        featviz.trace_circuit(model, "conv4:12", "photographs").save("run/circuit")
    """
    found = trace_circuits(
        model,
        [unit],
        pictures,
        depth=FAR if depth is None else depth,
        height=FAR if height is None else height,
        expand=expand,
        icons=icons,
        count=count,
        positions=positions,
        batch_size=batch_size,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    if len(found.circuits) > 1:
        raise UserError(f"{unit} names {counted(len(found.circuits), 'unit')}; take trace_circuits")
    return found.circuits[0]


@public
def trace_circuits(
    model: Model,
    units: Sequence[str],
    pictures: Pictures | Tensor | str | Path,
    *,
    depth: Depth = 1,
    height: Height = 1,
    expand: str | Sequence[str] = (),
    icons: Icons = "none",
    count: Count = 150,
    positions: Count = 64,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    engine: Engine = "here",
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Circuits:
    """The circuits of several units, which share the passes over the pictures.

    Args:
        model: A model.
        units: "conv4:12", "conv4:0-15", "conv5:all", "logits:tabby": of any layers.
        pictures: As in `trace_circuit`, and so are the other arguments.
        depth: Layers below that are followed.
        height: Layers above that are followed; 0: none.
        expand: Earlier layers, on whose units the weights are made, too.
        icons: What stands beside each unit.
        count: At most so many pictures, evenly spread.
        positions: Of a map at most so many.
        batch_size: Pictures that the model computes at once.
        seed: Of all that is random.
        engine: "here", or "ray": units are spread over a Ray cluster, eight at a time.
        checkpoint: A folder in which finished pieces are kept; the caller removes it.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: As in `trace_circuit`.

    Example:
        featviz.trace_circuits(model, ["conv4:0-15"], "photographs").save("run/circuits")
    """
    started = time.perf_counter()
    names = named_units(model, units)
    data = as_pictures(pictures, model=model).spread(count)
    layers = [expand] if isinstance(expand, str) else list(expand)
    if "" in layers:
        raise UserError(f"expand {','.join(layers)!r} has an empty name; write conv2,conv1")
    # Before any other work, since it refuses layers that a unit does not depend on.
    expanded = {name: _expanded(model, name, layers, data, batch_size) for name in names}
    parameters: dict[str, Any] = {
        "units": names,
        "depth": depth,
        "height": height,
        "expand": layers,
        "icons": icons,
        "count": count,
        "positions": positions,
    }
    job = {"model": model.sha256, "data": data.sha256, "seed": seed, "batch_size": batch_size}
    with open_checkpoint(checkpoint, job | parameters, engine=engine) as kept:
        several = kept.engine == "here" and depth + height > 2
        task = Task(model, data, positions, batch_size, seed, icons, keeping=several)
        tracer = _Tracer(Measurements(task, kept, progress), names, depth, height)
        circuits = []
        for name in names:
            origin = results.origin(
                model,
                parameters={"unit": name} | {k: v for k, v in parameters.items() if k != "units"},
                started=started,
                data=data,
                seed=seed,
            )
            circuits.append(tracer.circuit(name, origin, expanded[name]))
    return Circuits(
        origin=results.origin(model, parameters=parameters, started=started, data=data, seed=seed),
        circuits=tuple(circuits),
    )


def named_units(model: Model, units: Sequence[str]) -> list[str]:
    """Units by name, with the layers whose values are followed, each once."""
    wiring = Wiring(model)
    found = []
    for text in [units] if isinstance(units, str) else units:
        layer, colon, rest = text.partition(":")
        if not colon or not rest:
            last = model.layer(layer).units - 1
            raise UserError(f"{text!r} names no unit; write {layer}:0 to {layer}:{last}")
        for unit in parse_units(model, layer, rest):
            found.append(wiring.unit(wiring.linear(unit.layer).layer, unit.index))
    if not found:
        raise UserError("no units were named; write conv4:12, or conv4:0-15")
    return list(dict.fromkeys(found))


def _expanded(
    model: Model, unit: str, layers: Sequence[str], data: Pictures, batch_size: int
) -> tuple[ExpandedWeights, ...]:
    return tuple(
        expanded_weights(model, unit, layer, pictures=data, batch_size=batch_size)
        for layer in layers
    )


class _Tracer:
    """Follows units down and up, all of a level at once, and puts their circuits together."""

    def __init__(self, measured: Measurements, units: Sequence[str], depth: int, height: int):
        self.measured = measured
        self.inputs: dict[str, tuple[Connections, list[Followed], int]] = {}
        self.outputs: dict[str, tuple[Connections, ...]] = {}
        self.below = self._levels(units, depth, self._trace_down)
        self.above = self._levels(units, height, self._trace_up)
        served = height and not measured.task.model.headless
        before = [name for name in units if served and not name.startswith("logits:")]
        self.effects = measured.effects(before)
        shown = [name for unit in units for name in self._shown(unit)]
        self.pictures = measured.pictures(list(dict.fromkeys(shown)))

    def _levels(
        self,
        units: Sequence[str],
        count: int,
        trace: Callable[[Sequence[str]], Mapping[str, list[tuple[str, float]]]],
    ) -> dict[str, list[list[str]]]:
        """Of each unit the units of the levels on one side, nearest first."""
        levels: dict[str, list[list[str]]] = {unit: [] for unit in units}
        for step in range(count):
            last = {unit: of[-1] if step else [unit] for unit, of in levels.items()}
            neighbors = trace([name for names in last.values() for name in names])
            for unit, of in levels.items():
                placed = {unit, *(name for level in of for name in level)}
                found: dict[str, float] = {}
                for name, share in (pair for own in last[unit] for pair in neighbors.get(own, ())):
                    if name not in placed:
                        found[name] = max(found.get(name, 0.0), abs(share))
                kept = sorted(found, key=lambda name: -found[name])[:WIDEST]
                of.append([name for name in found if name in kept])
        return {unit: [level for level in of if level] for unit, of in levels.items()}

    def _trace_down(self, names: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
        self.inputs |= self.measured.inputs([n for n in names if n not in self.inputs])
        traced = {name: self.inputs[name][0] for name in names if name in self.inputs}
        return {
            name: [(e.input, e.share) for e in edges_in(name, inputs)]
            for name, inputs in traced.items()
            if inputs.names[0].partition(":")[0] != "input"
        }

    def _trace_up(self, names: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
        self.outputs |= self.measured.outputs([n for n in names if n not in self.outputs])
        return {
            name: [(e.unit, e.share) for e in edges_out(name, self.outputs[name])] for name in names
        }

    def _shown(self, unit: str) -> list[str]:
        """Units of which the figures of a circuit have a picture."""
        inputs = self.inputs[unit][0]
        strongest = [inputs.names[i] for i in (*inputs.raising(), *inputs.lowering())]
        return [*self._graph(unit).units, *strongest]

    def _graph(self, unit: str) -> Graph:
        above, below = self.above[unit], self.below[unit]
        names = self.inputs[unit][0].names
        if names[0].startswith("input:"):  # of the first layer: the picture's channels
            below = [list(names[:WIDEST])]
        levels = [*above[::-1], [unit], *below]
        placed = {name for level in levels for name in level}
        edges: list[Edge] = []
        for name in (name for level in ([unit], *above) for name in level):
            edges += edges_out(name, self.outputs.get(name, ()))
        for name in (name for level in ([unit], *below) for name in level):
            if name in self.inputs:
                edges += edges_in(name, self.inputs[name][0])
        curves = {name: self.inputs[name][1] for name in placed if name in self.inputs}
        followed = {
            name: next((one for one in curve if one.k >= SHOWN), curve[-1])
            for name, curve in curves.items()
        }
        return Graph(
            tuple(map(tuple, levels)),
            tuple(e for e in edges if e.unit in placed and e.input in placed),
            followed,
        )

    def circuit(
        self, unit: str, origin: results.Origin, expanded: tuple[ExpandedWeights, ...]
    ) -> Circuit:
        """All that was measured of a unit and of those around it."""
        inputs, followed, samples = self.inputs[unit]
        task, graph = self.measured.task, self._graph(unit)
        shown = set(self._shown(unit))
        linear = self.measured.wiring.linear(unit.rpartition(":")[0])
        return Circuit(
            origin=origin,
            model_name=task.model.name,
            unit=unit,
            inputs=inputs,
            bias=linear.bias(int(unit.rpartition(":")[2])),
            samples=samples,
            followed=tuple(followed),
            graph=graph,
            outputs=self.outputs.get(unit, ()),
            pictures={name: one for name, one in self.pictures.items() if name in shown},
            shown_as=IN_WORDS[task.icons] if self.pictures else "",
            colors=input_colors(task.model),
            classes=tuple(task.model.classes),
            effect=self.effects.get(unit, ()),
            expanded=expanded,
        )
