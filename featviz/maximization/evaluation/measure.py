"""Measure maximized pictures: scores, ranks, comparison with natural pictures, spectra, flags.

Comes in: pictures, with the objective that made them; a data set, another model and the scores of
restarts where there are any. Goes out: a `Panel`. How each number is computed is in `clean_scores`
(scores, ranks), `unit_reader` (data sets), `natural_path` and `spectrum` (slope, share of fine
detail, lattice); `flags` says what raises a flag.

The data set is read once for all units of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.maximization.evaluation import clean_scores as scoring
from featviz.maximization.evaluation import natural_path, spectrum
from featviz.maximization.evaluation.flags import NATURAL_SLOPE, Setting, find_flags
from featviz.maximization.evaluation.natural_path import NaturalPath
from featviz.maximization.evaluation.panel import Panel, TopPictures
from featviz.maximization.evaluation.unit_reader import (
    TOP,
    UnitReader,
    crop_around,
    find_reader,
    score_data,
)
from featviz.maximization.objectives import Objective
from featviz.models.first_layer import first_convolution, first_kernels, input_strides
from featviz.models.layers import read_layer
from featviz.models.model import Layer
from featviz.models.units import Unit
from featviz.pictures import images
from featviz.pictures.images import Box
from featviz.top_scores import ImageCache, TopScores
from featviz.wording import unread

if TYPE_CHECKING:
    from featviz.data.datasets import Pictures
    from featviz.models.model import Model
    from featviz.types import Precision, Progress

SHOWN = 6
"""top pictures kept beside a picture"""
_PATCH = 160  # pixels a side, at most, in which they are kept
_FEWEST = 4  # top pictures of a unit from which paths can be compared
_OTHERS = 24  # top pictures of other units, one each
_SPECTRA = 64  # pictures of the data set whose spectra are computed
_FEW_SPECTRA = 16
_NOISES = 8


@dataclass(frozen=True)
class _Data:
    """What a data set scores, and crops of its top pictures."""

    layer: Layer
    reader: UnitReader | None
    cache: ImageCache
    top: TopScores
    peak: Tensor
    """(C,): the highest activation at any single position"""
    side: int
    """of the synthetic pictures"""

    @property
    def standardized(self) -> bool:
        """Whether units are compared by their deviations; logits compete as they are."""
        return self.layer.name != "logits"

    def slope(self) -> tuple[float, float]:
        """Mean and standard deviation of the spectra's slopes, cut to the pictures' size."""
        found = []
        for picture in self.cache.spread(_SPECTRA):
            y, x = picture.shape[1] // 2, picture.shape[2] // 2
            crop = crop_around(picture, (y, x, y, x), self.side)
            found.append(spectrum.slope(spectrum.spectrum(crop[None])))
        slopes = torch.cat(found).double()
        slopes = slopes[slopes.isfinite()]
        if len(slopes) < _FEW_SPECTRA:
            return NATURAL_SLOPE
        return float(slopes.mean()), float(slopes.std())

    def picture(self, column: int, rank: int) -> tuple[Tensor, Box | None]:
        """One top picture, and what is scored of it."""
        y, x = self.top.positions[column, rank].tolist()
        box = None if self.reader is None else self.reader.field(self.layer, (y, x))
        return self.cache.read(int(self.top.rows[column, rank])), box

    def crops(self, column: int, count: int) -> Tensor:
        """The `count` top pictures of a column, cut around what was scored, (k, 3, S, S)."""
        ranks = range(min(count, self.top.rows.shape[1]))
        return torch.stack([crop_around(*self.picture(column, k), self.side) for k in ranks])

    def top_pictures(self, column: int) -> TopPictures:
        """As `crops`, but what was scored is in the middle, and what lies outside is gray."""
        cells = []
        for rank in range(min(SHOWN, self.top.rows.shape[1])):
            picture, box = self.picture(column, rank)
            if box is not None:
                top = (box[0] + box[2] - self.side) // 2
                left = (box[1] + box[3] - self.side) // 2
                picture = images.crop_box(picture, (top, left, top + self.side, left + self.side))
                box = (box[0] - top, box[1] - left, box[2] - top, box[3] - left)
                box = None if _covers(box, self.side) else box
            value = float(self.top.values[column, rank])
            small = images.resize(picture[None], min(_PATCH, picture.shape[-1]))[0]
            cells.append((images.to_uint8(small), box, picture.shape[-1], value))
        return TopPictures(*zip(*cells, strict=True))


def measure_panel(
    model: Model,
    layer: Layer,
    objective: Objective,
    targets: Sequence[int],
    pictures: Tensor,
    *,
    units: Sequence[Unit] = (),
    data: Pictures | Tensor | None = None,
    other: Model | None = None,
    restart_scores: Tensor | None = None,
    alive: Tensor | None = None,
    seconds: float | None = None,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> Panel:
    """Measure pictures (N, 3, H, W) that were made for some targets of an objective.

    Args:
        model: Frozen; it is left as it is.
        layer: The layer of the units.
        objective: What the pictures maximize.
        targets: (N,): the target of each picture.
        pictures: In [0, 1], rounded to 8 bits.
        units: (N,): the unit of each picture. Without them (directions, sums) there are no ranks
            and no natural path.
        data: Natural pictures to compare with; of the model's size if they are a tensor.
        other: Another classifier, for transfer ranks of classes.
        restart_scores: (N, T): clean scores of all restarts, NaN where there were fewer.
        alive: (N,): False where no gradient ever reached the picture.
        seconds: That making one picture took.
        precision: In which the data set is read, "float32" or "bfloat16"; see `score_data`.
        progress: Called with pictures done, pictures in all and what is being done.

    Returns:
        The numbers and flags of each picture.
    """
    pictures = pictures.detach()
    side = int(pictures.shape[-1])
    scores = scoring.clean_scores(model, objective, pictures, targets)
    numbers = {"held out": scoring.held_out_scores(model, objective, pictures, targets)}
    values = [
        read_layer(model, picture[None].to(model.device), layer.name).float().cpu()
        for picture in pictures
    ]
    reader = find_reader(objective, values, units, scores)
    columns = [unit.index for unit in units] if reader else list(range(len(targets)))
    notes: list[str] = []
    natural = None
    if data is not None:
        cache = ImageCache(model, data)
        asked = sorted(set(columns)) if reader else list(targets)
        top, peak = score_data(
            model, layer, objective, reader, cache, asked, precision=precision, progress=progress
        )
        natural = _Data(layer, reader, cache, top, peak, side)
        numbers |= _against(scores, top, columns)
        if top.skipped:
            notes.append(unread(len(top.skipped)))
    if reader is not None:
        numbers["rank"] = _ranks(reader, values, units, natural)
    if other is not None:
        numbers["transfer rank"], said = _transfer(model, layer, units, pictures, other)
        notes += said
    path = None
    if natural is not None and reader is not None:
        path, said = _path(model, natural, reader, units, pictures)
        notes += said
    if path is not None:
        numbers |= _before_the_unit(path)
    numbers |= _in_the_spectrum(model, layer, pictures)
    if restart_scores is not None and restart_scores.shape[1] > 1:
        numbers["spread"] = spread(restart_scores)
    if seconds is not None:
        numbers["seconds"] = torch.full((len(pictures),), seconds)
    box = None
    if reader is not None and reader.kind in {"middle", "position"}:
        box = reader.field(layer, reader.window(values[0], units[0]))
        if box is not None and layer.name == first_convolution(model):
            numbers |= _like_kernels(model, units, pictures, box)
        box = None if _covers(box, side) else box
    setting = Setting(
        side=side,
        units=layer.units,
        rectified=reader is not None and _rectified(model, layer),
        ranked=natural is not None or layer.name == "logits",
        count=natural.top.count if natural is not None else 0,
        natural_slope=NATURAL_SLOPE if natural is None else natural.slope(),
        before=path.layers[-2] if path is not None else "",
    )
    return Panel(
        scores=scores,
        numbers=numbers,
        flags=tuple(
            find_flags(
                {name: float(column[i]) for name, column in numbers.items()},
                setting,
                score=float(scores[i]),
                alive=alive is None or bool(alive[i]),
                peak=math.nan if natural is None else float(natural.peak[columns[i]]),
            )
            for i in range(len(pictures))
        ),
        box=box,
        top_pictures=() if natural is None else tuple(map(natural.top_pictures, columns)),
        path=path,
        natural_slope=setting.natural_slope,
        count=setting.count,
        units=layer.units,
        standardized=natural is not None and natural.standardized,
        other=other.name if other is not None else "",
        notes=tuple(dict.fromkeys(notes)),
    )


def spread(scores: Tensor) -> Tensor:
    """Standard deviation over median of scores of restarts (N, T): (N,), NaN for one restart."""
    rows = [row[row.isfinite()] for row in scores.double()]
    return torch.tensor(
        [
            float(row.std() / torch.quantile(row, 0.5).abs().clamp(min=1e-12))
            if len(row) > 1
            else math.nan
            for row in rows
        ]
    )


def _ranks(
    reader: UnitReader, values: Sequence[Tensor], units: Sequence[Unit], natural: _Data | None
) -> Tensor:
    """(N,): the rank of each unit among all units of its layer, on its own picture."""
    ranks = []
    for value, unit in zip(values, units, strict=True):
        own = reader.own(value, unit)
        if natural is not None and natural.standardized:
            own = scoring.standardized(own, natural.top.mean, natural.top.sd)
        ranks.append(float(scoring.rank_among(own, unit.index)))
    return torch.tensor(ranks)


def _against(scores: Tensor, top: TopScores, columns: Sequence[int]) -> dict[str, Tensor]:
    """What the data set reaches, and the pictures' scores as multiples of it."""
    found = {}
    for name, reached in (("natural", top.values[:, 0]), ("natural 99.9", top.percentile)):
        found[name] = reached[columns]
        ratio = scores / reached[columns]
        found[f"of {name}"] = torch.where(reached[columns] > 0, ratio, math.nan)
    return found


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


def _path(
    model: Model, natural: _Data, reader: UnitReader, units: Sequence[Unit], pictures: Tensor
) -> tuple[NaturalPath | None, list[str]]:
    """How like natural pictures the layers see the pictures, or why that cannot be computed."""
    layer = natural.layer
    layers = natural_path.path_layers(model, layer)
    if len(layers) < 2:
        return None, [f"no layer lies before {layer.name}: there is no path to compare"]
    count = min(TOP, natural.top.count // 4)
    if count < _FEWEST:
        return None, [
            f"{natural.top.count} pictures are too few to compare paths with; give at least "
            f"{4 * _FEWEST}"
        ]
    columns = sorted({i * layer.units // _OTHERS for i in range(_OTHERS)})
    firsts = torch.cat([natural.crops(column, 1) for column in columns])
    of_others = natural_path.profiles(model, firsts, layers)
    some = firsts[:: max(1, len(firsts) // _NOISES)]
    noise = natural_path.profiles(model, natural_path.noise_like(some), layers)
    profiles, own, others, contributions = [], [], [], []
    for unit, picture in zip(units, pictures, strict=True):

        def own_score(values: Tensor, unit: Unit = unit) -> Tensor:
            return reader.own(values, unit)[None, unit.index]

        def highest(values: Tensor, unit: Unit = unit) -> Tensor:
            return reader.everywhere(values)[:, unit.index].amax((1, 2))

        crops = natural.crops(unit.index, count)
        mine, parts = natural_path.contributions(model, picture[None], layers, own_score)
        of_unit, usual_parts = natural_path.contributions(model, crops, layers, highest)
        profiles.append(mine)
        own.append(of_unit)
        contributions.append((parts, usual_parts))
        rows = [i for i, column in enumerate(columns) if column != unit.index]
        others.append([profile[rows] for profile in of_others])
    joined = [torch.cat(parts) for parts in zip(*profiles, strict=True)]
    return natural_path.compare(joined, own, others, noise, contributions, layers), []


def _before_the_unit(path: NaturalPath) -> dict[str, Tensor]:
    """The path's numbers at the layer right before the unit's."""
    names = ("low", "high", "own", "others", "confidence")
    numbers = {f"path {name}": getattr(path, name)[:, -2] for name in names}
    shares = {"overlap": path.overlap, "overlap usual": path.usual_overlap}
    return {"path": path.similarity[:, -2]} | numbers | shares


def _in_the_spectrum(model: Model, layer: Layer, pictures: Tensor) -> dict[str, Tensor]:
    energy = spectrum.spectrum(pictures)
    found = {"slope": spectrum.slope(energy), "high share": spectrum.high_share(energy)}
    periods = input_strides(model, layer)
    for period in periods:
        grid = spectrum.lattice(energy, period, [p for p in periods if p < period])
        if grid.isfinite().any():
            found[f"lattice {period}"] = grid
    return found


def _like_kernels(
    model: Model, units: Sequence[Unit], pictures: Tensor, box: Box
) -> dict[str, Tensor]:
    """Correlations of pictures of a first layer with its kernels, the closed form of their optimum.

    The score of a linear unit rises fastest along its kernel (over the deviations by which the
    model divides its input): of all pictures at a distance from gray the best is gray plus that.
    """
    kernels = first_kernels(model)
    top, left, bottom, right = box
    if kernels is None or kernels.shape[2:] != (bottom - top, right - left):
        return {}
    if min(top, left) < 0 or max(bottom, right) > pictures.shape[-1]:
        return {}
    seen = pictures[:, :, top:bottom, left:right].cpu()
    best = kernels[[unit.index for unit in units]] / model.std.cpu()
    pairs = zip(seen.flatten(1), best.flatten(1), strict=True)
    return {"kernel": torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])}


def _rectified(model: Model, layer: Layer) -> bool:
    """Whether negative values of the layer go no further."""
    kinds = {"ReLU", "ReLU6"}
    places = list(model.layers.values())
    behind = places[[place.name for place in places].index(layer.name) + 1 :]
    return layer.kind in kinds or (bool(behind) and behind[0].kind in kinds)


def _covers(box: Box | None, side: int) -> bool:
    return box is None or (max(box[:2]) <= 0 and min(box[2:]) >= side)
