"""Kernels as pictures: the first layer's own, and those of deeper layers through the layers below.

Comes in: a model and one of its convolutions. Goes out: `Kernels`, one RGB picture a unit with
numbers that tell edges, color blobs and noise apart, all from its Fourier amplitudes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from featviz import results
from featviz.errors import UserError, nearest, public
from featviz.kernels import sheet_figures as figures
from featviz.kernels.composite import composite_kernels, kernel_mosaics
from featviz.kernels.tuning import FAINT, GROUPS, NOISY, ORIENTED, KernelNumbers, measure_kernels
from featviz.models.first_layer import first_convolution, first_kernels, leaves
from featviz.models.model import Layer, Model
from featviz.models.units import parse_units
from featviz.pictures import images
from featviz.types import Progress
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOSAIC = (
    "At each place of the unit's window the first-layer kernel that excites it most (largest "
    "weight times the kernel's norm), as strong as that product is relative to the unit's largest "
    "one. What inhibits it is not shown; the tiles are separate here, in the picture they overlap."
)
_COLUMNS = ("norm", "colorfulness", "hue", "orientation", "coherence", "frequency", "spread")


@dataclass(frozen=True, kw_only=True, repr=False)
class Kernels(results.Result):
    """The kernels of one convolution as pictures."""

    kind: ClassVar[str] = "kernels"

    model_name: str
    layer: str
    units: tuple[int, ...]
    """which units, (N,)"""
    weights: Tensor
    """(N, 3, k, k): red, green, blue weights, in units of the normalized input"""
    composite: bool
    """computed through the layers below, not the layer's own weights"""
    ignored: tuple[str, ...]
    """what a composite leaves out, in words"""
    mosaics: Tensor | None
    """(N, 3, H, W) in [0, 1] for the second convolution: which first kernels excite it where"""
    measured: KernelNumbers
    shared_scale: bool

    @property
    def pictures(self) -> Tensor:
        """(N, 3, k, k) in [0, 1]; gray is 0."""
        limit = float(self.weights.abs().max()) if self.shared_scale else None
        return images.signed(self.weights, limit)

    @property
    def order(self) -> Tensor:
        """(N,) rows in an instructive order: by group, edges by orientation, colors by hue."""
        m = self.measured
        keys = torch.stack([m.orientation, m.frequency, m.hue, -m.norm]).gather(0, m.group[None])
        pairs = zip(m.group.tolist(), keys[0].tolist(), strict=True)
        return torch.tensor([i for _, i in sorted((pair, i) for i, pair in enumerate(pairs))])

    @property
    def title(self) -> str:
        return f"Kernels of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        m = self.measured
        counts = torch.bincount(m.group, minlength=len(GROUPS)).tolist()
        size = "x".join(map(str, self.weights.shape[-2:]))
        meanings = {
            "kernels": (len(self.units), f"of {size} pixels"),
            "oriented": (counts[0], "light-dark edges and gratings"),
            "undirected": (counts[1], "light-dark, without a direction"),
            "colored": (counts[2], "more than half of the energy is color"),
            "faint": (int(m.faint.sum()), f"norm below {FAINT:.0%} of the median norm"),
            "noisy": (int(m.noisy.sum()), f"spectrum spread above {NOISY:.0%} of white noise's"),
        }
        numbers = {name: results.Number(n, "", text) for name, (n, text) in meanings.items()}
        edges = m.frequency[m.group == 0]
        if len(edges):
            wavelength = float(1 / edges.median())
            numbers["median wavelength"] = results.Number(
                wavelength, "pixels", "of the oriented kernels"
            )
        return numbers

    def write(self, folder: results.Folder) -> None:
        pictures = self.pictures
        about = f"{self._weights_in_words()} {self._scale_in_words()}"
        if self.mosaics is not None:
            folder.figure(
                "mosaics.svg",
                self.plot(),
                caption=_MOSAIC,
                alt=f"For each unit of {self.layer} a mosaic of first-layer kernels",
            )
        elif not self.composite:
            folder.figure(
                "kernels-sorted.svg",
                self.plot(),
                caption="Sorted: edges by orientation (under each: unit and degrees), blobs by "
                f"wavelength, colors by hue, faint or noisy ones last. {about}",
                alt=f"The kernels of {self.layer} in groups: {self._groups_in_words()}",
            )
        size = max(self.weights.shape[-2:])
        sheet = images.contact_sheet(pictures, gap=max(1, size // 11), background=None)
        folder.figure(
            "kernels.png",
            images.enlarge(sheet, max(1, min(8, 900 // sheet.shape[-1]))),
            caption=f"By unit, in reading order. {about}",
            pixelated=True,
            alt=f"Contact sheet of {counted(len(self.units), 'kernel')} of {self.layer}",
        )
        for row, unit in enumerate(self.units):
            name = f"{self.layer}:{unit}"
            looks = self._kernel_in_words(row)
            picture, caption = pictures[row], f"Kernel of {name}: {looks}. {about}"
            if self.mosaics is not None:
                picture, caption = self.mosaics[row], f"What excites {name}. {_MOSAIC}"
            folder.figure(
                f"units/{results.file_stem(name)}.png",
                images.enlarge(picture, max(1, round(176 / max(picture.shape[-2:])))),
                caption=caption,
                units=[name],
                pixelated=True,
                alt=f"Kernel of {name}, {looks}",
            )
        folder.arrays(
            "kernels.npz",
            {
                "weights": self.weights.numpy(),
                "units": torch.tensor(self.units).numpy(),
                "order": self.order.numpy(),
            },
            caption="weights (N, 3, k, k) as red, green, blue; their units; rows in sorted order.",
        )

    def tables(self) -> Iterator[results.Table]:
        m = self.measured
        values = [getattr(m, name) for name in _COLUMNS]
        yield results.Table(
            "kernels.csv",
            ("unit", "group", *_COLUMNS, "faint", "noisy"),
            [
                (
                    unit,
                    GROUPS[int(m.group[i])],
                    *(results.significant(v[i]) for v in values),
                    int(m.faint[i]),
                    int(m.noisy[i]),
                )
                for i, unit in enumerate(self.units)
            ],
            caption="Norm, color, orientation, frequency and roughness of each kernel.",
        )

    def _scale_in_words(self) -> str:
        if self.shared_scale:
            return "All share one scale: gray is 0, the largest absolute weight of all is full."
        return "Each is scaled by its own largest absolute weight; gray is 0."

    def _weights_in_words(self) -> str:
        if not self.composite:
            return f"Weights of {self.layer} in the normalized picture's red, green and blue."
        return (
            f"{self.layer} through the layers below, as if they were linear: a rough guide. "
            f"Left out: {', '.join(self.ignored)}."
        )

    def _groups_in_words(self) -> str:
        counts = torch.bincount(self.measured.group, minlength=len(GROUPS)).tolist()
        return ", ".join(f"{n} {name}" for n, name in zip(counts, GROUPS, strict=True) if n)

    def _kernel_in_words(self, row: int) -> str:
        m = self.measured
        group = int(m.group[row])
        if group == 3:
            return "rough as noise" if m.noisy[row] else "faint"
        wave = f"wavelength {float(1 / m.frequency[row]):.1f} pixels"
        stripes = f"stripes at {float(m.orientation[row]):.0f}°, {wave}"
        if group == 2:
            colors = f"colored ({float(m.colorfulness[row]):.0%} of the energy)"
            return f"{colors}, {stripes}" if m.coherence[row] >= ORIENTED else colors
        return stripes if group == 0 else f"no direction, {wave}"

    def plot(self) -> Figure:
        """The layer's own kernels sorted into groups; for deeper ones mosaics or composites."""
        m = self.measured
        names = [str(unit) for unit in self.units]
        if self.composite:
            shown = self.pictures if self.mosaics is None else self.mosaics
            return figures.grouped(self.title, shown, [("", range(len(names)))], names, 12)
        order = self.order.tolist()
        groups = [
            (f"{name.capitalize()} ({len(rows)})", rows)
            for g, name in enumerate(GROUPS)
            if (rows := [i for i in order if m.group[i] == g])
        ]
        labels = [
            f"{name} · {float(m.orientation[i]):.0f}°" if m.group[i] == 0 else name
            for i, name in enumerate(names)
        ]
        return figures.grouped(self.title, self.pictures, groups, labels, 16)


@public
def kernel_sheet(
    model: Model,
    layer: str | None = None,
    *,
    units: str | Sequence[int | str] | None = None,
    shared_scale: bool = False,
    progress: Progress | None = None,
) -> Kernels:
    """The kernels of a convolution as pictures, with numbers for color, direction and noise.

    Args:
        model: the model.
        layer: "conv1" shows its own weights; a deeper convolution is projected through the layers
            below as if they were linear. Default: the model's first convolution.
        units: "0-7", "3,12", "all" or a sequence; default: all.
        shared_scale: draw all kernels with one scale, so that faint ones look faint; default: each
            by its own largest absolute weight, which shows shapes best.
        progress: called with units done and all units, for deeper layers.

    Returns:
        Weights, pictures and numbers of each kernel.

    Raises:
        UserError: for a layer that is no convolution and for unknown units.

    Example:
        featviz.kernel_sheet(model, "conv1").save("run/kernels-conv1")
    """
    started = time.perf_counter()
    place = find_convolution(model, layer)
    chosen = parse_units(model, place.name, "all" if units is None else units)
    rows = tuple(dict.fromkeys(u.index for u in chosen))
    own = first_kernels(model) if place.name == first_convolution(model) else None
    ignored: tuple[str, ...] = ()
    if own is not None:
        weights = own[list(rows)]
    else:
        weights, ignored = composite_kernels(model, place.name, rows, progress=progress)
    measured = measure_kernels(weights)
    parameters = {"layer": place.name, "units": rows, "shared_scale": shared_scale}
    return Kernels(
        origin=results.origin(model, started=started, parameters=parameters),
        warnings=_warnings(place.name, rows, measured),
        model_name=model.name,
        layer=place.name,
        units=rows,
        weights=weights,
        composite=own is None,
        ignored=ignored,
        mosaics=kernel_mosaics(model, place, rows),
        measured=measured,
        shared_scale=shared_scale,
    )


def find_convolution(model: Model, layer: str | None) -> Layer:
    """A convolution by name, or the model's first one. Raises UserError where there is none."""
    places = [name for name, m in leaves(model) if isinstance(m, nn.Conv2d)]
    if not places:
        raise UserError(f"{model.name} has no convolution, so there are no kernels to show")
    place = model.layer(places[0] if layer is None else layer)
    if place.name not in places:
        hint = nearest(place.name, places) or f"; take one of {', '.join(places[:8])}"
        raise UserError(f"{place.name} is a {place.kind}, kernels belong to convolutions{hint}")
    return place


def _warnings(layer: str, units: Sequence[int], measured: KernelNumbers) -> tuple[str, ...]:
    noisy = "as rough as noise (untrained weights, or units that training left alone)"
    faint = f"faint, with a norm below {FAINT:.0%} of the median (dead, or nearly so)"
    found = []
    for what, mask in ((noisy, measured.noisy), (faint, measured.faint)):
        named = [str(unit) for unit, is_so in zip(units, mask.tolist(), strict=True) if is_so]
        if named:
            more = f" and {len(named) - 8} more" if len(named) > 8 else ""
            found.append(
                f"{len(named)} of {len(units)} kernels of {layer} are {what}: "
                f"{', '.join(named[:8])}{more}"
            )
    return tuple(found)
