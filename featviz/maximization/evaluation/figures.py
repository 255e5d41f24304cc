"""Figures of the panel: a row for each picture, and its natural path.

A row has the synthetic picture, the top pictures of the same unit at the same scale with what was
scored framed in each, the curves of the path, the numbers in words, and the flags.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import plotting
from featviz.maximization.evaluation.metrics import describe
from featviz.maximization.evaluation.natural_path import NaturalPath
from featviz.maximization.evaluation.panel import Panel, TopPictures
from featviz.pictures import images
from featviz.pictures.images import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS = 16
"""most rows of one figure"""
_LINE = 0.145  # inches from one line of words to the next
_FAINT = "#555555"
_WARNING = "#B4540A"
_MARK = torch.tensor([230, 159, 0]) / 255  # plotting.ORANGE


def draw_panel(
    title: str, titles: Sequence[str], pictures: Tensor, panel: Panel, *, pixelated: bool = False
) -> Figure:
    """A row for each of at most 16 pictures (N, 3, H, W)."""
    shown = min(ROWS, len(titles))
    limits = _limits(panel.path, shown) if panel.path is not None else None
    across = max((len(p.pictures) for p in panel.top_pictures[:shown]), default=0)
    side, cell, gap, left, top = 1.5, 1.02, 0.06, 0.25, 0.72
    curve = 2.05 if panel.path is not None else 0.0
    at = left + side + 0.3
    words = max(across * (cell + gap), 4.2)
    above = cell + 0.34 if panel.top_pictures else 0.1  # of a row's words
    lines = [_words(panel, i, round(17 * words)) for i in range(shown)]
    heights = [max(side + 0.4, above + _LINE * len(own) + 0.18) for own in lines]
    page = plotting.Page(at + words + (curve + 0.55 if curve else 0.1), top + sum(heights))
    page.text(left, 0.25, title, fontsize=12, weight="bold")
    rest = f"; the first {shown} of {len(titles)}" if shown < len(titles) else ""
    frames = "; orange frames: what is scored" if panel.box is not None else ""
    page.text(
        left,
        0.48,
        fontsize=8,
        color=_FAINT,
        words="left: made from noise; right of it: pictures of the data set that activate the unit "
        f"most, with their scores; gray lies outside{frames}{rest}",
    )
    y = top
    for i, (height, own) in enumerate(zip(heights, lines, strict=True)):
        ax = page.axes(left, y, side, side)
        plotting.show_image(ax, pictures[i], pixelated=pixelated)
        if panel.box is not None:
            plotting.mark_box(ax, panel.box, pictures[i])
        page.text(left, y + side + 0.13, titles[i], fontsize=9.5, weight="bold")
        if panel.top_pictures:
            _draw_row(page, at, y, cell, gap, panel.top_pictures[i])
        for k, (line, flagged) in enumerate(own):
            style = {"color": _WARNING, "weight": "bold"} if flagged else {}
            page.text(at, y + above + _LINE * k, line, fontsize=7.6, **style)
        if panel.path is not None:
            ax = page.axes(page.width - curve - 0.1, y + 0.05, curve, side - 0.25)
            _curve(ax, panel.path, i, legend=i == 0)
            ax.set_ylim(limits)
        y += height
    return page.figure


def _words(panel: Panel, i: int, room: int) -> list[tuple[str, bool]]:
    """The numbers of a row, and its flags, as lines of `room` letters; whether each is a flag."""
    lines_of = describe(panel, i)
    numbers = " · ".join(line.short for line in lines_of if line.short and line.name != "seconds")
    lines = [(line, False) for line in textwrap.wrap(numbers, room)]
    for flag in panel.flags[i]:
        lines += [(li, True) for li in textwrap.wrap(f"! {flag.name}: {flag.words}", room - 6)]
    return lines


def _limits(path: NaturalPath, shown: int) -> tuple[float, float]:
    """The same for all rows, since they are compared."""
    values = torch.cat(
        [getattr(path, name)[:shown] for name in ("own", "others", "ceiling", "floor", "noise")]
    )
    values = values[values.isfinite()]
    return float(values.min()) - 0.03, float(values.max()) + 0.03


def _draw_row(
    page: plotting.Page, x: float, y: float, size: float, gap: float, found: TopPictures
) -> None:
    cells = zip(found.pictures, found.boxes, found.sides, found.values, strict=True)
    for k, (picture, box, side, value) in enumerate(cells):
        ax = page.axes(x + k * (size + gap), y, size, size)
        plotting.show_image(ax, picture.float() / 255, pixelated=picture.shape[-1] < 40)
        if box is not None:
            plotting.mark_box(ax, _scaled(box, picture.shape[-1] / side), picture)
        page.text(
            x + k * (size + gap) + size / 2,
            y + size + 0.1,
            f"{value:.3g}",
            fontsize=7,
            ha="center",
            color=_FAINT,
        )


def path_figure(path: NaturalPath, i: int) -> Figure:
    """How like natural pictures each layer sees picture `i`."""
    page = plotting.Page(5.2, 2.65)
    ax = page.axes(0.62, 0.2, 2.9, 2.1)
    _curve(ax, path, i, legend=False, size=8)
    for k, (words, color, _) in enumerate(_lines(path, i)):
        page.text(3.75, 0.45 + 0.42 * k, words, fontsize=8, color=color, linespacing=1.05)
    return page.figure


def _lines(path: NaturalPath, i: int) -> list[tuple[str, str, list[float]]]:
    return [
        ("top pictures of the unit\namong themselves", plotting.GREEN, path.ceiling[i].tolist()),
        ("the picture with the\nunit's top pictures", plotting.BLUE, path.own[i].tolist()),
        ("the picture with those\nof other units", plotting.RED, path.others[i].tolist()),
        ("top pictures of the unit\nwith those of other units", "#777777", path.floor[i].tolist()),
        ("noise with the unit's\ntop pictures", "#aaaaaa", path.noise[i].tolist()),
    ]


def _curve(ax: Axes, path: NaturalPath, i: int, *, legend: bool, size: float = 6.5) -> None:
    at = range(len(path.layers))
    styles = ("--", "-", "-", ":", ":")
    for (words, color, values), style in zip(_lines(path, i), styles, strict=True):
        strong = words.startswith("the picture")
        ax.plot(
            at,
            values,
            style,
            color=color,
            linewidth=1.8 if strong else 1.2,
            marker="o" if strong else None,
            markersize=2.6,
            label=words.replace("\n", " "),
        )
    plotting.lines(ax, xlabel="", ylabel="rank correlation")
    ax.yaxis.label.set_fontsize(size + 0.3)
    ax.tick_params(labelsize=size)
    crowded = len(path.layers) > 5 or any(len(name) > 6 for name in path.layers)
    ax.set_xticks(
        list(at),
        list(path.layers),
        rotation=35 if crowded else 0,
        ha="right" if crowded else "center",
    )
    if legend:
        ax.legend(
            fontsize=5.6,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.99),
            borderaxespad=0.1,
            labelspacing=0.2,
            handlelength=1.6,
        )


def top_picture_strip(found: TopPictures, height: int = 160) -> Tensor:
    """The top pictures side by side, (3, H', W'), what was scored framed."""
    cells = []
    for picture, box, side in zip(found.pictures, found.boxes, found.sides, strict=True):
        cell = picture.float() / 255
        factor = max(1, height // cell.shape[-1])
        cell = images.enlarge(cell, factor)
        if box is not None:
            scaled = images.clip_box(_scaled(box, cell.shape[-1] / side), cell)
            cell = _bordered(cell, scaled, 2)
        cells.append(cell)
    size = max(cell.shape[-1] for cell in cells)
    same = torch.ones(len(cells), 3, size, size)
    for place, cell in zip(same, cells, strict=True):
        place[:, : cell.shape[1], : cell.shape[2]] = cell
    gap = 3
    sheet = images.contact_sheet(same, len(cells), gap=gap)
    return sheet[:, gap:-gap, gap:-gap]  # on a dark page a white border would glare


def _scaled(box: Box, scale: float) -> Box:
    top, left, bottom, right = (round(edge * scale) for edge in box)
    return top, left, bottom, right


def frame_flagged(
    sheet: Tensor, flagged: Sequence[bool], side: int, columns: int, gap: int
) -> Tensor:
    """A contact sheet with an orange frame, in the gaps, round each flagged picture."""
    for i, marked in enumerate(flagged):
        if marked:
            top, left = (i // columns) * (side + gap), (i % columns) * (side + gap)
            sheet = _bordered(sheet, (top, left, top + side + 2 * gap, left + side + 2 * gap), gap)
    return sheet


def _bordered(picture: Tensor, box: Box, width: int) -> Tensor:
    """A copy of (3, H, W) with an orange border of `width` pixels inside a box."""
    top, left, bottom, right = box
    framed = picture.clone()
    framed[:, top:bottom, left:right] = _MARK[:, None, None]
    rows = slice(min(top + width, bottom), max(bottom - width, top))
    columns = slice(min(left + width, right), max(right - width, left))
    framed[:, rows, columns] = picture[:, rows, columns]
    return framed
