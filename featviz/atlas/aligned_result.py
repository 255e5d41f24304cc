"""The result of `align_maps`: numbers, table, figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from featviz import results
from featviz.atlas.figures import aligned_figure
from featviz.results import Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from featviz.atlas.metrics import MapQuality
    from featviz.embedding.store import Store

How = Literal["start", "procrustes"]
_MADE = {
    "start": "The second map started from the first.",
    "procrustes": "The second map was made on its own and aligned to the first.",
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two maps."""

    store: Store
    rows: tuple[int, ...]
    """rows of the store, the same pictures as on the other side, in the same order"""
    quality: MapQuality
    xy: Tensor
    """(N, 2) as drawn: in [0, 1], the second aligned to the first"""


@dataclass(frozen=True, kw_only=True, repr=False)
class AlignedMaps(results.Result):
    """The same pictures in two spaces, on aligned maps, and what moved."""

    kind: ClassVar[str] = "atlas"

    first: Side
    second: Side
    k: int
    """neighbors that are compared"""
    how: How
    distance: float
    """Procrustes distance of the two maps: 0 the same, 1 nothing in common"""
    apart: float
    """of a second map that was made on its own and only aligned"""
    shared: Tensor
    """(N,) fraction of each picture's neighbors that are neighbors in both spaces"""
    shared_map: Tensor
    """(N,) fraction of each picture's neighbors on the first map that are so on the second"""
    moved: Tensor
    """(N,) distance of each picture between the maps, in units of their side"""

    @property
    def title(self) -> str:
        return f"{self.first.store.title} beside {self.second.store.title}"

    @property
    def chance(self) -> float:
        """Fraction of neighbors that two unrelated spaces share."""
        return self.k / (len(self.moved) - 1)

    def numbers(self) -> dict[str, Number]:
        k = self.k
        shown = {
            "pictures": Number(len(self.moved), "", "on both maps"),
            f"shared neighbors@{k}": Number(
                float(self.shared.mean()),
                "fraction",
                f"of the {k} nearest in one space are among those in the other",
            ),
            "shared by chance": Number(self.chance, "fraction", "two unrelated spaces"),
            f"shared on the maps@{k}": Number(
                float(self.shared_map.mean()),
                "fraction",
                f"of the {k} nearest on one map are among those on the other",
            ),
            "Procrustes distance": Number(
                self.distance, "", "of the two maps as drawn: 0 the same, 1 nothing in common"
            ),
            "Procrustes distance, apart": Number(self.apart, "", "of two maps made independently"),
            "moved": Number(float(self.moved.median()), "of the side", "median over pictures"),
        }
        for word, side in (("first", self.first), ("second", self.second)):
            shown[f"recall@{side.quality.k}, {word}"] = Number(
                side.quality.recall, "fraction", f"neighbors kept on the map of {side.store.layer}"
            )
        return shown

    def write(self, folder: results.Folder) -> None:
        figure = self.plot()
        for file in ("aligned.svg", "aligned.pdf"):
            folder.figure(
                file,
                figure,
                caption="The same pictures in two spaces. Colors are positions on the left map, so "
                "on the right they show where a picture was; lines join the pictures that moved "
                f"farthest. {self.text}",
                alt="Two maps of colored points side by side, some joined by lines",
            )
        folder.arrays(
            "aligned.npz",
            {
                "first": self.first.xy.numpy(),
                "second": self.second.xy.numpy(),
                "first_rows": np.asarray(self.first.rows),
                "second_rows": np.asarray(self.second.rows),
            },
            caption="Positions on both maps, and the rows of the two stores.",
        )

    def tables(self) -> Iterator[results.Table]:
        pictures = self.first.store.pictures
        xy = np.hstack([self.first.xy, self.second.xy])
        yield results.Table(
            "aligned.csv",
            ("path", "class", "x_first", "y_first", "x_second", "y_second", "moved", "shared"),
            [
                (
                    pictures.paths[row],
                    pictures.folders[row],
                    *(round(float(value), 5) for value in (*both, moved)),
                    round(shared, 2),
                )
                for row, both, moved, shared in zip(
                    self.first.rows, xy, self.moved.tolist(), self.shared.tolist(), strict=True
                )
            ],
            caption="The position of each picture on both maps, the distance between these, and "
            "the fraction of its neighbors that the two spaces share.",
        )

    @property
    def text(self) -> str:
        """How the maps were made and how far they agree, in a few sentences."""
        return (
            f"{_MADE[self.how]} {float(self.shared.mean()):.0%} of the {self.k} nearest neighbors "
            f"are shared by the two spaces (chance {self.chance:.1%}); Procrustes distance "
            f"{self.distance:.2f} (of maps made independently {self.apart:.2f})."
        )

    def plot(self) -> Figure:
        maps = [
            (
                f"{side.store.layer} of {side.store.model_name}   recall@{side.quality.k} "
                f"{side.quality.recall:.2f}",
                side.xy.numpy(),
            )
            for side in (self.first, self.second)
        ]
        return aligned_figure(self.title, self.text, maps, self.moved.numpy())
