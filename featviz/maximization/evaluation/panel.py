"""The honest panel: the numbers beside each maximised picture, and the reasons to doubt it.

Comes in: pictures, with the objective that made them; photographs, another model and the scores of
other tries where there are any. Goes out: a `Panel`. What each number means is in `MEANINGS`; how
it is got, in `judge` (scores, ranks), `natural` (photographs), `path` (natural-path similarity) and
`spectrum` (slope, share of fine detail, lattice); when it raises a flag, in `flags`.

Photographs are read once for all units of a layer. Each picture's numbers depend on it alone, not
on which others are judged with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import images
from featviz.maximization.evaluation import clean_scores as scoring
from featviz.maximization.evaluation import natural_path as paths
from featviz.maximization.evaluation import photographs, spectrum
from featviz.maximization.evaluation.flags import SLOPE, Flag, flags_of
from featviz.maximization.evaluation.natural_path import Path
from featviz.maximization.evaluation.photographs import Album, Box, Natural, Reading
from featviz.maximization.objectives import PICTURE, Objective
from featviz.models.first_layer import first_convolution, first_kernels
from featviz.models.layers import activations
from featviz.models.model import Layer
from featviz.models.units import Unit

if TYPE_CHECKING:
    from featviz.datasets import Pictures
    from featviz.models.model import Model

MEANINGS: dict[str, tuple[str, str]] = {
    "held out": ("", "score after shifts, behind a 3x3 mean: what is left without pixel detail"),
    "natural": ("", "the highest score of the given photographs"),
    "of natural": ("times", "score over the photographs' highest"),
    "natural 99.9": ("", "what one score of photographs in a thousand exceeds"),
    "of natural 99.9": ("times", "score over that"),
    "rank": ("", "place of the unit among all units of its layer on its own picture; 1 is the top"),
    "transfer rank": ("", "place of the same class in the other model's answer to the picture"),
    "path": (
        "",
        "natural-path similarity right before the unit: 1 is like another photograph of the unit, "
        "0 no nearer than photographs of other units",
    ),
    "path low": ("", "lower end of its 95% interval, over photographs"),
    "path high": ("", "upper end of it"),
    "path own": ("", "rank correlation with the unit's photographs right before the unit"),
    "path others": ("", "rank correlation with other units' photographs there"),
    "path lead": ("fraction", "bootstrap draws in which the first of the two is the higher"),
    "carriers": (
        "fraction",
        "what of the score comes through the channels that carry it on photographs",
    ),
    "carriers usual": ("fraction", "the same for one of the unit's photographs and the others"),
    "slope": ("", "of log amplitude against log frequency; photographs have about -1.25"),
    "high share": ("fraction", "energy above 1/4 cycle a pixel; photographs have about 5%"),
    "kernel": (
        "",
        "correlation with the unit's own kernel, which is what a linear unit answers to most",
    ),
    "spread": ("fraction", "standard deviation of the tries' scores over their median"),
    "seconds": ("s", "to make the picture"),
}

SHOWN = 6
"""photographs kept beside a picture"""
_PATCH = 160  # pixels a side, at most, in which they are kept
_FEWEST = 4  # photographs of a unit from which paths can be compared
_STRANGERS = 24  # photographs of other units, one each
_SPECTRA = 64  # photographs whose spectra are taken
_NOISES = 8
_FEW_SLOPES = 16


def meaning_of(name: str) -> tuple[str, str]:
    """The unit and the meaning of a number, in words."""
    if name.startswith("lattice "):
        period = name.removeprefix("lattice ")
        return "", f"energy at a grid of {period} pixels over that of its neighbours; 1: no grid"
    return MEANINGS[name]


@dataclass(frozen=True)
class Photographs:
    """The photographs that a unit answers to most, cut out where it does."""

    pictures: tuple[Tensor, ...]
    """(3, H, W) uint8 each, strongest first"""
    boxes: tuple[Box | None, ...]
    """what was scored, in pixels of the cut before it was shrunk, in its middle; None: all of it"""
    sides: tuple[int, ...]
    """of the cut, before it was shrunk"""
    values: tuple[float, ...]
    """their scores"""


@dataclass(frozen=True)
class Panel:
    """What was measured of N pictures."""

    scores: Tensor
    """(N,): clean, of the 8-bit pictures"""
    numbers: dict[str, Tensor]
    """(N,) each, NaN where it could not be measured; see `MEANINGS`"""
    flags: tuple[tuple[Flag, ...], ...]
    """of each picture"""
    box: Box | None = None
    """what the objective reads of each picture, in its pixels; None: all of it"""
    photographs: tuple[Photographs, ...] = ()
    """of each picture; empty where none were given"""
    path: Path | None = None
    natural_slope: tuple[float, float] = SLOPE
    """mean and standard deviation over photographs"""
    count: int = 0
    """photographs that were read"""
    units: int = 0
    """in the layer"""
    scaled: bool = False
    """whether ranks are of scores in standard deviations of photographs"""
    other: str = ""
    """name of the other model"""
    notes: tuple[str, ...] = field(default=())
    """what could not be measured, and why"""


def judge(
    model: Model,
    layer: Layer,
    goal: Objective,
    targets: Sequence[int],
    pictures: Tensor,
    *,
    units: Sequence[Unit] = (),
    natural: Pictures | Tensor | None = None,
    other: Model | None = None,
    tries: Tensor | None = None,
    alive: Tensor | None = None,
    seconds: float | None = None,
    precision: str = "float32",
    progress: Callable[[int, int, str], None] | None = None,
) -> Panel:
    """Measure pictures (N, 3, H, W) that were made for some targets of an objective.

    targets: (N,): which target of `goal` each picture was made for
    units: (N,): the unit of each; without them (directions, sums) there are no ranks and no path
    natural: photographs, of the model's size if they are a tensor
    other: another classifier, for transfer ranks of classes
    tries: (N, T): clean scores of all tries of each picture, NaN where there were fewer
    alive: (N,): False where no gradient ever reached the picture
    seconds: that making one picture took
    precision: in which photographs are read, "fp32" or "bf16"; see `natural.survey`

    The model is to be frozen, and is left as it is.
    """
    pictures = pictures.detach()
    side = int(pictures.shape[-1])
    scores, held, values = _scored(model, layer, goal, targets, pictures)
    numbers: dict[str, Tensor] = {"held out": held}
    notes: list[str] = []
    reading = photographs.find_reading(goal, values, units, scores)
    asked = list(targets) if reading is None else sorted({unit.index for unit in units})
    columns = list(range(len(asked))) if reading is None else [unit.index for unit in units]

    world: Natural | None = None
    peaks = torch.full((len(pictures),), math.nan)
    slope = SLOPE
    if natural is not None:
        album, slopes = Album(model, natural), _Slopes(len(natural), side)

        world = photographs.survey(
            model,
            layer,
            goal,
            reading,
            album,
            columns=asked,
            precision=precision,
            watch=slopes.watch,
            progress=progress,
        )
        slope = slopes.found()
        peaks = world.peak[columns]
        numbers |= _against(scores, world, columns)
        if world.skipped:
            notes.append(f"{len(world.skipped)} photographs could not be read and are left out")

    if reading is not None:
        numbers["rank"] = _ranks(layer, reading, values, units, world)
    if other is not None:
        numbers["transfer rank"], said = _transfer(model, layer, units, pictures, other)
        notes += said

    shown: tuple[Photographs, ...] = ()
    path = None
    if world is not None and natural is not None:
        shown = tuple(_shown(layer, reading, world, album, column, side) for column in columns)
        if reading is not None:
            path, said = _path(model, layer, reading, world, album, units, columns, pictures)
            notes += said
    if path is not None:
        numbers |= _on_the_path(path)
    numbers |= _in_the_spectrum(model, layer, pictures)
    if tries is not None and tries.shape[1] > 1:
        numbers["spread"] = spread(tries)
    if seconds is not None:
        numbers["seconds"] = torch.full((len(pictures),), seconds)
    box = None
    if reading is not None and reading.kind in {"middle", "position"}:
        box = photographs.field_box(layer, reading, _middle(reading, values[0], units[0]))
        if box is not None and layer.name == first_convolution(model):
            numbers |= _like_kernels(model, units, pictures, box)
        box = None if _covers(box, side) else box
    rectified = reading is not None and _rectified(model, layer)
    going = alive if alive is not None else torch.ones(len(pictures), dtype=torch.bool)
    flags = tuple(
        flags_of(
            {name: float(column[i]) for name, column in numbers.items()},
            score=float(scores[i]),
            alive=bool(going[i]),
            rectified=rectified,
            peak=float(peaks[i]),
            side=side,
            units=layer.units,
            photographs=world.count if world is not None else 0,
            natural_slope=slope,
            ranked=world is not None or layer.name == "logits",
            before=path.layers[-2] if path is not None else "",
        )
        for i in range(len(pictures))
    )
    return Panel(
        scores=scores,
        numbers=numbers,
        flags=flags,
        box=box,
        photographs=shown,
        path=path,
        natural_slope=slope,
        count=world.count if world is not None else 0,
        units=layer.units,
        scaled=world is not None and layer.name != "logits",
        other=other.name if other is not None else "",
        notes=tuple(dict.fromkeys(notes)),
    )


def spread(tries: Tensor) -> Tensor:
    """Standard deviation over median of the scores of tries (N, T): (N,), NaN for one try."""
    rows = []
    for row in tries.double():
        told = row[row.isfinite()]
        if len(told) < 2:
            rows.append(math.nan)
        else:
            middle = torch.quantile(told, 0.5)
            rows.append(float(told.std() / middle.abs().clamp(min=1e-12)))
    return torch.tensor(rows)


def _scored(
    model: Model, layer: Layer, goal: Objective, targets: Sequence[int], pictures: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Clean and held-out scores (N,), and the layer's values (1, ...) on each picture."""
    layers = tuple(name for name in goal.layers if name != PICTURE)
    rows, values = [], []
    with torch.no_grad():
        # One picture at a time: rounding may depend on the size of the batch.
        for target, picture in zip(targets, pictures.to(model.device), strict=True):

            def score(views: Tensor, target: int = target) -> Tensor:
                acts = activations(model, views, layers) | {PICTURE: views}
                return goal(acts, [target] * len(views))

            acts = activations(model, picture[None], [*dict.fromkeys([*layers, layer.name])])
            clean = goal(acts | {PICTURE: picture[None]}, [target])[0]
            rows.append((clean, scoring.held_out(score, picture[None])[0]))
            values.append(acts[layer.name].float().cpu())
    clean, held = (torch.stack(column).float().cpu() for column in zip(*rows, strict=True))
    return clean, held, values


def _against(scores: Tensor, world: Natural, columns: Sequence[int]) -> dict[str, Tensor]:
    """What photographs reach, and how far the pictures are above it."""
    found = {}
    for name, reached in (("natural", world.highest), ("natural 99.9", world.percentile)):
        found[name] = reached[columns]
        ratio = scores / reached[columns]
        found[f"of {name}"] = torch.where(reached[columns] > 0, ratio, math.nan)
    return found


def _on_the_path(path: Path) -> dict[str, Tensor]:
    """The numbers at the layer right before the unit's."""
    at = len(path.layers) - 2
    return {
        "path": path.similarity[:, at],
        "path low": path.low[:, at],
        "path high": path.high[:, at],
        "path own": path.own[:, at],
        "path others": path.others[:, at],
        "path lead": path.lead[:, at],
        "carriers": path.shared,
        "carriers usual": path.usual,
    }


def _in_the_spectrum(model: Model, layer: Layer, pictures: Tensor) -> dict[str, Tensor]:
    energy = spectrum.spectrum(pictures)
    found = {"slope": spectrum.slope(energy), "high share": spectrum.high_share(energy)}
    periods = spectrum.lattice_periods(model, layer)
    for period in periods:
        grid = spectrum.lattice(energy, period, [p for p in periods if p < period])
        if grid.isfinite().any():
            found[f"lattice {period}"] = grid
    return found


def _like_kernels(
    model: Model, units: Sequence[Unit], pictures: Tensor, box: Box
) -> dict[str, Tensor]:
    """How nearly pictures of a first layer are its kernels, the closed form of their optimum.

    The score of a linear unit rises fastest along its kernel (over the deviations by which the
    model divides its input); a picture that may go so far from grey and no further is grey plus
    that, times a number.
    """
    kernels = first_kernels(model)
    top, left, bottom, right = box
    side = pictures.shape[-1]
    if kernels is None or kernels.shape[2:] != (bottom - top, right - left):
        return {}
    if min(top, left) < 0 or max(bottom, right) > side:
        return {}
    seen = pictures[:, :, top:bottom, left:right].cpu()
    best = kernels[[unit.index for unit in units]] / model.std.cpu()
    pairs = zip(seen.flatten(1), best.flatten(1), strict=True)
    return {"kernel": torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])}


def _ranks(
    layer: Layer,
    reading: Reading,
    values: Sequence[Tensor],
    units: Sequence[Unit],
    world: Natural | None,
) -> Tensor:
    """(N,): of each unit on its own picture, in its layer.

    Logits compete as they are. Units of other layers have scales of their own, so where there are
    photographs each is measured in standard deviations above its mean on them.
    """
    ranks = []
    for value, unit in zip(values, units, strict=True):
        scores = reading.own(value, unit)
        if world is not None and layer.name != "logits":
            scores = scoring.standardised(scores, world.mean, world.sd)
        ranks.append(float(scoring.rank_among(scores, unit.index)))
    return torch.tensor(ranks)


def _transfer(
    model: Model, layer: Layer, units: Sequence[Unit], pictures: Tensor, other: Model
) -> tuple[Tensor, list[str]]:
    ranks = torch.full((len(pictures),), math.nan)
    if layer.name != "logits" or not units:
        return ranks, [
            f"units of {layer.name} have no counterpart in {other.name}: transfer ranks are of "
            "classes only"
        ]
    missing = []
    for i, unit in enumerate(units):
        match = scoring.same_class(model, unit.index, other)
        if match is None:
            missing.append(model.class_name(unit.index))
        else:
            ranks[i] = scoring.transfer_rank(pictures[i], other, match)
    if not missing:
        return ranks, []
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return ranks, [f"{other.name} has no class {', '.join(missing[:8])}{more}: no transfer rank"]


def _shown(
    layer: Layer, reading: Reading | None, world: Natural, album: Album, column: int, side: int
) -> Photographs:
    """As `_cuts`, but what was scored is always in the middle, and what lies outside is grey."""
    pictures, boxes, sides, values = [], [], [], []
    for at in range(min(SHOWN, world.values.shape[1])):
        picture = album.read(int(world.rows[column, at]))
        box = _box(layer, reading, world, column, at)
        if box is not None:
            top, left = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
            picture = images.crop_box(picture, (top, left, top + side, left + side))
            box = (box[0] - top, box[1] - left, box[2] - top, box[3] - left)
            box = None if _covers(box, side) else box
        sides.append(picture.shape[-1])
        pictures.append(_small(picture))
        boxes.append(box)
        values.append(float(world.values[column, at]))
    return Photographs(tuple(pictures), tuple(boxes), tuple(sides), tuple(values))


def _covers(box: Box | None, side: int) -> bool:
    return box is None or (max(box[:2]) <= 0 and min(box[2:]) >= side)


def _box(layer: Layer, reading: Reading | None, world: Natural, column: int, at: int) -> Box | None:
    row, line = world.spots[column, at].tolist()
    return photographs.field_box(layer, reading, (row, line))


def _cuts(
    layer: Layer,
    reading: Reading | None,
    world: Natural,
    album: Album,
    column: int,
    side: int,
    count: int,
) -> Tensor:
    """The `count` strongest photographs of a column, cut round what was scored, (k, 3, S, S)."""
    return torch.stack(
        [
            photographs.cut_round(
                album.read(int(world.rows[column, at])),
                _box(layer, reading, world, column, at),
                side,
            )
            for at in range(min(count, world.values.shape[1]))
        ]
    )


def _small(picture: Tensor) -> Tensor:
    if picture.shape[-1] > _PATCH:
        picture = torch.nn.functional.interpolate(
            picture[None], (_PATCH, _PATCH), mode="bilinear", antialias=True, align_corners=False
        )[0]
    return images.to_uint8(picture)


def _path(
    model: Model,
    layer: Layer,
    reading: Reading,
    world: Natural,
    album: Album,
    units: Sequence[Unit],
    columns: Sequence[int],
    pictures: Tensor,
) -> tuple[Path | None, list[str]]:
    """How like photographs the pictures go through the net, or why that cannot be said."""
    layers = paths.path_layers(model, layer)
    if len(layers) < 2:
        return None, [f"no layer lies before {layer.name}: there is no path to compare"]
    count = min(photographs.TOP, world.count // 4)
    if count < _FEWEST:
        return None, [
            f"{world.count} photographs are too few to compare paths with; give at least "
            f"{4 * _FEWEST}"
        ]
    side = int(pictures.shape[-1])

    def cuts(column: int, most: int) -> Tensor:
        return _cuts(layer, reading, world, album, column, side, most)

    many = layer.units
    spread_out = sorted({i * many // _STRANGERS for i in range(_STRANGERS)})
    firsts = torch.cat([cuts(column, 1) for column in spread_out])
    strange = paths.profiles(model, firsts, layers)
    some = firsts[:: max(1, len(firsts) // _NOISES)]
    noise = paths.profiles(model, paths.noise_like(some), layers)
    mine, own, strangers, carried = [], [], [], []
    for unit, column, picture in zip(units, columns, pictures, strict=True):

        def at_picture(values: Tensor, unit: Unit = unit) -> Tensor:
            return reading.own(values, unit)[None, unit.index]

        def anywhere(values: Tensor, column: int = column) -> Tensor:
            return reading.everywhere(values)[:, column].amax((1, 2))

        picture_profiles, picture_carriers = paths.carriers(
            model, picture[None], layers, at_picture
        )
        own_profiles, own_carriers = paths.carriers(model, cuts(column, count), layers, anywhere)
        mine.append(picture_profiles)
        own.append(own_profiles)
        carried.append((picture_carriers, own_carriers))
        others = [i for i, c in enumerate(spread_out) if c != column]
        strangers.append([profile[others] for profile in strange])
    joined = [torch.cat(parts) for parts in zip(*mine, strict=True)]
    return paths.compare(joined, own, strangers, noise, carried, layers), []


class _Slopes:
    """Slopes of an even sample of photographs, cut to the pictures' size, as they pass."""

    def __init__(self, total: int, side: int):
        count = min(_SPECTRA, total)
        self._rows = {i * total // count for i in range(count)}
        self._side = side
        self._found: list[Tensor] = []

    def watch(self, rows: Tensor, batch: Tensor) -> None:
        wanted = [i for i, row in enumerate(rows.tolist()) if row in self._rows]
        if not wanted:
            return
        height, width = batch.shape[-2:]
        down, right = min(self._side, height), min(self._side, width)
        top, left = (height - down) // 2, (width - right) // 2
        cut = batch[wanted][..., top : top + down, left : left + right]
        self._found.append(spectrum.slope(spectrum.spectrum(cut)))

    def found(self) -> tuple[float, float]:
        """Mean and standard deviation; those that are known of photographs where they are few."""
        slopes = torch.cat(self._found).double() if self._found else torch.empty(0)
        slopes = slopes[slopes.isfinite()]
        if len(slopes) < _FEW_SLOPES:
            return SLOPE
        return float(slopes.mean()), float(slopes.std())


def _middle(reading: Reading, values: Tensor, unit: Unit) -> tuple[int, int]:
    """Where the objective's window begins on a picture's own map."""
    if unit.position is not None:
        return unit.position
    if not reading.of_map:
        return 0, 0
    height, width = values.shape[2:]
    return (height - reading.width) // 2, (width - reading.width) // 2


def _rectified(model: Model, layer: Layer) -> bool:
    """Whether negative values of the layer go no further."""
    kinds = {"ReLU", "ReLU6"}
    if layer.kind in kinds:
        return True
    places = list(model.layers.values())
    after = places[[place.name for place in places].index(layer.name) + 1 :]
    return bool(after) and after[0].kind in kinds
