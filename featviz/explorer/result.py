"""The page in which a model runs, as a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from featviz import plotting, results
from featviz.statistics import Share
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "explorer.html"


class Drift(NamedTuple):
    """How far the page's network is from the model: its weights are rounded."""

    same: Share
    """of pictures with the same most probable class"""
    largest: float
    """difference of a logit, relative to the largest logit"""

    def text(self, bits: float) -> str:
        """For the page's readers."""
        return (
            f"The weights of the network in this page take {bits:.2g} bits each instead of 32. On "
            f"{counted(self.same.n, 'picture')} its most probable class is that of the exact "
            f"network on {self.same.hits}; the outputs differ by at most {100 * self.largest:.2g}% "
            "of the largest one."
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Explorer(results.Result):
    """One HTML file in which a model runs."""

    kind: ClassVar[str] = "explorer"

    model_name: str
    page: str
    """the HTML"""
    operations: int
    weights: int
    """bytes of the weights"""
    bits: float
    """of a weight, on average"""
    drift: Drift
    samples: Sequence[Tensor]
    """pictures to begin with, (3, H, W) each"""

    @property
    def title(self) -> str:
        return f"Follow one picture through {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        number = results.Number
        return {
            "size": number(round(len(self.page.encode()) / 1e6, 2), "MB", "of the page, one file"),
            "same class": self.drift.same.number(
                "of pictures have the most probable class of the model, with the page's weights"
            ),
            "largest difference": number(
                results.significant(self.drift.largest),
                "fraction",
                "of a logit, relative to the largest logit",
            ),
            "operations": number(self.operations, "", "that the page runs for each picture"),
            "weights": number(round(self.weights / 1e6, 2), "MB", "in the page"),
            "bits": number(round(self.bits, 2), "bit", "of a weight, on average"),
        }

    def write(self, folder: results.Folder) -> None:
        (folder.path / FILE).write_text(self.page, encoding="utf-8")
        folder.figure(
            "samples.jpg",
            self.plot(),
            caption="Pictures to begin with. In the page they go through the network; so does any "
            "picture of your own.",
            alt="Small pictures of the classes",
        )

    def plot(self) -> Figure:
        return plotting.image_grid(self.samples, columns=6)
