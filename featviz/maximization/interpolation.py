"""`interpolate`: the pictures on the way from one unit to another.

At the ends stand the pictures of the two units; between them both are climbed, the one's share
falling from 1 to 0 as the other's rises. All begin at the same noise, are moved alike, and are
held together with their neighbours (`alignment`), so that what both units share stays where it is
and one can see what turns into what.

Olah, Mordvintsev and Schubert 2017, "Feature Visualization" (Distill), "Interaction between
neurons".
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featviz import films, images, plotting, results
from featviz.errors import UserError
from featviz.maximization.diversity import beside, relative_alignment
from featviz.maximization.evaluation.clean_scores import clean_scores
from featviz.maximization.loop import optimize
from featviz.maximization.maximize import unit_goal
from featviz.maximization.objectives import Objective
from featviz.maximization.settings import Settings, settings_for
from featviz.maximization.shards import seed_of
from featviz.models.frozen import frozen
from featviz.models.model import Layer
from featviz.models.units import Unit, parse_units, unit_name
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model


@dataclass(frozen=True, kw_only=True, repr=False)
class Interpolated(results.Result):
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
    """(K - 1,): root mean square of the pixels' differences between neighbours, of 1"""
    ends_apart: float
    """the same between the two ends"""
    film: str | None = None

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
                "root mean square of the pixels' differences between neighbours, mean",
            ),
            "ends apart": results.Number(round(self.ends_apart, 5), "", "the same of the two ends"),
        }

    def write(self, folder: results.Folder) -> None:
        first, second = self.titles
        tags = [str(unit) for unit in self.units]
        folder.figure(
            "interpolation.png",
            self.plot(),
            caption=f"{self.title}. Above each picture the share of {second} in what was climbed; "
            f"below, the scores of both ({self.objective}) on the saved pictures. Colours are not "
            "rescaled.",
            alt=f"{len(self.shares)} pictures from {first} to {second}",
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
        if self.film is not None:
            there = images.to_uint8(self.images)
            films.add_film(
                folder,
                "interpolation-film",
                torch.cat([there, there.flip(0)[1:]]),
                kind=self.film,
                units=tags,
                caption=f"From {first} to {second} and back.",
                alt=f"Film: {self.title}",
            )
        folder.table(
            "interpolation.csv",
            ("picture", "share", *tags),
            [
                (k + 1, round(share, 5), *(round(s, 5) for s in self.scores[k].tolist()))
                for k, share in enumerate(self.shares.tolist())
            ],
            caption=f"The share of {second} in what was climbed, and the scores of both units.",
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

    def plot(self) -> Figure:
        """The strip, and below it the scores of both units."""
        count = len(self.shares)
        cell, gap, top, left = min(1.6, 12.5 / count), 0.05, 0.72, 0.62
        page = plotting.Page(left + count * (cell + gap) + 0.12, top + cell + 1.55)
        size = plotting.fitting(self.title, page.width - 0.24)
        page.text(0.12, 0.22, self.title, fontsize=size, weight="bold")
        for k, picture in enumerate(self.images):
            x = left + k * (cell + gap)
            ax = page.axes(x, top, cell, cell)
            plotting.show_image(ax, picture, pixelated=picture.shape[-1] < 64)
            page.text(
                x + cell / 2,
                top - 0.12,
                f"{100 * float(self.shares[k]):.0f}%",
                ha="center",
                fontsize=8,
                color="#555555",
            )
        ax = page.axes(left, top + cell + 0.14, count * (cell + gap) - gap, 0.95)
        for i, colour in enumerate((plotting.BLUE, plotting.ORANGE)):
            ax.plot(
                range(count),
                self.scores[:, i].numpy(),
                "o-",
                color=colour,
                markersize=4,
                linewidth=1.4,
                label=self.titles[i],
            )
        ax.set_xlim(-0.5, count - 0.5)
        ax.set_xticks([])
        plotting.lines(ax, xlabel=f"share of {self.titles[1]}", ylabel="score")
        ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.5))
        return page.figure


def interpolate(
    model: Model,
    layer: str,
    units: str | Sequence[int | str],
    *,
    count: int = 7,
    alignment: float = 1.0,
    steps: int = 256,
    seed: int = 0,
    size: int | None = None,
    objective: str = "auto",
    film_kind: str | None = None,
    precision: AutoPrecision = "auto",
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Interpolated:
    """`count` pictures from the first of two units to the second: `.images` (K, 3, S, S).

    units: two of one layer: "3,12", [3, 12], or classes by name
    count: pictures, the two ends among them
    alignment: how firmly neighbours are held together, as a share of the score (see
        `company.beside`); 0 lets each go its own way
    film_kind: "gif" for a film there and back, "mp4" for both kinds
    layer, steps, size, objective, settings: as of `maximize`

    Raises UserError for an unknown layer, unit or option, and when there are not two units.

        featviz.interpolate(model, "conv5", [3, 12]).save("run/interpolation")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    ends = parse_units(model, layer, units)
    if len(ends) != 2 or any(unit.position for unit in ends):
        raise UserError(
            f"{len(ends)} units were named; a way leads between two units of one layer, "
            "without positions (3,12)"
        )
    if count < 3 or alignment < 0:
        raise UserError(
            f"count {count}, alignment {alignment:g}: a way has 3 pictures or more, and the "
            "alignment is 0 or more"
        )
    if film_kind is not None:
        films.check_kind(film_kind)
    settings = settings or settings_for(model, place, steps=steps, size=size, precision=precision)
    shares = torch.linspace(0, 1, count)
    first, second = (unit_goal(model, place, [u.index] * count, objective) for u in ends)
    there = shares.to(model.device)
    goal = mixed(first[0], second[0], there)
    side = settings.parametrization.height
    besides = None
    if first[1] is not None and second[1] is not None:
        besides = mixed(first[1], second[1], there)
    if alignment:
        held = beside(goal, relative_alignment(_held_at(model, place), count), alignment)
        besides = held if besides is None else besides + held
    # One seed for all: the same start and the same moves.
    seeds = [seed_of(seed, f"{place.path}/{ends[0].index}-{ends[1].index}")] * count

    def report(done: int, total: int, _: str) -> None:
        if progress is not None:
            progress(done, total, f"from {ends[0]} to {ends[1]}")

    with frozen(model):
        climb = optimize(
            model,
            goal,
            range(count),
            seeds,
            settings,
            regularizer=besides,
            batch_size=count,
            progress=report,
        )
        made = climb.images
        scores = torch.stack([clean_scores(model, one, made) for one in (first[0], second[0])], 1)
    made = made.cpu()
    return Interpolated(
        origin=results.origin(
            model,
            seed=seed,
            started=started,
            parameters={
                "layer": place.name,
                "units": [str(unit) for unit in ends],
                "count": count,
                "alignment": alignment,
                "objective": first[0].text,
                "size": side,
                **settings.record(),
            },
        ),
        model_name=model.name,
        layer=place.name,
        objective=first[0].text,
        units=(ends[0], ends[1]),
        titles=(unit_name(model, ends[0]), unit_name(model, ends[1])),
        shares=shares,
        images=made,
        scores=scores,
        steps_apart=(made[1:] - made[:-1]).square().mean((1, 2, 3)).sqrt(),
        ends_apart=(made[-1] - made[0]).square().mean().sqrt().item(),
        film=film_kind,
    )


def mixed(first: Objective, second: Objective, shares: Tensor) -> Objective:
    """Of picture i the share 1 - shares[i] of the first objective and shares[i] of the second."""
    layers = tuple(dict.fromkeys((*first.layers, *second.layers)))

    def score(acts: Mapping[str, Tensor], targets: Sequence[int]) -> Tensor:
        one, two = first.score(acts, targets), second.score(acts, targets)
        share = shares[list(targets)].to(one)
        return (1 - share) * one + share * two

    return Objective(
        layers, len(shares), f"from one {first.text} to another", score, width=first.width
    )


def _held_at(model: Model, place: Layer) -> str:
    """Where neighbours are compared: the first map whose neurons see a shape, conv2 of an AlexNet.

    A layer's own map knows too little of where things are, pixels too little of what they are.
    """
    maps = [
        one
        for one in model.layers.values()
        if one.kind == "Conv2d" and one.spatial and one.receptive_field is not None
    ]
    order = [one.name for one in model.layers.values()]
    before = [one for one in maps if order.index(one.name) <= order.index(place.name)]
    seeing = [one for one in before if max(one.receptive_field.size) >= 24]  # type: ignore[union-attr]
    found = (seeing or before or [place])[0]
    return found.name
