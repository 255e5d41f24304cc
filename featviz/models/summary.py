"""`summarize(model)`: the table of its layers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from featviz import plotting, results
from featviz.errors import public
from featviz.models.model import Layer, Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("layer", "module", "kind", "shape", "parameters", "multiply-adds", "field", "stride")
_TEXT = 4  # the first columns are text, the others numbers


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary(results.Result):
    """The layers of a model, in the order of the forward pass."""

    kind: ClassVar[str] = "layers"

    model_name: str
    layers: tuple[Layer, ...]
    parameters: int
    macs: int

    @property
    def title(self) -> str:
        return f"Layers of {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        return {
            "parameters": results.Number(self.parameters, "", "weights and biases"),
            "multiply-adds": results.Number(self.macs, "", "in the forward pass of one picture"),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """One line a layer, as text."""
        return [
            (
                layer.name,
                layer.path or "(the net)",
                layer.kind,
                " x ".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                _pair(layer.receptive_field.size) if layer.receptive_field else _rest(layer),
                _pair(layer.receptive_field.stride) if layer.receptive_field else "-",
            )
            for layer in self.layers
        ]

    def to_text(self) -> str:
        """The table for a terminal."""
        rows = [_COLUMNS, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                f"{cell:{'<' if i < _TEXT else '>'}{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        total = f"{self.parameters:,} parameters, {self.macs:,} multiply-adds a picture"
        return "\n".join([*lines, total])

    def to_json(self) -> str:
        """The table as one JSON document."""
        document = {
            "model": self.origin.model,
            "parameters": self.parameters,
            "macs": self.macs,
            "layers": [_record(layer) for layer in self.layers],
        }
        return json.dumps(document, indent=1)

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "layers.svg",
            self.plot(),
            caption="Receptive field and multiply-adds of each layer; layers whose units see the "
            "whole picture have no bar on the left.",
            alt="Bar charts of receptive field and multiply-adds by layer",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table("layers.csv", _COLUMNS, self.rows(), caption="Every layer, in order.")

    def plot(self) -> Figure:
        shown = [la for la in self.layers if la.parameters and la.path]
        figure = plotting.new_figure(7, 0.8 + 0.28 * len(shown))
        fields, work = figure.subplots(1, 2, sharey=True)
        names = [la.name for la in shown]
        sizes = [la.receptive_field.size[0] if la.receptive_field else 0 for la in shown]
        for ax, values, label in (
            (fields, sizes, "receptive field (pixels)"),
            (work, [la.macs / 1e6 for la in shown], "multiply-adds (millions)"),
        ):
            bars = ax.barh(names, values, color=plotting.BLUE, height=0.6)
            ax.bar_label(bars, fmt="%.4g", fontsize=7, padding=2)
            plotting.lines(ax, xlabel=label, ylabel="")
            ax.margins(x=0.15)
        fields.invert_yaxis()
        return figure


def _record(layer: Layer) -> dict[str, Any]:
    names = ("name", "path", "kind", "shape", "units", "parameters", "macs")
    field = layer.receptive_field
    record = {name: getattr(layer, name) for name in names}
    return record | {"receptive_field": field and vars(field), "whole": layer.whole}


def _pair(values: tuple[int, int]) -> str:
    return str(values[0]) if values[0] == values[1] else f"{values[0]} x {values[1]}"


def _rest(layer: Layer) -> str:
    return "whole" if layer.whole else "-"


@public
def summarize(model: Model, *, all_modules: bool = False) -> Summary:
    """The layers of a model with their geometry and cost.

    Args:
        model: the model.
        all_modules: every module, also containers; default: the layers with an alias, or the
            leaves of a model without aliases.

    Returns:
        The layers in the order of the forward pass.
    """
    started = time.perf_counter()
    named = [la for la in model.layers.values() if la.name in model.aliases]
    has_children = {path.rpartition(".")[0] for path, _ in model.net.named_modules() if path}
    leaves = [la for la in model.layers.values() if la.path not in has_children or not la.path]
    chosen = list(model.layers.values()) if all_modules else named if len(named) > 1 else leaves
    return Summary(
        origin=results.origin(model, parameters={"all_modules": all_modules}, started=started),
        model_name=model.name,
        layers=tuple(chosen),
        parameters=sum(p.numel() for p in model.net.parameters()),
        macs=max(la.macs for la in model.layers.values()),
    )
