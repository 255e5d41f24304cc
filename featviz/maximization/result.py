"""What `maximize` returns: pictures, the numbers beside each, and the folder they are saved in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from featviz import results
from featviz.maximization.evaluation.figures import frame_flagged, path_figure, top_picture_strip
from featviz.maximization.evaluation.metrics import describe, unit_and_meaning
from featviz.maximization.evaluation.panel import Panel
from featviz.maximization.figures import draw_layers, draw_pictures, draw_scores
from featviz.maximization.maco import faded
from featviz.models.units import Unit
from featviz.pictures import films, images
from featviz.results import file_stem
from featviz.statistics import middle
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pictures smaller than this are enlarged for display, every pixel to a block.
_SHOWN = 128
# Pixels between pictures of a sheet.
_GAP = 4


@dataclass(frozen=True, kw_only=True, repr=False)
class Maximized(results.Result):
    """Pictures that activate units most."""

    kind: ClassVar[str] = "maximize"

    model_name: str
    layer: str
    objective: str
    units: tuple[Unit, ...]
    """what each picture is of; empty for directions"""
    names: tuple[str, ...]
    """of each picture, for files and tables: "conv5:12" """
    titles: tuple[str, ...]
    """of each picture, for people: "conv5:12", "goldfish" """
    images: Tensor
    """(N, 3, H, W) float32 in [0, 1], rounded to 8 bits: what a PNG holds"""
    scores: Tensor
    """(N,): the objective of `images` without transforms, in float32"""
    panel: Panel
    """the numbers beside each picture, and its flags"""
    trace: Tensor
    """(N, steps): the score at each step, with the transforms of that step"""
    best_steps: Tensor
    """(N,): after how many steps each picture was taken"""
    alive: Tensor
    """(N,): False where there never was a gradient, or the score was no number"""
    frames: Tensor
    """(N, F, 3, H, W) uint8: stages of the optimization, or empty"""
    film_kind: str = "gif"
    """how the stages are saved: "gif", or "mp4" for both"""
    pages: tuple[str, ...] = ()
    """of each picture, the page of the gallery that it belongs to, where it is of no unit"""
    transparency: Tensor | None = None
    """(N, H, W): how much each pixel mattered, over all steps; None where it was not added up"""

    @property
    def flagged(self) -> tuple[bool, ...]:
        """(N,): whether there is a reason not to trust the picture."""
        return tuple(bool(flags) for flags in self.panel.flags)

    @property
    def metrics(self) -> dict[str, Tensor]:
        """(N,) each: the panel's numbers by name."""
        return self.panel.numbers

    @property
    def title(self) -> str:
        what = "classes" if self.layer == "logits" else "units"
        what = what if self.units else "directions"
        if len(self.names) == 1:
            return f"What activates {self.titles[0]} of {self.model_name} most"
        return f"What activates {what} of {self.layer} in {self.model_name} most"

    def numbers(self) -> dict[str, results.Number]:
        out = {
            "pictures": results.Number(len(self.names), "", f"of {self.size} pixels a side"),
            "score": results.Number(
                middle(self.scores),
                "",
                f"median, {self.objective}, of the saved pictures",
            ),
        }
        flagged = sum(self.flagged)
        out["flagged"] = results.Number(
            flagged, "", f"of {len(self.names)} have a reason not to be trusted (flags.csv)"
        )
        for name, values in self.metrics.items():
            unit, meaning = unit_and_meaning(self.panel, name)
            out[name] = results.Number(middle(values), unit, f"median; {meaning}")
        out["seconds a picture"] = results.Number(
            round(self.origin.seconds / len(self.names), 3), "s", "everything included"
        )
        return out

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return self.images.shape[-1]

    def sheet(self, columns: int | None = None) -> Tensor:
        """All pictures side by side, (3, H', W'); small ones enlarged, flagged ones framed."""
        factor = self._factor()
        pictures = images.enlarge(self.images, factor) if factor > 1 else self.images
        columns = columns or math.ceil(math.sqrt(len(pictures)))
        sheet = images.contact_sheet(pictures.cpu(), columns, gap=_GAP)
        return frame_flagged(sheet, self.flagged, pictures.shape[-1], columns, _GAP)

    def _factor(self) -> int:
        return max(1, math.ceil(_SHOWN / self.size)) if self.size < 0.75 * _SHOWN else 1

    def write(self, folder: results.Folder) -> None:
        enlarged = (
            f", each pixel drawn {self._factor()} times as wide" if self._factor() > 1 else ""
        )
        listed = ", ".join(self.titles[:12]) + (" ..." if len(self.titles) > 12 else "")
        folder.figure(
            "sheet.png",
            self.sheet(),
            caption=f"{self.title}: {listed}. Objective: {self.objective}; "
            f"{self.size} pixels a side{enlarged}; colors are not rescaled."
            + (" Framed in orange: not to be trusted (flags.csv says why)." * any(self.flagged)),
            alt=f"Synthetic pictures that maximize {listed}",
        )
        if self.panel.top_pictures:
            folder.figure(
                "panel.svg",
                self.plot(),
                caption="Each picture beside the pictures of the data that activate its unit "
                "most (gray: outside of it), and what was measured of it. The curves are rank "
                "correlations between the activations of the layers: natural-path similarity.",
                alt="Synthetic pictures beside pictures of the data, with numbers and curves",
            )
        if self.transparency is not None:
            folder.figure(
                "faded.png",
                images.contact_sheet(faded(self.images, self.transparency).cpu(), gap=_GAP),
                caption="The same pictures, each pixel as opaque as it mattered in all steps: the "
                "fifth of the pixels that mattered most is opaque, the rest fades to white.",
                alt="The pictures on white, without what mattered least",
            )
        for i, name in enumerate(self.names):
            stem = file_stem(name)
            units = [self.pages[i]] if self.pages else [str(u) for u in self.units[i : i + 1]]
            folder.figure(
                f"units/{stem}.png",
                self.images[i],
                caption=f"{self._heading(i)} {self._described(i)}",
                alt=f"Synthetic picture that maximizes {self.titles[i]}",
                units=units,
                pixelated=self._factor() > 1,
            )
            self._write_comparison(folder, i, stem, units)
            if self.frames.numel():
                films.add_film(
                    folder,
                    f"films/{stem}",
                    self.frames[i],
                    kind=self.film_kind,
                    caption=f"{self.titles[i]} from noise to its picture, in "
                    f"{self.frames.shape[1]} stages of {self.trace.shape[1]} steps.",
                    alt=f"Film of the optimization for {self.titles[i]}",
                    units=units,
                )
        folder.figure(
            "ascent.svg",
            draw_scores(self.titles, self.trace, self.scores, self.best_steps),
            caption="Score at each step, with that step's random transforms (lines), and of the "
            "saved pictures without them (dots).",
            alt="Line plot of the scores over the steps of the optimization",
        )
        folder.arrays(
            "maximized.npz",
            {
                "images": images.to_uint8(self.images).numpy(),
                "scores": self.scores.numpy(),
                "trace": self.trace.numpy(),
                **(
                    {} if self.transparency is None else {"transparency": self.transparency.numpy()}
                ),
                **{k.replace(" ", "_"): v.numpy() for k, v in self.metrics.items()},
            },
            caption="Pictures as 8-bit values (N, 3, H, W), their scores (N,) and traces "
            "(N, steps), and the numbers of scores.csv.",
        )

    def tables(self) -> Iterator[results.Table]:
        columns = ["picture", "title", "score", *self.metrics, "best step", "alive", "flags"]
        yield results.Table(
            "scores.csv",
            columns,
            [self._row(i) for i in range(len(self.names))],
            caption="The numbers beside each picture.",
        )
        yield from self._panel_tables()

    def _row(self, i: int) -> list[str | float | int | bool]:
        metrics = [round(v[i].item(), 5) for v in self.metrics.values()]
        score = round(self.scores[i].item(), 5)
        step, alive = int(self.best_steps[i]), bool(self.alive[i])
        flags = "; ".join(flag.name for flag in self.panel.flags[i])
        return [self.names[i], self.titles[i], score, *metrics, step, alive, flags]

    def _write_comparison(
        self, folder: results.Folder, i: int, stem: str, units: Sequence[str]
    ) -> None:
        """What a unit's page has beside the picture: photographs, and the path."""
        if self.panel.top_pictures:
            found = self.panel.top_pictures[i]
            values = ", ".join(f"{value:.3g}" for value in found.values)
            framed = "; framed: what is scored" if found.boxes[0] is not None else ""
            folder.figure(
                f"natural/{stem}.jpg",
                top_picture_strip(found),
                caption=f"The {len(found.values)} of {counted(self.panel.count, 'picture')} that "
                f"activate {self.titles[i]} most, with their scores: {values}{framed}.",
                alt=f"Pictures of the data that strongly activate {self.titles[i]}",
                units=units,
                pixelated=found.pictures[0].shape[-1] < 24,
                detail=True,
            )
        if self.panel.path is not None:
            folder.figure(
                f"paths/{stem}.svg",
                path_figure(self.panel.path, i),
                caption="Does it go through the network as pictures of the data do? Rank "
                "correlations of activations, layer by layer. The closer the blue line "
                "comes to the green one, and the further it stays above the orange one, the "
                "better.",
                alt="Line plot of rank correlations over the layers",
                units=units,
                detail=True,
            )

    def _panel_tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "panel.csv",
            ["picture", "what", "value", "meaning"],
            [
                (name, line.name, line.value, line.meaning)
                for i, name in enumerate(self.names)
                for line in describe(self.panel, i)
            ],
            caption="The numbers beside each picture, in words.",
        )
        reasons = [
            (name, flag.name, flag.words)
            for name, flags in zip(self.names, self.panel.flags, strict=True)
            for flag in flags
        ]
        if reasons:
            yield results.Table(
                "flags.csv",
                ["picture", "flag", "reason"],
                reasons,
                caption="Pictures not to be trusted, and why.",
            )
        path = self.panel.path
        if path is None:
            return
        columns = (
            "own",
            "others",
            "ceiling",
            "floor",
            "noise",
            "similarity",
            "low",
            "high",
        )
        tables = [getattr(path, column) for column in columns]
        yield results.Table(
            "paths.csv",
            ["picture", "at", *columns],
            [
                (name, layer, *(results.significant(table[i, k], 4) for table in tables))
                for i, name in enumerate(self.names)
                for k, layer in enumerate(path.layers)
            ],
            caption="The curves in numbers: rank correlations of the picture with its unit's "
            "top pictures (own) and with other units' (others), of top pictures among themselves "
            "(ceiling) and with other units' (floor), of noise with them, and (own - floor) / "
            "(ceiling - floor) with its 95% interval.",
        )

    def _heading(self, i: int) -> str:
        name, title = self.names[i], self.titles[i]
        return f"{title} ({name})." if title != name else f"{name}."

    def _described(self, i: int) -> str:
        if not self.alive[i]:
            return "There was no gradient to follow: the picture is not a maximum."
        first, *rest = [
            line.short for line in describe(self.panel, i) if line.short and line.name != "seconds"
        ]
        text = "; ".join([first[0].upper() + first[1:], *rest])
        reasons = "; ".join(f"{flag.name}: {flag.words}" for flag in self.panel.flags[i])
        return f"{text}." + (f" Not to be trusted: {reasons}." if reasons else "")

    def plot(self) -> Figure:
        """The pictures with their scores, beside photographs where there are some."""
        return draw_pictures(self.title, self.titles, self.images, self.panel)


@dataclass(frozen=True, kw_only=True, repr=False)
class LayerResults(results.Result):
    """Pictures that activate units of several layers most, a part for each layer."""

    kind: ClassVar[str] = "maximize"

    model_name: str
    layers: tuple[Maximized, ...]
    """in the order in which the layers were named"""

    @property
    def names(self) -> tuple[str, ...]:
        """Of each picture, layer by layer."""
        return tuple(name for part in self.layers for name in part.names)

    @property
    def images(self) -> dict[str, Tensor]:
        """Each picture (3, H, W) by its name."""
        return {
            name: image
            for part in self.layers
            for name, image in zip(part.names, part.images, strict=True)
        }

    @property
    def title(self) -> str:
        layers = ", ".join(part.layer for part in self.layers)
        return f"What activates units of {layers} in {self.model_name} most"

    def numbers(self) -> dict[str, results.Number]:
        count = results.Number(len(self.names), "", f"of {counted(len(self.layers), 'layer')}")
        return {"pictures": count} | {
            f"{part.layer}: {name}": number
            for part in self.layers
            for name, number in part.numbers().items()
        }

    @property
    def parts(self) -> Mapping[str, Maximized]:
        return {part.layer: part for part in self.layers}

    def write(self, folder: results.Folder) -> None:
        """Nothing of its own: each layer is written as a part."""

    def plot(self) -> Figure:
        """The first pictures of each layer."""
        return draw_layers([(part.titles, part.images) for part in self.layers])
