"""What `maximize` returns: pictures, the numbers beside each, and the folder they are saved in."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import films, images, plots, results
from featviz.maximization.panel import Panel, meaning_of
from featviz.models.layers import Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pictures smaller than this are enlarged for display, every pixel to a block.
_SHOWN = 128


@dataclass(frozen=True, kw_only=True)
class Maximized(results.Result):
    """Pictures that units answer to most."""

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
    """the numbers beside each picture, and the reasons to doubt it"""
    trace: Tensor
    """(N, steps): the score at each step, with the transforms of that step"""
    best_steps: Tensor
    """(N,): after how many steps each picture was taken"""
    alive: Tensor
    """(N,): False where there never was a gradient, or the score was no number"""
    frames: Tensor
    """(N, F, 3, H, W) uint8: stages of the ascent; empty without `film`"""
    film: str = "gif"
    """how the stages are saved: "gif", or "mp4" for both"""

    @property
    def judged(self) -> dict[str, Tensor]:
        """(N,) each: the panel's numbers by name."""
        return self.panel.numbers

    @property
    def title(self) -> str:
        what = "classes" if self.layer == "logits" else "units"
        what = what if self.units else "directions"
        if len(self.names) == 1:
            return f"What {self.titles[0]} of {self.model_name} answers to most"
        return f"What {what} of {self.layer} in {self.model_name} answer to most"

    def numbers(self) -> dict[str, results.Number]:
        out = {
            "pictures": results.Number(len(self.names), "", f"of {self.size} pixels a side"),
            "score": results.Number(
                _median(self.scores), "", f"median, {self.objective}, of the saved pictures"
            ),
        }
        for name, values in self.judged.items():
            unit, meaning = meaning_of(name)
            out[name] = results.Number(_median(values), unit, f"median; {meaning}")
        out["seconds a picture"] = results.Number(
            round(self.origin.seconds / len(self.names), 3), "s", "everything included"
        )
        return out

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return self.images.shape[-1]

    def sheet(self, columns: int | None = None) -> Tensor:
        """All pictures side by side, (3, H', W'); small ones enlarged."""
        factor = self._factor()
        pictures = images.enlarge(self.images, factor) if factor > 1 else self.images
        return images.contact_sheet(pictures.cpu(), columns)

    def _factor(self) -> int:
        return max(1, math.ceil(_SHOWN / self.size)) if self.size < 0.75 * _SHOWN else 1

    def write(self, folder: results.Folder) -> None:
        enlarged = (
            f", each pixel drawn {self._factor()} times as wide" if self._factor() > 1 else ""
        )
        listed = ", ".join(self.titles[:12]) + (" ..." if len(self.titles) > 12 else "")
        folder.figure(
            "sheet.png", self.sheet(),
            caption=f"{self.title}: {listed}. Objective: {self.objective}; "
            f"{self.size} pixels a side{enlarged}; colours are not rescaled.",
            alt=f"Synthetic pictures that maximise {listed}",
        )  # fmt: skip
        for i, name in enumerate(self.names):
            stem = file_stem(name)
            units = [str(self.units[i])] if self.units else []
            folder.figure(
                f"units/{stem}.png", self.images[i],
                caption=f"{self._heading(i)} {self._said(i)}",
                alt=f"Synthetic picture that maximises {self.titles[i]}",
                units=units, pixelated=self._factor() > 1,
            )  # fmt: skip
            if self.frames.numel():
                films.put(
                    folder, f"films/{stem}", self.frames[i], kind=self.film,
                    caption=f"{self.titles[i]} from noise to its picture, in "
                    f"{self.frames.shape[1]} stages of {self.trace.shape[1]} steps.",
                    alt=f"Film of the ascent for {self.titles[i]}", units=units,
                )  # fmt: skip
        folder.figure(
            "ascent.svg", self._ascent(),
            caption="Score at each step, with that step's random transforms (lines), and of the "
            "saved pictures without them (dots).",
            alt="Line plot of the scores over the steps of the ascent",
        )  # fmt: skip
        columns = ["picture", "title", "score", *self.judged, "best step", "alive"]
        folder.table(
            "scores.csv", columns, [self._row(i) for i in range(len(self.names))],
            caption="The numbers beside each picture.",
        )  # fmt: skip
        folder.arrays(
            "maximized.npz",
            {
                "images": images.to_uint8(self.images).numpy(),
                "scores": self.scores.numpy(),
                "trace": self.trace.numpy(),
                **{k.replace(" ", "_"): v.numpy() for k, v in self.judged.items()},
            },
            caption="Pictures as 8-bit values (N, 3, H, W), their scores (N,) and traces "
            "(N, steps), and the numbers of scores.csv.",
        )

    def _row(self, i: int) -> list[str | float | int | bool]:
        judged = [round(v[i].item(), 5) for v in self.judged.values()]
        score = round(self.scores[i].item(), 5)
        step, alive = int(self.best_steps[i]), bool(self.alive[i])
        return [self.names[i], self.titles[i], score, *judged, step, alive]

    def _heading(self, i: int) -> str:
        name, title = self.names[i], self.titles[i]
        return f"{title} ({name})." if title != name else f"{name}."

    def _said(self, i: int) -> str:
        if not self.alive[i]:
            return "There was no gradient to follow: the picture is not a maximum."
        text = f"Score {self.scores[i]:.3g}"
        held = self.judged["held out"][i]
        text += f", {held:.3g} when shifted and softened"
        if "natural" in self.judged:
            text += f"; the highest of the given pictures is {self.judged['natural'][i]:.3g}"
        return text + "."

    def plot(self) -> Figure:
        columns = min(8, max(2, math.ceil(math.sqrt(2 * len(self.names)))))
        titles = [
            f"{title}\n{score:.3g}" for title, score in zip(self.titles, self.scores, strict=True)
        ]
        return plots.image_grid(
            self.images, titles, columns=columns, cell=1.5, pixelated=self._factor() > 1
        )

    def _ascent(self) -> Figure:
        figure = plots.new_figure(6, 3.2)
        ax = figure.add_subplot()
        for i, line in enumerate(self.trace):
            colour = plots.PALETTE[i % len(plots.PALETTE)]
            ax.plot(range(1, len(line) + 1), line.numpy(), color=colour, linewidth=0.7, alpha=0.6)
            label = self.titles[i] if len(self.names) <= len(plots.PALETTE) else None
            ax.plot([int(self.best_steps[i])], [self.scores[i].item()], "o", color=colour,
                    markersize=4, label=label)  # fmt: skip
        plots.lines(ax, xlabel="step", ylabel="score")
        if len(self.names) <= len(plots.PALETTE):
            ax.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)
        return figure


def file_stem(name: str) -> str:
    """A name as a file's: "conv5:12@6,6" becomes "conv5-12-6-6"."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def _median(values: Tensor) -> float | None:
    finite = values[values.isfinite()].double()
    return round(torch.quantile(finite, 0.5).item(), 5) if len(finite) else None
