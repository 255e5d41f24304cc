"""The highest scores of a data set: each unit's top pictures, percentile, mean and deviation.

In: a data set and a function from pictures to scores. Out: `TopScores`. The data is read once, and
memory is bounded by the number of units times k (the percentile keeps at most 50,000 values a
unit), whatever the number of pictures.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz.data.datasets import Batch, Pictures, Skipped, batches
from featviz.pictures.images import to_uint8

if TYPE_CHECKING:
    from featviz.models.model import Model
    from featviz.types import Progress

PERCENTILE = 99.9
_KEPT = 50_000  # largest scores kept a unit, from which the percentile is read
_DECODED = 512  # pictures kept as 8-bit values, so that patches are cut without decoding again
_EXACT = 3  # pictures a unit that are scored again with `exact`

Score = Callable[[Tensor], Tensor]
"""from pictures (N, C, H, W) to scores (N, C, h, w): C units, h * w positions"""


class ImageCache:
    """A data set as a model reads it, in order or by row; the last 512 pictures stay decoded."""

    def __init__(self, model: Model, pictures: Pictures | Tensor):
        checked = model.check(pictures).cpu() if isinstance(pictures, Tensor) else pictures
        self._model, self._pictures = model, checked
        self._decoded: OrderedDict[int, Tensor] = OrderedDict()
        self.skipped: list[Skipped] = []
        """pictures that `stream` could not read"""

    def __len__(self) -> int:
        return len(self._pictures)

    def stream(self, batch_size: int) -> Iterator[Batch]:
        """All pictures as batches in [0, 1], in order."""
        if isinstance(self._pictures, Tensor):
            for start in range(0, len(self._pictures), batch_size):
                part = self._pictures[start : start + batch_size].float()
                yield Batch(tuple(range(start, start + len(part))), part)
            return
        self.skipped.clear()
        for batch in batches(
            self._pictures,
            self._model.preprocessing,
            batch_size=batch_size,
            skipped=self.skipped,
        ):
            for row, picture in zip(batch.rows, batch.images, strict=True):
                self._keep(row, picture)
            yield batch

    def read(self, row: int) -> Tensor:
        """One picture, (3, H, W) in [0, 1]."""
        if isinstance(self._pictures, Tensor):
            return self._pictures[row].detach().cpu().float()
        if row not in self._decoded:
            self._keep(row, self._pictures.read(row, self._model.preprocessing))
        self._decoded.move_to_end(row)
        return self._decoded[row].float() / 255

    def spread(self, count: int) -> Iterator[Tensor]:
        """At most `count` of the readable pictures, evenly spread over the data set."""
        skipped = {one.row for one in self.skipped}
        for row in sorted({i * len(self) // count for i in range(count)} - skipped):
            yield self.read(row)

    def _keep(self, row: int, picture: Tensor) -> None:
        self._decoded[row] = to_uint8(picture)
        if len(self._decoded) > _DECODED:
            self._decoded.popitem(last=False)


@dataclass(frozen=True)
class TopScores:
    """What each of C units reaches on a data set."""

    count: int
    """pictures that were read"""
    sampled: int
    """of them, how many the percentile is computed from"""
    skipped: tuple[Skipped, ...]
    """pictures that could not be read"""
    values: Tensor
    """(C, k): the highest scores, at most one a picture, in descending order"""
    rows: Tensor
    """(C, k): of which picture; of equal scores the first picture comes first"""
    positions: Tensor
    """(C, k, 2): at which (row, column)"""
    percentile: Tensor
    """(C,): the 99.9th; NaN for fewer than 1,000 scores, and for units outside of `units`"""
    mean: Tensor
    """(C,): of all scores"""
    sd: Tensor
    """(C,): their standard deviation"""
    active: Tensor
    """(C,): share of the pictures in which the unit exceeds 0 somewhere"""


def scan(
    cache: ImageCache,
    score: Score,
    *,
    k: int,
    units: Sequence[int] | None = None,
    exact: Score | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    text: str = "",
) -> TopScores:
    """Score every picture of a data set once.

    Args:
        cache: The data set.
        score: Scores of a batch for all units; called without gradients.
        k: How many pictures are kept of each unit.
        units: Whose percentile is computed; default: of all.
        exact: A slower and more exact `score`: pictures are scored with it once more at the end,
            until the three highest scores of each of `units` are exact.
        batch_size: Pictures at a time.
        progress: Called with rows done, rows in all and `text`.

    Raises:
        UserError: None of the pictures could be read.
    """
    tally = _Tally(len(cache), k, units)
    with torch.no_grad():
        for batch in cache.stream(batch_size):
            tally.add(torch.tensor(batch.rows), score(batch.images).float().cpu())
            if progress is not None:
                progress(batch.rows[-1] + 1, len(cache), text)
        corrected: set[int] = set()
        while exact is not None and (rows := tally.leaders() - corrected):
            for row in sorted(rows):
                tally.correct(row, exact(cache.read(row)[None]).float().cpu())
            corrected |= rows
    return tally.result(tuple(cache.skipped))


class _Tally:
    """The scores that have been kept so far."""

    def __init__(self, total: int, k: int, units: Sequence[int] | None):
        self.total, self.k = total, k
        self.units = None if units is None else list(units)
        self.share = 1 - PERCENTILE / 100
        self.count = self.sampled = 0

    def _begin(self, scores: Tensor) -> None:
        count = scores.shape[1]
        self.places, self.width = scores[0, 0].numel(), scores.shape[-1]
        self.units = list(range(count)) if self.units is None else self.units
        # Every picture, or where that is too much every second, third ... goes into the tail, of
        # which as many values are kept as the percentile of all will lie between.
        self.every = math.ceil(self.total * self.places * self.share / _KEPT)
        in_sample = math.ceil(self.total / self.every) * self.places
        self.most = math.floor(in_sample * self.share) + 2
        self.tail = torch.empty(len(self.units), 0)
        self.values = torch.empty(count, 0)
        self.rows = self.where = torch.empty(count, 0, dtype=torch.long)
        # In double precision, so that sums over many pictures lose nothing.
        self.sums = self.squares = torch.zeros(count, dtype=torch.float64)
        self.active = torch.zeros(count)

    def add(self, rows: Tensor, scores: Tensor) -> None:
        """Scores (N, C, h, w) of the pictures `rows` (N,)."""
        if not self.count:
            self._begin(scores)
        flat = scores.flatten(2)  # (N, C, P)
        self.sums = self.sums + flat.double().sum((0, 2))
        self.squares = self.squares + flat.double().square().sum((0, 2))
        taken = flat[-self.count % self.every :: self.every][:, self.units]
        self.sampled += len(taken)
        self.count += len(flat)
        tail = torch.cat([self.tail, taken.transpose(0, 1).flatten(1)], 1)
        self.tail = tail.topk(min(self.most, tail.shape[1]), dim=1).values
        highest, where = flat.max(2)  # (N, C)
        self.active = self.active + (highest > 0).sum(0)
        self.values = torch.cat([self.values, highest.T], 1)
        self.rows = torch.cat([self.rows, rows[:, None].expand_as(where).T], 1)
        self.where = torch.cat([self.where, where.T], 1)
        self._sort()

    def _sort(self) -> None:
        order = self.values.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self.values, self.rows, self.where = (
            x.gather(1, order) for x in (self.values, self.rows, self.where)
        )

    def leaders(self) -> set[int]:
        return set(self.rows[self.units, :_EXACT].flatten().tolist())

    def correct(self, row: int, scores: Tensor) -> None:
        """Put the exact scores (1, C, h, w) of a picture in place of those that are kept of it."""
        highest, where = scores.flatten(2)[0].max(1)  # (C,)
        own = self.rows == row
        self.values = torch.where(own, highest[:, None], self.values)
        self.where = torch.where(own, where[:, None], self.where)
        self._sort()

    def result(self, skipped: tuple[Skipped, ...]) -> TopScores:
        percentile = torch.full((len(self.values),), math.nan)
        percentile[self.units] = _percentile(self.tail, self.sampled * self.places, self.share)
        mean = self.sums / (self.count * self.places)
        variance = self.squares / (self.count * self.places) - mean.square()
        return TopScores(
            count=self.count,
            sampled=self.sampled,
            skipped=skipped,
            values=self.values,
            rows=self.rows,
            positions=torch.stack([self.where // self.width, self.where % self.width], 2),
            percentile=percentile,
            mean=mean.float(),
            sd=variance.clamp(min=0).sqrt().float(),
            active=self.active / self.count,
        )


def _percentile(tail: Tensor, count: int, share: float) -> Tensor:
    """(U,): the value that `share` of `count` values exceed, interpolated as numpy does.

    `tail` (U, T) holds the largest values, in descending order. NaN where `count` is too small.
    """
    if count * share < 1:
        return tail.new_full((len(tail),), math.nan)
    from_top = share * (count - 1)
    low = math.floor(from_top)
    high = min(low + 1, tail.shape[1] - 1)
    return tail[:, low].lerp(tail[:, high], from_top - low)
