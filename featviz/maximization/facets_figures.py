"""Figures of facets: units with their pictures, and one unit with its clusters or baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Examples of a cluster that are shown.
_SHOWN = 6
_CELL, _GAP, _TOP, _BELOW = 1.35, 0.07, 0.55, 0.26  # inches


class _Cluster(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def examples(self) -> Tensor: ...
    @property
    def start(self) -> Tensor: ...


class Drawable(Protocol):
    """What the figures need of a result."""

    @property
    def title(self) -> str: ...
    @property
    def titles(self) -> tuple[str, ...]: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def scores(self) -> Tensor: ...
    @property
    def baseline(self) -> Tensor: ...
    @property
    def baseline_scores(self) -> Tensor: ...
    @property
    def clusters(self) -> Sequence[Sequence[_Cluster]]: ...


def draw_units(result: Drawable) -> Figure:
    """A row a unit (at most 16), its facets from left to right."""
    shown, count = min(16, len(result.titles)), result.images.shape[1]
    left = 1.25
    page = plotting.Page(
        left + count * (_CELL + _GAP) + 0.1, _TOP + shown * (_CELL + _BELOW) + 0.03
    )
    size = plotting.fitting(result.title, page.width - 0.24)
    page.text(0.12, 0.24, result.title, fontsize=size, weight="bold")
    for u in range(shown):
        y = _TOP + u * (_CELL + _BELOW)
        title = _wrapped(result.titles[u])
        page.text(left - 0.12, y + _CELL / 2, title, ha="right", weight="bold")
        _row(page, left, y, result.images[u], result.scores[u])
    return page.figure


def draw_unit(result: Drawable, u: int) -> Figure:
    """One unit: with clusters a row a facet; without, the facets above the baseline."""
    if result.clusters:
        return _with_clusters(result, u)
    count, left = result.images.shape[1], 0.75
    page = plotting.Page(left + count * (_CELL + _GAP) + 0.1, _TOP + 2 * (_CELL + _BELOW) + 0.03)
    _head(page, result.titles[u])
    rows = [
        ("with\ndiversity", result.images[u], result.scores[u]),
        ("baseline", result.baseline[u], result.baseline_scores[u]),
    ]
    for row, (text, pictures, scores) in enumerate(rows):
        y = _TOP + row * (_CELL + _BELOW)
        page.text(left - 0.12, y + _CELL / 2, text, ha="right", fontsize=8)
        _row(page, left, y, pictures, scores)
    return page.figure


def _with_clusters(result: Drawable, u: int) -> Figure:
    count, side = result.images.shape[1], 0.9
    columns = [0.1 + i * (_CELL + _GAP) for i in range(3)]
    wide = columns[2] + _SHOWN * (side + _GAP) + 0.1
    page = plotting.Page(wide, _TOP + 0.2 + count * (_CELL + _BELOW) + 0.03)
    _head(page, result.titles[u])
    for x, head in zip(columns, ("facet", "start", "examples of its cluster"), strict=True):
        page.text(x, _TOP + 0.06, head, fontsize=8, color="#555555")
    for g, cluster in enumerate(result.clusters[u]):
        y = _TOP + 0.2 + g * (_CELL + _BELOW)
        _show(page, columns[0], y, _CELL, result.images[u, g], f"{result.scores[u, g]:.3g}")
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


def _wrapped(title: str, most: int = 15) -> str:
    """A title of two words or more on lines that fit beside the row."""
    lines: list[str] = []
    for word in title.split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
