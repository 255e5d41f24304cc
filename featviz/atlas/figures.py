"""Pictures of an atlas: the map, the mosaic, the cells with their icons, a page for print.

All take plain tensors and words. There are no axes: those of t-SNE have no scale and no meaning.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import images, plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.atlas.grid import Grid
    from featviz.atlas.thumbnails import Thumbnails

WIDTH = 7.2
"""inches: two columns of most journals"""
DOTS = 300
"""an inch"""


def lattice_picture(
    thumbnails: Thumbnails,
    places: Tensor,
    *,
    width: int,
    frames: Sequence[str | None] | None = None,
) -> Tensor:
    """Every thumbnail at its place (N, 2) of a lattice, on white, (3, H, W).

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
    """Icons (cells, 3, S, S) in the places of their cells, kind beside kind, (3, H, W)."""
    places = torch.tensor([(cell.column, cell.row) for cell in grid.cells])
    size = max(8, min(width // grid.side, 128))
    sheets = []
    for pictures in icons:
        sheet = torch.ones(3, grid.side * size + 2, grid.side * size + 2)
        pasted = _paste(pictures, places, size, size - 2)
        sheet[:, 2 : 2 + pasted.shape[1], 2 : 2 + pasted.shape[2]] = pasted
        sheets += [sheet, torch.ones(3, sheet.shape[1], size // 2)]
    return torch.cat(sheets[:-1], 2)


def _paste(
    pictures: Thumbnails | Tensor,
    places: Tensor,
    size: int,
    inner: int,
    frames: Sequence[str | None] | None = None,
) -> Tensor:
    """Pictures shrunk to `inner` pixels, each in its square of `size` pixels, on white."""
    from matplotlib.colors import to_rgb

    columns, rows = (places.max(0).values + 1).tolist()
    canvas = torch.ones(3, rows * size, columns * size)
    rim = (size - inner) // 2 if frames else 0
    for part in torch.arange(len(places)).split(1024):
        small = images.resize(pictures[part], inner)
        for number, picture in zip(part.tolist(), small, strict=True):
            x, y = (places[number] * size).tolist()
            color = frames[number] if frames else None
            if color is not None:
                paint = torch.tensor(to_rgb(color))
                canvas[:, y : y + size, x : x + size] = paint[:, None, None]
            canvas[:, y + rim : y + rim + inner, x + rim : x + rim + inner] = picture
    return canvas


def print_page(picture: Tensor, title: str, text: str, legend: Mapping[str, str]) -> Figure:
    """A page for print, the same as PNG and as PDF.

    Args:
        picture: (3, H, W), over the whole width.
        title: The heading.
        text: How the picture was made, below it.
        legend: Colors of frames by class.
    """
    from matplotlib.patches import Patch

    words = textwrap.wrap(text, 124)
    below = 0.2 * -(-len(legend) // 4) + 0.08 if legend else 0.0
    tall = WIDTH * picture.shape[1] / picture.shape[2]
    page = plotting.Page(WIDTH, 0.36 + tall + below + 0.155 * len(words) + 0.15)
    page.figure.set_dpi(DOTS)
    plotting.show_image(page.axes(0.01 * WIDTH, 0.3, 0.98 * WIDTH, tall), picture)
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
    page: plotting.Page, x: float, y: float, words: Sequence[str], points: float
) -> None:
    """Lines of gray text below (x, y)."""
    page.text(x, y, "\n".join(words), fontsize=points, color="#444444", va="top", linespacing=1.35)
