"""An atlas on paper: `print_page(atlas)` is a matplotlib figure, the same as PNG and as PDF.

The map fills the width. Pictures of the largest classes are framed in the colour of their class,
which a legend names; below stand how the map was made and how far it may be believed. There are no
axes: t-SNE's have no scale and no meaning.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.atlas.build import Atlas

NAMED = 8
"""classes in the legend; more colours than the palette's could not be told apart"""
WIDTH = 7.2
"""inches: two columns of most journals"""
DOTS = 300
"""an inch"""
_PIXELS = 2100


def largest_classes(atlas: Atlas, most: int = NAMED) -> list[str]:
    """The classes with the most pictures on the map, ties by name; none where all have one."""
    counts = Counter(atlas.store.class_name(row) for row in atlas.rows)
    counts.pop("", None)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    return [name for name in order[:most] if counts[name] > 1]


def print_page(atlas: Atlas) -> Figure:
    """The atlas as one page for print."""
    named = largest_classes(atlas)
    colours = dict(zip(named, plotting.PALETTE, strict=False))
    frames = [colours.get(atlas.store.class_name(row)) for row in atlas.rows]
    picture = framed_map(atlas, frames)
    words = textwrap.wrap(_words(atlas), 124)
    legend = 0.2 * -(-len(named) // 4) + 0.08 if named else 0.0
    tall = WIDTH * picture.shape[1] / picture.shape[2]
    height = 0.36 + tall + legend + 0.155 * len(words) + 0.15
    figure = plotting.new_figure(WIDTH, height)
    figure.set_layout_engine("none")
    figure.set_dpi(DOTS)
    axes = figure.add_axes((0.01, 1 - (0.3 + tall) / height, 0.98, tall / height))
    plotting.show_image(axes, picture)
    figure.text(
        0.01,
        1 - 0.2 / height,
        atlas.title,
        fontsize=10,
        color=plotting.INK,
        weight="bold",
        va="center",
    )
    if named:
        from matplotlib.patches import Patch

        figure.legend(
            handles=[
                Patch(color=colours[name], label=textwrap.shorten(name, 30)) for name in named
            ],
            loc="upper left",
            bbox_to_anchor=(0.0, 1 - (0.32 + tall) / height),
            ncols=4,
            frameon=False,
            fontsize=7,
            handlelength=1,
            handleheight=1,
            columnspacing=1.2,
        )
    figure.text(
        0.01,
        1 - (0.36 + tall + legend) / height,
        "\n".join(words),
        fontsize=7,
        color="#444444",
        va="top",
        linespacing=1.35,
    )
    return figure


def framed_map(atlas: Atlas, frames: list[str | None]) -> Tensor:
    """The lattice of pictures (3, H, W), some of them in a frame of a colour."""
    from matplotlib.colors import to_rgb

    places = atlas.lattice[0]
    left, top = places.min(0).values.tolist()
    columns, rows = ((places.max(0).values - places.min(0).values) + 1).tolist()
    size = max(4, min(_PIXELS // max(columns, rows), atlas.thumbnails.shape[-1] + 4))
    rim = max(1, round(size / 14))
    canvas = torch.full((3, rows * size, columns * size), 255, dtype=torch.uint8)
    from featviz.atlas.build import resize
    from featviz.images import to_uint8

    for start in range(0, len(places), 1024):
        some = places[start : start + 1024].tolist()
        inner = max(1, size - 2 * rim)
        small = to_uint8(resize(atlas.pictures_of(range(start, start + len(some))), inner))
        for number, (column, row) in enumerate(some):
            y, x = (row - top) * size, (column - left) * size
            colour = frames[start + number]
            if colour is not None:
                paint = torch.tensor(np.array(to_rgb(colour)) * 255).byte()
                canvas[:, y : y + size, x : x + size] = paint[:, None, None]
            canvas[:, y + rim : y + rim + inner, x + rim : x + rim + inner] = small[number]
    return canvas.float() / 255


def _words(atlas: Atlas) -> str:
    """How the map was made and what its numbers are, in a few sentences."""
    found, layout = atlas.quality, atlas.layout
    made = f"{len(atlas.rows):,} pictures"
    if len(atlas.rows) < len(atlas.store):
        made += f" (an even sample of {len(atlas.store):,})"
    if layout.divergence is None:
        made += ", laid out by principal components."
    else:
        made += f", laid out by t-SNE ({layout.method}, perplexity {layout.perplexity:g}, "
        made += f"seed {layout.seed}, divergence {layout.divergence:.2f} nats)."
    text = (
        f"{made} Each stands on the place of a lattice nearest to its point of the map. Of the "
        f"{found.k} nearest neighbours in {atlas.store.layer}, {found.recall:.0%} are among the "
        f"{found.k} nearest on the map (principal components {atlas.floor.recall:.0%}, chance "
        f"{found.recall_chance:.1%}); trustworthiness {found.trustworthiness:.3f}, continuity "
        f"{found.continuity:.3f}."
    )
    if found.class_space is not None and found.class_map is not None:
        text += (
            f" The {found.k} nearest vote for the right class in {found.class_space:.0%} of "
            f"cases in the space, {found.class_map:.0%} on the map."
        )
    return text + " Distances between islands mean little; axes have no scale."
