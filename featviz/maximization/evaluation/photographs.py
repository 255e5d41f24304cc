"""What natural pictures do to the units of a layer: the measure of a synthetic picture's score.

Comes in: a model, a layer, an objective and a data set. Goes out: `Natural`, in the objective's own
terms. A photograph need not have the thing in its middle, nor fill itself with a texture: it is
asked at every place where a picture of the synthetic one's size fits. The data is streamed once for
all units of the layer; what is kept is bounded by units * k numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.datasets import Pictures, Skipped, batches
from featviz.images import to_uint8
from featviz.maximization.loop import reading as reads
from featviz.maximization.objectives import Objective
from featviz.models.model import Layer, Model
from featviz.models.units import Unit

PERCENTILE = 99.9
TOP = 12
"""photographs kept for each unit, the strongest first, one place a picture"""
_EXACT = 3  # of them are read once more in float32 where the survey was in bf16
_KEPT = 50_000  # largest scores kept a unit, from which the percentile is read
_BATCH = 32
_DECODED = 512  # pictures kept as 8-bit values, so that patches are cut without decoding again


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


def find_reading(
    goal: Objective, values: Sequence[Tensor], units: Sequence[Unit], scores: Tensor
) -> Reading | None:
    """How the objective reads its units: the way that gives every score from a picture's values.

    values: of the layer on each picture, (1, ...); scores: (N,), those that are no number are left
        out

    None for an objective that is something else than a unit's value (a sum, a direction).
    """
    told = [i for i in range(len(scores)) if math.isfinite(scores[i])]
    if not told or not units:
        return None
    shape = values[0].shape
    if len(shape) == 4 and goal.width is not None:
        side, width = min(shape[2:]), goal.width
        width = min(side, width if (side - width) % 2 == 0 else max(1, width - 1))
        found = [Reading("position") if units[0].position else Reading("middle", width)]
    else:
        kinds = {2: ["value"], 3: ["tokens", "class token", "patches"], 4: ["mean", "max"]}
        found = [Reading(kind, max(shape[2:], default=1)) for kind in kinds.get(len(shape), [])]
    for reading in found:
        own = [float(reading.own(values[i], units[i])[units[i].index]) for i in told]
        pairs = zip(own, scores[told].tolist(), strict=True)
        if all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in pairs):
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
    album: Album,
    *,
    columns: Sequence[int],
    precision: str = "float32",
    watch: Callable[[Tensor, Tensor], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Natural:
    """Read all pictures of an album once.

    reading: how to score all units of the layer; None asks the objective itself for its targets
    columns: for which units the percentile is wanted; without a reading, the objective's targets
    precision: "bf16" reads faster, to three digits; the highest scores of `columns` are those of
        their three best pictures in float32 all the same
    watch: called with rows (N,) and pictures (N, 3, S, S) as they pass
    """
    asked = torch.tensor(range(len(columns)) if reading is None else list(columns))
    tally = _Tally(len(album), asked)
    names = goal.layers if reading is None else (layer.name,)
    skipped: list[Skipped] = []
    with reads(model, names, precision) as read, torch.no_grad():
        for rows, batch in album.stream(skipped):
            if watch is not None:
                watch(rows, batch)
            seen = read(batch.to(model.device))
            tally.add(rows, *_scores(seen, layer, goal, reading, columns))
            if progress is not None:
                progress(int(rows[-1]) + 1, len(album), f"natural pictures at {layer.name}")
        if precision != "float32":
            for row in tally.leaders(_EXACT):
                seen = read(album.read(row)[None].to(model.device), exact=True)
                tally.correct(row, _scores(seen, layer, goal, reading, columns)[0])
    return tally.found(tuple(skipped))


class _Tally:
    """What is kept of the scores of all pictures."""

    def __init__(self, total: int, asked: Tensor):
        self.total, self.asked = total, asked
        self.share = 1 - PERCENTILE / 100
        self.count = self.sampled = self.places = self.width = 0
        self.every = self.most = 1
        self.values, self.rows, self.where = torch.empty(0), torch.empty(0), torch.empty(0)
        self.tail = torch.empty(len(asked), 0)
        self.sums = self.squares = torch.zeros(1, dtype=torch.float64)
        self.peak = torch.tensor(-math.inf)

    def add(self, rows: Tensor, scores: Tensor, peaks: Tensor) -> None:
        """Scores (N, C, h, w) of pictures `rows`, and the highest values (C,) of any position."""
        if not self.count:
            self.places, self.width = scores[0, 0].numel(), scores.shape[-1]
            self.every = math.ceil(self.total * self.places * self.share / _KEPT)
            sampled = math.ceil(self.total / self.every)
            self.most = math.floor(sampled * self.places * self.share) + 2
            self.values = scores.new_empty(scores.shape[1], 0)
            self.rows = self.where = torch.empty(scores.shape[1], 0, dtype=torch.long)
        flat = scores.flatten(2)  # (N, C, P)
        # In double precision, so that the sums forget nothing over many pictures.
        self.sums = self.sums + flat.double().sum((0, 2))
        self.squares = self.squares + flat.double().square().sum((0, 2))
        self.peak = torch.maximum(self.peak, peaks)
        taken = flat[-self.count % self.every :: self.every][:, self.asked]
        self.sampled += len(taken)
        self.count += len(flat)
        tail = torch.cat([self.tail, taken.transpose(0, 1).flatten(1)], 1)
        self.tail = tail.topk(min(self.most, tail.shape[1]), dim=1).values
        highest, where = flat.max(2)  # (N, C)
        self.values = torch.cat([self.values, highest.T], 1)
        self.rows = torch.cat([self.rows, rows[:, None].expand_as(where).T], 1)
        self.where = torch.cat([self.where, where.T], 1)
        self._sort()

    def _sort(self) -> None:
        """The strongest first; of equal ones the picture that came first."""
        order = self.values.argsort(dim=1, descending=True, stable=True)[:, :TOP]
        self.values, self.rows, self.where = (
            x.gather(1, order) for x in (self.values, self.rows, self.where)
        )

    def leaders(self, best: int) -> list[int]:
        """The pictures among the `best` of any column that was asked for."""
        return sorted(set(self.rows[self.asked, :best].flatten().tolist()))

    def correct(self, row: int, scores: Tensor) -> None:
        """Put exact scores (1, C, h, w) of a picture in place of those that are kept of it."""
        highest, where = scores.flatten(2)[0].max(1)  # (C,)
        own = self.rows == row
        self.values = torch.where(own, highest[:, None], self.values)
        self.where = torch.where(own, where[:, None], self.where)
        self._sort()

    def found(self, skipped: tuple[Skipped, ...]) -> Natural:
        percentile = torch.full((len(self.values),), math.nan)
        percentile[self.asked] = _percentile(self.tail, self.sampled * self.places, self.share)
        scores = self.count * self.places
        mean = self.sums / scores
        variance = (self.squares / scores - mean.square()).clamp(min=0)
        return Natural(
            count=self.count,
            skipped=skipped,
            highest=self.values[:, 0],
            peak=self.peak,
            percentile=percentile,
            mean=mean.float(),
            sd=variance.sqrt().float(),
            values=self.values,
            rows=self.rows,
            spots=torch.stack([self.where // self.width, self.where % self.width], 2),
        )


def _scores(
    seen: Mapping[str, Tensor],
    layer: Layer,
    goal: Objective,
    reading: Reading | None,
    targets: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Scores (N, C, h, w) on the CPU, and the highest value (C,) at any position."""
    if reading is None:
        count = len(next(iter(seen.values())))
        asked = [goal(seen, [target] * count) for target in targets]
        scores = torch.stack(asked, 1).float().cpu()
        return scores[:, :, None, None], scores.amax(0)
    values = seen[layer.name]
    units = values.movedim(-1, 1) if values.dim() == 3 else values
    peaks = units.flatten(2).amax((0, 2)) if units.dim() > 2 else units.amax(0)
    return reading.everywhere(values).cpu(), peaks.cpu()


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


class Album:
    """A data set as the model wants it, in order or picture by picture; the last ones are kept."""

    def __init__(self, model: Model, pictures: Pictures | Tensor):
        self._model, self._pictures = model, pictures
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pictures)

    def stream(self, skipped: list[Skipped]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches: rows (N,) and pictures (N, 3, S, S) in [0, 1]."""
        if isinstance(self._pictures, Tensor):
            for start in range(0, len(self._pictures), _BATCH):
                part = self._pictures[start : start + _BATCH]
                yield torch.arange(start, start + len(part)), part.float()
            return
        for batch in batches(
            self._pictures,
            resize=self._model.resize,
            crop=self._model.input_size,
            batch_size=_BATCH,
            skipped=skipped,
        ):
            for row, picture in zip(batch.rows, batch.images, strict=True):
                self._keep(row, picture)
            yield torch.tensor(batch.rows), batch.images

    def read(self, row: int) -> Tensor:
        """(3, S, S) in [0, 1]."""
        if isinstance(self._pictures, Tensor):
            return self._pictures[row].detach().cpu().float()
        if row not in self._kept:
            self._keep(row, self._pictures.read(row, self._model.resize, self._model.input_size))
        self._kept.move_to_end(row)
        return self._kept[row].float() / 255

    def _keep(self, row: int, picture: Tensor) -> None:
        self._kept[row] = to_uint8(picture)
        if len(self._kept) > _DECODED:
            self._kept.popitem(last=False)


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


def cut_round(picture: Tensor, box: Box | None, side: int) -> Tensor:
    """A square of (3, H, W) with `box` in its middle, moved back where it would leave the picture.

    The whole picture where there is no box, or no room.
    """
    height, width = picture.shape[-2:]
    if box is None:
        return picture
    down, right = min(side, height), min(side, width)
    y = min(max((box[0] + box[2] - down) // 2, 0), height - down)
    x = min(max((box[1] + box[3] - right) // 2, 0), width - right)
    return picture[:, y : y + down, x : x + right]
