"""`AdversarialPatch`: a patch that fools a model, with its rates, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.attacks import figures
from featviz.attacks.held_out_result import HeldOutResult
from featviz.statistics import Share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EDGE = 20  # the outline falls off as 1 - r ** (2 * _EDGE): about a pixel wide


@dataclass(frozen=True, kw_only=True, repr=False)
class AdversarialPatch(HeldOutResult):
    """A patch that fools a model, and how often."""

    kind: ClassVar[str] = "adversarial-patch"

    patch: Tensor
    """(3, P, P) in [0, 1]"""
    noise: Tensor
    """(3, P, P) the patch of noise beside it"""
    shape: str
    sizes: tuple[float, ...]
    """shares of the picture's side at which it was judged"""
    trained_sizes: tuple[float, float]
    rotation: float
    predicted: Tensor
    """(sizes, M) its predictions with the patch"""
    noise_predicted: Tensor
    """(sizes, M) those with the patch of noise at the same places"""
    shown_size: int
    """which of `sizes` the examples have"""

    @property
    def title(self) -> str:
        if self.target is None:
            return f"Adversarial patch of {self.model_name}"
        return f"Patch that makes {self.model_name} predict {self.classes[self.target]}"

    def rate(self, size: int, *, noise: bool = False) -> Share:
        """Share of the held-out pictures fooled at a size.

        With a target, pictures that are predicted so by themselves do not count.
        """
        return self.fooled((self.noise_predicted if noise else self.predicted)[size])

    def numbers(self) -> dict[str, results.Number]:
        word = "prediction changed" if self.target is None else "target predicted"
        found = {}
        for k, size in reversed(list(enumerate(self.sizes))):
            for noise in (False, True):
                s = self.rate(k, noise=noise)
                name = f"{word} at {100 * size:.0f}% of the side" + (", by noise" if noise else "")
                found[name] = s.number(f"{100 * self._area(size):.1f}% of the area")
        return found | self.costs()

    def _area(self, size: float) -> float:
        return size**2 * (math.pi / 4 if self.shape == "circle" else 1)

    def write(self, folder: results.Folder) -> None:
        small = self.examples.shape[-1] <= 128
        folder.figure(
            "pictures.svg",
            self.plot(),
            caption="The patch, and held-out pictures with it at places it was never tried at "
            f"({100 * self.sizes[self.shown_size]:.0f}% of the side), each with its predicted "
            "class; below in gray the one without the patch. Orange frame: "
            + ("changed." if self.target is None else "the target."),
            alt="The patch and pictures on which it lies",
        )
        folder.figure(
            "rates.svg",
            self.plot_rates(),
            caption="How often it succeeds by its size (side or diameter as a share of the "
            "picture's side), beside a patch of random noise at the same places, with 95% Wilson "
            "bands. Gray: the sizes it was trained at.",
            alt="Curves of success against the patch's size",
        )
        folder.figure(
            "patch.png",
            self._cut_out(self.patch),
            caption="The patch, to be printed.",
            alt="The patch",
            pixelated=small,
        )
        folder.arrays(
            "patch.npz",
            {"patch": self.patch.numpy(), "noise": self.noise.numpy()},
            caption="The patch and the noise beside it, (3, P, P) float32 in [0, 1].",
        )

    def tables(self) -> Iterator[results.Table]:
        columns = ["picture", "clean", *(f"at_{100 * size:.0f}" for size in self.sizes)]
        yield results.Table(
            "pictures.csv",
            columns,
            (
                [
                    self.names[i],
                    self.classes[int(self.clean[i])],
                    *(self.classes[int(c)] for c in self.predicted[:, i]),
                ]
                for i in range(len(self.names))
            ),
            caption="Every held-out picture: the model's prediction without the patch and at each "
            "size of it, in percent of the side.",
        )

    def _cut_out(self, patch: Tensor) -> Tensor:
        mask = outline(self.shape, patch.shape[-1])
        return patch * mask + (1 - mask)

    def plot(self) -> Figure:
        """The patch and pictures with it."""
        rows = list(self.shown)
        predicted, before = self.predicted[self.shown_size, rows], self.clean[rows]
        won = predicted != before if self.target is None else predicted == self.target
        return figures.patch_row(
            self._cut_out(self.patch),
            self.examples,
            [self.classes[c] for c in before.tolist()],
            [self.classes[c] for c in predicted.tolist()],
            won.tolist(),
        )

    def plot_rates(self) -> Figure:
        """Success against the patch's size."""
        word = "prediction changed (%)" if self.target is None else "target predicted (%)"
        sizes = range(len(self.sizes))
        curves = {
            name: [self.rate(k, noise=noise) for k in sizes]
            for noise, name in ((False, "the patch"), (True, "noise"))
        }
        return figures.rates_by_size(self.sizes, curves, self.trained_sizes, word)


def outline(shape: str, pixels: int) -> Tensor:
    """(1, pixels, pixels): 1 where the patch is, 0 outside it, with a soft edge for the circle."""
    if shape == "square":
        return torch.ones(1, pixels, pixels)
    line = (2 * torch.arange(pixels) + 1) / pixels - 1
    radius = line[:, None] ** 2 + line[None, :] ** 2
    return (1 - (radius**_EDGE).clamp(max=1))[None]
