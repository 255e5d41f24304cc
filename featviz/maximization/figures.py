"""Figures of maximized pictures: a grid with scores, the scores over the steps, several layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from featviz import plotting
from featviz.maximization.evaluation.figures import draw_panel
from featviz.maximization.evaluation.panel import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pictures of each layer in the figure of several.
_SHOWN = 8
# Pictures of fewer pixels a side are enlarged pixel by pixel.
_SMALL = 96


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
    def trace(self) -> Tensor: ...
    @property
    def best_steps(self) -> Tensor: ...
    @property
    def panel(self) -> Panel: ...


def draw_pictures(result: Drawable) -> Figure:
    """The pictures with their scores; with photographs beside them where there are some."""
    pixelated = result.images.shape[-1] < _SMALL
    if result.panel.top_pictures:
        return draw_panel(
            result.title, result.titles, result.images, result.panel, pixelated=pixelated
        )
    rows = zip(result.titles, result.scores, result.panel.flags, strict=True)
    titles = [f"{'! ' * bool(flags)}{title}\n{score:.3g}" for title, score, flags in rows]
    columns = min(8, max(2, math.ceil(math.sqrt(2 * len(titles)))))
    return plotting.image_grid(
        result.images, titles, columns=columns, cell=1.5, pixelated=pixelated
    )


def draw_scores(result: Drawable) -> Figure:
    """The score at each step (lines), and of the saved pictures without transforms (dots)."""
    figure = plotting.new_figure(6, 3.2)
    ax = figure.add_subplot()
    few = len(result.titles) <= len(plotting.PALETTE)
    for i, line in enumerate(result.trace):
        color = plotting.PALETTE[i % len(plotting.PALETTE)]
        ax.plot(range(1, len(line) + 1), line.numpy(), color=color, linewidth=0.7, alpha=0.6)
        best, score = int(result.best_steps[i]), result.scores[i].item()
        label = result.titles[i] if few else None
        ax.plot([best], [score], "o", color=color, markersize=4, label=label)
    plotting.lines(ax, xlabel="step", ylabel="score")
    if few:
        ax.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    return figure


def draw_layers(layers: Sequence[Drawable]) -> Figure:
    """The first pictures of each layer."""
    images = [image for part in layers for image in part.images[:_SHOWN]]
    titles = [title for part in layers for title in part.titles[:_SHOWN]]
    return plotting.image_grid(images, titles, columns=_SHOWN, cell=1.5)
