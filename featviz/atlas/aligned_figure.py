"""Two maps of the same pictures side by side, colored by the position on the first."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featviz import plotting
from featviz.atlas.colors import Floats, position_colors
from featviz.atlas.figures import small_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 40
"""pictures that moved farthest, joined by lines"""


def aligned_figure(
    title: str, text: str, maps: Sequence[tuple[str, Floats]], moved: Floats
) -> Figure:
    """Both maps, the pictures that moved farthest joined by lines.

    Args:
        title: The heading.
        text: How they were made, below them.
        maps: The heading and the positions (N, 2) of both.
        moved: (N,) the distance of each picture between them.
    """
    from matplotlib.patches import ConnectionPatch

    words = textwrap.wrap(text, 150)
    page = plotting.Page(10, 5.6 + 0.16 * len(words))
    page.figure.set_dpi(200)
    page.text(0.15, 0.16, textwrap.shorten(title, 120), fontsize=10, weight="bold")
    colors = position_colors(maps[0][1])
    panels = []
    for x, (heading, xy) in zip((0.15, 5.15), maps, strict=True):
        axes = page.axes(x, 0.6, 4.7, 4.75)
        size = max(0.6, min(14.0, 9000 / len(xy)))
        axes.scatter(xy[:, 0], xy[:, 1], s=size, c=colors, linewidths=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(1.02, -0.02)
        axes.set_aspect("equal")
        plotting.bare(axes)
        axes.set_title(heading, fontsize=9, color=plotting.INK)
        panels.append(axes)
    for row in farthest(moved, LINES):
        page.figure.add_artist(
            ConnectionPatch(
                maps[0][1][row],
                maps[1][1][row],
                "data",
                "data",
                axesA=panels[0],
                axesB=panels[1],
                color=colors[row],
                linewidth=0.5,
                alpha=0.7,
            )
        )
    small_print(page, 0.15, 5.54, words, 7.5)
    return page.figure


def farthest(moved: Floats, most: int) -> list[int]:
    """The rows that moved most, at most a tenth of them, farthest first."""
    order = np.argsort(-moved, kind="stable")
    return [int(row) for row in order[: min(most, max(1, len(moved) // 10))]]
