"""The figure of `top_patches`: a row of patches for each unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featviz import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL, _GAP, _LEFT, _TOP = 0.98, 0.07, 1.35, 0.62  # inches


def draw_patches(
    title: str,
    names: Sequence[str],
    percentiles: Sequence[float],
    rows: Sequence[tuple[Tensor, Sequence[str]]],
) -> Figure:
    """A row for each unit: its name and percentile, patches (k, 3, P, P) and their activations."""
    step = _CELL + 0.24
    most = max(len(values) for _, values in rows)
    page = plotting.Page(_LEFT + most * (_CELL + _GAP) + 0.1, _TOP + len(rows) * step + 0.05)
    page.text(0.12, 0.24, title, fontsize=12, weight="bold")
    for row, (pictures, values) in enumerate(rows):
        y, at = _TOP + row * step, _LEFT - 0.12
        page.text(at, y + _CELL / 2 - 0.08, names[row], ha="right", weight="bold")
        if not math.isnan(percentiles[row]):
            words = f"1 in 1000: {percentiles[row]:.3g}"
            page.text(at, y + _CELL / 2 + 0.1, words, fontsize=7, ha="right", color=plotting.FAINT)
        for i, (picture, value) in enumerate(zip(pictures, values, strict=True)):
            x = _LEFT + i * (_CELL + _GAP)
            ax = page.axes(x, y, _CELL, _CELL)
            plotting.show_image(ax, picture, pixelated=picture.shape[-1] < 40)
            below = y + _CELL + 0.09
            page.text(x + _CELL / 2, below, value, fontsize=7, ha="center", color=plotting.FAINT)
    return page.figure
