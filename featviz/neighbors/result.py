"""What `find_neighbors` gives: rows, distances, how good they are, and sheets of pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from featviz import images, plotting, results
from featviz.embedding.store import Store
from featviz.errors import BadPicture
from featviz.neighbors.exact import Metric
from featviz.neighbors.quality import DUPLICATE, Oddities, Quality
from featviz.neighbors.queries import Query

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    """who searched: "torch", "faiss", or an approximate index, "faiss ivf" ..."""
    recall: float | None = None
    """of an approximate index: share of the true 10 nearest that it finds; None: exact"""

    @property
    def title(self) -> str:
        return f"Nearest neighbours in {self.space}"

    @property
    def k(self) -> int:
        """How many neighbours each query has."""
        return self.rows.shape[1]

    def numbers(self) -> dict[str, results.Number]:
        shown = {}
        if self.quality is not None:
            found = self.quality
            for k, value in found.precision.items():
                meaning = f"of the {k} nearest are of the row's own class"
                if k == 1:
                    meaning = "of the rows have a nearest neighbour of their own class"
                shown[f"precision@{k}"] = results.Number(value, "fraction", meaning)
            k = max(found.shuffled)
            shown["chance"] = results.Number(
                found.shuffled[k], "fraction", f"precision@{k} with the classes shuffled"
            )
            shown["mAP"] = results.Number(
                found.average_precision,
                "fraction",
                "mean average precision of the whole ranking, over rows; with the classes "
                f"shuffled {found.average_precision_shuffled:.3f}",
            )
            shown["judged rows"] = results.Number(
                found.rows, "", f"rows whose class has others; {found.classes} classes"
            )
        if self.recall is not None:
            shown["recall@10"] = results.Number(
                self.recall, "fraction", f"of the true 10 nearest are found by {self.backend}"
            )
        if self.oddities is not None:
            odd = self.oddities
            row, times = odd.hubs[0]
            shown["largest hub"] = results.Number(
                times, "", f"of {odd.rows} rows have row {row} among their {odd.k} nearest"
            )
            shown["hubness"] = results.Number(
                round(odd.skewness, 3), "", "skewness of how often a row is a neighbour; 0 is even"
            )
            shown["near-duplicates"] = results.Number(
                len(odd.duplicates), "", f"pairs within a cosine distance of {DUPLICATE}"
            )
        shown["mean distance"] = results.Number(
            float(self.distances[:, 0].mean()), "", f"{_UNIT[self.metric]}, query to nearest"
        )
        shown["rows"] = results.Number(len(self.labels), "", "searched")
        return shown

    def write(self, folder: results.Folder) -> None:
        folder.table(
            "neighbors.csv",
            ("query", "query_class", "rank", "row", "path", "class", "distance", "same_class"),
            self._lines(),
            caption=f"Every neighbour; distance is {_UNIT[self.metric]}.",
        )
        folder.arrays(
            "neighbors.npz",
            {"rows": self.rows.numpy(), "distances": self.distances.numpy()},
            caption="Rows and distances of the neighbours, (queries, k).",
        )
        if self.store is None:
            folder.warn("no pictures belong to this matrix, so there is no sheet")
        else:
            for start in range(0, len(self.queries), _SHEET_ROWS):
                part = range(start, min(start + _SHEET_ROWS, len(self.queries)))
                try:
                    sheet = self.sheet(part)
                except BadPicture as error:
                    folder.warn(f"the sheet is left out, a picture is not there any more: {error}")
                    break
                names = ", ".join(self.queries[i].name for i in part)
                folder.figure(
                    f"sheet-{start // _SHEET_ROWS}.jpg",
                    sheet,
                    caption="At the left the query, then its neighbours, nearest first, with "
                    f"{_UNIT[self.metric]}. Filled green dot and frame: of the query's class; "
                    "open dot: of another class.",
                    alt=f"Rows of photographs: {names} and their {self.k} nearest neighbours",
                )
        if self.oddities is not None:
            self._write_oddities(folder, self.oddities)
        if self.quality is not None:
            folder.table(
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
            folder.figure(
                "precision.svg",
                self._precision_plot(),
                caption="Share of the k nearest that are of the row's own class, and the same "
                "with the classes shuffled.",
                alt="Line plot of precision against k",
            )

    def _write_oddities(self, folder: results.Folder, odd: Oddities) -> None:
        folder.table(
            "hubs.csv",
            ("row", "path", "class", "times"),
            [(row, self._path(row), self.labels[row], times) for row, times in odd.hubs],
            caption=f"Rows that most often are among the {odd.k} nearest of {odd.rows} rows.",
        )
        if odd.duplicates:
            folder.table(
                "duplicates.csv",
                ("row", "path", "other_row", "other_path", "distance"),
                [
                    (a, self._path(a), b, self._path(b), f"{distance:.6g}")
                    for a, b, distance in odd.duplicates
                ],
                caption=f"Pairs within a cosine distance of {DUPLICATE}, nearest first.",
            )

    def _path(self, row: int) -> str:
        return self.store.pictures.paths[row] if self.store is not None else ""

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
                lines.append(
                    (query.name, query.label, rank, row, path, label, f"{distance:.6g}", same)
                )
        return lines

    def plot(self) -> Figure:
        if self.store is None:
            return self._distance_plot()
        return self.sheet(range(min(_SHEET_ROWS, len(self.queries))))

    def sheet(self, which: Sequence[int], *, inches: float = 1.1, most: int = 10) -> Figure:
        """Pictures of some queries and their first `most` neighbours. Raises BadPicture."""
        assert self.store is not None
        columns = min(self.k, most)
        figure = plotting.new_figure((columns + 1.3) * inches * 1.04, len(which) * inches * 1.36)
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(-0.06, columns * 1.05 + 1.24)
        ax.set_ylim(len(which) * 1.38 - 0.02, -0.06)
        ax.axis("off")
        for line, number in enumerate(which):
            query = self.queries[number]
            top = line * 1.38
            head = query.name if query.members else "query"
            name = self._name(query.label) or query.name
            if query.parts:
                head, name = _two_lines(query)
            picture = self._query_picture(query)
            self._draw(figure, (0.0, top), picture, name, head, None, _signs(query))
            for rank in range(columns):
                row = int(self.rows[number, rank])
                if row < 0:
                    continue
                label = self.labels[row]
                same = label == query.label if label and query.label else None
                self._draw(
                    figure,
                    (1.2 + 1.05 * rank, top),
                    _thumbnail(self.store, row),
                    self._name(label),
                    f"{float(self.distances[number, rank]):.2f}",
                    same,
                )
        return figure

    def _draw(
        self,
        figure: Figure,
        corner: tuple[float, float],
        picture: Tensor | None,
        name: str,
        text: str,
        same: bool | None,
        signs: Sequence[str] = (),
    ) -> None:
        """One picture of a sheet with two lines of text below; `same` draws its mark.

        `signs` are those of the parts of a sum, which are drawn in rows of two.
        """
        from matplotlib.patches import Rectangle

        ax = figure.axes[0]
        x, y = corner
        if picture is not None:
            ax.imshow(
                picture.permute(1, 2, 0).numpy(),
                extent=(x, x + 1, y + 1, y),
                interpolation="antialiased",
                aspect="auto",
            )
            edge = plotting.GREEN if same else "#bbbbbb"
            width = 2.2 if same else 0.5
            ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=edge, linewidth=width))
        else:
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor="#f2f2f2", edgecolor="#bbbbbb"))
            ax.text(x + 0.5, y + 0.5, "vector", ha="center", va="center", color="#666666")
        for i, sign in enumerate(signs):
            ax.text(
                x + 0.03 + 0.5 * (i % 2),
                y + 0.03 + 0.5 * (i // 2),
                "+" if sign == "+" else "−",
                fontsize=7,
                ha="left",
                va="top",
                weight="bold",
                color="white",
                bbox={
                    "boxstyle": "square,pad=0.12",
                    "linewidth": 0,
                    "facecolor": plotting.GREEN if sign == "+" else plotting.RED,
                },
            )
        if same is not None:
            ax.plot(
                x + 0.045,
                y + 1.10,
                "o",
                markersize=4.5,
                markeredgewidth=0.9,
                color=plotting.GREEN if same else "#888888",
                markerfacecolor=plotting.GREEN if same else "white",
            )
        bold = "bold" if x == 0 else "normal"
        shift = 0.11 if same is not None else 0.0
        ax.text(x + shift, y + 1.10, text, fontsize=7, va="center", color=plotting.INK, weight=bold)
        ax.text(x, y + 1.24, _shorten(name), fontsize=6.2, va="center", color="#555555")

    def _query_picture(self, query: Query) -> Tensor | None:
        return self._pictured(query, _THUMBNAIL)

    def _pictured(self, query: Query, side: int) -> Tensor | None:
        assert self.store is not None
        if query.row is not None:
            return self.store.pictures.read(query.row, side)
        if query.file is not None:
            return images.read_square(query.file, side)
        if query.members:  # four of them stand for their mean
            step = max(1, len(query.members) // 4)
            some = query.members[::step][:4]
            small = [self.store.pictures.read(row, side // 2) for row in some]
        else:  # the first four terms of a sum
            terms = [self._pictured(part, side // 2) for _, part in query.parts[:4]]
            small = [term for term in terms if term is not None]
        if not small:
            return None
        small += [torch.full_like(small[0], 0.95)] * (-len(small) % 2)
        sheet = images.contact_sheet(torch.stack(small), columns=2, gap=0)
        filled = torch.full((3, 2 * (side // 2), 2 * (side // 2)), 0.95)
        filled[:, : sheet.shape[1], : sheet.shape[2]] = sheet
        return filled

    def _name(self, label: str) -> str:
        return label if self.store is None else self.store.class_names.get(label, label)

    def _distance_plot(self) -> Figure:
        figure = plotting.new_figure(5, 3)
        ax = figure.subplots()
        ranks = np.arange(1, self.k + 1)
        for line in self.distances[:50].numpy():
            ax.plot(ranks, line, color=plotting.BLUE, alpha=0.4, linewidth=1)
        plotting.lines(ax, xlabel="rank", ylabel=_UNIT[self.metric])
        return figure

    def _precision_plot(self) -> Figure:
        assert self.quality is not None
        figure = plotting.new_figure(4.2, 2.8)
        ax = figure.subplots()
        for values, colour, name in (
            (self.quality.precision, plotting.BLUE, "this space"),
            (self.quality.shuffled, "#888888", "classes shuffled"),
        ):
            ks = sorted(values)
            ax.plot(ks, [100 * values[k] for k in ks], "o-", color=colour, label=name, markersize=4)
        ax.set_ylim(0, 100)
        ax.set_xticks(sorted(self.quality.precision))
        ax.legend(fontsize=8, frameon=False)
        plotting.lines(ax, xlabel="k nearest", ylabel="of the same class (%)")
        return figure


_UNIT = {"cosine": "cosine distance (0 same direction, 1 orthogonal)", "l2": "Euclidean distance"}
_SHEET_ROWS = 8
_THUMBNAIL = 160


def _signs(query: Query) -> list[str]:
    """Of the parts of a sum that its picture shows."""
    return [sign for sign, _ in query.parts[:4]]


def _two_lines(query: Query) -> tuple[str, str]:
    """A sum as it is written, in two lines below its picture."""
    words = query.name.replace("class:", "").replace(" - ", " − ")
    first, *more = textwrap.wrap(words, 18)
    return first, " ".join(more)


def _thumbnail(store: Store, row: int) -> Tensor:
    return store.pictures.read(row, _THUMBNAIL)


def _shorten(text: str, most: int = 19) -> str:
    text = text.replace("_", " ")
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
