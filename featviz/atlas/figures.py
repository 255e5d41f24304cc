"""Figures of atlases: map, mosaic, cells with their icons, a page for print; the cells of a class
atlas; two aligned maps.

All take plain data. There are no axes: those of t-SNE have no scale and no meaning.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz import plotting
from featviz.atlas.colors import Floats, position_colors
from featviz.pictures import images
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.atlas.grid import Grid
    from featviz.atlas.levels import Level
    from featviz.atlas.thumbnails import Thumbnails

WIDTH = 7.2
"""inches: two columns of most journals"""
SHOWN = 5
"""cells with the largest attribution that a class atlas lists, and two with the smallest"""
LINES = 40
"""pictures that moved farthest between two maps, joined by lines"""


def lattice_picture(
    thumbnails: Thumbnails,
    places: Tensor,
    *,
    width: int,
    frames: Sequence[str | None] | None = None,
) -> Tensor:
    """Every thumbnail at its place (N, 2) of a lattice, (4, H, W): transparent between them.

    Args:
        thumbnails: Of the rows.
        places: (N, 2) column and row; the empty border of the lattice is cut off.
        width: Pixels of the longer side, if a thumbnail then has at least 4.
        frames: A color or None for each row.
    """
    moved = places - places.min(0).values
    size = max(4, min(width // int(moved.max() + 1), thumbnails.size + 4 * bool(frames)))
    rim = max(1, round(size / 14)) if frames else 0
    return _paste(thumbnails, moved, size, size - max(1, 2 * rim), frames)


def cells_picture(grid: Grid, icons: Sequence[Tensor], width: int = 1200) -> Tensor:
    """Icons (cells, 3, S, S) in the places of their cells, kind beside kind, (4, H, W)."""
    places = torch.tensor([(cell.column, cell.row) for cell in grid.cells])
    size = max(8, min(width // grid.side, 128))
    sheets = []
    for pictures in icons:
        sheet = torch.zeros(4, grid.side * size + 2, grid.side * size + 2)
        pasted = _paste(pictures, places, size, size - 2)
        sheet[:, 2 : 2 + pasted.shape[1], 2 : 2 + pasted.shape[2]] = pasted
        sheets += [sheet, torch.zeros(4, sheet.shape[1], size // 2)]
    return torch.cat(sheets[:-1], 2)


def _paste(
    pictures: Thumbnails | Tensor,
    places: Tensor,
    size: int,
    inner: int,
    frames: Sequence[str | None] | None = None,
) -> Tensor:
    """Pictures shrunk to `inner` pixels, each in its square of `size` pixels, (4, H, W)."""
    from matplotlib.colors import to_rgba

    columns, rows = (places.max(0).values + 1).tolist()
    canvas = torch.zeros(4, rows * size, columns * size)
    rim = (size - inner) // 2 if frames else 0
    for part in torch.arange(len(places)).split(1024):
        small = images.resize(pictures[part], inner)
        for number, picture in zip(part.tolist(), small, strict=True):
            x, y = (places[number] * size).tolist()
            color = frames[number] if frames else None
            if color is not None:
                paint = torch.tensor(to_rgba(color))
                canvas[:, y : y + size, x : x + size] = paint[:, None, None]
            place = slice(y + rim, y + rim + inner), slice(x + rim, x + rim + inner)
            canvas[:3, *place], canvas[3, *place] = picture, 1
    return canvas


def print_page(picture: Tensor, title: str, text: str, legend: Mapping[str, str]) -> Figure:
    """A page for print; as PDF it has the picture in full resolution.

    Args:
        picture: (4, H, W), over the whole width, on white.
        title: The heading.
        text: How the picture was made, below it.
        legend: Colors of frames by class.
    """
    from matplotlib.patches import Patch

    words = textwrap.wrap(text, 124)
    below = 0.2 * -(-len(legend) // 4) + 0.08 if legend else 0.0
    tall = WIDTH * picture.shape[1] / picture.shape[2]
    page = plotting.Page(WIDTH, 0.36 + tall + below + 0.155 * len(words) + 0.15)
    plotting.show_image(page.axes(0.01 * WIDTH, 0.3, 0.98 * WIDTH, tall), images.visible(picture))
    page.text(0.01 * WIDTH, 0.2, title, fontsize=10, weight="bold")
    if legend:
        page.figure.legend(
            handles=[
                Patch(color=color, label=textwrap.shorten(name, 30))
                for name, color in legend.items()
            ],
            loc="upper left",
            bbox_to_anchor=(0.0, 1 - (0.32 + tall) / page.height),
            ncols=4,
            frameon=False,
            fontsize=7,
            handlelength=1,
            handleheight=1,
            columnspacing=1.2,
        )
    small_print(page, 0.01 * WIDTH, 0.36 + tall + below, words, 7)
    return page.figure


def small_print(
    page: plotting.Page,
    x: float,
    y: float,
    words: Sequence[str],
    points: float,
    color: str = "#444444",
) -> None:
    """Lines of text below (x, y)."""
    page.text(x, y, "\n".join(words), fontsize=points, color=color, va="top", linespacing=1.35)


def class_figure(
    title: str,
    name: str,
    level: Level,
    samples: Tensor,
    attributions: Tensor,
    fractions: Sequence[float],
) -> Figure:
    """The cells of a class atlas at the left, the strongest and weakest of them at the right.

    Args:
        title: The heading.
        name: The class.
        level: The cells.
        samples: (cells, 3, T, T) their sample pictures.
        attributions: (cells,) of their means to the class.
        fractions: Of their pictures that are labeled so.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    page = plotting.Page(11, 6.4)
    page.text(0.11, 0.22, textwrap.shorten(title, 110), fontsize=11, weight="bold")
    icons = [samples] if level.synthetic is None else [level.synthetic.images, samples]
    small = images.resize(icons[0], 96).permute(0, 2, 3, 1).numpy()
    limit = max(float(attributions.abs().max()), 1e-9)
    scale = ScalarMappable(Normalize(-limit, limit), "PRGn")
    axes = page.axes(0.11, 0.45, 5.83, 5.5)
    colors = scale.to_rgba(attributions.numpy())
    for cell, color, icon in zip(level.grid.cells, colors, small, strict=True):
        x, y = cell.column, cell.row
        axes.add_patch(Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, color=color))
        place = (x + 0.1, x + 0.9, y + 0.9, y + 0.1)
        axes.imshow(icon, extent=place, interpolation="antialiased", zorder=2)
    axes.set_xlim(0, level.grid.side)
    axes.set_ylim(level.grid.side, 0)
    axes.set_aspect("equal")
    plotting.bare(axes)
    bar = page.figure.colorbar(
        scale, cax=page.axes(1.1, 6.06, 3.85, 0.115), orientation="horizontal"
    )
    bar.ax.tick_params(labelsize=6.5, length=2)
    bar.outline.set_visible(False)
    label = f"logits, attribution to {textwrap.shorten(name, 20)}"
    page.text(5.06, 6.12, label, fontsize=7, color="#444444")
    order = attributions.argsort(descending=True, stable=True).tolist()
    for line, number in enumerate(order[:SHOWN] + order[SHOWN:][-2:]):
        left, top = 6.27, 0.45 + 0.786 * line
        for kind in icons:
            plotting.show_image(
                page.axes(left, top, 0.68, 0.73), images.resize(kind[[number]], 112)[0]
            )
            left += 0.73
        members = level.grid.cells[number].members
        words = (
            f"attribution {attributions[number]:+.2f}",
            f"{counted(len(members), 'picture')}, {fractions[number]:.0%} labeled so",
        )
        raised = [] if level.effects is None else level.effects[number][:4]
        lines = [f"{textwrap.shorten(n, 26)} {value:+.1f}" for n, value in raised]
        small_print(page, left + 0.05, top + 0.08, words, 7.5, plotting.INK)
        small_print(page, 9.46, top + 0.08, lines, 7)
    return page.figure


def aligned_figure(
    title: str, text: str, maps: Sequence[tuple[str, Floats]], moved: Floats
) -> Figure:
    """Two maps of the same pictures, colored by the position on the first.

    The pictures that moved farthest are joined by lines.

    Args:
        title: The heading.
        text: How they were made, below them.
        maps: The heading and the positions (N, 2) of both.
        moved: (N,) the distance of each picture between them.
    """
    from matplotlib.patches import ConnectionPatch

    words = textwrap.wrap(text, 150)
    page = plotting.Page(10, 5.6 + 0.16 * len(words))
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
