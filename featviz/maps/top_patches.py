"""The pictures of a data set that move a unit most, cut out where they do.

Comes in: a model, a data set, some units of a layer. Goes out: `TopPatches`, for each unit its k
strongest positions, at most one a picture (as in Zeiler and Fergus 2014, "Visualizing and
understanding convolutional networks", figure 2), and what the unit reaches on natural pictures.
The data set is streamed once; memory is bounded by units * k patches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from featviz import images, plotting, results
from featviz.datasets import Pictures, Skipped, batches
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.units import parse_unit, parse_units, unit_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Progress = Callable[[int, int, str], None]

PATCH_PIXELS = 112
"""Patches of larger receptive fields are kept shrunk to this side."""

PERCENTILE = 99.9
_KEPT = 50_000  # largest values kept a unit, from which the percentile is read


@dataclass(frozen=True)
class Place:
    """Where in a data set a unit answered."""

    row: int
    """of the data set"""
    path: str
    position: tuple[int, int] | None
    """(row, column) in the unit's map; None for a layer without positions"""
    box: tuple[int, int, int, int]
    """(top, left, bottom, right) in the prepared picture; the whole of it where all is seen"""
    value: float


@dataclass(frozen=True, kw_only=True, repr=False)
class TopPatches(results.Result):
    """For each unit the patches that move it most."""

    kind: ClassVar[str] = "examples"

    model_name: str
    layer: str
    units: tuple[int, ...]
    names: tuple[str, ...]
    """how people read the units: "conv5:12", for a class its name"""
    places: tuple[tuple[Place, ...], ...]
    """(U, k), strongest first"""
    patches: Tensor
    """(U, k, 3, P, P) uint8, grey where the receptive field leaves the picture"""
    field: tuple[int, int]
    """pixels that a patch shows, before it was shrunk"""
    largest: Tensor
    """(U,): largest activation in the whole data set"""
    percentile: Tensor
    """(U,): what one position in a thousand exceeds; NaN where there are fewer than that"""
    active: Tensor
    """(U,): share of the pictures in which the unit exceeds 0 somewhere"""
    count: int
    """pictures that were read"""
    sampled: int
    """of them, how many went into the percentile"""
    skipped: tuple[Skipped, ...]

    @property
    def title(self) -> str:
        return f"Top patches of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        best = int(self.largest.argmax())
        return {
            "units": results.Number(len(self.units)),
            "pictures": results.Number(self.count, "", f"searched; {len(self.skipped)} unreadable"),
            "largest": results.Number(
                float(self.largest[best]), "", f"activation, of {self.names[best]}"
            ),
            "patch": results.Number("x".join(map(str, self.field)), "pixels", "receptive field"),
            "silent": results.Number(
                int((self.active == 0).sum()), "", "units that never exceed 0 in these pictures"
            ),
        }

    def pictures(self, row: int) -> Tensor:
        """(k, 3, P, P) in [0, 1]: the patches of the unit in `row`, strongest first."""
        return self.patches[row, : len(self.places[row])].float() / 255

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "examples.jpg",
            self.plot(),
            caption=f"For each unit of {self.layer} the {self._what} of {self.count:,} pictures "
            "that move it most, one a picture, strongest first, with their activations. Grey lies "
            "outside the picture.",
            alt=f"Top patches of {len(self.units)} units of {self.layer}",
        )
        for row, (unit, name) in enumerate(zip(self.units, self.names, strict=True)):
            tag = f"{self.layer}:{unit}"
            values = ", ".join(f"{place.value:.3g}" for place in self.places[row])
            sheet = images.contact_sheet(self.pictures(row), gap=2)
            folder.figure(
                f"units/{self.layer.replace('/', '-')}-{unit}.jpg",
                sheet,
                caption=f"The {self._what} of {self.count:,} pictures that move {name} most, one a "
                f"picture, in reading order: {values}.",
                alt=f"{len(self.places[row])} patches that strongly activate {name}",
                units=[tag],
                pixelated=self.patches.shape[-1] < 24,
            )
        folder.table(
            "examples.csv",
            (
                "unit",
                "rank",
                "activation",
                "row",
                "path",
                "y",
                "x",
                "top",
                "left",
                "bottom",
                "right",
            ),
            [
                (unit, rank, f"{p.value:.6g}", p.row, p.path, *(p.position or ("", "")), *p.box)
                for unit, places in zip(self.units, self.places, strict=True)
                for rank, p in enumerate(places, 1)
            ],
            caption="Every patch: its picture, position, and pixels in the resized and cropped "
            "picture (half open, not cut at the border).",
        )
        folder.table(
            "units.csv",
            ("unit", "name", "largest", "percentile_99_9", "active"),
            [
                (
                    unit,
                    self.names[i],
                    f"{float(self.largest[i]):.6g}",
                    _known(self.percentile[i]),
                    f"{float(self.active[i]):.4f}",
                )
                for i, unit in enumerate(self.units)
            ],
            caption="Each unit on natural pictures: its largest activation, what one position in "
            f"a thousand exceeds (from {self.sampled:,} pictures), and the share of pictures "
            "in which it exceeds 0.",
        )
        if self.skipped:
            folder.table(
                "skipped.csv",
                ("row", "path", "reason"),
                self.skipped,
                caption="Pictures that could not be read.",
            )

    @property
    def _what(self) -> str:
        whole = self.places[0][0].position is None
        return "pictures" if whole else f"patches ({' x '.join(map(str, self.field))} pixels)"

    def plot(self) -> Figure:
        """A row a unit (at most 16 of them), its patches from left to right."""
        shown = min(16, len(self.units))
        most = max(len(places) for places in self.places[:shown])
        cell, gap, left, top = 0.98, 0.07, 1.35, 0.62
        step = cell + 0.24
        page = plotting.Page(left + most * (cell + gap) + 0.1, top + shown * step + 0.05)
        page.text(0.12, 0.24, self.title, fontsize=12, weight="bold")
        for row in range(shown):
            y = top + row * step
            page.text(left - 0.12, y + cell / 2 - 0.08, self.names[row], ha="right", weight="bold")
            if not bool(self.percentile[row].isnan()):
                page.text(
                    left - 0.12,
                    y + cell / 2 + 0.1,
                    fontsize=7,
                    ha="right",
                    color="#555555",
                    words=f"1 in 1000: {float(self.percentile[row]):.3g}",
                )
            for i, (place, picture) in enumerate(
                zip(self.places[row], self.pictures(row), strict=True)
            ):
                x = left + i * (cell + gap)
                plotting.show_image(
                    page.axes(x, y, cell, cell), picture, pixelated=picture.shape[-1] < 40
                )
                page.text(
                    x + cell / 2,
                    y + cell + 0.09,
                    f"{place.value:.3g}",
                    fontsize=7,
                    ha="center",
                    color="#555555",
                )
        return page.figure


def top_patches(
    model: Model,
    pictures: Pictures,
    layer: str,
    *,
    units: str | Sequence[int | str] | None = None,
    k: int = 9,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> TopPatches:
    """For each unit the k patches of a data set that move it most, at most one a picture.

    layer: a layer of maps gives patches as large as its receptive field; a layer without
        positions (fc7, logits) gives whole pictures
    units: "0-7", "3,12", "all", class names of logits, or a sequence; default: the first 16
    k: patches a unit; of equal activations the picture that comes first wins

    The data set is read once. The percentile is exact up to 50,000 values above it a unit; larger
    data gives every second (third ...) picture to it.

    Raises UserError for an unknown layer or unit, or data of which nothing can be read.

        pictures = featviz.open_pictures("photos")
        featviz.top_patches(model, pictures, "conv5", units=[3, 12]).save("run/examples-conv5")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    if k < 1:
        raise UserError(f"k is {k}: at least one patch a unit is needed")
    if len(place.shape) == 2:
        raise UserError(f"{place.name} is a layer of tokens; top patches need maps or vectors")
    wanted = f"0-{min(16, place.units) - 1}" if units is None else units
    rows = tuple(u.index for u in parse_units(model, place.name, wanted))
    field = None if not place.spatial else place.receptive_field
    size = field.size if field else (model.input_size, model.input_size)
    shrink = min(1.0, PATCH_PIXELS / max(size))
    shape = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))

    best = _Best(len(rows), k, shape)
    per_picture = math.prod(place.shape[1:])
    share = 1 - PERCENTILE / 100
    every = math.ceil(len(pictures) * per_picture * share / _KEPT)
    # As many of the largest values as the percentile of all pictures will lie between.
    most = math.floor(math.ceil(len(pictures) / every) * per_picture * share) + 2
    tail = torch.empty(len(rows), 0)
    active = torch.zeros(len(rows))
    count = sampled = 0
    skipped: list[Skipped] = []
    stream = batches(
        pictures, resize=model.resize, crop=model.input_size, batch_size=batch_size, skipped=skipped
    )
    for batch in stream:
        with torch.inference_mode():
            maps = activations(model, batch.images.to(model.device), [place.name])[place.name]
        maps = maps[:, list(rows)].float().cpu()
        flat = maps.reshape(len(maps), len(rows), -1)  # (N, U, h * w)
        values, where = flat.max(2)
        active += (values > 0).sum(0)
        taken = flat[-count % every :: every]
        sampled += len(taken)
        count += len(maps)
        tail = torch.cat([tail, taken.transpose(0, 1).flatten(1)], dim=1)
        tail = tail.topk(min(most, tail.shape[1]), dim=1).values

        for unit, n in best.entries(values):
            y, x = divmod(int(where[n, unit]), maps.shape[-1]) if maps.dim() == 4 else (0, 0)
            box = field.box(y, x) if field else (0, 0, *size)
            patch = images.crop_box(batch.images[n], box)
            if patch.shape[-2:] != shape:
                patch = F.interpolate(
                    patch[None], shape, mode="bilinear", antialias=True, align_corners=False
                )[0]
            row = batch.rows[n]
            best.put(
                unit,
                Place(
                    row,
                    pictures.paths[row],
                    (y, x) if place.spatial else None,
                    box,
                    float(values[n, unit]),
                ),
                images.to_uint8(patch),
            )
        if progress:
            progress(batch.rows[-1] + 1, len(pictures), f"top patches of {place.name}")

    silent = [str(r) for r, a in zip(rows, active.tolist(), strict=True) if a == 0]
    doubts = []
    if silent:
        more = f" and {len(silent) - 8} more" if len(silent) > 8 else ""
        doubts.append(
            f"{len(silent)} units never exceed 0, so their patches say little: "
            f"{', '.join(silent[:8])}{more}"
        )
    if skipped:
        doubts.append(f"{len(skipped)} pictures could not be read and are left out (skipped.csv)")
    if place.spatial and field is None:
        doubts.append(f"the receptive field of {place.name} is not known: whole pictures are shown")
    unit_names = [parse_unit(model, f"{place.name}:{r}") for r in rows]
    return TopPatches(
        origin=results.origin(
            model,
            started=started,
            data=pictures,
            parameters={"layer": place.name, "units": rows, "k": k, "batch_size": batch_size},
        ),
        warnings=tuple(doubts),
        model_name=model.name,
        layer=place.name,
        units=rows,
        names=tuple(unit_name(model, u) for u in unit_names),
        places=best.places(),
        patches=best.patches,
        field=size,
        largest=torch.tensor([places[0].value for places in best.places()]),
        percentile=_percentile(tail, sampled * per_picture, share),
        active=active / count,
        count=count,
        sampled=sampled,
        skipped=tuple(skipped),
    )


class _Best:
    """The k best places of each unit so far, with their patches."""

    def __init__(self, units: int, k: int, shape: tuple[int, int]):
        self.k = k
        self.found: list[list[tuple[Place, int]]] = [[] for _ in range(units)]
        self.patches = torch.zeros(units, k, 3, *shape, dtype=torch.uint8)

    def entries(self, values: Tensor) -> list[tuple[int, int]]:
        """(unit, picture) pairs of a batch (N, U) that may be among the k best, in its order."""
        floor = torch.tensor(
            [f[-1][0].value if len(f) == self.k else -math.inf for f in self.found]
        )
        # Of a batch alone no more than k pictures a unit can stay.
        strongest = torch.sort(values, dim=0, descending=True, stable=True).indices[: self.k]
        candidate = torch.zeros_like(values, dtype=torch.bool).scatter_(0, strongest, True)
        pairs = (candidate & (values > floor)).nonzero().tolist()
        return [(unit, n) for n, unit in pairs]

    def put(self, unit: int, place: Place, patch: Tensor) -> None:
        """Take a place in if it belongs to the k best; earlier pictures win among equals."""
        found = self.found[unit]
        slot = len(found)
        if slot == self.k:
            if place.value <= found[-1][0].value:
                return
            slot = found.pop()[1]
        self.patches[unit, slot] = patch
        after = next((i for i, (p, _) in enumerate(found) if p.value < place.value), len(found))
        found.insert(after, (place, slot))
        if len(found) == self.k:
            order = [s for _, s in found]
            if order != list(range(self.k)):
                self.patches[unit] = self.patches[unit, order].clone()
                self.found[unit] = [(p, i) for i, (p, _) in enumerate(found)]

    def places(self) -> tuple[tuple[Place, ...], ...]:
        """(U, up to k), strongest first; `patches` lies in the same order."""
        for unit, found in enumerate(self.found):
            order = [s for _, s in found]
            self.patches[unit, : len(order)] = self.patches[unit, order].clone()
            self.found[unit] = [(p, i) for i, (p, _) in enumerate(found)]
        return tuple(tuple(p for p, _ in found) for found in self.found)


def _percentile(tail: Tensor, count: int, share: float) -> Tensor:
    """(U,): the value that `share` of `count` values exceed, interpolated as numpy does.

    tail: (U, T): the largest values, in descending order. NaN where `count` is too small for it.
    """
    if count * share < 1:
        return tail.new_full((len(tail),), math.nan)
    from_top = share * (count - 1)
    low = math.floor(from_top)
    high = min(low + 1, tail.shape[1] - 1)
    weight = from_top - low
    return tail[:, low] * (1 - weight) + tail[:, high] * weight


def _known(value: Tensor) -> str:
    return "" if bool(value.isnan()) else f"{float(value):.6g}"
