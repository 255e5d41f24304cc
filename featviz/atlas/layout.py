"""Two coordinates for each row of a space: t-SNE from the graph of its neighbors.

Settings follow Kobak and Berens 2019 ("The art of using t-SNE for single-cell transcriptomics",
Nature Communications 10:5416): start at the first two principal components scaled to a standard
deviation of 1e-4, perplexity 30 but at most a third of the other rows. Their exaggeration of 4 for
large maps is an option: it shrinks maps of rows like fc7 to a few places (docs/scale.md).
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from featviz.arguments import Bounds
from featviz.atlas import peers, tsne
from featviz.atlas.affinities import affinities
from featviz.atlas.graph import Graph, build_graph, neighbors_wanted
from featviz.data.datasets import evenly
from featviz.errors import UserError, check_fields, nearest
from featviz.models.load import resolve_device
from featviz.neighbors.exact import Index, build_index, for_search
from featviz.types import Perplexity, Progress, Steps, Tries, seed_32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from featviz.checkpoints import Checkpoint
    from featviz.embedding.store import Store

START_SPREAD = 1e-4
SHAKE = 0.1
LEARNING_RATE = 2.0
"""of our method, times the rows, over the exaggeration. Kobak and Berens take 1/12 throughout; at
10,000 rows that left the divergence higher after 750 steps (1.07 nats) than this after 500 (0.86;
both on a coarser grid than today's)"""
STEPS = {"tsne": (50, 950), "preview": (50, 150)}
PEER_STEPS = (250, 750)
"""at a learning rate of N / 12 openTSNE's own 250 + 500 are not enough for 10,000 rows"""
FEWEST = 8
"""with fewer rows than this the principal components are the map"""
FEW_PLACES = 10
"""of a map of any size, below which it is too small to tell rows apart"""
METHODS = ("auto", "tsne", "preview", *peers.PACKAGES)
_LEARNED = 20_000


@dataclass(frozen=True)
class LayoutSettings:
    """How a map is laid out. Raises UserError for a value out of range."""

    perplexity: Perplexity = 30.0
    """about how many neighbors each row tries to keep, 5 to 100; at most (N - 1) / 3"""
    steps: tuple[Tries, Steps] | None = None
    """with early exaggeration (forms the clusters), then without (settles them); default 50 and
    950, for a preview 50 and 150, for other libraries' methods 250 and 750"""
    exaggeration: Annotated[float, Bounds(1, 100)] = 1.0
    """of the second part. 1 is plain t-SNE; more draws clusters tighter"""
    method: str = "auto"
    """"auto" or "tsne", ours; "openTSNE", "scikit-learn" or "cuml" where they are installed;
    "preview", ours with fewer steps on a graph along 50 principal axes: a map in seconds that keeps
    fewer neighbors"""

    def __post_init__(self) -> None:
        check_fields(self)
        method, package = self.method, peers.PACKAGES.get(self.method)
        if method not in METHODS:
            raise UserError(
                f"unknown layout method {method!r}; take one of {', '.join(METHODS)}"
                f"{nearest(method, METHODS)}"
            )
        if package is not None and importlib.util.find_spec(package) is None:
            named = peers.DISTRIBUTIONS.get(method, (method,))
            raise UserError(
                f"{method} is not installed; pip install {' or '.join(named)}, or take another "
                "method"
            )


@dataclass(frozen=True)
class Layout:
    """Where each row is on the map."""

    xy: Tensor
    """(N, 2) float32 in [0, 1], y downwards; both axes have the same scale"""
    raw: Tensor
    """(N, 2) float64 as optimized, in t-SNE's own units; `xy` is it shifted and scaled"""
    start: Tensor
    """(N, 2) the first two principal components, scaled as `xy` is"""
    method: str
    perplexity: float
    steps: tuple[int, int]
    """with early exaggeration, and after it"""
    divergence: float | None
    """the Kullback-Leibler divergence of the map from its graph in nats, for every method by the
    same formula (`featviz.atlas.tsne.divergence`); None for principal components"""
    seed: int
    exaggeration: float = 1.0

    @property
    def places(self) -> float:
        """In how many places the rows are: 1 over the mean of 1 / (1 + d^2) over all pairs.

        Each row with itself is a pair too, so it is 1 where all are at one point, and their number
        where all are far from each other.
        """
        return len(self.raw) / (1 + tsne.similarities(self.raw) / len(self.raw))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before looking at the map."""
        if self.exaggeration == 1 or self.places >= min(FEW_PLACES, len(self.raw) / 4):
            return ()
        return (
            f"exaggeration {self.exaggeration:g} shrinks this map: its {len(self.raw)} rows are in "
            f"about {self.places:.1f} places; take a smaller one, 1 is plain t-SNE",
        )


def lay_out(
    space: Store | Index | Tensor,
    settings: LayoutSettings = LayoutSettings(),
    *,
    graph: Graph | None = None,
    init: Tensor | None = None,
    seed: int = 0,
    device: str = "auto",
    kept: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Layout:
    """A map of the rows in which neighbors stay together.

    Distances between clusters, their sizes and empty space mean little on a t-SNE map.

    Args:
        space: A store, an index, or a matrix (N, dim).
        settings: Perplexity, steps, exaggeration and method.
        graph: The neighbors in the space, where they are known (`featviz.atlas.graph.build_graph`).
        init: (N, 2) positions to start from instead of the principal components, at any scale:
            another map of the same rows, to which this one is then similar.
        seed: Of the noise on the start, a tenth of its spread, which separates equal rows and shows
            in maps of several seeds what is chance. The same seed gives the same bytes on one
            machine with the same number of threads.
        device: Of our method and the search; "auto" takes CUDA where there is one. On a GPU sums
            have no fixed order, so maps of one seed differ there.
        kept: Where the state of our method is kept now and then, and found again.
        progress: Called with the steps done.

    Raises:
        UserError: Fewer than 2 rows, or a graph or `init` of other rows.
    """
    index = space if isinstance(space, Index) else build_index(space)
    count = len(index)
    if count < 2:
        raise UserError(f"a map needs at least 2 pictures, there are {count}")
    perplexity = min(settings.perplexity, (count - 1) / 3)
    if graph is not None and len(graph) != count:
        raise UserError(f"a graph of {len(graph)} rows for a space of {count}; build it anew")
    method = "tsne" if settings.method == "auto" else settings.method
    components = principal_components(index, seed=seed)
    flat = to_unit_square(components)
    if count < FEWEST:
        return Layout(flat, components, flat, "principal components", 0.0, (0, 0), None, seed)
    if init is not None and init.shape != components.shape:
        raise UserError(f"a map of {count} rows cannot start from {tuple(init.shape)} positions")
    if graph is None:
        wanted = neighbors_wanted(count, perplexity)
        graph = build_graph(index, wanted, progress, quick=method == "preview", device=device)
    graph = graph.nearest(min(graph.k, max(1, math.floor(3 * perplexity))))
    pairs = affinities(graph, perplexity)
    start = _start(components if init is None else init.to(components), seed)
    steps = settings.steps or STEPS.get(method, PEER_STEPS)
    if method in STEPS:
        raw = tsne.optimize(
            pairs,
            start,
            steps=steps,
            exaggeration=settings.exaggeration,
            learning_rate=LEARNING_RATE * count,
            device=resolve_device(device),
            kept=kept,
            progress=progress,
        )
        name = "featviz" if method == "tsne" else method
    else:
        raw = peers.optimize(
            method,
            pairs,
            start,
            graph=graph,
            vectors=lambda: _vectors(index),
            perplexity=perplexity,
            steps=steps,
            exaggeration=settings.exaggeration,
            seed=seed,
            progress=progress,
        )
        name = f"{method} {peers.version(method)}"
    score = tsne.divergence(pairs, raw)
    return Layout(
        to_unit_square(raw), raw, flat, name, perplexity, steps, score, seed, settings.exaggeration
    )


def _start(positions: Tensor, seed: int) -> Tensor:
    """Positions (N, 2) scaled to a standard deviation of START_SPREAD, with noise."""
    moved = positions - positions.mean(0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
    spread = moved / max(float(moved[:, 0].std()), 1e-30) + SHAKE * noise
    # t-SNE amplifies the last bits, which linear algebra does not promise: they are rounded away.
    return (spread * START_SPREAD).float().double()


def _vectors(index: Index) -> Tensor:
    """The rows (N, dim) in which Euclidean distance orders neighbors as the metric does."""
    return torch.cat([torch.from_numpy(rows) for rows in index.search_blocks()])


def principal_components(space: Index | Tensor, *, seed: int = 0) -> Tensor:
    """Coordinates (N, 2) float64 on the two main axes of an index's directions, or a matrix's rows.

    Each axis points where its largest entry is. The axes of more than 20,000 rows are those of an
    even sample of so many; rows are read a block at a time.
    """
    from sklearn.utils.extmath import randomized_svd

    some = evenly(len(space), _LEARNED)
    blocks: Iterable[Tensor]
    if isinstance(space, Tensor):
        sample, blocks = space[some], space.split(8192)
    else:
        sample = torch.from_numpy(for_search(space.take(some).numpy(), space.metric))
        blocks = map(torch.from_numpy, space.search_blocks())
    middle = sample.mean(0)
    coordinates = torch.zeros(len(space), 2, dtype=torch.float64)
    sample -= middle
    if not bool(sample.any()):
        return coordinates
    _, _, axes = randomized_svd(
        sample.double().numpy(), 2, n_iter=7, random_state=seed_32(seed), flip_sign=False
    )
    del sample
    # Written in place: small results kept between large ones would hold the memory of all of them.
    places = coordinates[:, : len(axes)].split(1024)
    parts = (part for rows in blocks for part in rows.split(1024))
    for place, part in zip(places, parts, strict=True):
        place.copy_((part - middle).double() @ torch.from_numpy(axes.T))
    largest = coordinates.abs().argmax(0)
    signs = coordinates[largest, torch.arange(2)].sign()
    return coordinates * torch.where(signs == 0, 1, signs)


def to_unit_square(xy: Tensor) -> Tensor:
    """Coordinates shifted and scaled into [0, 1], the longer side filling it, as float32."""
    middle, side = frame(xy)
    return ((xy.double() - middle) / side + 0.5).clamp(0, 1).float()


def frame(xy: Tensor) -> tuple[Tensor, float]:
    """The middle (2,) and the longer side of what `to_unit_square` makes the unit square."""
    low, high = xy.double().min(0).values, xy.double().max(0).values
    side = float((high - low).max())
    return (low + high) / 2, side if side > 0 else 1.0
