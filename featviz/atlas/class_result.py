"""The result of `build_class_atlas`: numbers, tables, figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from featviz import results
from featviz.atlas.figures import class_figure
from featviz.atlas.levels import Level, weighted_text
from featviz.results import Number
from featviz.statistics import rank_correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from featviz.atlas.result import Atlas


@dataclass(frozen=True, kw_only=True, repr=False)
class ClassAtlas(results.Result):
    """An atlas of the activations with the largest attribution to a class."""

    kind: ClassVar[str] = "atlas"

    atlas: Atlas
    """of the chosen rows; its first level has `side` squares and the icons"""
    target: int
    name: str
    """of the class"""
    attributions: Tensor
    """(N,) of each row to the class, in logits"""
    cell_attributions: Tensor
    """(cells,) of the mean of each cell of the first level"""
    in_class: Tensor
    """(N,) bool: whether a picture is labeled so"""
    icon_logits: Tensor | None
    """(cells,) the class's logit above the mean logit for each synthetic icon"""

    @property
    def title(self) -> str:
        return f"Class atlas of {self.name}: {self.atlas.store.title}"

    @property
    def level(self) -> Level:
        """The cells."""
        return self.atlas.levels[0]

    @property
    def class_fractions(self) -> list[float]:
        """Fraction of each cell that is labeled so."""
        own = self.in_class.double()
        return [float(own[list(cell.members)].mean()) for cell in self.level.grid.cells]

    def numbers(self) -> dict[str, Number]:
        shown = {
            "pictures": Number(len(self.attributions), "", "on the map"),
            "of the class": Number(
                float(self.in_class.double().mean()), "fraction", f"are labeled {self.name}"
            ),
            "attribution": Number(
                float(self.attributions.mean()),
                "logits",
                "of a picture to the class above the mean of all classes, mean over pictures",
            ),
            "positive cells": Number(
                float((self.cell_attributions > 0).double().mean()),
                "fraction",
                "of the cells raise its logit above the mean logit",
            ),
        }
        if self.icon_logits is not None and len(self.cell_attributions) > 2:
            shown["icon correlation"] = Number(
                rank_correlation(self.cell_attributions, self.icon_logits),
                "",
                "Spearman over cells: attribution of the mean, logit of the synthetic icon",
            )
        return shown | {k: n for k, n in self.atlas.numbers().items() if k != "pictures"}

    def write(self, folder: results.Folder) -> None:
        figure = self.plot()
        for file in ("class.svg", "class.pdf"):
            folder.figure(
                file,
                figure,
                caption="Left: the map cut into squares, each with its icon; the frame shows the "
                f"attribution of the square's mean to {self.name}: its effect on the logit, to "
                "first order, above the mean of all logits (green positive, purple negative). "
                "Right: the squares with the largest and the smallest attribution, with the "
                "picture most typical of each and the classes that it raises most.",
                alt="Grid of icons framed by their attribution, and a list of the strongest",
            )
        self.atlas.write(folder)

    def tables(self) -> Iterator[results.Table]:
        cells = self.level.grid.cells
        effects = self.level.effects or [()] * len(cells)
        yield results.Table(
            "class_cells.csv",
            ("row", "column", "pictures", "attribution", "of_class", "icon_logit", "effects"),
            [
                (
                    cell.row,
                    cell.column,
                    len(cell.members),
                    round(float(self.cell_attributions[number]), 4),
                    round(of_class, 3),
                    "" if self.icon_logits is None else round(float(self.icon_logits[number]), 3),
                    weighted_text(effects[number]),
                )
                for number, (cell, of_class) in enumerate(
                    zip(cells, self.class_fractions, strict=True)
                )
            ],
            caption="The attribution of each square to the class, above the mean of all classes, "
            "in logits; the fraction labeled so; the logit of its icon above the mean logit.",
        )
        store = self.atlas.store
        positions = [("", "")] * len(store) if store.positions is None else store.positions.tolist()
        yield results.Table(
            "class_rows.csv",
            ("path", "class", "attribution", "map_row", "map_column"),
            [
                (store.pictures.paths[row], store.labels[row], round(value, 4), *positions[row])
                for row, value in zip(self.atlas.rows, self.attributions.tolist(), strict=True)
            ],
            caption="The attribution of each picture to the class, and the position of the "
            "layer's map that it was read at, where it has one.",
        )
        yield from self.atlas.tables()

    def plot(self) -> Figure:
        return class_figure(
            self.title,
            self.name,
            self.level,
            self.atlas.thumbnails[self.level.samples].float() / 255,
            self.cell_attributions,
            self.class_fractions,
        )
