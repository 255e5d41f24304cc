"""Figures of activation maps: the picture shaded by each unit, above its map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from featviz import plotting
from featviz.maps.unit_maps import UnitMaps
from featviz.pictures import images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def overview(maps: UnitMaps, title: str) -> Figure:
    """The picture, and for each unit the shaded picture above its map."""
    columns = min(6, len(maps.units))
    rows = -(-len(maps.units) // columns)
    cell, gap, left, top = 1.5, 0.08, 2.5, 0.72  # inches
    row_height = 2 * cell + 0.3
    words = _legend(maps)
    below = top + left - 0.22 + 0.16 * (1 + words.count("\n")) + 0.08  # the end of the words
    page = plotting.Page(
        max(5.4, left + columns * (cell + gap) + 0.65), max(top + rows * row_height - 0.12, below)
    )
    page.text(0.12, 0.24, title, fontsize=12, weight="bold")
    low, high = maps.limits
    plotting.show_image(page.axes(0.12, top, left - 0.34, left - 0.34), maps.picture)
    page.text(0.12, top - 0.12, "the picture", fontsize=8)
    note = {"fontsize": 7.5, "color": plotting.FAINT, "va": "top", "linespacing": 1.5}
    page.text(0.12, top + left - 0.22, words, **note)
    for i, unit in enumerate(maps.units):
        x, y = left + i % columns * (cell + gap), top + i // columns * row_height
        page.text(x, y - 0.12, f"{maps.layer}:{unit}", fontsize=8)
        value = f"{float(maps.maps[i].max()):.3g}"
        page.text(x + cell, y - 0.12, value, fontsize=8, ha="right", color=plotting.FAINT)
        ax = page.axes(x, y, cell, cell)
        plotting.show_image(ax, maps.overlay(i))
        box = maps.box(i)
        if box is not None:
            plotting.mark_box(ax, box, maps.picture)
        if maps.kernels is not None:
            inset = page.axes(x + cell - 0.4, y, 0.4, 0.4)
            plotting.show_image(inset, maps.kernels[i], pixelated=True)
            plotting.frame(inset, "white", 1.2)
        ax = page.axes(x, y + cell + 0.04, cell, cell)
        shown = plotting.show_map(ax, maps.maps[i], low, high)
    bar = page.color_bar(shown, left + columns * (cell + gap) + 0.02, top, 2 * cell + 0.04)
    bar.set_title("activation", fontsize=7, pad=5, loc="left")
    return page.figure


def _legend(maps: UnitMaps) -> str:
    lines = ["Above: in color where the unit is", "active, full at its largest value."]
    if maps.field is not None:
        size = " × ".join(map(str, maps.field.size))
        lines += [f"Box: the {size} pixels of its", "strongest position."]
    if maps.kernels is not None:
        lines += ["Corner: the kernel itself."]
    return "\n".join([*lines, "Below: the map, one square a", "position; all share one scale."])


def unit_picture(maps: UnitMaps, row: int) -> Tensor:
    """(3, S, W): shaded picture with box, map and strongest patch of one unit, side by side."""
    factor = max(1, round(320 / maps.picture.shape[-1]))
    shown = images.enlarge(images.visible(maps.overlay(row)), factor)
    side = shown.shape[-2]
    box = maps.box(row)
    panels = [shown, _fit(plotting.map_colors(maps.maps[row], *maps.limits), side)]
    if box is not None:
        top, left, bottom, right = (v * factor for v in box)
        panels[0] = _framed(shown, (top, left, bottom, right))
        panels.append(_fit(images.crop_box(images.visible(maps.picture), box), side))
    gap = shown.new_ones(3, side, max(4, side // 40))
    parts = [part for panel in panels for part in (panel, gap)][:-1]
    return torch.cat(parts, dim=2)


def _framed(picture: Tensor, box: images.Box) -> Tensor:
    """The picture with an orange frame just inside a box."""
    thick = max(2, round(picture.shape[-2] / 130))
    top, left, bottom, right = images.clip_box(box, picture)
    framed = picture.clone()
    framed[:, top:bottom, left:right] = torch.tensor([0.902, 0.624, 0.0])[:, None, None]
    inner = (slice(None), slice(top + thick, bottom - thick), slice(left + thick, right - thick))
    framed[inner] = picture[inner]
    return framed


def _fit(picture: Tensor, side: int) -> Tensor:
    """A picture of height `side`, each pixel a block."""
    wide = max(1, round(side * picture.shape[-1] / picture.shape[-2]))
    return F.interpolate(picture[None], (side, wide), mode="nearest-exact")[0]
