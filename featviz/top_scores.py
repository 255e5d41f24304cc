"""The highest scores of a data set: each unit's top pictures, percentile, mean and deviation.

In: a data set and a function from pictures to scores. Out: `TopScores`. The data is read once, in
at most 32 pieces (`engine`), of each of which k pictures a unit are kept, and at most 50,000 values
a unit for the percentile, whatever the number of pictures.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featviz.checkpoints import Arrays, Checkpoint
from featviz.data.datasets import Batch, Pictures, Skipped, batches
from featviz.engine import Piece, map_pieces
from featviz.errors import UserError
from featviz.models.frozen import frozen
from featviz.pictures.images import to_uint8

if TYPE_CHECKING:
    from featviz.models.model import Model
    from featviz.types import Progress

PERCENTILE = 99.9
_KEPT = 50_000  # largest scores kept a unit, from which the percentile is read
_DECODED = 512  # pictures kept as 8-bit values, so that patches are cut without decoding again
_EXACT = 3  # pictures a unit that are scored again with `exact`
_PIECE, _PIECES = 256, 32  # pictures of a piece at least, and pieces at most

Score = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""from pictures (N, C, H, W) to scores (N, C, h, w), of C units at h * w positions; and perhaps to
what is kept of every picture beside, (N, M)"""


class ImageCache:
    """A data set as a model reads it, in order or by row; the last 512 pictures stay decoded."""

    def __init__(self, model: Model, pictures: Pictures | Tensor):
        checked = model.check(pictures).cpu() if isinstance(pictures, Tensor) else pictures
        self.model, self._pictures = model, checked
        self._decoded: OrderedDict[int, Tensor] = OrderedDict()
        self.skipped: tuple[Skipped, ...] = ()
        """pictures that `scan` could not read"""

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def name(self) -> str:
        """Of the data set, for messages."""
        return "a tensor" if isinstance(self._pictures, Tensor) else str(self._pictures.root)

    def stream(self, span: range, batch_size: int, skipped: list[Skipped]) -> Iterator[Batch]:
        """Pictures as batches in [0, 1], in order; those that cannot be read go to `skipped`."""
        if isinstance(self._pictures, Tensor):
            for start in span[::batch_size]:
                rows = range(start, min(start + batch_size, span.stop))
                yield Batch(tuple(rows), self._pictures[rows.start : rows.stop].float())
            return
        for batch in batches(
            self._pictures,
            self.model.preprocessing,
            batch_size=batch_size,
            skipped=skipped,
            span=span,
        ):
            for row, picture in zip(batch.rows, batch.images, strict=True):
                self._keep(row, picture)
            yield batch

    def read(self, row: int) -> Tensor:
        """One picture, (3, H, W) in [0, 1]."""
        if isinstance(self._pictures, Tensor):
            return self._pictures[row].detach().cpu().float()
        if row not in self._decoded:
            self._keep(row, self._pictures.read(row, self.model.preprocessing))
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
    beside: Tensor
    """(count, M): what `score` gives of every picture that was read"""


def scan(
    cache: ImageCache,
    score: Score,
    *,
    k: int,
    units: Sequence[int] | None = None,
    exact: Score | None = None,
    batch_size: int = 32,
    kept: Checkpoint | None = None,
    progress: Progress | None = None,
    text: str = "",
) -> TopScores:
    """Score every picture of a data set once, with the model frozen.

    Args:
        cache: The data set.
        score: Scores of a batch for all units; called without gradients.
        k: How many pictures are kept of each unit.
        units: Whose percentile is computed; default: of all.
        exact: A slower and more exact `score`: pictures are scored with it once more at the end,
            until the three highest scores of each of `units` are exact.
        batch_size: Pictures at a time.
        kept: Where finished pieces are kept; it says where they are made.
        progress: Called with rows done, rows in all and `text`.

    Raises:
        UserError: None of the pictures could be read.
    """
    n = len(cache)
    step = math.ceil(max(_PIECE, n / _PIECES) / batch_size) * batch_size
    spans = [range(start, min(start + step, n)) for start in range(0, n, step)]

    def make(span: range, report: Callable[[int], None]) -> Arrays:
        skipped: list[Skipped] = []
        own = _Tally(n, k, units)
        with torch.no_grad(), frozen(cache.model):
            for batch in cache.stream(span, batch_size, skipped):
                own.add(torch.tensor(batch.rows), *_parts(score(batch.images)))
                report(batch.rows[-1] + 1 - span.start)
        named = [(str(one.row), one.path, one.reason) for one in skipped]
        return own.arrays() | {"skipped": np.array(named, str).reshape(-1, 3)}

    tally = _Tally(n, k, units)
    skipped: list[Skipped] = []
    for arrays in map_pieces(
        make,
        [Piece(f"rows-{span.start:08}", span, len(span)) for span in spans],
        kept or Checkpoint(None),
        device=cache.model.device.type,
        progress=progress,
        text=text,
    ):
        skipped += [Skipped(int(row), *why) for row, *why in arrays.pop("skipped").tolist()]
        tally.join(arrays)
    cache.skipped = tuple(skipped)
    if not tally.count:
        raise UserError(f"no picture of {cache.name} could be read")
    corrected: set[int] = set()
    with torch.no_grad():
        while exact is not None and (rows := tally.leaders() - corrected):
            for row in sorted(rows):
                tally.correct(row, _parts(exact(cache.read(row)[None]))[0])
            corrected |= rows
    return tally.result(cache.skipped)


def _parts(scored: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores, and what is kept of every picture."""
    if isinstance(scored, Tensor):
        scored = scored, torch.empty(len(scored), 0)
    scores, beside = scored
    return scores.float().cpu(), beside.float().cpu()


_JOINED = ("sums", "squares", "active", "tail", "values", "rows", "where")


class _Tally:
    """The scores that have been kept so far."""

    def __init__(self, total: int, k: int, units: Sequence[int] | None):
        self.total, self.k = total, k
        self.units = None if units is None else list(units)
        self.share = 1 - PERCENTILE / 100
        self.count = self.sampled = 0

    def _begin(self, count: int, height: int, width: int) -> None:
        self.places, self.height, self.width = height * width, height, width
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
        self.beside = list[Tensor]()

    def add(self, rows: Tensor, scores: Tensor, beside: Tensor) -> None:
        """Scores (N, C, h, w) of the pictures `rows` (N,), and what is kept beside, (N, M)."""
        if not self.count:
            self._begin(*scores.shape[1:])
        flat = scores.flatten(2)  # (N, C, P)
        highest, where = flat.max(2)  # (N, C)
        taken = flat[rows % self.every == 0][:, self.units]
        self._join(
            count=len(flat),
            sampled=len(taken),
            sums=flat.double().sum((0, 2)),
            squares=flat.double().square().sum((0, 2)),
            active=(highest > 0).sum(0),
            tail=taken.transpose(0, 1).flatten(1),
            values=highest.T,
            rows=rows[:, None].expand_as(where).T,
            where=where.T,
            beside=beside,
        )

    def _join(self, *, count: int, sampled: int, beside: Tensor, **more: Tensor) -> None:
        self.count += count
        self.sampled += sampled
        for name in _JOINED:
            own = getattr(self, name)
            setattr(
                self, name, own + more[name] if own.dim() == 1 else torch.cat([own, more[name]], 1)
            )
        self.tail = self.tail.topk(min(self.most, self.tail.shape[1]), dim=1).values
        self.beside.append(beside)
        self._sort()

    def arrays(self) -> Arrays:
        """What has been added, for `join`."""
        if not self.count:
            return {}
        shape = self.values.shape[0], self.height, self.width
        return {
            "shape": np.array(shape),
            "counts": np.array([self.count, self.sampled]),
            "beside": torch.cat(self.beside).numpy(),
            **{name: getattr(self, name).numpy() for name in _JOINED},
        }

    def join(self, arrays: Arrays) -> None:
        """Add what another tally holds of later pictures."""
        if not arrays:
            return
        if not self.count:
            self._begin(*arrays["shape"].tolist())
        count, sampled = arrays["counts"].tolist()
        tensors = {name: torch.from_numpy(arrays[name]) for name in (*_JOINED, "beside")}
        self._join(count=count, sampled=sampled, **tensors)

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
            beside=torch.cat(self.beside),
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
