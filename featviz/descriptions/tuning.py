"""Tuning curves: how a unit's value at the center of a picture depends on what is drawn there.

Five families of stimuli (`stimuli`), drawn on a picture as large as the layer's receptive field
asks for. A curve is the value above that of plain gray, nothing below it:

- orientation and spatial frequency: gratings, the best of eight phases; orientation at the unit's
  best frequency and frequency at its best orientation;
- hue: plain colors and gratings between gray and the color, the best of them;
- curvature: edges of discs through the center, the best of all directions and both signs, by the
  radius of the receptive field over that of the disc (0 is straight);
- size: the unit's best grating in a round window, by its diameter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featviz import results
from featviz.descriptions.stimuli import Ground, colored, edge, grating, gray_picture, window
from featviz.descriptions.tuning_curves import Family
from featviz.descriptions.tuning_result import Tuning
from featviz.maximization.settings import canvas
from featviz.models.layers import activations
from featviz.types import Progress

if TYPE_CHECKING:
    from featviz.models.model import Layer, Model

ORIENTATIONS = tuple(range(0, 180, 15))
HUES = tuple(range(0, 360, 30))
CURVATURES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
_FREQUENCIES, _PHASES, _SIZES = 8, 8, 8
_BATCH = 64


def is_early(model: Model, layer: Layer) -> bool:
    """Whether at most two convolutions lead to a layer of maps."""
    if not layer.spatial or layer.receptive_field is None:
        return False
    before = 0
    for one in model.layers.values():
        before += one.kind.startswith("Conv")
        if one.name == layer.name:
            return 0 < before <= 2
    return False


def measure_tuning(
    model: Model, layer: Layer, units: Sequence[int], *, progress: Progress | None = None
) -> Tuning:
    """The tuning curves of some units of a layer."""
    started = time.perf_counter()
    size = canvas(model, layer)
    read = _Reader(model, layer, units, size, progress)
    ground, side = read.ground, read.side
    gray = read([gray_picture(torch.zeros(size))])[0]  # (U,)

    frequencies = _frequencies(side)
    grid = list(product(ORIENTATIONS, frequencies, [i / _PHASES for i in range(_PHASES)]))
    values = read(gray_picture(grating(ground, *one)) for one in grid) - gray
    gratings = values.reshape(len(ORIENTATIONS), len(frequencies), _PHASES, -1)  # (O, F, P, U)
    by_phase = gratings.amax(2).flatten(0, 1)
    best = by_phase.argmax(0)
    o, f = best // len(frequencies), best % len(frequencies)
    u = torch.arange(len(units))
    phase = gratings[o, f, :, u].argmax(1)
    orientation = gratings.amax(2)[:, f, u].T  # (U, O)
    frequency = gratings.amax(2)[o, :, u]  # (U, F)

    forms = [torch.ones(size)]
    forms += [
        grating(ground, angle, frequencies[i], turn)
        for angle in (0, 45, 90, 135)
        for i in (1, 3, 5)
        for turn in (0.0, 0.5)
    ]
    hue = read(colored(form, h) for h in HUES for form in forms) - gray
    hue = hue.reshape(len(HUES), len(forms), -1).amax(1).T

    edges = [
        sign * edge(ground, angle, side / 2 / c if c else math.inf)
        for c in CURVATURES
        for angle in range(0, 360, 30)
        for sign in (1, -1)
    ]
    curvature = read(map(gray_picture, edges)) - gray
    curvature = curvature.reshape(len(CURVATURES), -1, len(units)).amax(1).T

    diameters = tuple(side * (i + 1) / _SIZES for i in range(_SIZES))
    chosen = list(zip(o.tolist(), f.tolist(), phase.tolist(), strict=True))
    combos = list(dict.fromkeys(chosen))
    drawn = [grating(ground, ORIENTATIONS[a], frequencies[b], c / _PHASES) for a, b, c in combos]
    windows = [window(ground, d) for d in diameters]
    sized = read(gray_picture(one * w) for one in drawn for w in windows) - gray
    sized = sized.reshape(len(combos), len(diameters), -1)
    which = torch.tensor([combos.index(one) for one in chosen])
    size_curve = sized[which, :, u]

    return Tuning(
        origin=results.origin(
            model, parameters={"layer": layer.name, "units": list(units)}, started=started
        ),
        model_name=model.name,
        layer=layer.name,
        units=tuple(f"{layer.name}:{i}" for i in units),
        field=side,
        gray=gray,
        families=(
            Family("orientation", "degrees", tuple(map(float, ORIENTATIONS)), orientation, 180.0),
            Family("frequency", "cycles a pixel", frequencies, frequency, log=True),
            Family("hue", "degrees", tuple(map(float, HUES)), hue, 360.0),
            Family("curvature", "of the field's radius", CURVATURES, curvature),
            Family("size", "pixels", diameters, size_curve),
        ),
    )


def _frequencies(side: int) -> tuple[float, ...]:
    """From one cycle in a receptive field to two pixels a cycle, at most 0.5."""
    low = min(0.125, 1 / side)
    ratio = (0.5 / low) ** (1 / (_FREQUENCIES - 1))
    return tuple(low * ratio**i for i in range(_FREQUENCIES))


class _Reader:
    """Values of units at the center of drawn pictures."""

    def __init__(
        self,
        model: Model,
        layer: Layer,
        units: Sequence[int],
        size: tuple[int, int],
        progress: Progress | None,
    ):
        self.model, self.layer, self.units = model, layer, list(units)
        self.progress, self.done = progress, 0
        found = self._activations([gray_picture(torch.zeros(size))])
        self.position = (found.shape[2] // 2, found.shape[3] // 2) if found.dim() == 4 else None
        field = layer.receptive_field
        if field is None or self.position is None:
            self.ground = Ground(size, ((size[0] - 1) / 2, (size[1] - 1) / 2))
            self.side = min(size)
        else:
            top, left, bottom, right = field.box(*self.position)
            self.ground = Ground(size, ((top + bottom - 1) / 2, (left + right - 1) / 2))
            self.side = min(*field.size, *size)

    def __call__(self, pictures: Iterable[Tensor]) -> Tensor:
        """(n, U) float32."""
        parts, batch = [], list[Tensor]()
        for picture in pictures:
            batch.append(picture)
            if len(batch) == _BATCH:
                parts.append(self._values(batch))
                batch = []
        if batch:
            parts.append(self._values(batch))
        return torch.cat(parts)

    def _values(self, pictures: list[Tensor]) -> Tensor:
        found = self._activations(pictures)
        self.done += len(pictures)
        if self.progress is not None:
            self.progress(self.done, self.done, f"drawn stimuli for {self.layer.name}")
        if self.position is not None:
            found = found[:, :, self.position[0], self.position[1]]
        elif found.dim() == 3:  # tokens
            found = found.mean(1)
        return found[:, self.units].float().cpu()

    def _activations(self, pictures: list[Tensor]) -> Tensor:
        batch = torch.stack(pictures)
        if self.model.preprocessing.channels != 3:
            batch = batch.mean(1, keepdim=True).expand(
                -1, self.model.preprocessing.channels, -1, -1
            )
        with torch.no_grad():
            return activations(self.model, batch.to(self.model.device), [self.layer.name])[
                self.layer.name
            ]
