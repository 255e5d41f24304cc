"""Curves of units over drawn stimuli, and what each prefers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Peak(NamedTuple):
    """What a curve prefers; None where no stimulus exceeds plain gray."""

    preferred: float | None
    bandwidth: float | None
    """full width at half height, in the family's unit (frequency: octaves); None where the curve
    does not fall to half on both sides"""
    selectivity: float | None
    """1 - mean / maximum: 0 the same to all stimuli, toward 1 to one of them only"""


@dataclass(frozen=True)
class Family:
    """The curves of all units over one kind of stimuli."""

    name: str
    unit: str
    at: tuple[float, ...]
    """(K,) what was varied"""
    values: Tensor
    """(U, K) less the value on plain gray"""
    period: float | None = None
    """of what repeats: 180 degrees of orientation"""
    log: bool = False
    """whether steps are ratios"""

    def curve(self, row: int) -> list[float]:
        """(K,) a unit's curve: nothing below plain gray."""
        return [float(v) for v in self.values[row].clamp(min=0)]

    def peak(self, row: int) -> Peak:
        """Preferred value (by a parabola through the top), width at half height, selectivity."""
        r = self.curve(row)
        top = max(r)
        if top <= 1e-6:
            return Peak(None, None, None)
        x = [math.log2(v) for v in self.at] if self.log else list(self.at)
        i, n = r.index(top), len(r)
        selectivity = 1 - sum(r) / n / top
        inner = self.period is not None or 0 < i < n - 1
        place = x[i]
        if inner:
            step = x[1] - x[0]
            even = self.period is not None or math.isclose(x[i + 1] - x[i], x[i] - x[i - 1])
            before, after = r[i - 1], r[(i + 1) % n]
            bend = before - 2 * top + after
            if even and bend < 0:
                place += step * 0.5 * (before - after) / bend
        if self.period is not None:
            place %= self.period
        sides = [self._half(x, r, i, sign) for sign in (-1, 1)]
        known = [one for one in sides if one is not None]
        width = sum(known) if len(known) == 2 else None
        return Peak(2**place if self.log else place, width, selectivity)

    def _half(self, x: list[float], r: list[float], i: int, sign: int) -> float | None:
        """How far from the top the curve falls to half of it."""
        n, half, away = len(r), r[i] / 2, 0.0
        for k in range(1, n // 2 + 1 if self.period is not None else n):
            j, last = i + sign * k, i + sign * (k - 1)
            if self.period is None and not 0 <= j < n:
                return None
            step = x[1] - x[0] if self.period is not None else abs(x[j] - x[last])
            now, before = r[j % n], r[last % n]
            if now <= half:
                return away + step * (before - half) / (before - now)
            away += step
        return None
