"""Figures of a circuit: its strongest inputs, the curve of correlation, and the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from featviz import plotting
from featviz.circuits.connections import Connections, Followed, Graph
from featviz.circuits.layout import MAP, NODE, lay_out

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL, _STEP, _LINE = 0.72, 0.82, 0.13  # inches: a picture, from one to the next, a line of text
_COLUMNS = 8
_INCH = 96  # of the layout of a graph


class _Sheet:
    """One pair of axes in inches over a whole figure, on which small pictures are placed."""

    def __init__(self, width: float, height: float):
        self.page = plotting.Page(width, height)
        self.page.figure.suppressComposite = True  # or all pictures become one large one
        self.ax = self.page.axes(0, 0, width, height)
        self.ax.set(xlim=(0, width), ylim=(height, 0))
        self.ax.set_axis_off()

    def place(self, x: float, y: float, side: float, values: Any, **style: Any) -> None:
        """A picture (h, w) or (h, w, 3) inside a square whose upper left corner is at (x, y)."""
        from matplotlib.patches import Rectangle

        height, width = (side * n / max(values.shape[:2]) for n in values.shape[:2])
        left, top = x + (side - width) / 2, y + (side - height) / 2
        extent = (left, left + width, top + height, top)
        self.ax.imshow(values, extent=extent, aspect="auto", zorder=3, **style)
        self.ax.add_patch(
            Rectangle((left, top), width, height, fill=False, ec="#bbbbbb", lw=0.6, zorder=4)
        )
        self.ax.set(xlim=(0, self.page.width), ylim=(self.page.height, 0))

    def picture(self, x: float, y: float, side: float, picture: Tensor) -> None:
        shown = picture.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
        smooth = "nearest" if max(shown.shape[:2]) < 24 else "antialiased"
        self.place(x, y, side, shown, interpolation=smooth)

    def weights(self, x: float, y: float, side: float, weights: Tensor, end: float) -> None:
        colors = {"vmin": -end, "vmax": end, "cmap": plotting.DIVERGING}
        self.place(x, y, side, weights.float().numpy(), interpolation="nearest", **colors)

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        style = {"fontsize": 7, "color": plotting.INK, "ha": "center", "va": "top", **style}
        self.ax.text(x, y, words, zorder=5, **style)


def _draw_inputs(
    sheet: _Sheet,
    top: float,
    rows: Sequence[tuple[str, str, Tensor]],
    pictures: Mapping[str, Tensor],
    end: float,
) -> float:
    """Rows of eight inputs (name, words above it, weights) with pictures; the height used."""
    pictured = any(name in pictures for name, _, _ in rows)
    lines = max((words.count("\n") + 1 for _, words, _ in rows), default=1)
    height = lines * _LINE + (1 + pictured) * _STEP + 0.08
    for i, (name, words, weights) in enumerate(rows):
        row, column = divmod(i, _COLUMNS)
        x, y = 0.1 + column * _STEP, top + row * height
        sheet.text(x + _CELL / 2, y + lines * _LINE, words, fontsize=6.5, va="bottom")
        y += lines * _LINE + 0.02
        if name in pictures:
            sheet.picture(x, y, _CELL, pictures[name])
        sheet.weights(x, y + pictured * _STEP, _CELL, weights, end)
    return -(-len(rows) // _COLUMNS) * height


def draw_circuit(
    inputs: Connections,
    followed: Sequence[Followed],
    pictures: Mapping[str, Tensor],
    label: Callable[[str], str],
) -> Figure:
    """The strongest inputs of each sign with picture and weights, and the curve beside them."""
    raising, lowering = inputs.raising(), inputs.lowering()
    shown = [*raising, *lowering]
    end = (float(inputs.weights[shown].abs().max()) if shown else 0.0) or 1.0
    height = 4.3 if any(inputs.names[i] in pictures for i in shown) else 2.9
    sheet = _Sheet(10.6, height)
    top = 0.05
    for rows, added in ((raising, inputs.top_mean), (lowering, inputs.mean)):
        cells = []
        for i in rows:
            words = label(inputs.names[i]).replace(" + ", "\n+ ")
            words += "\n" + plotting.signed_text(float(added[i]), "+.2g")
            cells.append((inputs.names[i], words, inputs.weights[i]))
        top += _draw_inputs(sheet, top, cells, pictures, end) + 0.1
    left = 0.1 + _COLUMNS * _STEP + 0.6
    curve = sheet.page.axes(left, 0.15, 10.6 - left - 0.15, height - 0.65)
    _draw_curve(curve, followed)
    return sheet.page.figure


def _draw_curve(ax: Axes, followed: Sequence[Followed]) -> None:
    ks = [one.k for one in followed]
    low, high = [one.low for one in followed], [one.high for one in followed]
    ax.fill_between(ks, low, high, color=plotting.SKY, alpha=0.35, linewidth=0)
    for name, color, values in (
        ("by contribution", plotting.BLUE, [one.correlation for one in followed]),
        ("by weight norm", plotting.ORANGE, [one.by_weight for one in followed]),
        ("at random", plotting.INK, [one.random for one in followed]),
    ):
        ax.plot(ks, values, "o-", color=color, markersize=3, linewidth=1.4, label=name)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) if i % 2 == 0 else "" for i, k in enumerate(ks)])
    ax.minorticks_off()
    ax.set_ylim(-0.05, 1.02)
    ax.legend(fontsize=8, frameon=False)
    plotting.lines(ax, xlabel="inputs kept", ylabel="correlation with the unit")


def draw_followed(circuits: Sequence[Sequence[Followed]]) -> Figure:
    """The curves of several units, thin, and their medians."""
    from statistics import median

    figure = plotting.new_figure(5.2, 3.4)
    ax = figure.add_subplot()
    for followed in circuits:
        curve = [one.correlation for one in followed]
        ax.plot([one.k for one in followed], curve, color=plotting.SKY, linewidth=0.6, alpha=0.5)
    kept = [
        k for k in (o.k for o in circuits[0]) if all(any(o.k == k for o in c) for c in circuits)
    ]
    middle = [
        Followed(
            k,
            *(
                median(getattr(o, name) for c in circuits for o in c if o.k == k)
                for name in (
                    "correlation",
                    "correlation",
                    "correlation",
                    "explained",
                    "by_weight",
                    "random",
                )
            ),
        )
        for k in kept
    ]
    _draw_curve(ax, middle)
    return figure


def draw_expanded(
    names: Sequence[str], weights: Sequence[Tensor], pictures: Mapping[str, Tensor], end: float
) -> Figure:
    """Units of an earlier layer with their pictures, and the weights on them up to +-end."""
    rows = [(name, name, own) for name, own in zip(names, weights, strict=True)]
    each = _LINE + _STEP * (2 if pictures else 1) + 0.08
    sheet = _Sheet(0.1 + _COLUMNS * _STEP, 0.1 + max(1, -(-len(rows) // _COLUMNS)) * each)
    _draw_inputs(sheet, 0.05, rows, pictures, end)
    return sheet.page.figure


def draw_graph(
    graph: Graph, unit: str, pictures: Mapping[str, Tensor], label: Callable[[str], str]
) -> Figure:
    """The units level by level with their pictures, weights, and what each adds to those above."""
    places = lay_out(graph, unit)
    nodes = {name: (x / _INCH, y / _INCH) for name, (x, y) in places.nodes.items()}
    sheet = _Sheet(places.width / _INCH, places.height / _INCH)
    largest = {name: graph.largest(name) for name in nodes}
    end, node, small = graph.scale, NODE / _INCH, MAP / _INCH
    for edge, (x, y) in zip(graph.edges, places.maps, strict=True):
        x, y = x / _INCH, y / _INCH
        to_x, to_y = nodes[edge.input]
        color = plotting.RED if edge.contribution > 0 else plotting.BLUE
        width = 0.4 + 2.6 * abs(edge.contribution) / largest[edge.unit]
        down = [y + small / 2, to_y - node / 2]
        sheet.ax.plot([x, to_x], down, color=color, linewidth=width, alpha=0.6)
        sheet.weights(x - small / 2, y - small / 2, small, edge.weights, end)
    for name, (x, y) in nodes.items():
        if name in pictures:
            sheet.picture(x - node / 2, y - node / 2, node, pictures[name])
        words = label(name).replace(" + ", "\n+ ")
        style = {"fontweight": "bold"} if name == unit else {}
        sheet.text(x, y + node / 2 + 0.03, words[:40], **style)
    return sheet.page.figure
