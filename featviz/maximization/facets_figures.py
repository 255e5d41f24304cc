"""Figures of facets: units with their pictures, and one unit with its clusters or baseline."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting
from featviz.maximization.facet_examples import Cluster

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Examples of a cluster that are shown.
_SHOWN = 6
_CELL, _GAP, _TOP, _BELOW = 1.35, 0.07, 0.55, 0.26  # inches


def draw_units(title: str, units: Sequence[str], images: Tensor, scores: Tensor) -> Figure:
    """A row a unit (at most 16), its facets (U, G, 3, S, S) from left to right."""
    shown, count = min(16, len(units)), images.shape[1]
    left = 1.25
    page = plotting.Page(
        left + count * (_CELL + _GAP) + 0.1, _TOP + shown * (_CELL + _BELOW) + 0.03
    )
    size = plotting.fitting(title, page.width - 0.24)
    page.text(0.12, 0.24, title, fontsize=size, weight="bold")
    for u in range(shown):
        y = _TOP + u * (_CELL + _BELOW)
        name = "\n".join(textwrap.wrap(units[u], 15, break_long_words=False))
        page.text(left - 0.12, y + _CELL / 2, name, ha="right", weight="bold")
        _row(page, left, y, images[u], scores[u])
    return page.figure


def draw_beside_baseline(
    title: str, images: Tensor, scores: Tensor, baseline: Tensor, baseline_scores: Tensor
) -> Figure:
    """The facets (G, 3, S, S) of a unit above those of the baseline."""
    count, left = len(images), 0.75
    page = plotting.Page(left + count * (_CELL + _GAP) + 0.1, _TOP + 2 * (_CELL + _BELOW) + 0.03)
    _head(page, title)
    rows = [
        ("with\ndiversity", images, scores),
        ("baseline", baseline, baseline_scores),
    ]
    for row, (text, pictures, values) in enumerate(rows):
        y = _TOP + row * (_CELL + _BELOW)
        page.text(left - 0.12, y + _CELL / 2, text, ha="right", fontsize=8)
        _row(page, left, y, pictures, values)
    return page.figure


def draw_clusters(
    title: str, images: Tensor, scores: Tensor, clusters: Sequence[Cluster]
) -> Figure:
    """A row a facet (of G, 3, S, S): its picture, its start, and examples of its cluster."""
    count, side = len(images), 0.9
    columns = [0.1 + i * (_CELL + _GAP) for i in range(3)]
    wide = columns[2] + _SHOWN * (side + _GAP) + 0.1
    page = plotting.Page(wide, _TOP + 0.2 + count * (_CELL + _BELOW) + 0.03)
    _head(page, title)
    for x, head in zip(columns, ("facet", "start", "examples of its cluster"), strict=True):
        page.text(x, _TOP + 0.06, head, fontsize=8, color="#555555")
    for g, cluster in enumerate(clusters):
        y = _TOP + 0.2 + g * (_CELL + _BELOW)
        _show(page, columns[0], y, _CELL, images[g], f"{scores[g]:.3g}")
        _show(page, columns[1], y, _CELL, cluster.start, f"mean of {len(cluster.examples)}")
        for m, example in enumerate(cluster.examples[:_SHOWN]):
            x = columns[2] + m * (side + _GAP)
            _show(page, x, y + (_CELL - side) / 2, side, example.float() / 255, "")
        text = f"cluster of {cluster.size}"
        page.text(columns[2], y + _CELL + 0.1, text, fontsize=7, color="#555555")
    return page.figure


def _head(page: plotting.Page, title: str) -> None:
    text = f"Facets of {title}"
    page.text(0.1, 0.24, text, fontsize=plotting.fitting(text, page.width - 0.2), weight="bold")


def _row(page: plotting.Page, left: float, y: float, pictures: Tensor, scores: Tensor) -> None:
    for g, (picture, score) in enumerate(zip(pictures, scores, strict=True)):
        _show(page, left + g * (_CELL + _GAP), y, _CELL, picture, f"{score:.3g}")


def _show(page: plotting.Page, x: float, y: float, side: float, picture: Tensor, text: str) -> None:
    plotting.show_image(page.axes(x, y, side, side), picture, pixelated=picture.shape[-1] < 64)
    if text:
        page.text(x + side / 2, y + side + 0.1, text, fontsize=7, ha="center", color="#555555")
