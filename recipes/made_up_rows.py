"""Rows made up with the structure of real ones, as many as wanted: a data set and a network.

`fit` measures real rows before their ReLU (fc7 of photographs in class folders) and keeps

    mean, classes   the mean of all rows; how class means differ from it (main axes, corrected for
                    the noise of means of few rows)
    within          the main axes of what rows differ by within their class
    rest            the standard deviation of every unit beyond those axes

`MadeUp` is a data set whose "pictures" are uniform random numbers, drawn for every row by a
counter-based generator (Philox) from the seed and the row's number. `network` turns such a picture
into a row: a Gaussian around the mean of a new class, drawn itself, through the ReLU.
So `featviz.embed` writes the rows as it writes those of photographs, and any of them can be made
again alone. `describe` says how rows of either kind are: spectrum, distances, hubs.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import featviz
from featviz.data.datasets import Pictures
from featviz.models.model import Model
from featviz.neighbors.exact import build_index
from featviz.pictures.decoding import Prepared
from featviz.pictures.preprocessing import Preprocessing

AXES = 256
"""main axes within classes at most"""
CLASSES = 1000


@dataclass(frozen=True)
class Structure:
    """What real rows are like before their ReLU."""

    mean: Tensor
    """(dim,)"""
    classes: Tensor
    """(axes, dim) by which class means differ, each as long as its standard deviation"""
    within: Tensor
    """(axes, dim) by which rows of a class differ"""
    rest: Tensor
    """(dim,) standard deviation of what those axes leave"""

    def save(self, path: Path) -> None:
        """Keep it as a file that `load` reads."""
        np.savez(path, **{name: value.numpy() for name, value in asdict(self).items()})

    @classmethod
    def load(cls, path: Path) -> Structure:
        """Read what `save` wrote."""
        with np.load(path) as kept:
            return cls(**{name: torch.from_numpy(kept[name]) for name in kept.files})


def fit(rows: Tensor, labels: Sequence[str], *, axes: int = AXES) -> Structure:
    """The structure of rows (N, dim) before their ReLU, of two or more classes."""
    from sklearn.utils.extmath import randomized_svd

    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    own, many = torch.from_numpy(codes), torch.from_numpy(sizes).double()
    rows = rows.double()
    means = torch.zeros(len(many), rows.shape[1], dtype=torch.float64)
    means.index_add_(0, own, rows).div_(many[:, None])
    mean = means.mean(0)
    apart = rows - means[own]
    free = len(rows) - len(many)
    if free < 2 or len(many) < 2:
        raise featviz.UserError(
            f"{len(rows)} rows of {len(many)} classes have no structure to fit; give more pictures"
        )

    def main_axes(of: Tensor, most: int) -> tuple[Tensor, Tensor]:
        count = max(1, min(most, *of.shape) - 1)
        _, lengths, found = randomized_svd(of.numpy(), count, n_iter=4, random_state=0)
        return torch.from_numpy(lengths), torch.from_numpy(found)

    lengths, within = main_axes(apart, axes)
    spread = lengths / math.sqrt(free)
    along = apart @ within.T
    rest = ((apart - along @ within).square().sum(0) / free).sqrt()
    lengths, between = main_axes(means - mean, len(many))
    noise = ((apart @ between.T).square().sum(0) / free) / many.mean()
    variance = (lengths.square() / (len(many) - 1) - noise).clamp_min(0)
    return Structure(
        mean.float(),
        (variance.sqrt()[:, None] * between).float(),
        (spread[:, None] * within).float(),
        rest.float(),
    )


@dataclass(frozen=True, repr=False)
class MadeUp(Pictures):
    """Squares of random numbers; the first says which class the row belongs to."""

    seed: int = field(default=0, kw_only=True)
    side: int = field(default=0, kw_only=True)

    @cached_property
    def state(self) -> str:
        """Hash of what the numbers depend on."""
        return hashlib.sha256(f"{self.seed} {self.side}".encode()).hexdigest()

    def prepare(
        self, row: int, preprocessing: Preprocessing, *, decoder: str = "exact"
    ) -> Prepared:
        """The numbers of a row."""
        name = self.paths[row]
        source = np.random.Philox(key=[self.seed, int(name.rpartition("/")[2])])
        pixels = np.random.Generator(source).random((3, self.side, self.side), dtype=np.float32)
        pixels[0, 0, 0] = (int(self.folders[row][1:]) + 0.5) / CLASSES
        return Prepared(torch.from_numpy(pixels), (self.side, self.side))


def made_up(count: int, structure: Structure, *, seed: int = 0, first: int = 0) -> MadeUp:
    """A data set of `count` rows, class after class, numbered from `first` on."""
    owns = [f"c{row * CLASSES // count:03}" for row in range(count)]
    paths = tuple(f"{own}/{first + row:08}" for row, own in enumerate(owns))
    return MadeUp(Path("made-up"), paths, tuple(owns), seed=seed, side=_side(structure))


def _side(structure: Structure) -> int:
    """Of squares that hold the numbers of a row."""
    needed = 1 + len(structure.within) + len(structure.mean)
    return math.isqrt(-(-needed // 3) - 1) + 1


class _Rows(nn.Module):
    """Pictures of uniform numbers (N, 3, S, S) to rows before their ReLU (N, dim)."""

    means: Tensor
    within: Tensor
    rest: Tensor

    def __init__(self, structure: Structure, seed: int):
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        means = torch.randn(CLASSES, len(structure.classes), generator=drawn) @ structure.classes
        self.register_buffer("means", means + structure.mean)
        self.register_buffer("within", structure.within)
        self.register_buffer("rest", structure.rest)

    def forward(self, pictures: Tensor) -> Tensor:
        u = pictures.flatten(1)
        own = (u[:, 0] * CLASSES).long().clamp(0, CLASSES - 1)
        used = len(self.within) + len(self.rest)
        normal = math.sqrt(2) * torch.erfinv(
            (2 * u[:, 1 : 1 + used] - 1).clamp(-1 + 1e-7, 1 - 1e-7)
        )
        along, beyond = normal.split([len(self.within), len(self.rest)], 1)
        made: Tensor = self.means[own] + along @ self.within + beyond * self.rest
        return made


def network(structure: Structure, *, seed: int = 0) -> Model:
    """The network of which `MadeUp`'s pictures give made-up rows at layer relu7."""
    last = nn.Linear(len(structure.mean), 2)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    parts = {"fc7": _Rows(structure, seed), "relu7": nn.ReLU(), "fc8": last}
    net = nn.Sequential(OrderedDict(parts))
    return featviz.wrap(
        net, input_size=_side(structure), mean=[0.0] * 3, std=[1.0] * 3, channels=3, name="made-up"
    )


def describe(rows: Tensor, labels: Sequence[str], *, k: int = 10) -> dict[str, float]:
    """How rows (N, dim) behind their ReLU are spread; neighbors by cosine."""
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    variance = torch.linalg.svdvals((unit - unit.mean(0)).double()).square()
    total = float(variance.sum())
    distances, near = build_index(rows).search(rows, k, exclude=torch.arange(len(rows)))
    own = np.asarray(labels)
    hubs = torch.bincount(near.flatten(), minlength=len(rows)).double()
    skew = ((hubs - hubs.mean()) / hubs.std()).pow(3).mean()
    lengths = (2 * distances).sqrt().clamp_min(1e-9)
    dimension = 1 / (lengths[:, -1:] / lengths[:, :-1]).log().mean()
    norms = rows.norm(dim=1)
    return {
        "zeros": float((rows == 0).double().mean()),
        "norm, variation": float(norms.std() / norms.mean()),
        **{f"variance in {n} axes": float(variance[:n].sum()) / total for n in (1, 10, 50, 256)},
        "effective axes": total**2 / float(variance.square().sum()),
        "distance to neighbor 1": float(distances[:, 0].mean()),
        f"distance to neighbor {k}": float(distances[:, -1].mean()),
        "intrinsic dimension": float(dimension),
        "hubs, skewness": float(skew),
        "neighbors of the class": float((own[near.numpy()] == own[:, None]).mean()),
    }
