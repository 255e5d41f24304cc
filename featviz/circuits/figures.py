"""Figures of a circuit: its strongest inputs, the curve of correlation, and the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.circuits.expanded import ExpandedWeights
    from featviz.circuits.result import Circuit

_CELL, _STEP, _LINE = 0.72, 0.82, 0.13  # inches: a picture, from one to the next, a line of text
_COLUMNS = 8
_NODE, _COLUMN, _ROW, _MARGIN = 0.8, 1.25, 1.75, 0.35


class _Sheet:
    """One pair of axes in inches over a whole figure, on which small pictures are placed."""

    def __init__(self, width: float, height: float):
        self.page = plotting.Page(width, height)
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


def draw_circuit(circuit: Circuit) -> Figure:
    """The strongest inputs of each sign with picture and weights, and the curve beside them."""
    raising, lowering = (rows.tolist() for rows in circuit.strongest)
    shown = [*raising, *lowering]
    end = (float(circuit.weights[shown].abs().max()) if shown else 0.0) or 1.0
    height = 4.3 if any(circuit.inputs[i] in circuit.pictures for i in shown) else 2.9
    sheet = _Sheet(10.6, height)
    top = 0.05
    for rows, added in ((raising, circuit.top_mean), (lowering, circuit.mean)):
        cells = []
        for i in rows:
            words = circuit.label(circuit.inputs[i]).replace(" + ", "\n+ ")
            words += "\n" + plotting.signed_text(float(added[i]), "+.2g")
            cells.append((circuit.inputs[i], words, circuit.weights[i]))
        top += _draw_inputs(sheet, top, cells, circuit.pictures, end) + 0.1
    left = 0.1 + _COLUMNS * _STEP + 0.6
    curve = sheet.page.axes(left, 0.15, 10.6 - left - 0.15, height - 0.65)
    _draw_curve(curve, circuit)
    return sheet.page.figure


def _draw_curve(ax: Axes, circuit: Circuit) -> None:
    followed = circuit.followed
    ks = [one.k for one in followed]
    low, high = [one.low for one in followed], [one.high for one in followed]
    ax.fill_between(ks, low, high, color=plotting.SKY, alpha=0.35, linewidth=0)
    for label, color, values in (
        ("by contribution", plotting.BLUE, [one.correlation for one in followed]),
        ("by weight norm", plotting.ORANGE, [one.by_weight for one in followed]),
        ("at random", plotting.INK, [one.random for one in followed]),
    ):
        ax.plot(ks, values, "o-", color=color, markersize=3, linewidth=1.4, label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) if i % 2 == 0 else "" for i, k in enumerate(ks)])
    ax.minorticks_off()
    ax.set_ylim(-0.05, 1.02)
    ax.legend(fontsize=8, frameon=False)
    plotting.lines(ax, xlabel="inputs kept", ylabel="correlation with the unit")


def draw_expanded(expanded: ExpandedWeights) -> Figure:
    """The units of the earlier layer with the largest weights, and these."""
    names = [f"{expanded.layer}:{i}" for i in expanded.strongest.tolist()]
    rows = [
        (name, name, expanded.weights[i])
        for name, i in zip(names, expanded.strongest.tolist(), strict=True)
    ]
    each = _LINE + _STEP * (2 if expanded.pictures else 1) + 0.08
    sheet = _Sheet(0.1 + _COLUMNS * _STEP, 0.1 + max(1, -(-len(rows) // _COLUMNS)) * each)
    _draw_inputs(sheet, 0.05, rows, expanded.pictures, float(expanded.weights.abs().max()) or 1.0)
    return sheet.page.figure


def draw_graph(circuit: Circuit) -> Figure:
    """The units level by level, each with its picture, and what each adds to those above it."""
    levels = circuit.levels
    width = 2 * _MARGIN + max(4, *map(len, levels)) * _COLUMN
    sheet = _Sheet(width, len(levels) * _ROW - 0.35)
    centers = [
        {
            name: (width / 2 + (i - (len(level) - 1) / 2) * _COLUMN, (row + 0.3) * _ROW)
            for i, name in enumerate(level)
        }
        for row, level in enumerate(levels)
    ]
    edges = list(circuit.graph_edges())
    largest: dict[str, float] = {}
    for edge in edges:
        largest[edge.unit] = max(largest.get(edge.unit, 0.0), abs(edge.contribution))
    ends = (float(e.weights.abs().max()) for e in edges if e.unit == circuit.unit)
    end = max(ends, default=0.0) or 1.0
    for upper, lower in pairwise(centers):
        for edge in edges:
            if edge.unit not in upper or edge.input not in lower:
                continue
            (x, y), (to_x, to_y) = lower[edge.input], upper[edge.unit]
            y, to_y = y - _NODE / 2, to_y + _NODE / 2 + 0.2
            thickness = 0.4 + 2.6 * abs(edge.contribution) / (largest[edge.unit] or 1.0)
            color = plotting.RED if edge.contribution > 0 else plotting.BLUE
            sheet.ax.plot([x, to_x], [y, to_y], color=color, linewidth=thickness, alpha=0.7)
            if edge.unit == circuit.unit:
                sheet.weights(x - 0.3, y - 0.34, 0.26, edge.weights, end)
                words = plotting.signed_text(edge.contribution, "+.2g")
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
                sheet.text(x + 0.04, y - 0.21, words, ha="left", va="center", bbox=box)
    if circuit.served:
        ((x, y),) = centers[0].values()
        lines = [f"{plotting.signed_text(v, '+.2g')} {name[:30]}" for name, v in circuit.served]
        words = "\n".join(["adds to the logits, on average:", *lines])
        sheet.text(x + _NODE / 2 + 0.12, y - _NODE / 2, words, ha="left")
    for row in centers:
        for name, (x, y) in row.items():
            if name in circuit.pictures:
                sheet.picture(x - _NODE / 2, y - _NODE / 2, _NODE, circuit.pictures[name])
            words = circuit.label(name).replace(" + ", "\n+ ")
            sheet.text(x, y + _NODE / 2 + 0.04, words)
    return sheet.page.figure
