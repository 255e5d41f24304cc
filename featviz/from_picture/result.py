"""What `invert`, `caricature`, `deepdream` and `accentuate` return: photographs drawn again.

A photograph stands first in its row; then come the pictures made from it, a column for each layer
or unit, and a row for each try. Each picture has its numbers, taken of what a PNG holds, without
transforms, in float32.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import films, images, plotting, results
from featviz.maximization.result import file_stem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

# Pictures of smaller sides are enlarged for display, every pixel to a block.
_SHOWN = 128


@dataclass(frozen=True)
class Measure:
    """What a number of each picture means, and how it is written below it."""

    meaning: str
    unit: str = ""
    label: str = ""
    """below a picture, as in "{:.2f} away"; "" leaves it to the table"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Redrawn(results.Result):
    """Photographs, and the pictures that were made from each."""

    measures: ClassVar[dict[str, Measure]]

    model_name: str
    names: tuple[str, ...]
    """(P,): of the photographs, for people and for files"""
    columns: tuple[str, ...]
    """(K,): the layers or units that the pictures are of, as people read them"""
    units: tuple[str, ...]
    """(K,): the same as "conv5:12" where they are units, else empty"""
    given: Tensor
    """(P, 3, H, W): the photographs as the model sees them"""
    images: Tensor
    """(P, K, T, 3, H, W) float32 in [0, 1], rounded to 8 bits: what a PNG holds"""
    measured: dict[str, Tensor]
    """name to (P, K, T); NaN where a number does not exist"""
    trace: Tensor
    """(P, K, T, steps): the score at each step, transforms and all"""
    frames: Tensor
    """(P, K, T, F, 3, H, W) uint8: stages of the ascent; empty without `film`"""
    film: str = "gif"

    @property
    def of_what(self) -> str:
        """What the photographs are called in a title."""
        return _short(self.names[0], 40) if len(self.names) == 1 else "photographs"

    @property
    def tries(self) -> int:
        """Pictures made from one photograph for one column."""
        return self.images.shape[2]

    def numbers(self) -> dict[str, results.Number]:
        out = {}
        share = self.kept_share()
        if share is not None:
            count = self.measured["class rank"].numel()
            out["class kept"] = results.Number(
                share, "fraction", f"of {count} pictures are answered with their photograph's class"
            )
        for k, column in enumerate(self.columns):
            for name, measure in self.measures.items():
                if name in self.measured and measure.label:
                    value = _median(self.measured[name][:, k])
                    out[f"{name}, {column}"] = results.Number(value, measure.unit, measure.meaning)
        for name, measure in self.measures.items():
            if name in self.measured and not measure.label:
                value = _median(self.measured[name])
                out[name] = results.Number(
                    value, measure.unit, f"{measure.meaning}; median of all pictures"
                )
        return out

    def kept_share(self) -> float | None:
        """How many of the pictures get the same answer as their photograph; None without logits."""
        ranks = self.measured.get("class rank")
        if ranks is None or not bool(ranks.isfinite().any()):
            return None
        return round((ranks == 1).double().mean().item(), 4)

    @abstractmethod
    def caption(self) -> str:
        """What the sheet shows, for its caption."""

    def words(self, p: int, k: int, t: int) -> str:
        """One picture's numbers in a line: "0.16 away, class rank 1"."""
        parts = []
        for name, measure in self.measures.items():
            value = float(self.measured[name][p, k, t]) if name in self.measured else float("nan")
            if measure.label and math.isfinite(value):
                parts.append(measure.label.format(value))
        return ", ".join(parts)

    def write(self, folder: results.Folder) -> None:
        listed = ", ".join(self.names[:6]) + (" ..." if len(self.names) > 6 else "")
        folder.figure(
            f"{self.kind}.png",
            self.plot(),
            caption=self.caption(),
            alt=f"{self.title}: {listed}; columns {', '.join(self.columns)}",
        )
        pixelated = _factor(self.given) > 1
        stems = _distinct([file_stem(name.rpartition("/")[2]) for name in self.names])
        for p, (name, stem) in enumerate(zip(self.names, stems, strict=True)):
            folder.figure(
                f"pictures/{stem}.png",
                self.given[p],
                caption=f"{name} as {self.model_name} sees it.",
                alt=name,
                pixelated=pixelated,
            )
            for k, column in enumerate(self.columns):
                units = [self.units[k]] if self.units else []
                for t in range(self.tries):
                    number = f"-{t + 1}" if self.tries > 1 else ""
                    file = f"{stem}-{file_stem(self.units[k] if self.units else column)}{number}"
                    folder.figure(
                        f"pictures/{file}.png",
                        self.images[p, k, t],
                        caption=f"{name}, {column}: {self.words(p, k, t)}.",
                        alt=f"{name} drawn again from {column}",
                        units=units,
                        pixelated=pixelated,
                    )
                    if self.frames.numel():
                        films.add_film(
                            folder,
                            f"films/{file}",
                            self.frames[p, k, t],
                            kind=self.film,
                            caption=f"{name}, {column}, in {self.frames.shape[3]} stages.",
                            alt=f"Film: {name} drawn again from {column}",
                            units=units,
                        )
        known = [name for name in self.measures if name in self.measured]
        folder.table(
            "pictures.csv",
            ("picture", "column", "try", *known),
            [
                (name, column, t + 1, *(_cell(self.measured[key][p, k, t]) for key in known))
                for p, name in enumerate(self.names)
                for k, column in enumerate(self.columns)
                for t in range(self.tries)
            ],
            caption="Each picture's numbers.",
        )
        folder.arrays(
            f"{self.kind}.npz",
            {
                "given": images.to_uint8(self.given).numpy(),
                "images": images.to_uint8(self.images).numpy(),
                "trace": self.trace.numpy(),
                **{name.replace(" ", "_"): self.measured[name].numpy() for name in known},
            },
            caption="Photographs (P, 3, H, W) and pictures (P, columns, tries, 3, H, W) as 8-bit "
            "values, the score at each step, and the numbers of pictures.csv.",
        )

    def plot(self) -> Figure:
        """A row a photograph and try; the photograph, then a column each."""
        rows = [(p, t) for p in range(len(self.names)) for t in range(self.tries)][:24]
        height, width = self.given.shape[-2:]
        gap, top, below = 0.07, 0.62, 0.3
        wide = min(1.75, max(1.2, 13.0 / (len(self.columns) + 1)))
        high = wide * height / width
        page = plotting.Page(
            0.1 + (len(self.columns) + 1) * (wide + gap) + 0.05,
            top + len(rows) * (high + below) + 0.02,
        )
        size = plotting.fitting(self.title, page.width - 0.2)
        page.text(0.1, 0.2, self.title, fontsize=size, weight="bold")
        pixelated = _factor(self.given) > 1
        for k, column in enumerate(("photograph", *self.columns)):
            page.text(
                0.1 + k * (wide + gap) + wide / 2,
                top - 0.12,
                column,
                ha="center",
                weight="bold",
                fontsize=plotting.fitting(column, wide, 9.0),
            )
        for row, (p, t) in enumerate(rows):
            y = top + row * (high + below)
            if t == 0:
                plotting.show_image(
                    page.axes(0.1, y, wide, high), self.given[p], pixelated=pixelated
                )
                page.text(
                    0.1 + wide / 2,
                    y + high + 0.1,
                    _short(self.names[p], 26),
                    fontsize=7,
                    ha="center",
                    color="#555555",
                )
            for k in range(len(self.columns)):
                x = 0.1 + (k + 1) * (wide + gap)
                plotting.show_image(
                    page.axes(x, y, wide, high), self.images[p, k, t], pixelated=pixelated
                )
                page.text(
                    x + wide / 2,
                    y + high + 0.1,
                    self.words(p, k, t),
                    fontsize=7,
                    ha="center",
                    color="#555555",
                )
        return page.figure


def _median(values: Tensor) -> float | None:
    finite = values[values.isfinite()].double()
    return round(torch.quantile(finite, 0.5).item(), 5) if len(finite) else None


def _cell(value: Tensor) -> str:
    return f"{float(value):.6g}" if bool(value.isfinite()) else ""


def _factor(pictures: Tensor) -> int:
    side = max(pictures.shape[-2:])
    return max(1, _SHOWN // side) if side < 0.75 * _SHOWN else 1


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else "..." + name[3 - most :]


def _distinct(stems: Sequence[str]) -> list[str]:
    """The stems, numbered where two would be the same file."""
    return [f"{stem}-{i + 1}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]
