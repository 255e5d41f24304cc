"""`SpatialRobustness`: accuracy under turns and shifts, with numbers, a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from featviz import plotting, results
from featviz.attacks import figures
from featviz.statistics import Share, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Motion(NamedTuple):
    """A turn about the middle, then a shift."""

    degrees: float
    """anticlockwise"""
    right: float
    """pixels"""
    down: float


@dataclass(frozen=True, kw_only=True, repr=False)
class SpatialRobustness(results.Result):
    """What turning and shifting did to each picture."""

    kind: ClassVar[str] = "spatial"

    model_name: str
    class_names: tuple[str, ...]
    labels: Tensor
    """(N,)"""
    clean: Tensor
    """(N,) predictions for the pictures as they are"""
    grid: tuple[Motion, ...]
    """every motion of the grid, in the order tried"""
    fooled_by: Tensor
    """(N, 3) float64: degrees, right, down of the first motion that fooled; nan where none did,
    and 0 for pictures that are wrong by themselves"""
    predicted: Tensor
    """(N,) the prediction then; the clean one where no motion fooled"""
    random_predicted: Tensor
    """(draws, N) predictions under each picture's own random motions"""
    padding_predicted: Tensor
    """(draws, N) predictions for the unmoved pictures under the same black corners"""
    forwards: Tensor
    """(N,) passes spent on each picture"""

    @property
    def clean_accuracy(self) -> Share:
        return self._accuracy(self.clean == self.labels)

    @property
    def worst_of_grid(self) -> Share:
        """Right under every motion of the grid and every random one."""
        return self._accuracy(self.fooled_by.isnan().any(1))

    @property
    def worst_of_random(self) -> Share:
        """Right as it is and under all random motions."""
        right = (self.random_predicted == self.labels).all(0) & (self.clean == self.labels)
        return self._accuracy(right)

    @property
    def average_of_random(self) -> float:
        """Mean accuracy under one random motion."""
        return float((self.random_predicted == self.labels).double().mean())

    @property
    def average_of_padding(self) -> float:
        """Mean accuracy on unmoved pictures under the black corners alone."""
        return float((self.padding_predicted == self.labels).double().mean())

    def _accuracy(self, right: Tensor) -> Share:
        return share(int(right.sum()), len(right))

    @property
    def title(self) -> str:
        degrees = max(abs(motion.degrees) for motion in self.grid)
        pixels = max(abs(motion.right) for motion in self.grid)
        return f"{self.model_name} under turns of {degrees:g}° and shifts of {pixels:.3g} pixels"

    def numbers(self) -> dict[str, results.Number]:
        draws = len(self.random_predicted)
        found = {
            "clean accuracy": self.clean_accuracy.number("pictures as they are"),
            "worst of the grid": self.worst_of_grid.number(
                f"right under all {len(self.grid)} motions and {draws} random ones"
            ),
            "worst of random": self.worst_of_random.number(f"right under {draws} random motions"),
        }
        for name, value, meaning in (
            ("average of random", self.average_of_random, "accuracy under one random motion"),
            ("average of padding", self.average_of_padding, "accuracy under black corners alone"),
        ):
            found[name] = results.Number(value, "fraction", meaning)
        found["forward passes"] = results.Number(int(self.forwards.sum()), "", "of single pictures")
        return found

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "accuracy.svg",
            self.plot(),
            caption="Accuracy as it is, under random motions, and under the worst motion of the "
            "grid, with 95% Wilson intervals.",
            alt="Bars of accuracy, falling from clean pictures to the worst motion",
        )

    def tables(self) -> Iterator[results.Table]:
        columns = ("picture", "label", "clean", "degrees", "right", "down", "becomes", "forwards")
        yield results.Table(
            "pictures.csv",
            columns,
            (
                (
                    i + 1,
                    self.class_names[int(self.labels[i])],
                    self.class_names[int(self.clean[i])],
                    *("" if math.isnan(v) else v for v in self.fooled_by[i].tolist()),
                    self.class_names[int(self.predicted[i])],
                    int(self.forwards[i]),
                )
                for i in range(len(self.labels))
            ),
            caption="Every picture: the first motion that fools the model (degrees anticlockwise, "
            "pixels right and down; empty where none does) and the prediction then.",
        )

    def plot(self) -> Figure:
        """Accuracies as bars."""
        figure = plotting.new_figure(4.6, 1.8)
        accuracies = {
            "clean": self.clean_accuracy,
            "worst of random": self.worst_of_random,
            "worst of the grid": self.worst_of_grid,
        }
        figures.draw_rates(figure.subplots(), accuracies, "accuracy (%)")
        return figure
