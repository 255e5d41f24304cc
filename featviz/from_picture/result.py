"""What `invert`, `caricature`, `deepdream` and `accentuate` return: pictures drawn again.

Each row begins with a given picture; then come the pictures made from it, a column for each layer
or unit, and a row for each restart. The numbers of a picture are measured of what a PNG holds,
without transforms, in float32.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.from_picture.figures import draw_rows
from featviz.pictures import films, images
from featviz.results import file_stem
from featviz.statistics import middle
from featviz.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

# Pictures of smaller sides are enlarged for display, every pixel to a block.
_SHOWN = 128


@dataclass(frozen=True)
class Measure:
    """What a number of each picture means, and how it is written below it."""

    meaning: str
    unit: str = ""
    label: str = ""
    """below a picture, as in "distance {:.2f}"; "" leaves it to the table"""


_RANK = Measure("of the given picture's predicted class in the logits; 1: the same prediction")
_PIXELS = Measure("root mean square of the pixels' differences from the given picture, of 1")


@dataclass(frozen=True, kw_only=True, repr=False)
class Redrawn(results.Result):
    """Given pictures, and those that were made from each."""

    measures: ClassVar[dict[str, Measure]]

    model_name: str
    names: tuple[str, ...]
    """(P,): of the given pictures, for people and for files"""
    columns: tuple[str, ...]
    """(K,): the layers or units that the pictures are made from, as people read them"""
    units: tuple[str, ...]
    """(K,): the same as "conv5:12" where they are units, else empty"""
    originals: Tensor
    """(P, 3, H, W): the given pictures as the model sees them"""
    images: Tensor
    """(P, K, T, 3, H, W) float32 in [0, 1], rounded to 8 bits: what a PNG holds"""
    measured: dict[str, Tensor]
    """name to (P, K, T); NaN where a number does not exist"""
    trace: Tensor
    """(P, K, T, steps): the score at each step, with its transforms"""
    frames: Tensor
    """(P, K, T, F, 3, H, W) uint8: stages of the optimization"""
    film: str = "gif"
    """how they are saved"""

    @property
    def source(self) -> str:
        """What the given pictures are called in a title."""
        return (
            _short(self.names[0], 40)
            if len(self.names) == 1
            else counted(len(self.names), "picture")
        )

    @property
    def restarts(self) -> int:
        """Pictures made from one given picture for one column."""
        return self.images.shape[2]

    def numbers(self) -> dict[str, results.Number]:
        out = {}
        ranks = self.measured["class rank"]
        if bool(ranks.isfinite().any()):
            share = round((ranks == 1).double().mean().item(), 4)
            meaning = (
                f"of {counted(ranks.numel(), 'picture')}: the prediction is that of the given one"
            )
            out["class kept"] = results.Number(share, "fraction", meaning)
        labelled = {name: one for name, one in self.measures.items() if one.label}
        for k, column in enumerate(self.columns):
            for name, measure in labelled.items():
                value = middle(self.measured[name][:, k])
                out[f"{name}, {column}"] = results.Number(value, measure.unit, measure.meaning)
        for name, measure in self.measures.items():
            if name in labelled:
                continue
            meaning = f"{measure.meaning}; median of all pictures"
            out[name] = results.Number(middle(self.measured[name]), measure.unit, meaning)
        return out

    @abstractmethod
    def caption(self) -> str:
        """What the sheet shows, for its caption."""

    def label(self, p: int, k: int, t: int) -> str:
        """One picture's numbers in a line: "distance 0.16, others 1.02"."""
        values = {name: float(self.measured[name][p, k, t]) for name in self.measures}
        parts = [m.label.format(values[n]) for n, m in self.measures.items() if m.label]
        return ", ".join(part for part in parts if "nan" not in part)

    def write(self, folder: results.Folder) -> None:
        listed = ", ".join(self.names[:6]) + (" ..." if len(self.names) > 6 else "")
        folder.figure(
            f"{self.kind}.svg",
            self.plot(),
            caption=self.caption(),
            alt=f"{self.title}: {listed}; columns {', '.join(self.columns)}",
        )
        stems = _distinct([file_stem(name.rpartition("/")[2]) for name in self.names])
        for p, (name, stem) in enumerate(zip(self.names, stems, strict=True)):
            folder.figure(
                f"pictures/{stem}.png",
                self.originals[p],
                caption=f"{name} as {self.model_name} sees it.",
                alt=name,
                pixelated=self._pixelated,
            )
            for k in range(len(self.columns)):
                for t in range(self.restarts):
                    self._write_picture(folder, stem, p, k, t)
        folder.arrays(
            f"{self.kind}.npz",
            {
                "given": images.to_uint8(self.originals).numpy(),
                "images": images.to_uint8(self.images).numpy(),
                "trace": self.trace.numpy(),
                **{name.replace(" ", "_"): self.measured[name].numpy() for name in self.measures},
            },
            caption="Given pictures (P, 3, H, W) and those made from them (P, columns, restarts, "
            "3, H, W) as 8-bit values, the score at each step, and the numbers of pictures.csv.",
        )

    def tables(self) -> Iterator[results.Table]:
        measured = [self.measured[name] for name in self.measures]
        yield results.Table(
            "pictures.csv",
            ("picture", "column", "restart", *self.measures),
            [
                (name, column, t + 1, *(results.significant(m[p, k, t]) for m in measured))
                for p, name in enumerate(self.names)
                for k, column in enumerate(self.columns)
                for t in range(self.restarts)
            ],
            caption="Each picture's numbers.",
        )

    def _write_picture(self, folder: results.Folder, stem: str, p: int, k: int, t: int) -> None:
        name, column = self.names[p], self.columns[k]
        units = [self.units[k]] if self.units else []
        number = f"-{t + 1}" if self.restarts > 1 else ""
        file = f"{stem}-{file_stem(self.units[k] if self.units else column)}{number}"
        folder.figure(
            f"pictures/{file}.png",
            self.images[p, k, t],
            caption=f"{name}, {column}: {self.label(p, k, t)}.",
            alt=f"{name} drawn again from {column}",
            units=units,
            pixelated=self._pixelated,
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

    @property
    def _pixelated(self) -> bool:
        return max(self.originals.shape[-2:]) <= _SHOWN // 2

    def plot(self) -> Figure:
        """A row a given picture and restart; the given picture, then a column each."""
        rows = [(p, t) for p in range(len(self.names)) for t in range(self.restarts)]
        return draw_rows(
            self.title,
            ("given", *self.columns),
            [
                [
                    (self.originals[p], _short(self.names[p], 26)) if t == 0 else None,
                    *(
                        (self.images[p, k, t], self.label(p, k, t))
                        for k in range(len(self.columns))
                    ),
                ]
                for p, t in rows
            ],
            pixelated=self._pixelated,
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Inverted(Redrawn):
    """Pictures reconstructed from the activations of layers."""

    kind: ClassVar[str] = "inversion"
    measures: ClassVar[dict[str, Measure]] = {
        "distance": Measure(
            "from the given picture's activation at the layer, over that activation's length",
            label="distance {:.2f}",
        ),
        "distance of others": Measure(
            "the same of unrelated pictures, median", label="others {:.2f}"
        ),
        "cosine": Measure("between the two activations"),
        "pixel distance": _PIXELS,
        "class rank": _RANK,
    }

    @property
    def title(self) -> str:
        return f"What layers of {self.model_name} keep of {self.source}"

    def caption(self) -> str:
        return (
            "Each row begins with a given picture; then come pictures made from noise so that the "
            f"activation of one layer of {self.model_name} ({', '.join(self.columns)}) is that of "
            "the given picture. Below each its distance from that activation, over the "
            "activation's length, and the same for unrelated pictures. Colors are not rescaled."
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Caricatured(Redrawn):
    """Pictures that exaggerate the activations of layers."""

    kind: ClassVar[str] = "caricature"
    measures: ClassVar[dict[str, Measure]] = {
        "exaggeration": Measure(
            "length of the activation (its values above 0) along the given one, over its length",
            label="{:.1f} times",
        ),
        "cosine": Measure("between the two activations", label="cosine {:.2f}"),
        "class rank": _RANK,
    }

    @property
    def title(self) -> str:
        return f"Caricatures of {self.source} by layers of {self.model_name}"

    def caption(self) -> str:
        return (
            "Each row begins with a given picture; then come pictures made from noise so that the "
            f"activation of one layer of {self.model_name} ({', '.join(self.columns)}) is as large "
            "as possible in the direction of its activation on the given picture. Below each, how "
            "many times as large, and the cosine between the two. Colors are not rescaled."
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Dreamed(Redrawn):
    """Pictures changed until the activations of layers were larger."""

    kind: ClassVar[str] = "deepdream"
    measures: ClassVar[dict[str, Measure]] = {
        "strength": Measure(
            "root mean square of the layer's activations, over that on the given picture",
            label="activations {:.1f} times as large",
        ),
        "pixel distance": _PIXELS,
        "class rank": _RANK,
    }

    @property
    def title(self) -> str:
        return f"DeepDream of {self.source} at layers of {self.model_name}"

    def caption(self) -> str:
        return (
            "Each row begins with a given picture; then come copies of it, changed from coarse to "
            f"fine until the activations of one layer of {self.model_name} "
            f"({', '.join(self.columns)}) were larger, whatever they were. Below each, how many "
            "times as large they are. Colors are not rescaled."
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Accentuated(Redrawn):
    """Pictures changed a little so that units are more active."""

    kind: ClassVar[str] = "accentuation"
    measures: ClassVar[dict[str, Measure]] = {
        "score before": Measure("of the unit on the given picture", label="from {:.1f}"),
        "score": Measure("of the unit on the picture", label="to {:.1f}"),
        "anchor distance": Measure(
            "how far the anchor's activation has moved, over its length on the given picture",
            label="anchor {:.2f}",
        ),
        "pixel distance": _PIXELS,
        "class rank": _RANK,
    }

    anchor: str = ""
    """the layer or layers whose activations were to stay"""

    @property
    def title(self) -> str:
        return f"What units of {self.model_name} detect in {self.source}"

    def caption(self) -> str:
        return (
            "Each row begins with a given picture; then come copies of it, changed so that one "
            f"unit ({', '.join(self.columns)}) is more active while the activations of "
            f"{self.anchor} stay nearly the same. Below each the unit's score before and after, "
            f"and how far the activations of {self.anchor} have moved, over their length. Colors "
            "are not rescaled."
        )


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else "..." + name[3 - most :]


def _distinct(stems: Sequence[str]) -> list[str]:
    """The stems, numbered where two would be the same file."""
    return [f"{stem}-{i + 1}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]
