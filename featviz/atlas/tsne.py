"""t-SNE on a graph of neighbors, in torch, on the processor or a GPU.

The force on a point is its attraction to the neighbors (a sparse product) less its repulsion from
all points. Linderman et al. 2019, "Fast interpolation-based t-SNE for improved visualization of
single-cell RNA-seq data" (Nature Methods 16:243), put the repulsion on a regular grid, where it is
a convolution, so that a step costs as much as there are points. Here:

- the points are spread by cubic B-splines that interpolate, every node `SPACING` apart, instead of
  by polynomials in separate boxes;
- one potential, phi(y) = sum 1 / (1 + |y - y_j|^2), is convolved. The repulsion is -1/2 of its
  gradient, for which the splines are derived, and the normalizer Z is its sum.

So the force is the gradient of one approximate divergence, and two transforms a step are enough.
The force of a point on itself, which is 0 but for the grid, is subtracted. Against all pairs of a
finished map of 10,000 rows the force is right to 6% (root mean square) with nodes 0.5 apart, to 1%
with 0.3 and to 0.2% with 0.2; Z to 0.5%, 0.05% and 0.01%. Small maps get a finer grid, since
clusters form in the early steps.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from featviz.atlas.affinities import Affinities
    from featviz.checkpoints import Checkpoint
    from featviz.types import Progress

EARLY_EXAGGERATION = 4.0
"""12 is usual, and leaves but a few directions in which the map can open (docs/scale.md): 50 + 950
steps ended at a divergence of 1.25 for 1.32 (5,000 rows in 500 clusters) and 2.13 for 2.18 (4,000
of fc7), with as many neighbors kept and more of the global structure"""
KEPT = 50
"""steps after which the state is kept, where there is a checkpoint"""
SPACING = 0.3
"""between nodes of the grid, in units of the kernel 1 / (1 + d^2). 10,000 rows, 50 + 950 steps, two
cores: 0.5 takes 13 s to a divergence of 0.79 and a recall@10 of 0.66, 0.3 takes 20 s to 0.71 and
0.75, 0.2 takes 47 s to 0.69 and 0.76"""
_WIDEST = 4096
"""nodes a side, padding included; a larger map gets wider spacing"""
_FEWEST_NODES = 256
"""a side, without padding; smaller maps get narrower spacing, down to an eighth"""
_PAIRS = 1 << 18
"""pairs whose attraction is worked out at a time, so that they stay in the cache"""
_PAIRS_ON_CUDA = 1 << 26
"""the same on CUDA, where each operation costs a launch; for the memory"""
_ALL_PAIRS = 4000
"""points up to which a divergence is summed over all pairs"""
_FEW = 300
"""points up to which the repulsion is summed over all pairs, which is exact and takes less time"""
_LONGEST_STEP = 5.0
_MOMENTUM = 0.8
_SETTLING = 1 / 3
"""of the steps, at the end, over which the learning rate goes linearly to 0 and oscillations end"""


def optimize(
    pairs: Affinities,
    start: Tensor,
    *,
    steps: tuple[int, int],
    exaggeration: float,
    learning_rate: float,
    device: torch.device | str = "cpu",
    kept: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Points (N, 2) float64 that gradient descent reaches from `start`.

    Momentum 0.8 and gains as in van der Maaten's own program; no point moves more than 5 in a step.

    Args:
        pairs: p of every pair of neighbors.
        start: (N, 2).
        steps: With EARLY_EXAGGERATION, then with `exaggeration`, factors on p.
        exaggeration: Of the second part.
        learning_rate: Of the gradient without its factor 4; divided by the current exaggeration,
            since exaggerated p attracts so much more. 2 N: see `featviz.atlas.layout`.
        device: Where it is computed.
        kept: Where the state is kept every KEPT steps, and found again.
        progress: Called with the steps done.
    """
    y = start.T.to(device, torch.float32).contiguous()  # (2, N)
    pull = Attraction(pairs, y.device)
    push = all_pairs if y.shape[1] <= _FEW else Repulsion()
    gains, velocity = torch.ones_like(y), torch.zeros_like(y)
    total, first = sum(steps), 0
    found = None if kept is None else kept.read("descent")
    if found is not None:
        first = int(found["step"])
        y, gains, velocity = (torch.from_numpy(part).to(y.device) for part in found["state"])
    for step in range(first, total):
        factor = EARLY_EXAGGERATION if step < steps[0] else exaggeration
        away, z = push(y)
        gradient = factor * pull(y) - away / z
        rate = learning_rate / factor * min(1.0, (total - step) / (_SETTLING * total))
        velocity, gains = momentum_step(velocity, gains, rate, gradient)
        length = velocity.norm(dim=0)
        velocity *= _LONGEST_STEP / length.clamp_min(_LONGEST_STEP)
        y = y + velocity
        if progress is not None and (step + 1) % 10 == 0:
            progress(step + 1, total, "laying out")
        if kept is not None and (step + 1) % KEPT == 0:
            state = torch.stack([y, gains, velocity]).cpu().numpy()
            kept.write("descent", {"step": np.array(step + 1), "state": state}, size=step + 1)
    return y.T.double().cpu()


def momentum_step(
    velocity: Tensor, gains: Tensor, rate: float, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """The next velocity and gains: momentum 0.8, gains that grow in constant directions."""
    same = torch.sign(gradient) == torch.sign(velocity)
    gains = torch.where(same, gains * 0.8, gains + 0.2).clamp_min_(0.01)
    return _MOMENTUM * velocity - rate * gains * gradient, gains


class Attraction:
    """sum over j of p_ij (y_i - y_j) / (1 + |y_i - y_j|^2)."""

    def __init__(self, pairs: Affinities, device: torch.device):
        self.rows, self.others = pairs.rows.to(device), pairs.others.to(device)
        self.p = pairs.p.to(device, torch.float32)
        with warnings.catch_warnings():  # torch warns that this format is in beta
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            self.held = torch.sparse_csr_tensor(
                pairs.starts.to(device),
                self.others,
                torch.empty_like(self.p),
                (len(pairs),) * 2,
                check_invariants=True,
            )

    def __call__(self, y: Tensor) -> Tensor:
        """The attraction (2, N) of points (2, N)."""
        strengths = self.held.values()
        size = _PAIRS if y.device.type == "cpu" else _PAIRS_ON_CUDA
        for start in range(0, len(self.p), size):
            part = slice(start, start + size)
            squares = _squares(y, self.rows[part], self.others[part])
            torch.div(self.p[part], squares.add_(1), out=strengths[part])
        # sum_j s_ij (y_i - y_j) = y_i sum_j s_ij - sum_j s_ij y_j
        summed = self.held @ torch.stack([y[0], y[1], torch.ones_like(y[0])], 1)
        return y * summed[:, 2] - summed[:, :2].T


def _squares(y: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Squared distances of pairs of points."""
    x = y[0].index_select(0, rows).sub_(y[0].index_select(0, others))
    z = y[1].index_select(0, rows).sub_(y[1].index_select(0, others))
    return x.square_().addcmul_(z, z)


@dataclass(frozen=True)
class Potential:
    """phi(y) = sum over j of 1 / (1 + |y - y_j|^2), as splines on a regular grid."""

    values: Tensor
    """(rows * columns,) coefficients"""
    columns: int
    low: Tensor
    """(2,) the position of the second node"""
    spacing: float
    reach: tuple[float, float]
    """nodes a side on which phi is right; points beyond are moved to the border"""
    own: Tensor
    """(16, 16) what the weights of a point add to the coefficients around it"""

    def at(self, y: Tensor, *, others: bool = False) -> tuple[Tensor, Tensor]:
        """phi at points (2, M), (M,), and minus half its gradient, (2, M): the repulsion.

        With `others` the points are those that made phi, and the part of each in its own value is
        subtracted. It would be 1, and flat, but for the grid, and is subtracted as on the grid.
        """
        places, weights, slopes = _places(y, self)
        near = self.values.index_select(0, places.flatten()).view(4, 4, -1)
        if others:
            spread = weights[:, 0, None] * weights[None, :, 1]
            near = near - (self.own @ spread.view(16, -1)).view_as(near)
        across, along = (near * weights[None, :, 1]).sum(1), (near * weights[:, 0, None]).sum(0)
        force = torch.stack([(across * slopes[:, 0]).sum(0), (along * slopes[:, 1]).sum(0)])
        return (across * weights[:, 0]).sum(0), force * (-0.5 / self.spacing)


def all_pairs(y: Tensor) -> tuple[Tensor, Tensor]:
    """What `Repulsion` gives, summed over all pairs of the points (2, N)."""
    x, z = (part[:, None] - part for part in y)
    kernel = x.square().addcmul_(z, z).add_(1).reciprocal_()
    total = kernel.sum(dtype=torch.float64) - len(kernel)
    kernel.square_()
    return torch.stack([x.mul_(kernel).sum(1), z.mul_(kernel).sum(1)]), total.to(y.dtype)


def _places(y: Tensor, grid: Potential) -> tuple[Tensor, Tensor, Tensor]:
    """The 16 nodes around points (2, M): numbers (4, 4, M), weights and slopes (4, 2, M)."""
    at = (y - grid.low[:, None]) / grid.spacing + 1
    at = torch.stack([x.clamp(1, reach) for x, reach in zip(at, grid.reach, strict=True)])
    node = at.floor()
    weights, slopes = _splines(at - node)
    offset = torch.arange(-1, 3, device=y.device, dtype=torch.int32)[:, None]
    node = node.int()
    return (node[0] + offset)[:, None] * grid.columns + (node[1] + offset)[None], weights, slopes


class Repulsion:
    """sum over j of (y_i - y_j) / (1 + |y_i - y_j|^2)^2, and Z, by a grid."""

    def __init__(self, spacing: float = SPACING):
        self.spacing = spacing
        self._sizes: tuple[int, int, float] | None = None
        self._spectrum = self._own = torch.empty(0)

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of points (2, N): the repulsion (2, N), and Z = sum over i != j of 1 / (1 + d^2)."""
        phi, force = self.potential(y).at(y, others=True)
        return force, phi.sum(dtype=torch.float64).to(y.dtype)

    def potential(self, y: Tensor, margin: float = 0.0) -> Potential:
        """phi of points (2, N), right on their bounding box and a margin around it."""
        low, high = y.min(1).values - margin, y.max(1).values + margin
        wide, tall = (high - low).tolist()
        side = max(wide, tall)
        h = max(self.spacing, side / (_WIDEST / 2 - 12))
        if side < _FEWEST_NODES * h:  # finer on a small map; in steps, so that the kernel is reused
            finer = math.floor(2 * math.log2(max(side, 1e-3) / h / _FEWEST_NODES)) / 2
            h *= max(1 / 8, 2**finer)
        nodes = [math.ceil(side / h) + 6 for side in (wide, tall)]
        # twice the map, so that the circular convolution does not wrap around
        rows, columns = (_good_size(2 * number) for number in nodes)
        reach = nodes[0] - 3.0, nodes[1] - 3.0
        spectrum, own = self._kernel(rows, columns, h, y)
        grid = Potential(torch.empty(0), columns, low, h, reach, own)
        places, weights, _ = _places(y, grid)
        charge = torch.zeros(rows * columns, device=y.device, dtype=y.dtype)
        spread = weights[:, 0, None] * weights[None, :, 1]
        charge.index_add_(0, places.flatten(), spread.flatten())
        waves = torch.fft.rfft2(charge.view(rows, columns)) * spectrum
        return replace(grid, values=torch.fft.irfft2(waves, s=(rows, columns)).flatten())

    def _kernel(self, rows: int, columns: int, h: float, y: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel's spectrum over the splines' own, squared, so that they interpolate; `own`."""
        if self._sizes != (rows, columns, h) or self._spectrum.device != y.device:
            down, across = (_ring(size, y.device) for size in (rows, columns))
            squares = (h * down)[:, None] ** 2 + (h * across)[None] ** 2
            spectrum = torch.fft.rfft2(1 / (1 + squares)).real
            blur = [((2 + (2 * math.pi / len(r) * r).cos()) / 3).square() for r in (down, across)]
            spectrum /= blur[0][:, None] * blur[1][None, : spectrum.shape[1]]
            kernel = torch.fft.irfft2(spectrum, s=(rows, columns))
            steps = torch.arange(4, device=y.device)
            i, j = (n.flatten() for n in torch.meshgrid(steps, steps, indexing="ij"))
            own = kernel[i[:, None] - i[None], j[:, None] - j[None]]
            self._spectrum, self._own = spectrum.to(y.dtype), own.to(y.dtype)
            self._sizes = (rows, columns, h)
        return self._spectrum, self._own


def _ring(size: int, device: torch.device) -> Tensor:
    """0, 1, 2, ... -2, -1: signed distances on a ring from its first node, float64."""
    places = torch.arange(size, device=device, dtype=torch.float64)
    return torch.where(places <= size // 2, places, places - size)


def _splines(t: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the four nodes around t in [0, 1), and their derivatives, (4, *t.shape)."""
    u, s, c = 1 - t, t * t, t * t * t
    weights = torch.stack([u * u * u, 3 * c - 6 * s + 4, -3 * c + 3 * s + 3 * t + 1, c]) / 6
    slopes = torch.stack([-u * u, 3 * s - 4 * t, -3 * s + 2 * t + 1, s]) / 2
    return weights, slopes


def _good_size(wanted: int) -> int:
    """An even size of at least `wanted` that transforms fast.

    Of the sizes within 3% of one another only one is taken, so that the kernel can be reused.
    """
    from scipy.fft import next_fast_len

    step = 1 << max(0, wanted.bit_length() - 6)
    return 2 * int(next_fast_len(-(-wanted // (2 * step)) * step, real=True))


def similarities(points: Tensor) -> float:
    """Z of points (N, 2): the sum of 1 / (1 + d^2) over all ordered pairs of two.

    Above 4,000 points by a grid of half the usual spacing (relative error below 1e-4).
    """
    y = points.double()
    if len(y) <= _ALL_PAIRS:
        return 2 * float((1 / (1 + torch.pdist(y.contiguous()).square())).sum())
    return float(Repulsion(SPACING / 2)(y.T.contiguous())[1])


def divergence(pairs: Affinities, points: Tensor) -> float:
    """The Kullback-Leibler divergence of a map's points (N, 2) from p, in nats, exaggeration 1.

    sum p log(p / q), q = 1 / (1 + d^2) / Z. So maps of any method can be compared.
    """
    y = points.T.double().contiguous()
    some = pairs.p > 0
    p = pairs.p[some]
    squares = _squares(y, pairs.rows[some], pairs.others[some])
    log_z = math.log(similarities(points))
    return float((p * (p.log() + squares.log1p())).sum()) + log_z * float(p.sum())
