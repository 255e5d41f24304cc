"""What `top_patches` returns: patches, places and activations of some units, and their folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.maps.top_patches_figure import draw_patches
from featviz.pictures import images
from featviz.results import significant
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.data.datasets import Skipped

_WHERE = ("y", "x", "top", "left", "bottom", "right")


@dataclass(frozen=True)
class Place:
    """Where in a data set a unit was active."""

    row: int
    """of the data set"""
    path: str
    position: tuple[int, int] | None
    """(row, column) in the unit's map; None for a layer without positions"""
    box: images.Box
    """(top, left, bottom, right) in the prepared picture; the whole of it where all is seen"""
    value: float


@dataclass(frozen=True, kw_only=True, repr=False)
class TopPatches(results.Result):
    """For each unit the patches that activate it most."""

    kind: ClassVar[str] = "examples"

    model_name: str
    layer: str
    units: tuple[int, ...]
    names: tuple[str, ...]
    """how people read the units: "conv5:12", for a class its name"""
    places: tuple[tuple[Place, ...], ...]
    """(U, k), highest activation first"""
    patches: Tensor
    """(U, k, 3, P, P) uint8, gray where the receptive field leaves the picture"""
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
            "inactive": results.Number(
                int((self.active == 0).sum()), "", "units that never exceed 0 in these pictures"
            ),
        }

    def pictures(self, row: int) -> Tensor:
        """(k, 3, P, P) in [0, 1]: the patches of the unit in `row`, highest activation first."""
        return self.patches[row].float() / 255

    def values(self, row: int) -> list[str]:
        """Their activations, as they are written below them."""
        return [f"{place.value:.3g}" for place in self.places[row]]

    def write(self, folder: results.Folder) -> None:
        whole = self.places[0][0].position is None
        what = "pictures" if whole else f"patches ({' x '.join(map(str, self.field))} pixels)"
        folder.figure(
            "examples.svg",
            self.plot(),
            caption=f"For each unit of {self.layer} the {what} of {counted(self.count, 'picture')} "
            "that activate it most, one a picture, highest activation first. Gray lies outside "
            "the picture.",
            alt=f"Top patches of {counted(len(self.units), 'unit')} of {self.layer}",
        )
        for row, (unit, name) in enumerate(zip(self.units, self.names, strict=True)):
            tag = f"{self.layer}:{unit}"
            folder.figure(
                f"units/{results.file_stem(tag)}.jpg",
                images.contact_sheet(self.pictures(row), gap=2),
                caption=f"The {what} of {counted(self.count, 'picture')} that activate {name} "
                f"most, one a picture, in reading order: {', '.join(self.values(row))}.",
                alt=f"{len(self.places[row])} patches that strongly activate {name}",
                units=[tag],
                pixelated=self.patches.shape[-1] < 24,
            )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "examples.csv",
            ("unit", "rank", "activation", "row", "path", *_WHERE),
            [
                (
                    unit,
                    rank,
                    significant(p.value),
                    p.row,
                    p.path,
                    *(p.position or ("", "")),
                    *p.box,
                )
                for unit, places in zip(self.units, self.places, strict=True)
                for rank, p in enumerate(places, 1)
            ],
            caption="Every patch: its picture, position, and pixels in the resized and cropped "
            "picture (half open, not cut at the border).",
        )
        columns = (self.units, self.names, self.largest, self.percentile, self.active)
        yield results.Table(
            "units.csv",
            ("unit", "name", "largest", "percentile_99_9", "active"),
            [
                (
                    unit,
                    name,
                    significant(largest),
                    significant(percentile),
                    round(float(active), 4),
                )
                for unit, name, largest, percentile, active in zip(*columns, strict=True)
            ],
            caption="Each unit on natural pictures: its largest activation, what one position in "
            f"a thousand exceeds (from {counted(self.sampled, 'picture')}), and the share of "
            "pictures in which it exceeds 0.",
        )
        if self.skipped:
            yield results.Table(
                "skipped.csv",
                ("row", "path", "reason"),
                self.skipped,
                caption="Pictures that could not be read.",
            )

    def plot(self) -> Figure:
        """A row a unit (at most 16 of them), its patches from left to right."""
        return draw_patches(
            self.title,
            self.names,
            self.percentile.tolist(),
            [(self.pictures(row), self.values(row)) for row in range(min(16, len(self.units)))],
        )
