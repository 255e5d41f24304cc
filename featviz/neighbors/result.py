"""`Neighbors`: the nearest rows of some queries, and how well neighbors share a class."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.embedding.store import Store
from featviz.errors import BadPicture, visible
from featviz.neighbors.exact import Metric
from featviz.neighbors.figures import Cell, draw_distances, draw_precision, draw_sheet
from featviz.neighbors.quality import DUPLICATE, Oddities, Quality
from featviz.neighbors.queries import Query
from featviz.pictures import images
from featviz.pictures.preprocessing import Preprocessing
from featviz.statistics import share
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNIT = {"cosine": "cosine distance (0 same direction, 1 orthogonal)", "l2": "Euclidean distance"}
_SHEET_ROWS, _SHEET_COLUMNS = 8, 10
_THUMBNAIL = 160


@dataclass(frozen=True, kw_only=True, repr=False)
class Neighbors(results.Result):
    """The nearest rows of some queries."""

    kind: ClassVar[str] = "neighbors"

    queries: tuple[Query, ...]
    rows: Tensor
    """(Q, k) int64, nearest first"""
    distances: Tensor
    """(Q, k) float64"""
    metric: Metric
    space: str
    """what was searched, in words"""
    labels: tuple[str, ...]
    """the class folder of every row that was searched, "" where there is none"""
    quality: Quality | None = None
    oddities: Oddities | None = None
    store: Store | None = None
    backend: str = "torch"
    """what searched: "torch", "faiss", or an approximate index, "faiss ivf" ..."""
    recall: float | None = None
    """of an approximate index: share of the true 10 nearest that it finds; None: exact"""
    recall_rows: int = 0
    """rows over which that was measured"""

    @property
    def title(self) -> str:
        return f"Nearest neighbors in {self.space}"

    @property
    def k(self) -> int:
        """How many neighbors each query has."""
        return self.rows.shape[1]

    def numbers(self) -> dict[str, results.Number]:
        shown: dict[str, results.Number] = {}
        if self.quality is not None:
            shown |= _quality_numbers(self.quality)
        if self.recall is not None:
            meaning = f"of the true 10 nearest are found by {self.backend}"
            shown["recall@10"] = _fraction(self.recall, self.recall_rows, meaning)
        if self.oddities is not None:
            shown |= _oddity_numbers(self.oddities)
        shown["mean distance"] = results.Number(
            float(self.distances[:, 0].mean()), "", f"{_UNIT[self.metric]}, query to nearest"
        )
        shown["rows"] = results.Number(len(self.labels), "", "searched")
        return shown

    def write(self, folder: results.Folder) -> None:
        folder.arrays(
            "neighbors.npz",
            {"rows": self.rows.numpy(), "distances": self.distances.numpy()},
            caption="Rows and distances of the neighbors, (queries, k).",
        )
        if self.store is None:
            folder.warn("no pictures belong to this matrix, so there is no sheet")
        else:
            for start in range(0, len(self.queries), _SHEET_ROWS):
                part = range(start, min(start + _SHEET_ROWS, len(self.queries)))
                try:
                    sheet = self.sheet(part)
                except BadPicture as error:
                    folder.warn(f"the sheet is left out, a picture is missing: {error}")
                    break
                names = ", ".join(self.queries[i].name for i in part)
                folder.figure(
                    f"sheet-{start // _SHEET_ROWS}.svg",
                    sheet,
                    caption="At the left the query, then its neighbors, nearest first, with "
                    f"{_UNIT[self.metric]}. Filled green dot and frame: of the query's class; "
                    "open dot: of another class.",
                    alt=f"Rows of pictures: {names} and {counted(self.k, 'nearest neighbor')}",
                )
        if self.quality is not None:
            folder.figure(
                "precision.svg",
                draw_precision(self.quality.precision, self.quality.shuffled),
                caption="Share of the k nearest that are of the row's own class, and the same "
                "with the classes shuffled.",
                alt="Line plot of precision against k",
            )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "neighbors.csv",
            ("query", "query_class", "rank", "row", "path", "class", "distance", "same_class"),
            self._lines(),
            caption=f"Every neighbor; distance is {_UNIT[self.metric]}.",
            parquet=True,
        )
        if self.oddities is not None:
            yield from self._oddities_tables(self.oddities)
        if self.quality is not None:
            yield results.Table(
                "classes.csv",
                ("class", "name", "rows", "precision", "average_precision"),
                [
                    (label, self._name(label), rows, round(share, 5), round(average, 5))
                    for label, (rows, share, average) in sorted(
                        self.quality.by_class.items(), key=lambda item: -item[1][1]
                    )
                ],
                caption=f"Precision@{self.quality.k} and mean average precision by class.",
            )

    def _oddities_tables(self, odd: Oddities) -> Iterator[results.Table]:
        yield results.Table(
            "hubs.csv",
            ("row", "path", "class", "times"),
            [(row, self._path(row), self.labels[row], times) for row, times in odd.hubs],
            caption=f"Rows that most often are among the {odd.k} nearest of {odd.rows} rows.",
        )
        if odd.duplicates:
            yield results.Table(
                "duplicates.csv",
                ("row", "path", "other_row", "other_path", "distance"),
                [
                    (a, self._path(a), b, self._path(b), results.significant(distance))
                    for a, b, distance in odd.duplicates
                ],
                caption=f"Pairs within a cosine distance of {DUPLICATE}, nearest first.",
            )

    def _path(self, row: int) -> str:
        return visible(self.store.pictures.paths[row]) if self.store is not None else ""

    def _lines(self) -> list[tuple[Any, ...]]:
        lines = []
        for query, rows, distances in zip(self.queries, self.rows, self.distances, strict=True):
            for rank, (row, distance) in enumerate(
                zip(rows.tolist(), distances.tolist(), strict=True), start=1
            ):
                if row < 0:  # an approximate index found no more
                    continue
                label, path = self.labels[row], self._path(row)
                same = int(label == query.label) if label and query.label else ""
                away = results.significant(distance)
                lines.append((query.name, query.label, rank, row, path, label, away, same))
        return lines

    def plot(self) -> Figure:
        if self.store is None:
            return draw_distances(self.distances[:50], unit=_UNIT[self.metric])
        return self.sheet(range(min(_SHEET_ROWS, len(self.queries))))

    def sheet(self, which: Sequence[int]) -> Figure:
        """Pictures of some queries and their first 10 neighbors. Raises BadPicture."""
        lines: list[list[Cell | None]] = []
        for number in which:
            query = self.queries[number]
            cells = [
                self._cell(query, int(row), float(distance))
                for row, distance in zip(
                    self.rows[number, :_SHEET_COLUMNS],
                    self.distances[number, :_SHEET_COLUMNS],
                    strict=True,
                )
            ]
            lines.append([self._query_cell(query), *cells])
        return draw_sheet(lines)

    def _query_cell(self, query: Query) -> Cell:
        text = query.name if query.members else "query"
        name = self._name(query.label) or query.name
        if query.parts:  # the sum as it is written, in two lines
            words = query.name.replace("class:", "").replace(" - ", " − ")
            text, *more = textwrap.wrap(words, 18)
            name = " ".join(more)
        signs = tuple(sign for sign, _ in query.parts[:4])
        return Cell(self._picture(query, _THUMBNAIL), text, name, signs=signs)

    def _cell(self, query: Query, row: int, distance: float) -> Cell | None:
        assert self.store is not None
        if row < 0:  # an approximate index found no more
            return None
        label = self.labels[row]
        same = label == query.label if label and query.label else None
        picture = self.store.pictures.shown(row, _THUMBNAIL)
        return Cell(picture, f"{distance:.2f}", self._name(label), same)

    def _picture(self, query: Query, side: int) -> Tensor | None:
        assert self.store is not None
        if query.row is not None:
            return self.store.pictures.shown(query.row, side)
        if query.file is not None:
            return images.read_picture(query.file, Preprocessing.of(side))
        if query.members:  # four of them represent their mean
            step = max(1, len(query.members) // 4)
            some = query.members[::step][:4]
            small = [self.store.pictures.shown(row, side // 2) for row in some]
        else:  # the first four terms of a sum
            terms = [self._picture(part, side // 2) for _, part in query.parts[:4]]
            small = [term for term in terms if term is not None]
        if not small:
            return None
        small += [torch.full_like(small[0], 0.95)] * (-len(small) % 2)
        sheet = images.contact_sheet(torch.stack(small), columns=2, gap=0)
        filled = torch.full((3, 2 * (side // 2), 2 * (side // 2)), 0.95)
        filled[:, : sheet.shape[1], : sheet.shape[2]] = sheet
        return filled

    def _name(self, label: str) -> str:
        return visible(label if self.store is None else self.store.class_names.get(label, label))


def _quality_numbers(found: Quality) -> dict[str, results.Number]:
    shown = {}
    for k, value in found.precision.items():
        meaning = f"of the {k} nearest are of the row's own class"
        if k == 1:
            meaning = "of the rows have a nearest neighbor of their own class"
        shown[f"precision@{k}"] = _fraction(value, found.rows, meaning)
    k = max(found.shuffled)
    meaning = f"precision@{k} with the classes shuffled"
    shown["chance"] = results.Number(found.shuffled[k], "fraction", meaning)
    shown["mAP"] = _fraction(
        found.average_precision,
        found.ranked,
        "mean average precision of the whole ranking, over rows; with the classes shuffled "
        f"{found.average_precision_shuffled:.3f}",
    )
    meaning = f"rows whose class has others; {found.classes} classes"
    return shown | {"precision rows": results.Number(found.rows, "", meaning)}


def _oddity_numbers(odd: Oddities) -> dict[str, results.Number]:
    row, times = odd.hubs[0]
    return {
        "largest hub": results.Number(
            times, "", f"of {odd.rows} rows have row {row} among their {odd.k} nearest"
        ),
        "hubness": results.Number(
            round(odd.skewness, 3), "", "skewness of how often a row is a neighbor; 0 is even"
        ),
        "near-duplicates": results.Number(
            len(odd.duplicates), "", f"pairs within a cosine distance of {DUPLICATE}"
        ),
    }


def _fraction(value: float, n: int, meaning: str) -> results.Number:
    """A mean of n values in [0, 1] with Wilson's interval: no variance exceeds that of a share."""
    _, _, low, high = share(value * n, n)
    return results.Number(value, "fraction", meaning, low, high, n)
