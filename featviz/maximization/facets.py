"""`draw_facets`: several different pictures of one unit, for a unit may have several reasons.

A single maximum shows one of the things that a unit answers to. Two ways to more of them:

    driven apart    the pictures of a unit climb together, and their textures (Gram matrices) are
                    pushed to differ. Olah, Mordvintsev and Schubert 2017, "Feature Visualization"
                    (Distill), "Diversity"
    from examples   the pictures that move the unit most are put into groups (k-means on what the
                    layer, or for classes the last one before, answers to them). The mean of each
                    group's middle ones is where an ascent starts: Nguyen, Yosinski and Clune 2016,
                    "Multifaceted feature visualization". A strong ascent soon forgets its start,
                    so each is also drawn to what sets its group apart from the others

Each facet stands beside the picture that the same seed gives without either, and the numbers say
whether anything was gained: how alike the facets are, and what they score.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featviz import films, images, plotting, results
from featviz.datasets import Pictures
from featviz.errors import UserError
from featviz.maximization import objectives
from featviz.maximization.diversity import beside, codes, heard, resemblance
from featviz.maximization.evaluation.clean_scores import clean_scores
from featviz.maximization.loop import Optimized, optimize
from featviz.maximization.maximize import unit_goal
from featviz.maximization.result import file_stem
from featviz.maximization.settings import Settings, settings_for
from featviz.maximization.shards import seed_of
from featviz.models.frozen import frozen
from featviz.models.layers import activations, read_layer
from featviz.models.model import Layer
from featviz.models.units import Unit, parse_units, unit_name
from featviz.top_scores import ImageCache, scan
from featviz.types import AutoPrecision, Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model

# An example moves the unit at least this share of what the strongest does.
_STRONG = 1 / 3
# So many of a group's examples, nearest its middle, are averaged and shown.
_NEAREST = 9
_SHOWN = 6
_EXAMPLE_SIDE = 96  # pixels of the examples that a result keeps


@dataclass(frozen=True)
class Cluster:
    """A group of a unit's strongest examples."""

    size: int
    """how many examples it has"""
    paths: tuple[str, ...]
    """of those nearest its middle"""
    examples: Tensor
    """(M, 3, P, P) uint8: the same, as the unit saw them"""
    start: Tensor
    """(3, S, S): their mean, where the ascent began"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Faceted(results.Result):
    """Several pictures of each unit."""

    kind: ClassVar[str] = "facets"

    model_name: str
    layer: str
    objective: str
    units: tuple[Unit, ...]
    titles: tuple[str, ...]
    images: Tensor
    """(U, G, 3, S, S) float32 in [0, 1], rounded to 8 bits"""
    scores: Tensor
    """(U, G): the objective of each, without transforms, in float32"""
    likeness: Tensor
    """(U,): mean cosine between the Gram matrices of a unit's pictures; 1 is one texture"""
    plain: Tensor
    """(U, G, 3, S, S): what the same seeds give with neither diversity nor examples"""
    plain_scores: Tensor
    plain_likeness: Tensor
    clusters: tuple[tuple[Cluster, ...], ...]
    """(U, G): empty without examples"""
    own_group: Tensor
    """(U, G) bool: whether the picture is nearer to its own group's examples than to any other's;
    empty without examples"""
    plain_own_group: Tensor
    """the same of the pictures left alone"""
    compared_at: str
    """the layer whose Gram matrices are compared"""
    frames: Tensor
    """(U, G, F, 3, S, S) uint8; empty without `film`"""
    film: str = "gif"

    @property
    def title(self) -> str:
        if len(self.units) == 1:
            return f"Facets of {self.titles[0]} in {self.model_name}"
        return f"Facets of units of {self.layer} in {self.model_name}"

    def numbers(self) -> dict[str, results.Number]:
        out = {
            "facets": results.Number(self.images.shape[1], "", f"of {len(self.units)} units"),
            "likeness": results.Number(
                _median(self.likeness),
                "",
                f"mean cosine between the textures of a unit's pictures at {self.compared_at}, "
                "median; 1 is one and the same",
            ),
            "likeness without": results.Number(
                _median(self.plain_likeness), "", "of pictures from the same seeds, left alone"
            ),
            "score": results.Number(
                _median(self.scores), "", f"median, {self.objective}, of the saved pictures"
            ),
            "score without": results.Number(_median(self.plain_scores), "", "left alone"),
        }
        if self.own_group.numel():
            count = self.images.shape[1]
            out["own group"] = results.Number(
                round(self.own_group.double().mean().item(), 4),
                "fraction",
                "of the facets are nearer to their own group's examples than to any other's",
            )
            out["own group without"] = results.Number(
                round(self.plain_own_group.double().mean().item(), 4),
                "fraction",
                f"of the pictures left alone; by chance {100 / count:.0f}%",
            )
        return out

    def write(self, folder: results.Folder) -> None:
        names = ", ".join(self.titles[:12]) + (" ..." if len(self.titles) > 12 else "")
        how = "started from the means of groups of its strongest examples"
        apart = "made together so that their textures differ"
        folder.figure(
            "facets.png",
            self.plot(),
            caption=f"{self.title}: {names}. A row a unit; its pictures were "
            f"{how if self.own_group.numel() else apart}. Below each its score "
            f"({self.objective}). Colours are not rescaled.",
            alt=f"Several pictures each of {names}",
        )
        pixelated = self.images.shape[-1] < 96
        for u, unit in enumerate(self.units):
            stem = file_stem(str(unit))
            folder.figure(
                f"units/{stem}.png",
                self.unit_figure(u),
                caption=self._unit_caption(u),
                alt=f"Facets of {self.titles[u]} beside what the same seeds give left alone",
                units=[str(unit)],
            )
            for g in range(self.images.shape[1]):
                folder.figure(
                    f"units/{stem}-{g + 1}.png",
                    self.images[u, g],
                    caption=f"{self.titles[u]}, facet {g + 1}. Score {self.scores[u, g]:.3g}.",
                    alt=f"Facet {g + 1} of {self.titles[u]}",
                    units=[str(unit)],
                    pixelated=pixelated,
                    detail=True,
                )
                if self.frames.numel():
                    films.add_film(
                        folder,
                        f"films/{stem}-{g + 1}",
                        self.frames[u, g],
                        kind=self.film,
                        caption=f"{self.titles[u]}, facet {g + 1}, in {self.frames.shape[2]} "
                        "stages.",
                        alt=f"Film of facet {g + 1} of {self.titles[u]}",
                        units=[str(unit)],
                    )
        rows: list[list[Any]] = []
        for u, unit in enumerate(self.units):
            for g in range(self.images.shape[1]):
                row = [
                    str(unit),
                    g + 1,
                    round(self.scores[u, g].item(), 5),
                    round(self.plain_scores[u, g].item(), 5),
                    round(self.likeness[u].item(), 5),
                    round(self.plain_likeness[u].item(), 5),
                ]
                if self.own_group.numel():
                    cluster = self.clusters[u][g]
                    row += [cluster.size, bool(self.own_group[u, g]), " ".join(cluster.paths[:3])]
                rows.append(row)
        columns = ["unit", "facet", "score", "score without", "likeness", "likeness without"]
        columns += ["examples", "own group", "nearest"] if self.own_group.numel() else []
        folder.table(
            "facets.csv",
            columns,
            rows,
            caption="Each facet's score, and that of the picture left alone; the likeness is of "
            "all of a unit's pictures.",
        )
        folder.arrays(
            "facets.npz",
            {
                "images": images.to_uint8(self.images).numpy(),
                "plain": images.to_uint8(self.plain).numpy(),
                "scores": self.scores.numpy(),
                "plain_scores": self.plain_scores.numpy(),
                "likeness": self.likeness.numpy(),
                "plain_likeness": self.plain_likeness.numpy(),
            },
            caption="Facets and the pictures left alone as 8-bit values (U, facets, 3, H, W), "
            "their scores, and how alike those of a unit are.",
        )

    def _unit_caption(self, u: int) -> str:
        name, title = str(self.units[u]), self.titles[u]
        said = (
            f"{name if title == name else f'{title} ({name})'}. "
            f"{self.images.shape[1]} facets. Likeness "
            f"{self.likeness[u]:.2f}, left alone {self.plain_likeness[u]:.2f}; scores below."
        )
        if self.own_group.numel():
            return (
                said + " From left to right in each row: the picture, where it started (the mean "
                "of the examples beside it), and those examples, the nearest to the middle of "
                "their group."
            )
        return said + " Above, driven apart; below, what the same seeds give left alone."

    def plot(self) -> Figure:
        """A row a unit (at most 16), its facets from left to right."""
        shown, count = min(16, len(self.units)), self.images.shape[1]
        cell, gap, left, top, below = 1.35, 0.07, 1.25, 0.55, 0.26
        page = plotting.Page(left + count * (cell + gap) + 0.1, top + shown * (cell + below) + 0.03)
        size = plotting.fitting(self.title, page.width - 0.24)
        page.text(0.12, 0.24, self.title, fontsize=size, weight="bold")
        for u in range(shown):
            y = top + u * (cell + below)
            page.text(
                left - 0.12, y + cell / 2, _wrapped(self.titles[u]), ha="right", weight="bold"
            )
            for g in range(count):
                x = left + g * (cell + gap)
                self._show(page, x, y, cell, self.images[u, g], f"{self.scores[u, g]:.3g}")
        return page.figure

    def unit_figure(self, u: int) -> Figure:
        """One unit: with examples a row a facet; without, the facets above those left alone."""
        count = self.images.shape[1]
        cell, gap, top, below = 1.35, 0.07, 0.55, 0.26
        if not self.own_group.numel():
            page = plotting.Page(0.75 + count * (cell + gap) + 0.1, top + 2 * (cell + below) + 0.03)
            self._head(page, u)
            for row, (word, pictures, scores) in enumerate(
                [
                    ("driven\napart", self.images[u], self.scores[u]),
                    ("left\nalone", self.plain[u], self.plain_scores[u]),
                ]
            ):
                y = top + row * (cell + below)
                page.text(0.63, y + cell / 2, word, ha="right", fontsize=8)
                for g in range(count):
                    self._show(
                        page, 0.75 + g * (cell + gap), y, cell, pictures[g], f"{scores[g]:.3g}"
                    )
            return page.figure
        side = 0.9
        wide = 0.1 + 2 * (cell + gap) + _SHOWN * (side + gap) + 0.1
        page = plotting.Page(wide, top + 0.2 + count * (cell + below) + 0.03)
        self._head(page, u)
        heads = ("facet", "start", "examples of its group")
        for x, head in zip((0.1, 0.1 + cell + gap, 0.1 + 2 * (cell + gap)), heads, strict=True):
            page.text(x, top + 0.06, head, fontsize=8, color="#555555")
        for g, cluster in enumerate(self.clusters[u]):
            y = top + 0.2 + g * (cell + below)
            self._show(page, 0.1, y, cell, self.images[u, g], f"{self.scores[u, g]:.3g}")
            self._show(
                page, 0.1 + cell + gap, y, cell, cluster.start, f"mean of {len(cluster.examples)}"
            )
            for m, example in enumerate(cluster.examples[:_SHOWN]):
                x = 0.1 + 2 * (cell + gap) + m * (side + gap)
                self._show(page, x, y + (cell - side) / 2, side, example.float() / 255, "")
            page.text(
                0.1 + 2 * (cell + gap),
                y + cell + 0.1,
                fontsize=7,
                color="#555555",
                words=f"group of {cluster.size}",
            )
        return page.figure

    def _head(self, page: plotting.Page, u: int) -> None:
        words = f"Facets of {self.titles[u]}"
        size = plotting.fitting(words, page.width - 0.2)
        page.text(0.1, 0.24, words, fontsize=size, weight="bold")

    def _show(
        self, page: plotting.Page, x: float, y: float, side: float, picture: Tensor, words: str
    ) -> None:
        plotting.show_image(page.axes(x, y, side, side), picture, pixelated=picture.shape[-1] < 64)
        if words:
            page.text(x + side / 2, y + side + 0.1, words, fontsize=7, ha="center", color="#555555")


def draw_facets(
    model: Model,
    layer: str,
    *,
    units: str | Sequence[int | str],
    count: int = 4,
    natural: Pictures | None = None,
    diversity: float = 1.0,
    examples: int = 96,
    steps: int = 256,
    seed: int = 0,
    size: int | None = None,
    objective: str = "auto",
    film: int = 0,
    film_kind: str = "gif",
    batch_size: int | None = None,
    precision: AutoPrecision = "auto",
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Faceted:
    """`count` different pictures of each unit: `.images` (U, G, 3, S, S).

    layer, units, steps, size, objective, settings: as of `maximize`
    natural: pictures among which to look for the units' strongest examples; each facet then starts
        from the mean of a group of them, and is drawn to what sets that group apart
    diversity: how hard the pictures of a unit are driven apart, or drawn to their groups, as a
        share of their score (see `company.beside`)
    examples: how many of the strongest are put into groups, fewer where the rest moves the unit
        less than a third as much as the first

    A unit's facets depend on the seed, the unit and the examples alone.

    Raises UserError for an unknown layer, unit or option, a count below 2, and data with too few
    pictures.

        featviz.draw_facets(model, "conv5", units=[3, 12], natural=pictures).save("run/facets")
    """
    started = time.perf_counter()
    place = model.layer(layer)
    found = parse_units(model, layer, units)
    films.check_kind(film_kind)
    if count < 2:
        raise UserError(f"{count} facet: a unit's pictures can differ from 2 on")
    if any(unit.position for unit in found):
        raise UserError("facets are of units; leave the positions out (conv5:12)")
    if diversity < 0:
        raise UserError(f"diversity is {diversity:g}; it is 0 or more")
    if natural is not None and min(len(natural), examples) < 2 * count:
        raise UserError(
            f"{min(len(natural), examples)} pictures cannot be put into {count} groups; "
            "give more, or ask for fewer facets"
        )
    settings = settings or settings_for(model, place, steps=steps, size=size, precision=precision)
    side = settings.parametrization.height
    rows = [unit.index for unit in found for _ in range(count)]
    goal, besides = unit_goal(model, place, rows, objective)
    where = heard(model, place)
    apart = objectives.diversity(where.name, count)
    seeds = [seed_of(seed, f"{place.path}/{u.index}/{g}") for u in found for g in range(count)]
    work = _Work(len(rows), settings.steps, 2, progress, place.name)
    with frozen(model):
        groups: list[_Groups] = []
        start, pressure = None, apart
        if natural is not None:
            groups = _grouped(model, place, found, natural, side, count, examples, seed, progress)
            start = torch.stack([cluster.start for unit in groups for cluster in unit.clusters])
            pressure = resemblance(
                groups[0].layer.name,
                torch.cat([unit.centres for unit in groups]).to(model.device),
                torch.stack([unit.middle for unit in groups])
                .repeat_interleave(count, 0)
                .to(model.device),
            )
        pushed = besides
        if diversity:
            drive = beside(goal, pressure, diversity)
            pushed = drive if besides is None else besides + drive
        facets = optimize(
            model,
            goal,
            range(len(rows)),
            seeds,
            settings,
            regularizer=pushed,
            start=start,
            batch_size=batch_size,
            frames=film,
            progress=work.part(0),
        )
        alone = optimize(
            model,
            goal,
            range(len(rows)),
            seeds,
            settings,
            regularizer=besides,
            batch_size=batch_size,
            progress=work.part(1),
        )
        own_group, plain_own_group = (
            torch.stack(
                [
                    unit.nearest_is_own(model, climb.images[u * count : (u + 1) * count])
                    for u, unit in enumerate(groups)
                ]
            )
            if groups
            else torch.empty(0)
            for climb in (facets, alone)
        )
        alike, plain_alike = (
            1 - apart({where.name: read_layer(model, climb.images, where.name)})
            for climb in (facets, alone)
        )
        measured = [clean_scores(model, goal, climb.images) for climb in (facets, alone)]
    shape = (len(found), count)
    return Faceted(
        origin=results.origin(
            model,
            seed=seed,
            started=started,
            data=natural,
            parameters={
                "layer": place.name,
                "units": [str(unit) for unit in found],
                "facets": count,
                "diversity": diversity,
                "examples": examples if natural is not None else None,
                "objective": goal.text,
                "size": side,
                **settings.record(),
            },
        ),
        warnings=_doubts([unit_name(model, unit) for unit in found], facets, count),
        model_name=model.name,
        layer=place.name,
        objective=goal.text,
        units=tuple(found),
        titles=tuple(unit_name(model, unit) for unit in found),
        images=facets.images.cpu().unflatten(0, shape),
        scores=measured[0].view(shape),
        likeness=alike.cpu().view(shape).mean(1),
        plain=alone.images.cpu().unflatten(0, shape),
        plain_scores=measured[1].view(shape),
        plain_likeness=plain_alike.cpu().view(shape).mean(1),
        clusters=tuple(unit.clusters for unit in groups),
        own_group=own_group,
        plain_own_group=plain_own_group,
        compared_at=where.name,
        frames=facets.frames.cpu().unflatten(0, shape) if facets.frames.numel() else facets.frames,
        film=film_kind,
    )


@dataclass
class _Work:
    """How far a job of several equal parts is."""

    rows: int
    steps: int
    parts: int
    progress: Progress | None
    layer: str

    def part(self, number: int) -> Progress:
        def report(done: int, total: int, _: str) -> None:
            if self.progress is not None:
                self.progress(number * total + done, self.parts * total, f"facets of {self.layer}")

        return report


def _doubts(titles: Sequence[str], climb: Optimized, count: int) -> tuple[str, ...]:
    still = [
        title
        for u, title in enumerate(titles)
        if not bool(climb.alive[u * count : (u + 1) * count].all())
    ]
    if not still:
        return ()
    return (
        f"no gradient reaches {', '.join(still[:8])}: dead, or blocked by ReLUs; those pictures "
        "are starts and show nothing",
    )


# The unit's strongest examples, in groups.


@dataclass
class _Groups:
    clusters: tuple[Cluster, ...]
    centres: Tensor
    """(G, D): the mean code of each"""
    middle: Tensor
    """(D,): that of all examples"""
    layer: Layer
    """whose answers the groups are made of"""

    def nearest_is_own(self, model: Model, pictures: Tensor) -> Tensor:
        """(G,) bool."""
        own = _codes(model, self.layer, pictures)
        nearest = torch.cdist(own, self.centres).argmin(1)
        return nearest == torch.arange(len(pictures))


def _grouped(
    model: Model,
    place: Layer,
    units: Sequence[Unit],
    natural: Pictures,
    side: int,
    count: int,
    examples: int,
    seed: int,
    progress: Progress | None,
) -> list[_Groups]:
    """Each unit's strongest examples in `count` groups, the largest first."""
    from sklearn.cluster import KMeans

    found = _strongest(model, place, units, natural, examples, 2 * count, progress)
    layer = _judge_of_groups(model, place)
    out = []
    for unit, (rows, spots) in zip(units, found, strict=True):
        crops = torch.stack(
            [
                _window(natural.read(row, model.resize, model.input_size), place, spot, side)
                for row, spot in zip(rows, spots, strict=True)
            ]
        )
        found_codes = _codes(model, layer, crops)
        draw = seed_of(seed, f"groups/{unit.index}") % 2**32
        means = KMeans(count, n_init=4, random_state=draw).fit(found_codes.numpy())
        labels = torch.from_numpy(np.asarray(means.labels_)).long()
        # The largest first; of equals the one with the strongest example.
        first = {g: int((labels == g).nonzero()[0]) for g in range(count)}
        order = sorted(range(count), key=lambda g: (-int((labels == g).sum()), first[g]))
        centres, clusters = [], []
        for g in order:
            members = (labels == g).nonzero()[:, 0]
            centre = found_codes[members].mean(0)
            apart = (found_codes[members] - centre).square().sum(1)
            near = members[apart.argsort(stable=True)][:_NEAREST]
            small = F.interpolate(
                crops[near],
                (min(side, _EXAMPLE_SIDE),) * 2,
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
            centres.append(centre)
            clusters.append(
                Cluster(
                    size=len(members),
                    paths=tuple(natural.paths[rows[i]] for i in near.tolist()),
                    examples=images.to_uint8(small),
                    start=crops[near].mean(0),
                )
            )
        out.append(_Groups(tuple(clusters), torch.stack(centres), found_codes.mean(0), layer))
    return out


def _strongest(
    model: Model,
    place: Layer,
    units: Sequence[Unit],
    natural: Pictures,
    count: int,
    least: int,
    progress: Progress | None,
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """For each unit the rows of the pictures that move it most, strongest first, and where.

    `count` of them, or fewer (not below `least`) where the rest hardly moves it.
    """
    which = [unit.index for unit in units]

    def score(pictures: Tensor) -> Tensor:
        values = activations(model, pictures.to(model.device), [place.name])[place.name]
        if values.dim() == 3:  # tokens
            values = values.transpose(1, 2)
        values = values[:, which]
        return values.reshape(*values.shape, *(1,) * (4 - values.dim()))

    top = scan(
        ImageCache(model, natural),
        score,
        k=count,
        progress=progress,
        text=f"examples of {place.name}",
    )
    out = []
    for values, rows, positions in zip(top.values, top.rows, top.positions, strict=True):
        strong = max(least, int((values >= _STRONG * values[0]).sum()))
        spots = [(y, x) for y, x in positions[:strong].tolist()]
        out.append((rows[:strong].tolist(), spots))
    return out


def _window(picture: Tensor, place: Layer, spot: tuple[int, int], side: int) -> Tensor:
    """The `side` x `side` pixels nearest around a position's field that lie in the picture."""
    field = place.receptive_field
    height, width = picture.shape[-2:]
    if not place.spatial or field is None or side >= min(height, width):
        if (height, width) == (side, side):
            return picture
        return F.interpolate(
            picture[None], (side, side), mode="bilinear", antialias=True, align_corners=False
        )[0]
    top, left, bottom, right = field.box(*spot)
    y = min(max(0, (top + bottom - side) // 2), height - side)
    x = min(max(0, (left + right - side) // 2), width - side)
    return picture[:, y : y + side, x : x + side]


def _judge_of_groups(model: Model, place: Layer) -> Layer:
    """By whose answers examples are grouped: a map's own, for others the last before the logits."""
    vectors = [
        one
        for one in model.layers.values()
        if len(one.shape) == 1 and one.kind == "Linear" and one.name != "logits"
    ]
    return vectors[-1] if vectors and not place.spatial else heard(model, place)


def _codes(model: Model, layer: Layer, pictures: Tensor) -> Tensor:
    """What groups are made of, (N, D), one picture at a time."""
    return codes(read_layer(model, pictures.to(model.device), layer.name)).cpu()


def _median(values: Tensor) -> float:
    return round(torch.quantile(values.double().flatten(), 0.5).item(), 5)


def _wrapped(title: str, most: int = 15) -> str:
    """A title of two words or more on lines that fit beside the row."""
    lines: list[str] = []
    for word in title.split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
