"""How an objective reads a unit's score from a layer, applied to all units and all positions.

A unit may be read in the middle of its map, at a position, as the mean or maximum of the map, from
a vector or from tokens. `find_reader` recognizes which of these an objective does by its scores;
`score_data` then reads the pictures of a data set likewise, at every position where a picture of
the synthetic one's size fits, since a photograph need not have the object in its middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featviz.maximization.objectives import Objective
from featviz.maximization.reading import reading
from featviz.models.model import Layer, Model
from featviz.models.units import Unit
from featviz.pictures.images import Box
from featviz.top_scores import ImageCache, TopScores, scan
from featviz.types import Precision, Progress

TOP = 12
"""pictures kept for each unit"""

_MAPS = frozenset({"middle", "position", "mean", "max"})
_TOKENS = {"tokens": slice(None), "class token": slice(1), "patches": slice(1, None)}


@dataclass(frozen=True)
class UnitReader:
    """How an objective computes a unit's score from the layer's activations."""

    kind: str
    """middle, position, mean, max (of a map), value (of a vector), tokens, class token, patches"""
    width: int = 1
    """positions a side that are read, of a map"""

    @property
    def of_map(self) -> bool:
        return self.kind in _MAPS

    def everywhere(self, values: Tensor) -> Tensor:
        """Scores (N, C, h, w) of all units wherever they could be read; (N, C, 1, 1) of a whole."""
        if not self.of_map:
            return self.whole(values)[:, :, None, None]
        size = [min(self.width, side) for side in values.shape[2:]]
        pool = F.max_pool2d if self.kind == "max" else F.avg_pool2d
        return pool(values, size, 1) if max(size) > 1 else values

    def whole(self, values: Tensor) -> Tensor:
        """Scores (N, C) of all units for values (N, C, H, W), (N, C) or (N, tokens, C)."""
        if self.kind == "value":
            return values
        if self.of_map:
            return values.amax((2, 3)) if self.kind == "max" else values.mean((2, 3))
        return values[:, _TOKENS[self.kind]].mean(1)

    def own(self, values: Tensor, unit: Unit) -> Tensor:
        """Scores (C,) of all units for the values of one picture, read where the objective does."""
        if self.kind not in {"position", "middle"}:
            return self.whole(values)[0]
        top, left = self.window(values, unit)
        return values[0, :, top : top + self.width, left : left + self.width].mean((1, 2))

    def window(self, values: Tensor, unit: Unit) -> tuple[int, int]:
        """The first (row, column) that the objective reads of a picture's own map."""
        if unit.position is not None:
            return unit.position
        if not self.of_map:
            return 0, 0
        height, width = values.shape[2:]
        return (height - self.width) // 2, (width - self.width) // 2

    def field(self, layer: Layer, position: tuple[int, int]) -> Box | None:
        """What a window of positions that begins at `position` sees of a picture; None: all."""
        field = layer.receptive_field
        if not self.of_map or field is None or layer.whole:
            return None
        y, x = position
        return (*field.box(y, x)[:2], *field.box(y + self.width - 1, x + self.width - 1)[2:])


def find_reader(
    objective: Objective, values: Sequence[Tensor], units: Sequence[Unit], scores: Tensor
) -> UnitReader | None:
    """The reader that computes every score of an objective from the activations of the pictures.

    Args:
        objective: Of which the scores are.
        values: The layer's activations on each picture, (1, ...).
        units: The unit of each picture.
        scores: (N,); those that are not finite are left out.

    Returns:
        None for an objective that is something else than a unit's value (a sum, a direction).
    """
    finite = [i for i in range(len(scores)) if math.isfinite(scores[i])]
    if not finite or not units:
        return None
    shape = values[0].shape
    if len(shape) == 4 and objective.width is not None:
        side, width = min(shape[2:]), objective.width
        width = min(side, width if (side - width) % 2 == 0 else max(1, width - 1))
        candidates = [UnitReader("position") if units[0].position else UnitReader("middle", width)]
    else:
        kinds = {2: ["value"], 3: list(_TOKENS), 4: ["mean", "max"]}.get(len(shape), [])
        candidates = [UnitReader(kind, max(shape[2:], default=1)) for kind in kinds]
    for reader in candidates:
        own = [float(reader.own(values[i], units[i])[units[i].index]) for i in finite]
        pairs = zip(own, scores[finite].tolist(), strict=True)
        if all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in pairs):
            return reader
    return None


def score_data(
    model: Model,
    layer: Layer,
    objective: Objective,
    reader: UnitReader | None,
    cache: ImageCache,
    columns: Sequence[int],
    *,
    precision: Precision = "float32",
    progress: Progress | None = None,
) -> tuple[TopScores, Tensor]:
    """Read all pictures of a data set once.

    Args:
        model: The model.
        layer: The layer of the units.
        objective: The objective.
        reader: How to score all units of the layer; None: the objective scores its own targets.
        cache: The data set.
        columns: The units whose percentile is computed; without a reader the objective's targets.
        precision: "bfloat16" is faster and has three digits; the three best pictures of each of
            `columns` are read again in float32, so the highest scores are exact.
        progress: Called with pictures done, pictures in all and what is being done.

    Returns:
        The scores of the layer's units (without a reader: of the objective's targets), and the
        highest activation (C,) of each at any single position.
    """
    layers = objective.layers if reader is None else (layer.name,)
    peaks = torch.tensor(-math.inf)
    with reading(model, layers, precision) as read:

        def score(pictures: Tensor, *, exact: bool = False) -> Tensor:
            nonlocal peaks
            found = read(pictures.to(model.device), exact=exact)
            scores, highest = _scores(found, layer, objective, reader, columns)
            if not exact:
                peaks = torch.maximum(peaks, highest)
            return scores

        top = scan(
            cache,
            score,
            k=TOP,
            units=range(len(columns)) if reader is None else columns,
            exact=None if precision == "float32" else lambda x: score(x, exact=True),
            progress=progress,
            text=f"pictures at {layer.name}",
        )
    return top, peaks


def _scores(
    found: Mapping[str, Tensor],
    layer: Layer,
    objective: Objective,
    reader: UnitReader | None,
    targets: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Scores (N, C, h, w), and the highest activation (C,) at any position."""
    if reader is None:
        count = len(next(iter(found.values())))
        scores = torch.stack([objective(found, [target] * count) for target in targets], 1).float()
        return scores[:, :, None, None], scores.amax(0).cpu()
    values = found[layer.name]
    units = values.movedim(-1, 1) if values.dim() == 3 else values
    peaks = units.flatten(2).amax((0, 2)) if units.dim() > 2 else units.amax(0)
    return reader.everywhere(values), peaks.cpu()


def crop_around(picture: Tensor, box: Box | None, side: int) -> Tensor:
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
