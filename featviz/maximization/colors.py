"""Decorrelated colors: three unbounded axes on which equal steps are equally likely.

Red, green and blue of photographs vary together. A root of their covariance turns equal steps along
three axes (brightness first) into steps as likely as photographs have them; a sigmoid keeps the
result within [0, 1]. Olah, Mordvintsev and Schubert 2017, "Feature Visualization" (Distill),
"Preconditioning and parameterization".

`LUCID` is the usual matrix, of ImageNet; `image_statistics.measure_colors` makes one from any
pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# Pictures to be fitted are kept this far from black and white, where the logit is infinite;
# a quarter of a step of 8 bits, so that nothing is lost in a saved picture.
MARGIN = 1 / 1024

Matrix = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Colors:
    """Which red, green and blue each decorrelated axis represents.

    matrix: rows red, green, blue; one axis a column, the longest column of length 1
    """

    name: str
    matrix: Matrix

    def to_rgb(self, axes: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] from unbounded values on the three axes."""
        return mixed(axes, _placed(self.matrix, axes.dtype, axes.device)).sigmoid()

    def from_rgb(self, pictures: Tensor, margin: float = MARGIN) -> Tensor:
        """The inverse of `to_rgb`; values within `margin` of black or white are brought in."""
        inverse = torch.linalg.inv(torch.tensor(self.matrix, dtype=torch.float64))
        return mixed(torch.logit(pictures.clamp(margin, 1 - margin)), inverse)


def mixed(values: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ values over the three channels of (N, 3, H, W)."""
    return torch.matmul(matrix.to(values), values.flatten(2)).view_as(values)


@lru_cache(maxsize=32)
def _placed(matrix: Matrix, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, so that a step of the loop sends nothing to the device."""
    with torch.inference_mode(False):
        return torch.tensor(matrix, dtype=dtype, device=device)


def from_root(name: str, root: Tensor) -> Colors:
    """Colors from a root of a covariance (3, 3), one axis a column."""
    scaled = root.double() / root.double().norm(dim=0).max()
    return Colors(name, tuple((row[0], row[1], row[2]) for row in scaled.tolist()))


LUCID = from_root(
    "lucid", torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
)
"""of ImageNet; brightness, blue against yellow, green against magenta (Lucid, param/color.py)"""
