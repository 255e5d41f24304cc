"""What `interpolate` returns: a strip of pictures from one unit to another, and its folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import results
from featviz.maximization.interpolation_figures import draw_strip
from featviz.models.units import Unit
from featviz.pictures import films, images
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, repr=False)
class Interpolation(results.Result):
    """A strip of pictures from one unit to another."""

    kind: ClassVar[str] = "interpolation"

    model_name: str
    layer: str
    objective: str
    units: tuple[Unit, Unit]
    titles: tuple[str, str]
    shares: Tensor
    """(K,): of the second unit, from 0 to 1"""
    images: Tensor
    """(K, 3, S, S) float32 in [0, 1], rounded to 8 bits"""
    scores: Tensor
    """(K, 2): of both units on each picture, without transforms, in float32"""
    steps_apart: Tensor
    """(K - 1,): root mean square of the pixels' differences between neighbors, of 1"""
    ends_apart: float
    """the same between the two ends"""
    film_kind: str | None = None

    @property
    def title(self) -> str:
        return f"From {self.titles[0]} to {self.titles[1]} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        first, second = self.titles
        return {
            "pictures": results.Number(len(self.shares), "", f"of {self.images.shape[-1]} pixels"),
            f"{first}, first to last": results.Number(
                f"{self.scores[0, 0]:.3g} to {self.scores[-1, 0]:.3g}", "", self.objective
            ),
            f"{second}, first to last": results.Number(
                f"{self.scores[0, 1]:.3g} to {self.scores[-1, 1]:.3g}", "", self.objective
            ),
            "step": results.Number(
                round(self.steps_apart.mean().item(), 5),
                "",
                "root mean square of the pixels' differences between neighbors, mean",
            ),
            "ends apart": results.Number(round(self.ends_apart, 5), "", "the same of the two ends"),
        }

    def write(self, folder: results.Folder) -> None:
        first, second = self.titles
        tags = [str(unit) for unit in self.units]
        folder.figure(
            "interpolation.svg",
            self.plot(),
            caption=f"{self.title}. Above each picture the share of {second} in the objective; "
            f"below, the scores of both ({self.objective}) on the saved pictures. Colors are not "
            "rescaled.",
            alt=f"{counted(len(self.shares), 'picture')} from {first} to {second}",
            units=tags,
        )
        pixelated = self.images.shape[-1] < 96
        for k, (share, picture) in enumerate(zip(self.shares.tolist(), self.images, strict=True)):
            folder.figure(
                f"pictures/{k + 1:02d}.png",
                picture,
                caption=f"{100 * (1 - share):.0f}% {first}, {100 * share:.0f}% {second}. Scores "
                f"{self.scores[k, 0]:.3g} and {self.scores[k, 1]:.3g}.",
                alt=f"Picture {k + 1} from {first} to {second}",
                pixelated=pixelated,
            )
        if self.film_kind is not None:
            there = images.to_uint8(self.images)
            films.add_film(
                folder,
                "interpolation-film",
                torch.cat([there, there.flip(0)[1:]]),
                kind=self.film_kind,
                units=tags,
                caption=f"From {first} to {second} and back.",
                alt=f"Film: {self.title}",
            )
        folder.arrays(
            "interpolation.npz",
            {
                "images": images.to_uint8(self.images).numpy(),
                "shares": self.shares.numpy(),
                "scores": self.scores.numpy(),
            },
            caption="Pictures as 8-bit values (K, 3, H, W), shares (K,) and scores (K, 2).",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "interpolation.csv",
            ("picture", "share", *map(str, self.units)),
            [
                (k + 1, round(share, 5), *(round(s, 5) for s in self.scores[k].tolist()))
                for k, share in enumerate(self.shares.tolist())
            ],
            caption="The share of the second unit in the objective, and the scores of both.",
        )

    def plot(self) -> Figure:
        """The strip, and below it the scores of both units."""
        return draw_strip(self.title, self.titles, self.shares, self.images, self.scores)
