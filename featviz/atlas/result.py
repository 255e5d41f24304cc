"""The result of `build_atlas`: numbers, tables, pictures, the page."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from featviz import plotting, results
from featviz.atlas.figures import cells_picture, lattice_picture, print_page
from featviz.atlas.levels import Level, SyntheticIcons, weighted_text
from featviz.atlas.viewer.data import PageData
from featviz.atlas.viewer.page import render_page
from featviz.data import archives
from featviz.errors import visible
from featviz.results import Number
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from featviz.atlas.layout import Layout
    from featviz.atlas.metrics import MapQuality, Stability
    from featviz.atlas.thumbnails import Thumbnails
    from featviz.embedding.store import Store

NAMED = 8
"""classes in the legend of the print; more colors than the palette's could not be told apart"""
_CELL_COLUMNS = (
    "side",
    "row",
    "column",
    "pictures",
    "sample",
    "within_cosine",
    "classes",
    "effects",
    "icon_cosine",
    "icon_nearest_row",
    "icon_nearest_column",
)


_LIVE = 20_000_000
"""characters of a page that a notebook shows live"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Atlas(results.Result):
    """A store as a map: where each picture is, cells at several resolutions, icons, quality."""

    kind: ClassVar[str] = "atlas"

    store: Store
    """what is shown"""
    rows: tuple[int, ...]
    """which rows of the store, in order; row numbers below count within these"""
    layout: Layout
    quality: MapQuality
    pca_recall: float
    """recall of the first two principal components as a map"""
    levels: tuple[Level, ...]
    lattice: tuple[Tensor, int, int]
    """a place of its own for each picture near its position on the map; columns; rows"""
    mosaic: tuple[Tensor, int, int]
    """the same without gaps"""
    neighbors: Tensor
    """(N, 10) the true neighbors of each picture"""
    distances: Tensor
    """(N, 10) to them"""
    thumbnails: Thumbnails
    """of all up to 20,000 rows; above, of the samples of the finest cells and an even sample"""
    stability: Stability | None = None
    """agreement of the maps of several seeds, where they were made"""
    links: bool = False
    """whether the page links the files of the pictures, by their place on this machine"""

    @property
    def title(self) -> str:
        return f"Atlas of {self.store.title}"

    @property
    def classes(self) -> list[str]:
        """Class of each row, "" where there is none."""
        return [self.store.class_name(row) for row in self.rows]

    @property
    def paths(self) -> list[str]:
        """File of each row."""
        return [visible(self.store.pictures.paths[row]) for row in self.rows]

    def name(self, row: int) -> str:
        """The class of a picture, else its file."""
        whole = self.rows[row]
        return self.store.class_name(whole) or visible(Path(self.store.pictures.paths[whole]).name)

    def numbers(self) -> dict[str, Number]:
        found, k, layout = self.quality, self.quality.k, self.layout
        shown = {
            f"recall@{k}": Number(
                found.recall, "fraction", f"of the {k} true neighbors are near on the map"
            ),
            "recall by chance": Number(found.recall_chance, "fraction", "a random map"),
            "recall of PCA": Number(
                self.pca_recall, "fraction", "the first two principal components as a map"
            ),
            "trustworthiness": Number(
                found.trustworthiness, "", "1: neighbors on the map are neighbors in the space"
            ),
            "continuity": Number(
                found.continuity, "", "1: neighbors in the space are neighbors on the map"
            ),
            "distance correlation": Number(
                found.correlation, "", "Spearman: distances in the space and on the map, over pairs"
            ),
        }
        if found.recall_wide is not None:
            shown["recall@50"] = Number(found.recall_wide, "fraction", "the same for 50 neighbors")
        if found.class_space is not None:
            shown["class vote, space"] = Number(
                found.class_space, "fraction", f"have the class of most of their {k} nearest"
            )
            shown["class vote, map"] = Number(
                found.class_map, "fraction", f"the same for the {k} nearest on the map"
            )
        shown["pictures"] = Number(len(self.rows), "", "on the map")
        if layout.divergence is not None:
            shown["divergence"] = Number(
                layout.divergence, "nats", "Kullback-Leibler, the objective of t-SNE"
            )
            shown["perplexity"] = Number(layout.perplexity, "", "of t-SNE")
        if self.stability is not None:
            shown["Procrustes distance"] = Number(
                self.stability.procrustes, "", "between maps of two seeds, mean; 0: the same"
            )
            shown["overlap of seeds"] = Number(
                self.stability.overlap,
                "fraction",
                f"of the {self.stability.k} nearest on the map of one seed are so on another's",
            )
        for level in self.levels:
            sizes = torch.tensor([len(cell.members) for cell in level.grid.cells])
            shown[f"cosine in cells at {level.grid.side}"] = Number(
                float((level.cosines * sizes).sum() / sizes.sum()),
                "",
                f"picture to the mean of its square, {len(sizes)} of them with pictures",
            )
        made = [level for level in self.levels if level.synthetic is not None]
        for level in made:
            suffix = f" at {level.grid.side}" if len(made) > 1 else ""
            shown |= {name + suffix: number for name, number in _icon_numbers(level).items()}
        return shown

    def page(self) -> PageData:
        """What the page shows."""
        layout, store = self.layout, self.store
        how = "principal components (too few pictures for t-SNE)"
        if layout.divergence is not None:
            how = f"t-SNE ({layout.method}, perplexity {layout.perplexity:g})"
            how += f" on the neighbors in {store.layer}"
        return PageData(
            title=self.title,
            layer=store.layer,
            model=store.model_name,
            data=str(store.source["name"]),
            dim=store.dim,
            whole=len(store),
            method=f"Laid out by {how}.",
            recall={
                "this map": self.quality.recall,
                "principal components": self.pca_recall,
                "a random map": self.quality.recall_chance,
            },
            numbers=self.numbers(),
            warnings=self.warnings,
            base=self._base() if self.links else None,
            paths=self.paths,
            classes=self.classes,
            xy=layout.xy,
            neighbors=self.neighbors,
            distances=self.distances,
            kept=self.quality.kept,
            places={"map": self.lattice[0], "mosaic": self.mosaic[0]},
            thumbnails=self.thumbnails,
            levels=self.levels,
        )

    def _base(self) -> str | None:
        """The address of the pictures' folder, where they are files."""
        root = self.store.pictures.root
        if not root.exists() or archives.is_archive(root):
            return None
        return (root if root.is_dir() else root.parent).resolve().as_uri() + "/"

    def write(self, folder: results.Folder) -> None:
        (folder.path / "atlas.html").write_text(
            render_page(self.page()), encoding="utf-8", errors="backslashreplace"
        )
        folder.figure(
            "atlas.webp",
            self.map_picture(),
            caption="Every picture once, at the free place of a lattice nearest to its position "
            f"({self.layout.method}). Near pictures are similar to the network; distances between "
            "clusters mean little. atlas.html is the interactive map.",
            alt="Map of small pictures in clusters of similar content",
        )
        folder.figure(
            "mosaic.webp",
            self.mosaic_picture(),
            caption="The same map as a rectangle without gaps, every picture once.",
            alt="Dense mosaic of small pictures, similar ones side by side",
        )
        for level in self.levels:
            if level.synthetic is not None:
                side = level.grid.side
                folder.figure(
                    f"cells-{side}.webp",
                    self.cells_picture(level),
                    caption=f"The map cut into {side} x {side} squares. Left: the picture most "
                    "typical of each square. Right: the picture optimized for the mean of the "
                    f"square. {_match_text(level.synthetic)}",
                    alt="Two grids side by side, pictures and synthetic icons of the same cells",
                )
        page = self.plot()
        for file in ("print.png", "print.pdf"):
            folder.figure(
                file,
                page,
                caption="The map for print, with the largest classes framed in color and its "
                "quality. Axes of a t-SNE map have no scale.",
                alt="Map of small pictures with a legend of classes and a line of numbers",
            )
        folder.arrays(
            "layout.npz",
            {
                "xy": self.layout.xy.numpy(),
                "start": self.layout.start.numpy(),
                "rows": np.asarray(self.rows),
                "lattice": self.lattice[0].numpy(),
                "mosaic": self.mosaic[0].numpy(),
                "neighbors": self.neighbors.numpy(),
                "distances": self.distances.numpy(),
            },
            caption="Positions, principal components, places in lattice and mosaic, neighbors.",
        )

    def tables(self) -> Iterator[results.Table]:
        pictures = self.store.pictures
        places = self.lattice[0].tolist()
        recalls = self.quality.per_row.tolist()
        yield results.Table(
            "layout.csv",
            ("row", "path", "class", "x", "y", "lattice_column", "lattice_row", "recall"),
            [
                (
                    row,
                    pictures.paths[row],
                    pictures.folders[row],
                    round(x, 5),
                    round(y, 5),
                    *place,
                    round(recall, 2),
                )
                for row, (x, y), place, recall in zip(
                    self.rows, self.layout.xy.tolist(), places, recalls, strict=True
                )
            ],
            caption="The position of each picture (x to the right, y downwards, both in 0 to 1), "
            "and the fraction of its true neighbors that are near on the map.",
            parquet=True,
            more={
                "identifier": self.paths,
                "label": self.classes,
                # As Embedding Atlas reads them: positions in this table.
                "neighbors": [
                    {"ids": near, "distances": far}
                    for near, far in zip(
                        self.neighbors.tolist(), self.distances.tolist(), strict=True
                    )
                ],
            },
        )
        yield results.Table(
            "cells.csv",
            _CELL_COLUMNS,
            self._cell_rows(),
            caption="Every cell at every resolution: how many pictures, the row of its sample icon "
            "(its medoid), the mean cosine of its pictures to their mean, its largest classes with "
            "their fractions, the logits that its mean raises most above the mean logit, the "
            "cosine of its synthetic icon to its mean, and the cell whose mean is nearest to that "
            "icon.",
        )

    def _cell_rows(self) -> Iterator[tuple[Any, ...]]:
        for level in self.levels:
            made, cells = level.synthetic, level.grid.cells
            for number, cell in enumerate(cells):
                near = None
                if made is not None and made.nearest is not None:
                    near = cells[int(made.nearest[number])]
                yield (
                    level.grid.side,
                    cell.row,
                    cell.column,
                    len(cell.members),
                    self.rows[level.samples[number]],
                    round(float(level.cosines[number]), 4),
                    weighted_text(level.classes[number], ".3f"),
                    "" if level.effects is None else weighted_text(level.effects[number]),
                    "" if made is None else round(float(made.cosines[number]), 3),
                    *(("", "") if near is None else (near.row, near.column)),
                )

    def _repr_html_(self) -> str:
        """The page itself, where it is small enough for a notebook."""
        page = render_page(self.page())
        if len(page) > _LIVE:
            return super()._repr_html_()
        return (
            f'<iframe style="width:100%;height:640px;border:0" srcdoc="{html.escape(page)}">'
            "</iframe>"
        )

    def map_picture(self, width: int = 2000) -> Tensor:
        """Every picture at its place in the lattice, (4, H, W)."""
        return lattice_picture(self.thumbnails, self.lattice[0], width=width)

    def mosaic_picture(self, width: int = 1600) -> Tensor:
        """Every picture at its place in the mosaic, (4, H, W)."""
        return lattice_picture(self.thumbnails, self.mosaic[0], width=width)

    def cells_picture(self, level: Level, width: int = 1200) -> Tensor:
        """Sample icons, and synthetic icons at their right, in the places of the cells."""
        icons = [self.thumbnails[level.samples].float() / 255]
        if level.synthetic is not None:
            icons.append(level.synthetic.images)
        return cells_picture(level.grid, icons, width)

    def plot(self) -> Figure:
        counts = Counter(name for name in self.classes if name)
        order = sorted(counts, key=lambda name: (-counts[name], name))[:NAMED]
        named = [name for name in order if counts[name] > 1]
        colors = dict(zip(named, plotting.PALETTE, strict=False))
        frames = [colors.get(name) for name in self.classes]
        picture = lattice_picture(self.thumbnails, self.lattice[0], width=2100, frames=frames)
        return print_page(picture, self.title, self._print_text(), colors)

    def _print_text(self) -> str:
        """How the map was made and its quality, in a few sentences."""
        found, layout = self.quality, self.layout
        text = counted(len(self.rows), "picture")
        if len(self.rows) < len(self.store):
            text += f" (an even sample of {len(self.store):,})"
        if layout.divergence is None:
            text += ", laid out by principal components. "
        else:
            text += f", laid out by t-SNE ({layout.method}, perplexity {layout.perplexity:g}, "
            text += f"seed {layout.seed}, divergence {layout.divergence:.2f} nats). "
        text += (
            "Each is at the place of a lattice nearest to its position on the map. Of the "
            f"{found.k} nearest neighbors in {self.store.layer}, {found.recall:.0%} are among the "
            f"{found.k} nearest on the map (principal components {self.pca_recall:.0%}, "
            f"chance {found.recall_chance:.1%}); trustworthiness {found.trustworthiness:.3f}, "
            f"continuity {found.continuity:.3f}. "
        )
        if found.class_space is not None and found.class_map is not None:
            text += (
                f"The vote of the {found.k} nearest for the class is right for "
                f"{found.class_space:.0%} in the space, {found.class_map:.0%} on the map. "
            )
        return text + "Distances between clusters mean little; axes have no scale."


def _icon_numbers(level: Level) -> dict[str, Number]:
    icons = level.synthetic
    assert icons is not None
    shown = {"icons' cosine": Number(float(icons.cosines.mean()), "", "to their cells' means")}
    kinds = {"icons": icons.match, "samples": icons.samples, "shuffled icons": icons.shuffled}
    for name, match in kinds.items():
        if match is None:
            continue
        if name != "icons":
            shown[f"{name}' cosine"] = Number(match.cosine, "", "the same")
        shown[f"{name}' centered cosine"] = Number(
            match.centered, "", "after the mean of all data is subtracted"
        )
        shown[f"{name} in own cell"] = Number(
            match.own, "fraction", "are nearest to the mean of their own cell"
        )
        shown[f"{name} in or beside own cell"] = Number(
            match.near, "fraction", "or to that of one of the 8 around it"
        )
    return shown


def _match_text(icons: SyntheticIcons) -> str:
    """How well icons match their cells, in a few sentences."""
    text = f"Mean cosine to that mean: {icons.cosines.mean():.2f}"
    made, chance, real = icons.match, icons.shuffled, icons.samples
    if made is None or chance is None:
        return f"{text}."
    cosine = "" if real is None else f" (sample icons {real.centered:.2f})"
    own = "" if real is None else f" (sample icons {real.own:.0%})"
    return (
        f"{text}; after the mean of all data is subtracted {made.centered:.2f}{cosine}. "
        f"{made.own:.0%} of the icons are nearest to the mean of their own square{own}, "
        f"{made.near:.0%} to it or one of the 8 around it; by chance {chance.own:.1%} and "
        f"{chance.near:.1%}."
    )
