"""Figures of maximized pictures: a grid with scores, the scores over the steps, several layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

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


def draw_pictures(title: str, names: Sequence[str], images: Tensor, panel: Panel) -> Figure:
    """The pictures with their scores; with photographs beside them where there are some."""
    pixelated = images.shape[-1] < _SMALL
    if panel.top_pictures:
        return draw_panel(title, names, images, panel, pixelated=pixelated)
    rows = zip(names, panel.scores, panel.flags, strict=True)
    titles = [f"{'! ' * bool(flags)}{name}\n{score:.3g}" for name, score, flags in rows]
    columns = min(8, max(2, math.ceil(math.sqrt(2 * len(titles)))))
    return plotting.image_grid(images, titles, columns=columns, cell=1.5, pixelated=pixelated)


def draw_scores(titles: Sequence[str], trace: Tensor, scores: Tensor, best_steps: Tensor) -> Figure:
    """The score at each step (lines), and of the saved pictures without transforms (dots)."""
    figure = plotting.new_figure(6, 3.2)
    ax = figure.add_subplot()
    few = len(titles) <= len(plotting.PALETTE)
    for i, line in enumerate(trace):
        color = plotting.PALETTE[i % len(plotting.PALETTE)]
        ax.plot(range(1, len(line) + 1), line.numpy(), color=color, linewidth=0.7, alpha=0.6)
        best, score = int(best_steps[i]), scores[i].item()
        label = titles[i] if few else None
        ax.plot([best], [score], "o", color=color, markersize=4, label=label)
    plotting.lines(ax, xlabel="step", ylabel="score")
    if few:
        ax.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
    return figure


def draw_layers(layers: Sequence[tuple[Sequence[str], Tensor]]) -> Figure:
    """The first pictures of each layer, of titles and pictures (N, 3, H, W)."""
    images = [image for _, pictures in layers for image in pictures[:_SHOWN]]
    titles = [title for names, _ in layers for title in names[:_SHOWN]]
    return plotting.image_grid(images, titles, columns=_SHOWN, cell=1.5)
