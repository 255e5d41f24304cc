"""Figures of growing kernels: a strip with time from left to right, and frames of a film."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import plotting
from featviz.kernels.snapshots import Snapshots
from featviz.pictures import images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def strip(
    snapshots: Snapshots,
    *,
    units: Sequence[int],
    moments: Sequence[int],
    layer: str,
    title: str,
) -> Figure:
    """Some kernels (rows) at some moments (columns), and the roughness of all below."""
    cell, gap, left, top = 0.78, 0.06, 0.85, 0.82  # inches
    step = cell + gap
    below = top + len(units) * step + 0.25
    width = len(moments) * step
    page = plotting.Page(left + width + 0.2, below + 1.75)
    page.text(0.12, 0.24, title, fontsize=12, weight="bold")
    page.text(left - 0.12, top - 0.27, "step", fontsize=8, ha="right")
    for row, unit in enumerate(units):
        y = top + row * step + cell / 2
        page.text(left - 0.12, y, f"{layer}:{unit}", fontsize=8, ha="right")
    for column, moment in enumerate(moments):
        x = left + column * step
        page.text(x + cell / 2, top - 0.27, f"{snapshots.steps[moment]:,}", fontsize=8, ha="center")
        top1 = snapshots.top1[moment]
        if top1 is not None:
            style = {"fontsize": 6.5, "ha": "center", "color": plotting.FAINT}
            page.text(x + cell / 2, top - 0.11, f"{top1:.0%} right", **style)
        pictures = snapshots.pictures(moment)
        for row, unit in enumerate(units):
            page.picture(x, top + row * step, cell, pictures[unit])
    _roughness(page.axes(left, below, width - gap, 1.2), snapshots)
    return page.figure


def _roughness(ax: Axes, snapshots: Snapshots) -> None:
    spread = snapshots.spread
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=spread.dtype)
    low, middle, high = spread.quantile(quartiles, dim=1).numpy()
    # The first snapshots are close together: one more step, so that step 0 has a logarithm.
    steps = [step + 1 for step in snapshots.steps]
    ax.fill_between(steps, low, high, color=plotting.BLUE, alpha=0.15, linewidth=0)
    ax.plot(steps, middle, color=plotting.BLUE, linewidth=1.6, marker="o", markersize=3)
    ax.axhline(1, color="#999999", linewidth=0.8, linestyle=":")
    note = ax.text(steps[-1], 1.02, "white noise", fontsize=7, ha="right", va="bottom")
    note.set_color(plotting.FAINT)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")  # powers would need math, which texts here do not have
    ax.set_ylim(0, 1.2)
    label = "training step, counted from 1 (logarithmic)"
    plotting.lines(ax, xlabel=label, ylabel="roughness", points=8)


def film_frame(snapshots: Snapshots, moment: int) -> Tensor:
    """All kernels at one moment, and below them a bar for the time passed."""
    sheet = images.contact_sheet(snapshots.pictures(moment), gap=1)
    sheet = images.enlarge(sheet, max(1, 240 // sheet.shape[-1]))
    bar = sheet.new_full((3, 8, sheet.shape[-1]), 0.88)
    passed = round(sheet.shape[-1] * moment / max(1, len(snapshots.steps) - 1))
    bar[:, :, :passed] = torch.tensor([0.0, 0.447, 0.698])[:, None, None]
    return torch.cat([sheet, bar], dim=1)
