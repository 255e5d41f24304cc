"""Two spaces of the same pictures, two layers or two models, as maps that can be compared.

t-SNE's maps are not canonical: turned, mirrored or begun elsewhere they are as good. So the second
map begins where the first ended ("start"), or is made on its own and then laid onto the first
("procrustes": shift, scale, rotation and reflection only). Either way both are drawn on the same
terms, and what moved can be seen. How much the two spaces agree does not depend on any map: it is
the share of a picture's nearest neighbours that they have in common.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from featviz import plotting, results
from featviz.atlas.graph import Graph, build_graph, neighbors_wanted
from featviz.atlas.layout import Layout, lay_out
from featviz.atlas.metrics import MapQuality, found_again, judge_map, near_on_map, procrustes
from featviz.errors import UserError
from featviz.neighbors.exact import build_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.embedding.store import Store

How = Literal["start", "procrustes"]

MOST = 20_000
"""pictures on the maps; of more an even sample is shown"""
NEIGHBORS = 10
_LINES = 40
"""pictures that moved farthest, joined by lines"""


@dataclass(frozen=True)
class Side:
    """One of the two maps."""

    store: Store
    rows: tuple[int, ...]
    """rows of the store, the same pictures as on the other side, in the same order"""
    layout: Layout
    graph: Graph
    quality: MapQuality
    xy: Tensor
    """(N, 2) as drawn: in [0, 1], the second laid onto the first"""


@dataclass(frozen=True, kw_only=True, repr=False)
class AlignedMaps(results.Result):
    """The same pictures in two spaces, on aligned maps, and what moved."""

    kind: ClassVar[str] = "atlas"

    first: Side
    second: Side
    how: str
    distance: float
    """Procrustes distance of the two maps: 0 the same, 1 nothing in common"""
    apart: float
    """of a second map that was made on its own and only laid on the first"""
    shared: Tensor
    """(N,) share of each picture's neighbours that are so in both spaces"""
    shared_map: Tensor
    """(N,) share of each picture's neighbours on the first map that are so on the second"""
    moved: Tensor
    """(N,) how far each picture is from where it was, in units of the maps' side"""

    @property
    def title(self) -> str:
        return f"{self.first.store.title} beside {self.second.store.title}"

    def numbers(self) -> dict[str, results.Number]:
        count, k = len(self.moved), self._k
        shown = {
            "pictures": results.Number(count, "", "on both maps"),
            f"shared neighbours@{k}": results.Number(
                float(self.shared.mean()),
                "fraction",
                f"of the {k} nearest in one space are among those in the other",
            ),
            "shared by chance": results.Number(k / (count - 1), "fraction", "two unrelated spaces"),
            f"shared on the maps@{k}": results.Number(
                float(self.shared_map.mean()),
                "fraction",
                f"of the {k} nearest on one map are among those on the other",
            ),
            "Procrustes distance": results.Number(
                self.distance, "", "of the two maps as drawn: 0 the same, 1 nothing in common"
            ),
            "Procrustes distance, apart": results.Number(
                self.apart, "", "of two maps made without each other"
            ),
            "moved": results.Number(
                float(self.moved.median()), "of the side", "by half of the pictures at least"
            ),
        }
        for word, side in (("first", self.first), ("second", self.second)):
            shown[f"recall@{side.quality.k}, {word}"] = results.Number(
                side.quality.recall, "fraction", f"neighbours kept on the map of {side.store.layer}"
            )
        return shown

    @property
    def _k(self) -> int:
        return min(NEIGHBORS, len(self.moved) - 1)

    def write(self, folder: results.Folder) -> None:
        figure = self.plot()
        for file in ("aligned.png", "aligned.pdf"):
            folder.figure(
                file,
                figure,
                caption="The same pictures in two spaces. Colours are places on the left map, so "
                "on the right they say where a picture came from; lines join the pictures "
                f"that moved farthest. {self._words()}",
                alt="Two maps of coloured points side by side, some joined by lines",
            )
        folder.table(
            "aligned.csv",
            ("path", "class", "x_first", "y_first", "x_second", "y_second", "moved", "shared"),
            [
                (
                    self.first.store.pictures.paths[row],
                    self.first.store.pictures.folders[row],
                    *(f"{v:.5f}" for v in (*a, *b)),
                    f"{moved:.5f}",
                    f"{shared:.2f}",
                )
                for row, a, b, moved, shared in zip(
                    self.first.rows,
                    self.first.xy.tolist(),
                    self.second.xy.tolist(),
                    self.moved.tolist(),
                    self.shared.tolist(),
                    strict=True,
                )
            ],
            caption="Where each picture is on both maps, how far it moved, and which share of its "
            "neighbours the two spaces have in common.",
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

    def _words(self) -> str:
        how = {
            "start": "The second map began at the first.",
            "procrustes": "The second map was made on its own and laid onto the first.",
        }[self.how]
        return (
            f"{how} {float(self.shared.mean()):.0%} of the {self._k} nearest neighbours are shared "
            f"by the two spaces (chance {self._k / (len(self.moved) - 1):.1%}); Procrustes "
            f"distance {self.distance:.2f} (without each other {self.apart:.2f})."
        )

    def plot(self) -> Figure:
        return _figure(self)


def align_maps(
    first: Store,
    second: Store,
    *,
    how: How = "start",
    perplexity: float = 30.0,
    iterations: tuple[int, int] | None = None,
    most: int = MOST,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> AlignedMaps:
    """Lay out two stores of the same pictures so that their maps can be compared.

    first, second: stores of two layers or of two models; pictures are matched by their paths, and
        those that only one of them has are left out
    how: "start": the second layout begins at the first and is laid onto it; "procrustes": it is
        only laid onto it. Both are measured
    perplexity, iterations, seed: of both layouts, see `featviz.atlas.layout.lay_out`
    most: of more common pictures an even sample is shown

    Raises UserError for stores with fewer than 3 pictures in common.
    """
    started = time.perf_counter()
    if how not in ("start", "procrustes"):
        raise UserError(f"unknown alignment {how!r}; take start or procrustes")
    rows, doubts = _matched(first, second, most)
    indices = [
        build_index(store.take(some)) for store, some in zip((first, second), rows, strict=True)
    ]
    graphs = [
        build_graph(index, neighbors_wanted(len(index), perplexity), progress) for index in indices
    ]

    def laid(number: int, begin: Tensor | None) -> Layout:
        return lay_out(
            indices[number],
            graph=graphs[number],
            perplexity=perplexity,
            iterations=iterations,
            begin=begin,
            seed=seed,
            progress=progress,
        )

    maps = [laid(0, None), laid(1, None)]
    apart, onto = procrustes(maps[0].xy, maps[1].xy)
    distance = apart
    if how == "start":
        maps[1] = laid(1, maps[0].raw)
        distance, onto = procrustes(maps[0].xy, maps[1].xy)
    both = _on_one_square(maps[0].xy.double(), onto)
    sides = [
        Side(
            store,
            tuple(some),
            layout,
            graph,
            judge_map(index, layout.xy, graph=graph, k=NEIGHBORS),
            xy,
        )
        for store, some, layout, graph, index, xy in zip(
            (first, second), rows, maps, graphs, indices, both, strict=True
        )
    ]
    k = min(NEIGHBORS, len(rows[0]) - 1)
    near = [graph.nearest(k).rows for graph in graphs]
    shown = [near_on_map(layout.xy, k) for layout in maps]
    made = results.origin(
        None,
        parameters={
            "how": how,
            "perplexity": perplexity,
            "most": most,
            "iterations": list(maps[0].iterations),
            "layer": first.layer,
            "beside_layer": second.layer,
            "store": None if first.folder is None else str(first.folder),
            "beside": None if second.folder is None else str(second.folder),
            "beside_model": second.origin.model,
        },
        started=started,
        seed=seed,
    )
    return AlignedMaps(
        origin=replace(made, model=first.origin.model, data=first.origin.data),
        warnings=doubts,
        first=sides[0],
        second=sides[1],
        how=how,
        distance=distance,
        apart=apart,
        shared=found_again(near[0], near[1]).double().mean(1),
        shared_map=found_again(shown[0], shown[1]).double().mean(1),
        moved=(both[0] - both[1]).norm(dim=1),
    )


def _matched(
    first: Store, second: Store, most: int
) -> tuple[tuple[list[int], list[int]], tuple[str, ...]]:
    """Rows of both stores that show the same pictures, in the first's order, and doubts."""
    there = {path: row for row, path in enumerate(second.pictures.paths)}
    pairs = [(row, there[path]) for row, path in enumerate(first.pictures.paths) if path in there]
    if len(pairs) < 3:
        raise UserError(
            f"the stores have {len(pairs)} pictures in common (by their paths); embed the same "
            "data with both layers or models"
        )
    doubts = []
    alone = len(first) + len(second) - 2 * len(pairs)
    if alone:
        doubts.append(f"{alone} pictures that only one of the stores has are left out")
    if len(pairs) > most:
        doubts.append(f"an even sample of {most} of {len(pairs)} pictures is shown")
        pairs = [pairs[i * len(pairs) // most] for i in range(most)]
    return ([a for a, _ in pairs], [b for _, b in pairs]), tuple(doubts)


def _on_one_square(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (N, 2) of one size, the second as wide as the first, so that both lie in [0, 1].

    Procrustes shrinks a map that has little in common with the other; drawn so, it could not be
    read.
    """
    left, right = (points - points.mean(0) for points in (first, second))
    right = right * (left.norm() / right.norm().clamp_min(1e-30))
    both = torch.cat([left, right])
    low, high = both.min(0).values, both.max(0).values
    extent = float((high - low).max()) or 1.0
    moved = (both - (low + high) / 2) / extent + 0.5
    return moved[: len(first)], moved[len(first) :]


def colours_of(xy: Tensor) -> np.ndarray:
    """A colour (N, 3) for each place (N, 2): hue goes round the middle, grey is in it.

    Of even lightness (CIE Lab), so that no corner stands out.
    """
    middle = xy.double().mean(0)
    a, b = ((xy.double() - middle) / (xy.double() - middle).norm(dim=1).max()).T.numpy()
    lightness = 66.0
    fy = (lightness + 16) / 116
    fx, fz = fy + 65 * a / 500, fy - 65 * b / 200
    cubes = [np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) for f in (fx, fz)]
    y = np.full_like(a, fy**3)
    xyz = np.stack([0.9505 * cubes[0], y, 1.089 * cubes[1]], 1)
    linear = xyz @ _FROM_XYZ.T
    rgb: np.ndarray = np.clip(linear, 0, 1) ** (1 / 2.2)
    return rgb


_FROM_XYZ = np.array(
    [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
)
"""sRGB of XYZ, D65"""


def _figure(found: AlignedMaps) -> Figure:
    """Both maps side by side, coloured by the place on the first."""
    from matplotlib.patches import ConnectionPatch

    count = len(found.moved)
    words = textwrap.wrap(found._words(), 150)
    figure = plotting.new_figure(10, 5.6 + 0.16 * len(words))
    figure.set_layout_engine("none")
    figure.set_dpi(200)
    height = 5.6 + 0.16 * len(words)
    colours = colours_of(found.first.xy)
    size = max(0.6, min(14.0, 9000 / count))
    panels = []
    for left, side in ((0.015, found.first), (0.515, found.second)):
        axes = figure.add_axes((left, (0.16 * len(words) + 0.25) / height, 0.47, 4.75 / height))
        axes.scatter(side.xy[:, 0], side.xy[:, 1], s=size, c=colours, linewidths=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(1.02, -0.02)
        axes.set_aspect("equal")
        plotting.bare(axes)
        axes.set_title(
            f"{side.store.layer} of {side.store.model_name}   recall@{side.quality.k} "
            f"{side.quality.recall:.2f}",
            fontsize=9,
            color=plotting.INK,
        )
        panels.append(axes)
    for row in farthest(found.moved, _LINES):
        figure.add_artist(
            ConnectionPatch(
                _pair(found.first.xy[row]),
                _pair(found.second.xy[row]),
                "data",
                "data",
                axesA=panels[0],
                axesB=panels[1],
                color=colours[row],
                linewidth=0.5,
                alpha=0.7,
            )
        )
    figure.text(
        0.015,
        1 - 0.16 / height,
        textwrap.shorten(found.title, 120),
        fontsize=10,
        weight="bold",
        color=plotting.INK,
        va="center",
    )
    figure.text(
        0.015,
        (0.16 * len(words) + 0.06) / height,
        "\n".join(words),
        fontsize=7.5,
        color="#444444",
        va="top",
        linespacing=1.35,
    )
    return figure


def _pair(point: Tensor) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def farthest(moved: Tensor, most: int) -> list[int]:
    """The rows that moved most, at most a tenth of them, farthest first."""
    order = torch.sort(moved, descending=True, stable=True).indices
    return [int(row) for row in order[: min(most, max(1, len(moved) // 10))]]
