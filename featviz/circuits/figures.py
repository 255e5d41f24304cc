"""Figures of a circuit: its strongest inputs, the curve of correlation, and the graph."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor

from featviz import plotting
from featviz.circuits.result import SHOWN, Circuit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NODE, _COLUMN, _ROW, _MARGIN = 0.8, 1.25, 1.75, 0.35  # inches


def draw_circuit(circuit: Circuit) -> Figure:
    """The strongest inputs of each sign with picture and weights, and the curve beside them."""
    raising, lowering = circuit.strongest
    shown = [*raising.tolist(), *lowering.tolist()]
    pictured = any(circuit.inputs[i] in circuit.pictures for i in shown)
    figure = plotting.new_figure(11.0, 4.6 if pictured else 3.4)
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.8, 1))
    left, right = parts
    end = (float(circuit.weights[shown].abs().max()) if shown else 0.0) or 1.0
    kinds = 2 if pictured else 1
    grid = left.subplots(2 * kinds, SHOWN, squeeze=False)
    for ax in grid.flat:
        ax.set_axis_off()
    signs = ((raising, circuit.top_mean), (lowering, circuit.mean))
    for row, (rows, added) in enumerate(signs):
        for column, index in enumerate(rows.tolist()):
            *above, below = (grid[kinds * row + kind, column] for kind in range(kinds))
            name = circuit.inputs[index]
            words = circuit.label(name).replace(" + ", "\n+ ")
            words = f"{words}\n{plotting.signed_text(float(added[index]), '+.2g')}"
            if above and name in circuit.pictures:
                above[0].set_axis_on()
                plotting.show_image(above[0], circuit.pictures[name])
            below.set_axis_on()
            plotting.show_map(below, circuit.weights[index], -end, end)
            (above or [below])[0].set_title(words, fontsize=6.5, color=plotting.INK, pad=2)
    _draw_curve(right.subplots(), circuit)
    return figure


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
    named = [*ks[:-1:2], ks[-1]] if len(ks) > 1 and len(ks) % 2 else ks[::2]
    ax.set_xticks(ks, [str(k) if k in named else "" for k in ks])
    ax.set_ylim(-0.05, 1.02)
    ax.legend(fontsize=8, frameon=False)
    plotting.lines(ax, xlabel="inputs kept", ylabel="correlation with the unit")


def draw_graph(circuit: Circuit) -> Figure:
    """The units level by level, each with its picture, and what each adds to those above it."""
    levels = circuit.levels
    widest = max(map(len, levels))
    page = plotting.Page(2 * _MARGIN + max(4, widest) * _COLUMN, len(levels) * _ROW)
    lines = page.axes(0, 0, page.width, page.height)
    lines.set(xlim=(0, page.width), ylim=(page.height, 0))
    lines.set_axis_off()
    centers = [
        {
            name: (page.width / 2 + (i - (len(level) - 1) / 2) * _COLUMN, (row + 0.5) * _ROW - 0.1)
            for i, name in enumerate(level)
        }
        for row, level in enumerate(levels)
    ]
    edges = list(circuit.graph_edges())
    largest: dict[str, float] = {}
    for edge in edges:
        largest[edge.unit] = max(largest.get(edge.unit, 0.0), abs(edge.contribution))
    end = max((float(e.weights.abs().max()) for e in edges if e.unit == circuit.unit), default=0.0)
    for upper, lower in pairwise(centers):
        for edge in edges:
            if edge.unit not in upper or edge.input not in lower:
                continue
            (x, y), (to_x, to_y) = lower[edge.input], upper[edge.unit]
            y, to_y = y - _NODE / 2, to_y + _NODE / 2 + 0.2
            width = 0.4 + 2.6 * abs(edge.contribution) / (largest[edge.unit] or 1.0)
            color = plotting.RED if edge.contribution > 0 else plotting.BLUE
            lines.plot([x, to_x], [y, to_y], color=color, linewidth=width, alpha=0.7)
            if edge.unit == circuit.unit:
                _draw_weights(page, (x, y), edge.weights, edge.contribution, end)
    for row in centers:
        for name, (x, y) in row.items():
            _draw_node(page, circuit, name, x, y)
    return page.figure


def _draw_weights(
    page: plotting.Page, top: tuple[float, float], weights: Tensor, added: float, end: float
) -> None:
    """The weights of an edge and its contribution, above the picture of the input."""
    side, (x, y) = 0.26, top
    ax = page.axes(x - side - 0.04, y - side - 0.08, side, side)
    plotting.show_map(ax, weights, -(end or 1.0), end or 1.0)
    words = plotting.signed_text(added, "+.2g")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
    page.text(x + 0.04, y - side / 2 - 0.08, words, fontsize=7, bbox=box)


def _draw_node(page: plotting.Page, circuit: Circuit, name: str, x: float, y: float) -> None:
    ax = page.axes(x - _NODE / 2, y - _NODE / 2, _NODE, _NODE)
    plotting.bare(ax)
    plotting.frame(ax)
    if name in circuit.pictures:
        picture = circuit.pictures[name]
        plotting.show_image(ax, picture, pixelated=picture.shape[-1] < 24)
    words = circuit.label(name).replace(" + ", "\n+ ")
    page.text(x, y + _NODE / 2 + 0.04, words, fontsize=7, ha="center", va="top")
