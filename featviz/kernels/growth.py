"""How first-layer kernels grow from noise to edges while a network is trained.

Comes in: a file of snapshots, as training leaves it. Goes out: `KernelGrowth`, a strip (some
kernels at some moments), a short film of all, and their roughness at each moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch

from featviz import results
from featviz.arguments import Bounds
from featviz.errors import UserError, public
from featviz.kernels import growth_figures as figures
from featviz.kernels.snapshots import Snapshots, read_snapshots, spread_units
from featviz.kernels.tuning import GROUPS, NOISY, measure_kernels
from featviz.models.load import bundled
from featviz.pictures import films, images
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class KernelGrowth(Snapshots, results.Result):
    """The first layer's kernels at several moments of a training."""

    kind: ClassVar[str] = "growth"

    model_name: str
    layer: str
    units: tuple[int, ...]
    """which kernels the strip shows"""
    moments: tuple[int, ...]
    """which snapshots the strip shows"""

    @property
    def title(self) -> str:
        return f"How the kernels of {self.layer} grew in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        spread = self.spread
        noisy = (spread > NOISY).sum(1).tolist()
        group = measure_kernels(self.kernels[-1]).group
        oriented, _, colored, _ = torch.bincount(group, minlength=len(GROUPS)).tolist()
        of = f"of {spread.shape[1]} kernels"
        meaning = "1 is white noise, 0 a single wave"
        number = results.Number
        return {
            "steps": number(self.steps[-1], "", f"of training, in {len(self.steps)} views"),
            "noisy at the start": number(noisy[0], "", of),
            "noisy at the end": number(noisy[-1], "", of),
            "roughness at the start": number(float(spread[0].median()), "", meaning),
            "roughness at the end": number(float(spread[-1].median()), "", meaning),
            "oriented at the end": number(oriented, "", "light-dark edges and gratings"),
            "colored at the end": number(colored, "", "mostly color"),
        }

    def write(self, folder: results.Folder) -> None:
        scaling = "Each kernel is scaled by its own largest absolute weight at that moment."
        folder.figure(
            "growth.svg",
            self.plot(),
            caption=f"Above, {counted(len(self.units), 'kernel')} of {self.layer} (one a row) at "
            f"{len(self.moments)} moments of the training. Below, the roughness of all "
            f"{self.kernels.shape[1]}: the line is the median, the band holds the middle "
            f"half. {scaling}",
            alt="Kernels from left to right grow from noise to edges and color blobs",
        )
        frames = [figures.film_frame(self, i) for i in range(len(self.steps))]
        films.write_gif(frames, folder.path / "growth.gif", seconds_per_frame=0.25)
        folder.figure(
            "growth.gif",
            None,
            pixelated=True,
            caption=f"All {self.kernels.shape[1]} kernels over {self.steps[-1]:,} training steps "
            f"(the bar below shows the time). {scaling}",
            alt=f"Film of all kernels of {self.layer} growing out of noise",
        )
        shown = torch.stack([self.pictures(i) for i in self.moments])  # (M, N, 3, k, k)
        when = ", ".join(f"{self.steps[i]:,}" for i in self.moments)
        for unit in range(shown.shape[1]):
            name = f"{self.layer}:{unit}"
            strip = images.contact_sheet(shown[:, unit], columns=len(shown), gap=1, background=None)
            folder.figure(
                f"units/{results.file_stem(name)}.png",
                images.enlarge(strip, 6),
                units=[name],
                caption=f"How the kernel of {name} grew, after {when} training steps. {scaling}",
                alt=f"Strip of the kernel of {name} growing",
                pixelated=True,
            )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "growth.csv",
            ("step", "top1", "roughness", "noisy"),
            [
                (
                    step,
                    "" if top1 is None else round(top1, 4),
                    round(float(s.median()), 4),
                    int((s > NOISY).sum()),
                )
                for step, top1, s in zip(self.steps, self.top1, self.spread, strict=True)
            ],
            caption="Median roughness and number of noisy kernels at each moment.",
        )

    def plot(self) -> Figure:
        """The strip with time from left to right, and the roughness below it."""
        return figures.strip(
            self, units=self.units, moments=self.moments, layer=self.layer, title=self.title
        )


@public
def kernel_growth(
    snapshots: str | Path | None = None,
    *,
    units: Sequence[int] | None = None,
    rows: Annotated[int, Bounds(1, 1000)] = 8,
    columns: Annotated[int, Bounds(1, 1000)] = 10,
    layer: str = "conv1",
) -> KernelGrowth:
    """How first-layer kernels grew, from snapshots that training kept.

    Args:
        snapshots: a safetensors file with `kernels` (S, N, 3, k, k) and `steps` (S,), or the
            state.npz in a checkpoint of `featviz.train`; default: those of alexnet-mini.
        units: which kernels the strip shows; default: `rows` of them, spread over edges and colors.
        rows: how many then.
        columns: at most so many moments in the strip.
        layer: its name in titles and files.

    Returns:
        All kernels at all moments.

    Raises:
        UserError: for a file without snapshots and for units out of range.
    """
    started = time.perf_counter()
    path = bundled("alexnet-mini").with_suffix(".kernels.safetensors")
    path = path if snapshots is None else Path(snapshots)
    kept = read_snapshots(path)
    count, last = kept.kernels.shape[1], len(kept.steps) - 1
    wrong = [unit for unit in units or () if not 0 <= unit < count]
    if wrong:
        raise UserError(f"unit {wrong[0]} is out of range: {layer} has units 0 to {count - 1}")
    chosen = tuple(units) if units is not None else spread_units(kept.kernels[-1], rows)
    number = min(columns, last + 1)
    parameters = {
        "snapshots": path.name,
        "model": path.name.split(".")[0],
        "units": chosen,
        "rows": rows,
        "columns": columns,
        "layer": layer,
    }
    return KernelGrowth(
        **vars(kept),
        origin=results.origin(None, started=started, parameters=parameters),
        warnings=() if last else (f"{path} holds one snapshot only, so nothing grows",),
        model_name=path.name.split(".")[0],
        layer=layer,
        units=chosen,
        moments=tuple(round(i * last / max(1, number - 1)) for i in range(number)),
    )
