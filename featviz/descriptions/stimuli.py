"""Drawn stimuli: gratings, colors, curved edges, and gratings in a round window.

All are (n, 3, H, W) in [0, 1] on gray, centered on a point given as (row, column); lengths are in
pixels, orientations in degrees of the stripes as in `kernels.tuning`: 0 horizontal, 90 vertical, 45
up to the right. Hues are degrees: 0 red, 120 green, 240 blue.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Ground(NamedTuple):
    """Where stimuli are drawn."""

    size: tuple[int, int]
    center: tuple[float, float]
    """row and column, in pixels"""

    @property
    def right(self) -> Tensor:
        """(1, W): pixels to the right of the center."""
        return torch.arange(self.size[1]).float()[None] - self.center[1]

    @property
    def up(self) -> Tensor:
        """(H, 1): pixels above it."""
        return self.center[0] - torch.arange(self.size[0]).float()[:, None]


def grating(ground: Ground, orientation: float, frequency: float, phase: float) -> Tensor:
    """(H, W) from -1 to 1; frequency in cycles a pixel, phase in turns, 0 bright at the center."""
    across = math.radians(orientation + 90)
    along = math.cos(across) * ground.right + math.sin(across) * ground.up
    return (2 * math.pi * (frequency * along + phase)).cos()


def gray_picture(pattern: Tensor) -> Tensor:
    """(3, H, W) from a pattern (H, W) of -1 to 1 around middle gray."""
    return (0.5 + 0.5 * pattern).expand(3, *pattern.shape)


def color(hue: float) -> Tensor:
    """(3,) of the mean 0.5."""
    turns = torch.tensor([hue, hue - 120, hue - 240]).deg2rad()
    return 0.5 + 0.5 * turns.cos()


def colored(pattern: Tensor, hue: float) -> Tensor:
    """(3, H, W): gray where the pattern (H, W) is -1, the hue where it is 1."""
    share = 0.5 + 0.5 * pattern
    return 0.5 + (color(hue) - 0.5)[:, None, None] * share


def edge(ground: Ground, direction: float, radius: float) -> Tensor:
    """(H, W) of -1 and 1: the edge of a disc through the center; the disc lies in `direction`."""
    angle = math.radians(direction)
    x, y = math.cos(angle), math.sin(angle)
    if math.isinf(radius):
        inside = x * ground.right + y * ground.up
    else:
        away = ((ground.right - radius * x).square() + (ground.up - radius * y).square()).sqrt()
        inside = radius - away
    return (2 * inside).clamp(-1, 1)


def window(ground: Ground, diameter: float) -> Tensor:
    """(H, W) from 0 to 1: a disc, one pixel soft at its edge."""
    away = (ground.right.square() + ground.up.square()).sqrt()
    return (diameter / 2 - away + 0.5).clamp(0, 1)
