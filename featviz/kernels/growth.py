"""How first-layer kernels grow from noise to edges while a network is trained.

Comes in: a file of snapshots, as training leaves it. Goes out: `KernelGrowth`, a strip (some
kernels at some moments), a short film of all, and how rough they were at each moment.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import films, images, plotting, results
from featviz.errors import UserError
from featviz.kernels.tuning import GROUPS, NOISY, measure_kernels
from featviz.models.load import bundled
from featviz.models.weights import read_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class KernelGrowth(results.Result):
    """The first layer's kernels at several moments of a training."""

    kind: ClassVar[str] = "growth"

    model_name: str
    layer: str
    kernels: Tensor
    """(S, N, 3, k, k): red, green, blue weights at S moments"""
    steps: tuple[int, ...]
    """training steps done at each moment"""
    top1: tuple[float | None, ...]
    """validation accuracy (a fraction) where it is known"""
    units: tuple[int, ...]
    """which kernels the strip shows"""
    moments: tuple[int, ...]
    """which snapshots the strip shows"""

    @property
    def spread(self) -> Tensor:
        """(S, N): how rough each kernel is at each moment; white noise is 1."""
        count = len(self.steps)
        return measure_kernels(self.kernels.flatten(0, 1)).spread.view(count, -1)

    @property
    def title(self) -> str:
        return f"How the kernels of {self.layer} grew in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        spread = self.spread
        noisy = (spread > NOISY).sum(1).tolist()
        last = measure_kernels(self.kernels[-1])
        counts = torch.bincount(last.group, minlength=len(GROUPS)).tolist()
        of = f"of {spread.shape[1]} kernels"
        meaning = "1 is white noise, 0 a single wave"
        return {
            "steps": results.Number(self.steps[-1], "", f"of training, in {len(self.steps)} views"),
            "noisy at the start": results.Number(noisy[0], "", of),
            "noisy at the end": results.Number(noisy[-1], "", of),
            "roughness at the start": results.Number(float(spread[0].median()), "", meaning),
            "roughness at the end": results.Number(float(spread[-1].median()), "", meaning),
            "oriented at the end": results.Number(counts[0], "", "light-dark edges and gratings"),
            "coloured at the end": results.Number(counts[2], "", "mostly colour"),
        }

    def pictures(self, moment: int) -> Tensor:
        """(N, 3, k, k) in [0, 1]: each kernel by its own largest weight at that moment."""
        return images.around_gray(self.kernels[moment])

    def write(self, folder: results.Folder) -> None:
        scaling = "Each kernel is scaled by its own largest absolute weight at that moment."
        folder.figure(
            "growth.png",
            self.plot(),
            caption=f"Above, {len(self.units)} kernels of {self.layer} (one a row) at "
            f"{len(self.moments)} moments of the training. Below, how rough all "
            f"{self.kernels.shape[1]} are: the line is the median, the band holds the middle "
            f"half. {scaling}",
            alt="Kernels from left to right grow from noise to edges and colour blobs",
        )
        frames = [self._frame(i) for i in range(len(self.steps))]
        films.write_gif(frames, folder.path / "growth.gif", seconds_per_frame=0.25)
        folder.figure(
            "growth.gif",
            None,
            pixelated=True,
            caption=f"All {self.kernels.shape[1]} kernels over {self.steps[-1]:,} training steps "
            f"(the bar below runs with them). {scaling}",
            alt=f"Film of all kernels of {self.layer} growing out of noise",
        )
        shown = torch.stack([self.pictures(i) for i in self.moments])  # (M, N, 3, k, k)
        for unit in range(shown.shape[1]):
            name = f"{self.layer}:{unit}"
            strip = images.contact_sheet(shown[:, unit], columns=len(shown), gap=1)
            when = ", ".join(f"{self.steps[i]:,}" for i in self.moments)
            folder.figure(
                f"units/{self.layer}-{unit}.png",
                images.enlarge(strip, 6),
                units=[name],
                caption=f"How the kernel of {name} grew, after {when} training steps. {scaling}",
                alt=f"Strip of the kernel of {name} growing",
                pixelated=True,
            )
        folder.table(
            "growth.csv",
            ("step", "top1", "roughness", "noisy"),
            [
                (
                    step,
                    "" if top1 is None else f"{top1:.4f}",
                    f"{float(s.median()):.4f}",
                    int((s > NOISY).sum()),
                )
                for step, top1, s in zip(self.steps, self.top1, self.spread, strict=True)
            ],
            caption="Median roughness and number of noisy kernels at each moment.",
        )

    def _frame(self, moment: int) -> Tensor:
        """One picture of the film: all kernels, and below a bar as long as the time gone by."""
        sheet = images.contact_sheet(self.pictures(moment), gap=1)
        sheet = images.enlarge(sheet, max(1, 240 // sheet.shape[-1]))
        bar = sheet.new_full((3, 8, sheet.shape[-1]), 0.88)
        gone = round(sheet.shape[-1] * moment / max(1, len(self.steps) - 1))
        bar[:, :, :gone] = torch.tensor([0.0, 0.447, 0.698])[:, None, None]
        return torch.cat([sheet, bar], dim=1)

    def plot(self) -> Figure:
        """The strip with time from left to right, and the roughness below it."""
        cell, gap, left, top = 0.78, 0.06, 0.85, 0.82
        rows, columns = len(self.units), len(self.moments)
        below = top + rows * (cell + gap) + 0.25
        page = plotting.Page(left + columns * (cell + gap) + 0.2, below + 1.75)
        page.text(0.12, 0.24, self.title, fontsize=12, weight="bold")
        for column, moment in enumerate(self.moments):
            x = left + column * (cell + gap)
            page.text(x + cell / 2, top - 0.27, f"{self.steps[moment]:,}", fontsize=8, ha="center")
            top1 = self.top1[moment]
            if top1 is not None:
                page.text(
                    x + cell / 2,
                    top - 0.11,
                    f"{top1:.0%} right",
                    fontsize=6.5,
                    ha="center",
                    color="#555555",
                )
            pictures = self.pictures(moment)
            for row, unit in enumerate(self.units):
                ax = page.axes(x, top + row * (cell + gap), cell, cell)
                plotting.show_image(ax, pictures[unit], pixelated=True)
        page.text(left - 0.12, top - 0.27, "step", fontsize=8, ha="right")
        for row, unit in enumerate(self.units):
            page.text(
                left - 0.12,
                top + row * (cell + gap) + cell / 2,
                f"{self.layer}:{unit}",
                fontsize=8,
                ha="right",
            )
        self._plot_roughness(page.axes(left, below, columns * (cell + gap) - gap, 1.2))
        return page.figure

    def _plot_roughness(self, ax: Axes) -> None:
        spread = self.spread
        low, middle, high = spread.quantile(
            torch.tensor([0.25, 0.5, 0.75], dtype=spread.dtype), dim=1
        ).numpy()
        # Snapshots come thick at first: one more step, so that step 0 has a logarithm.
        steps = [step + 1 for step in self.steps]
        ax.fill_between(steps, low, high, color=plotting.BLUE, alpha=0.15, linewidth=0)
        ax.plot(steps, middle, color=plotting.BLUE, linewidth=1.6, marker="o", markersize=3)
        ax.axhline(1, color="#999999", linewidth=0.8, linestyle=":")
        ax.text(
            steps[-1], 1.02, "white noise", fontsize=7, color="#555555", ha="right", va="bottom"
        )
        ax.set_xscale("log")
        ax.set_ylim(0, 1.2)
        plotting.lines(ax, xlabel="training step, counted from 1 (logarithmic)", ylabel="roughness")
        ax.tick_params(labelsize=7)
        for label in (ax.xaxis.label, ax.yaxis.label):
            label.set_fontsize(8)


def kernel_growth(
    snapshots: str | Path | None = None,
    *,
    units: Sequence[int] | None = None,
    rows: int = 8,
    columns: int = 10,
    layer: str = "conv1",
) -> KernelGrowth:
    """How first-layer kernels grew, from snapshots that training kept.

    snapshots: a safetensors file with `kernels` (S, N, 3, k, k) and `steps` (S,), or a checkpoint
        of `featviz.train`; default: those of the bundled alexnet-mini
    units: which kernels the strip shows; default: `rows` of them, spread over edges and colours
    columns: at most so many moments in the strip

    Raises UserError for a file without snapshots and for units out of range.
    """
    started = time.perf_counter()
    path = bundled("alexnet-mini").with_suffix(".kernels.safetensors")
    path = path if snapshots is None else Path(snapshots)
    kernels, steps, top1 = _read(path)
    count = kernels.shape[1]
    wrong = [unit for unit in units or () if not 0 <= unit < count]
    if wrong:
        raise UserError(f"unit {wrong[0]} is out of range: {layer} has units 0 to {count - 1}")
    if min(rows, columns) < 1:
        raise UserError(f"a strip of {rows} rows and {columns} columns shows nothing")
    chosen = tuple(units) if units is not None else _telling(kernels[-1], rows)
    last = len(steps) - 1
    number = min(columns, len(steps))
    moments = [round(i * last / max(1, number - 1)) for i in range(number)]
    return KernelGrowth(
        origin=results.origin(
            None,
            started=started,
            parameters={
                "snapshots": path.name,
                "units": chosen,
                "rows": rows,
                "columns": columns,
                "layer": layer,
            },
        ),
        warnings=() if len(steps) > 1 else (f"{path} holds one snapshot only, so nothing grows",),
        model_name=path.name.split(".")[0],
        layer=layer,
        kernels=kernels,
        steps=steps,
        top1=top1,
        units=chosen,
        moments=tuple(moments),
    )


def _telling(kernels: Tensor, count: int) -> tuple[int, ...]:
    """Kernels spread evenly over edges (by orientation) and colours (by hue), strong ones only."""
    m = measure_kernels(kernels)
    good = [i for i in range(len(kernels)) if m.group[i] != 3] or list(range(len(kernels)))
    good.sort(
        key=lambda i: (int(m.group[i]), float((m.hue if m.group[i] == 2 else m.orientation)[i]))
    )
    if len(good) <= count:
        return tuple(good)
    bins = [good[i * len(good) // count : (i + 1) * len(good) // count] for i in range(count)]
    return tuple(max(members, key=lambda i: float(m.norm[i])) for members in bins)


def _read(path: Path) -> tuple[Tensor, tuple[int, ...], tuple[float | None, ...]]:
    """Kernels, steps and accuracies of a file of snapshots or of a checkpoint."""
    file = read_weights(path)
    record = json.loads(file.metadata.get("featviz", "{}"))
    kernels = file.tensors.get("kernels")
    steps = file.tensors.get("steps")
    listed = (
        steps.tolist() if steps is not None else record.get("kernel_steps", record.get("steps"))
    )
    if kernels is None or kernels.dim() != 5 or kernels.shape[2] != 3 or listed is None:
        raise UserError(
            f"{path} holds no snapshots of kernels; train with snapshot_steps to keep some"
        )
    if len(listed) != len(kernels) or not len(kernels):
        raise UserError(
            f"{path} has {len(kernels)} snapshots but {len(listed)} steps; make it anew"
        )
    known = file.tensors.get("top1")
    top1 = known.tolist() if known is not None else record.get("kernel_top1", [None] * len(listed))
    return (
        kernels.float(),
        tuple(int(step) for step in listed),
        tuple(None if t is None or math.isnan(t) else float(t) for t in top1),
    )
