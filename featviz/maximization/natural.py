"""What natural pictures do to the units of a layer: the measure of a synthetic picture's score.

Comes in: a model, a layer, an objective and a data set. Goes out: `Natural`, in the objective's own
terms. A photograph need not have the thing in its middle, nor fill itself with a texture: it is
asked at every place where a picture of the synthetic one's size fits. The data is streamed once for
all units of the layer; what is kept is bounded by units * k numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.datasets import Pictures, Skipped, batches
from featviz.maximization.objectives import PICTURE, Objective
from featviz.models.layers import Layer, Unit, activations
from featviz.models.load import Model

PERCENTILE = 99.9
TOP = 16
"""photographs kept for each unit, the strongest first, one place a picture"""
_KEPT = 50_000  # largest scores kept a unit, from which the percentile is read
_BATCH = 32
_DECODED = 512  # pictures kept as 8-bit values while patches are cut


@dataclass(frozen=True)
class Reading:
    """How an objective gets a unit's score from the layer's values."""

    kind: str
    """middle, position, mean, max (of a map), value (of a vector), tokens, class token, patches"""
    width: int = 1
    """positions a side that are read, of a map"""

    @property
    def of_map(self) -> bool:
        return self.kind in {"middle", "position", "mean", "max"}

    def everywhere(self, values: Tensor) -> Tensor:
        """Scores (N, C, h, w) of all units wherever they could be read; (N, C, 1, 1) of a whole."""
        if not self.of_map:
            return self.whole(values)[:, :, None, None]
        size = [min(self.width, side) for side in values.shape[2:]]
        if self.kind == "max":
            return F.max_pool2d(values, size, 1)
        return F.avg_pool2d(values, size, 1) if max(size) > 1 else values

    def whole(self, values: Tensor) -> Tensor:
        """Scores (N, C) of all units for values (N, C, H, W), (N, C) or (N, tokens, C)."""
        if self.kind == "value":
            return values
        if self.kind == "mean":
            return values.mean((2, 3))
        if self.kind == "max":
            return values.amax((2, 3))
        tokens = {"tokens": slice(None), "class token": slice(1), "patches": slice(1, None)}
        return values[:, tokens[self.kind]].mean(1)

    def own(self, values: Tensor, unit: Unit) -> Tensor:
        """Scores (C,) of all units for one picture's values, read where the objective reads."""
        if self.kind == "position":
            assert unit.position is not None
            return values[0, :, unit.position[0], unit.position[1]]
        if self.kind == "middle":
            height, width = values.shape[2:]
            top, left = (height - self.width) // 2, (width - self.width) // 2
            return values[0, :, top : top + self.width, left : left + self.width].mean((1, 2))
        return self.whole(values)[0]


def find_reading(goal: Objective, values: Tensor, unit: Unit, score: float) -> Reading | None:
    """How the objective reads the unit: the way that gives `score` from one picture's values.

    None for an objective that is something else than a unit's value (a sum, a direction).
    """
    kinds = {2: ["value"], 3: ["tokens", "class token", "patches"], 4: ["mean", "max"]}
    width = max(values.shape[2:]) if values.dim() == 4 else 1
    found = [Reading(kind, width) for kind in kinds.get(values.dim(), [])]
    if values.dim() == 4 and goal.width is not None:
        widths = [w for w in (goal.width, goal.width - 1) if 1 <= w <= min(values.shape[2:])]
        found = [Reading("position")] if unit.position else [Reading("middle", w) for w in widths]
    for reading in found:
        if math.isclose(
            float(reading.own(values, unit)[unit.index]), score, rel_tol=1e-3, abs_tol=1e-4
        ):
            return reading
    return None


@dataclass(frozen=True)
class Natural:
    """What photographs reach. C columns: the layer's units, or the objective's targets."""

    count: int
    """pictures that were read"""
    skipped: tuple[Skipped, ...]
    highest: Tensor
    """(C,)"""
    peak: Tensor
    """(C,): the highest value at any single position; of targets, the same as `highest`"""
    percentile: Tensor
    """(C,): what one score in a thousand exceeds; NaN for fewer scores, and units not asked for"""
    mean: Tensor
    """(C,): of all scores"""
    sd: Tensor
    """(C,)"""
    values: Tensor
    """(C, k): the strongest, at most one a picture, in descending order"""
    rows: Tensor
    """(C, k): in which picture"""
    spots: Tensor
    """(C, k, 2): (row, column) of the first position of the window"""


def survey(
    model: Model,
    layer: Layer,
    goal: Objective,
    reading: Reading | None,
    pictures: Pictures | Tensor,
    *,
    columns: Sequence[int],
    progress: Callable[[int, int, str], None] | None = None,
) -> Natural:
    """Read all pictures once.

    reading: how to score all units of the layer; None asks the objective itself for its targets
    columns: for which units (or targets) the percentile is wanted
    """
    total = len(pictures)
    k = min(TOP, total)
    share = 1 - PERCENTILE / 100
    asked = torch.tensor(list(columns))
    best: tuple[Tensor, Tensor, Tensor] | None = None  # (C, k) values, rows, flat places
    tail = torch.empty(len(asked), 0)
    count = sampled = places = width = 0
    every = most = 1
    sums = squares = torch.zeros(1, dtype=torch.float64)
    peak = torch.tensor(-math.inf)
    skipped: list[Skipped] = []
    for rows, batch in _streamed(model, pictures, skipped):
        scores, peaks = _scores(model, layer, goal, reading, batch, columns)  # (N, C, h, w), (C,)
        peak = torch.maximum(peak, peaks)
        if best is None:
            places, width = scores[0, 0].numel(), scores.shape[-1]
            every = math.ceil(total * places * share / _KEPT)
            most = math.floor(math.ceil(total / every) * places * share) + 2
            empty = scores.new_full((scores.shape[1], 0), -math.inf)
            best = (empty, empty.long(), empty.long())
        flat = scores.flatten(2)  # (N, C, P)
        # In double precision, so that the sums forget nothing over many pictures.
        sums = sums + flat.double().sum((0, 2))
        squares = squares + flat.double().square().sum((0, 2))
        taken = flat[-count % every :: every][:, asked]
        sampled += len(taken)
        count += len(flat)
        tail = torch.cat([tail, taken.transpose(0, 1).flatten(1)], 1)
        tail = tail.topk(min(most, tail.shape[1]), dim=1).values
        highest, where = flat.max(2)  # (N, C)
        joined = [
            torch.cat([old, new.T], 1)
            for old, new in zip(best, (highest, rows[:, None].expand_as(where), where), strict=True)
        ]
        order = joined[0].argsort(dim=1, descending=True, stable=True)[:, :k]
        best = (joined[0].gather(1, order), joined[1].gather(1, order), joined[2].gather(1, order))
        if progress is not None:
            progress(int(rows[-1]) + 1, total, f"natural pictures at {layer.name}")
    assert best is not None  # data of which nothing can be read is an error before
    values, rows, where = best
    percentile = torch.full((len(values),), math.nan)
    percentile[asked] = _percentile(tail, sampled * places, share)
    mean = sums / (count * places)
    variance = (squares / (count * places) - mean.square()).clamp(min=0)
    return Natural(
        count=count,
        skipped=tuple(skipped),
        highest=values[:, 0],
        peak=peak,
        percentile=percentile,
        mean=mean.float(),
        sd=variance.sqrt().float(),
        values=values,
        rows=rows,
        spots=torch.stack([where // width, where % width], 2),
    )


def _scores(
    model: Model,
    layer: Layer,
    goal: Objective,
    reading: Reading | None,
    batch: Tensor,
    targets: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Scores (N, C, h, w) on the CPU, and the highest value (C,) at any position."""
    batch = batch.to(model.device)
    with torch.no_grad():
        if reading is not None:
            values = activations(model, batch, [layer.name])[layer.name].float()
            units = values.movedim(-1, 1) if values.dim() == 3 else values
            peaks = units.flatten(2).amax((0, 2)) if units.dim() > 2 else units.amax(0)
            return reading.everywhere(values).cpu(), peaks.cpu()
        names = [name for name in goal.layers if name != PICTURE]
        acts = activations(model, batch, names) | {PICTURE: batch}
        asked = [goal(acts, [target] * len(batch)) for target in targets]
        scores = torch.stack(asked, 1).float().cpu()
        return scores[:, :, None, None], scores.amax(0)


def _percentile(tail: Tensor, count: int, share: float) -> Tensor:
    """(U,): the value that `share` of `count` values exceed, interpolated as numpy does.

    tail: (U, T): the largest values, in descending order. NaN where `count` is too small for it.
    """
    if count * share < 1:
        return tail.new_full((len(tail),), math.nan)
    from_top = share * (count - 1)
    low = math.floor(from_top)
    high = min(low + 1, tail.shape[1] - 1)
    return tail[:, low].lerp(tail[:, high], from_top - low)


def _streamed(
    model: Model, pictures: Pictures | Tensor, skipped: list[Skipped]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, pictures as the model wants them), batch by batch."""
    if isinstance(pictures, Tensor):
        for start in range(0, len(pictures), _BATCH):
            part = pictures[start : start + _BATCH]
            yield torch.arange(start, start + len(part)), part.float()
        return
    for batch in batches(
        pictures, resize=model.resize, crop=model.input_size, batch_size=_BATCH, skipped=skipped
    ):
        yield torch.tensor(batch.rows), batch.images


class Album:
    """Single pictures of a data set as the model wants them; the last ones stay decoded."""

    def __init__(self, model: Model, pictures: Pictures | Tensor):
        self._model, self._pictures = model, pictures
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def read(self, row: int) -> Tensor:
        """(3, S, S) in [0, 1]."""
        if isinstance(self._pictures, Tensor):
            return self._pictures[row].detach().cpu().float()
        if row not in self._kept:
            picture = self._pictures.read(row, self._model.resize, self._model.input_size)
            self._kept[row] = picture.mul(255).round_().to(torch.uint8)
            if len(self._kept) > _DECODED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(row)
        return self._kept[row].float() / 255


Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in pixels, half open"""


def field_box(layer: Layer, reading: Reading | None, spot: tuple[int, int]) -> Box | None:
    """What the window of positions that begins at `spot` sees of a picture; None for all of it."""
    field = layer.receptive_field
    if reading is None or not reading.of_map or field is None or layer.whole:
        return None
    y, x = spot
    top, left, _, _ = field.box(y, x)
    _, _, bottom, right = field.box(y + reading.width - 1, x + reading.width - 1)
    return top, left, bottom, right


def cut_round(picture: Tensor, box: Box | None, side: int) -> tuple[Tensor, Box | None]:
    """A square of (3, H, W) with `box` in its middle, moved back where it would leave the picture.

    Returns the square and where the box lies in it. The whole picture where there is no box, or no
    room.
    """
    height, width = picture.shape[-2:]
    if box is None:
        return picture, None
    down, right = min(side, height), min(side, width)
    y = min(max((box[0] + box[2] - down) // 2, 0), height - down)
    x = min(max((box[1] + box[3] - right) // 2, 0), width - right)
    moved = (box[0] - y, box[1] - x, box[2] - y, box[3] - x)
    return picture[:, y : y + down, x : x + right], moved
