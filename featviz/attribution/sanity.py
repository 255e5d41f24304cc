"""`check_attributions`: do attribution maps depend on the model, and do they mark what matters?

Cascading randomization: the weights of the layers are shuffled, from the last layer to the first,
and the maps are made again after each. A map that hardly changes shows the picture, not what the
model learned. Each weight tensor is shuffled within itself, which keeps its distribution.

Deletion and insertion: cells of the picture are covered in the order of the map, the highest
first, or uncovered in that order from a covered picture. A good map makes the class's probability
fall fast and rise fast; cells in random order are beside it.

    Adebayo et al., "Sanity Checks for Saliency Maps", 2018 (arXiv:1810.03292)
    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation", 2018 (arXiv:1806.07421)
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featviz import plotting, results
from featviz.attribution.attribute import attribute, baseline_color
from featviz.attribution.methods import METHODS
from featviz.attribution.result import Attributed
from featviz.errors import public
from featviz.models.frozen import frozen
from featviz.statistics import rank_correlation, share
from featviz.types import BatchSize, Count, Progress, Seed, Steps
from featviz.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from featviz.models.model import Model

_CELLS = 14  # of the grid, a side
_LEVELS = 10  # of the curves
_ORDERS = 4  # random ones
SIMILAR = 0.5
"""rank correlation with the map of a shuffled model above which a method is doubted"""


@dataclass(frozen=True, kw_only=True, repr=False)
class AttributionCheck(results.Result):
    """Whether maps depend on the weights, and whether they mark what the class depends on."""

    kind: ClassVar[str] = "attribution-check"

    model_name: str
    names: tuple[str, ...]
    stages: tuple[str, ...]
    """the layer down to which weights are shuffled, from the last to the first"""
    similarity: Mapping[str, Tensor]
    """method -> (stages, N): rank correlation of absolute values with the map of the model"""
    deletion: Mapping[str, Tensor]
    """method, or "random order" -> (N, levels + 1): probability with 0 to all cells covered"""
    insertion: Mapping[str, Tensor]
    """the same with 0 to all cells uncovered"""

    @property
    def title(self) -> str:
        pictures = counted(len(self.names), "picture")
        return f"Attributions of {self.model_name} on {pictures}, checked"

    def better(self, method: str) -> tuple[int, int]:
        """Pictures in which a method beats random order in deletion, and in insertion."""
        deleted, inserted = (area(c[method]) for c in (self.deletion, self.insertion))
        by_chance = [area(c[RANDOM]) for c in (self.deletion, self.insertion)]
        return int((deleted < by_chance[0]).sum()), int((inserted > by_chance[1]).sum())

    def numbers(self) -> dict[str, results.Number]:
        found, n = {}, len(self.names)
        for method, values in self.similarity.items():
            title = METHODS[method].title
            found[f"similarity after shuffling: {title}"] = results.Number(
                float(values[-1].mean()),
                "",
                "rank correlation of the maps before and after all weights are shuffled; a map "
                "that depends on the model is near 0",
                n=n,
            )
        for method in self.similarity:
            title = METHODS[method].title
            deleted, inserted = self.better(method)
            for word, hits, curves in (
                ("deletion", deleted, self.deletion),
                ("insertion", inserted, self.insertion),
            ):
                own, chance = (float(area(curves[k]).mean()) for k in (method, RANDOM))
                found[f"{word} better than chance: {title}"] = share(hits, n).number(
                    f"pictures; area under the curve {own:.3f}, random order {chance:.3f}"
                )
        return found

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "checks.svg",
            self.plot(),
            caption="Left: rank correlation of each method's map with its map after the weights "
            "of all layers down to the named one were shuffled (mean over pictures; below 0.5 a "
            "map depends on the weights). Middle: probability of the class while cells are covered "
            "in the order of the map (should fall fast). Right: while they are uncovered in that "
            "order (should rise fast). Dotted: random order.",
            alt="Curves of similarity, deletion and insertion for each method",
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "shuffled.csv",
            ("layer", "method", "similarity"),
            [
                (stage, method, float(values[k].mean()))
                for method, values in self.similarity.items()
                for k, stage in enumerate(self.stages)
            ],
            caption="Mean rank correlation after the weights down to a layer were shuffled.",
        )
        yield results.Table(
            "areas.csv",
            ("picture", "method", "deletion", "insertion"),
            [
                (name, method, deleted, inserted)
                for method in self.deletion
                for name, deleted, inserted in zip(
                    self.names,
                    area(self.deletion[method]).tolist(),
                    area(self.insertion[method]).tolist(),
                    strict=True,
                )
            ],
            caption="Areas under the deletion and insertion curves; random order for comparison.",
        )

    def plot(self) -> Figure:
        figure = plotting.new_figure(11.0, 3.6)
        left, *others = figure.subplots(1, 3)
        for color, (method, values) in zip(plotting.PALETTE, self.similarity.items(), strict=False):
            curve = [1.0, *values.mean(1).tolist()]
            left.plot(curve, "o-", color=color, markersize=3, label=METHODS[method].title)
        left.axhline(SIMILAR, color=plotting.FAINT, linewidth=0.8, linestyle="--")
        ticks = ["none", *self.stages]
        left.set_xticks(range(len(ticks)), ticks, rotation=60, ha="right", fontsize=7)
        left.set_ylim(-0.3, 1.05)
        left.legend(fontsize=7, frameon=False)
        plotting.lines(left, xlabel="weights shuffled down to", ylabel="rank correlation")
        for ax, curves, word in zip(
            others, (self.deletion, self.insertion), ("covered", "uncovered"), strict=True
        ):
            _draw_curves(ax, curves, word)
        return figure


RANDOM = "random order"


def _draw_curves(ax: Axes, curves: Mapping[str, Tensor], word: str) -> None:
    levels = [100 * k / _LEVELS for k in range(_LEVELS + 1)]
    methods = [method for method in curves if method != RANDOM]
    for color, method in zip(plotting.PALETTE, methods, strict=False):
        ax.plot(levels, (100 * curves[method].mean(0)).tolist(), color=color, linewidth=1.6)
    by_chance = (100 * curves[RANDOM].mean(0)).tolist()
    ax.plot(levels, by_chance, color=plotting.INK, linewidth=1.2, linestyle=":")
    ax.set_ylim(-2, 102)
    plotting.lines(ax, xlabel=f"{word} (% of the picture)", ylabel="probability (%)")


@public
def check_attributions(
    model: Model,
    pictures: Tensor,
    *,
    target: int | str | Sequence[int | str] | None = None,
    methods: Sequence[str] = tuple(METHODS),
    baseline: str | float = "mean",
    stages: Count = 6,
    steps: Steps = 16,
    batch_size: BatchSize = 32,
    names: Sequence[str] | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> AttributionCheck:
    """Sanity checks of attribution maps: shuffled weights, deletion and insertion.

    Args:
        model: A classifier.
        pictures: (N, C, H, W) in [0, 1].
        target: A class (index or name) for all pictures, or one for each; default: the model's
            prediction.
        methods: Of `attribute`.
        baseline: Of `attribute`; it also covers cells.
        stages: Into how many steps the layers are divided for the shuffling, at most as many as
            there are layers with weights.
        steps: Of integrated gradients.
        batch_size: Views of a picture at once.
        names: Of the pictures.
        seed: Of the shuffling and of the random orders.
        progress: Called with (models done, models in all, text).

    Returns:
        Similarities after each step, and the curves of each method.

    Raises:
        UserError: As `attribute` does.

    Example:
        featviz.check_attributions(model, pictures, methods=["saliency", "grad_cam"]).numbers()
    """
    started = time.perf_counter()
    layers = _weighted(model)
    names_of = {layer.path: layer.name for layer in model.layers.values()}
    count = min(stages, len(layers))
    ends = [(k + 1) * len(layers) // count for k in range(count)]

    def made(one: Model, classes: int | str | Sequence[int | str] | None) -> Attributed:
        return attribute(
            one,
            pictures,
            target=classes,
            methods=methods,
            baseline=baseline,
            steps=steps,
            stride=1 / 8,
            batch_size=batch_size,
            names=names,
            seed=seed,
        )

    own = made(model, target)
    shuffled = copy.deepcopy(model)
    modules = dict(shuffled.net.named_modules())
    generator = torch.Generator().manual_seed(seed)
    similarity: dict[str, list[Tensor]] = {method: [] for method in own.maps}
    begin = 0
    for k, end in enumerate(ends):
        if progress:
            progress(k, count, "maps of a shuffled model")
        for path in layers[begin:end]:
            _shuffle(modules[path], generator)
        begin = end
        for method, values in made(shuffled, list(own.targets)).maps.items():
            similarity[method].append(_similarity(own.maps[method], values))
    curves = _curves(model, own, baseline, batch_size, seed)
    kept = {method: torch.stack(found) for method, found in similarity.items()}
    return AttributionCheck(
        origin=results.origin(
            model,
            parameters={
                "pictures": list(own.names),
                "targets": list(own.targets),
                "methods": list(own.maps),
                "baseline": baseline,
                "stages": count,
                "steps": steps,
                "batch_size": batch_size,
            },
            started=started,
            seed=seed,
        ),
        warnings=_warnings(kept),
        model_name=model.name,
        names=own.names,
        stages=tuple(names_of[layers[end - 1]] for end in ends),
        similarity=kept,
        deletion={method: found[0] for method, found in curves.items()},
        insertion={method: found[1] for method, found in curves.items()},
    )


def area(curves: Tensor) -> Tensor:
    """(N,) area under curves (N, levels + 1) over [0, 1], by trapezoids."""
    return torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)


def _weighted(model: Model) -> list[str]:
    """Paths of the modules with weights of their own, from the last that runs to the first."""
    modules = dict(model.net.named_modules())
    run = [layer.path for layer in model.layers.values()]
    paths = [p for p in dict.fromkeys(run) if any(True for _ in modules[p].parameters(False))]
    return paths[::-1]


@torch.no_grad()
def _shuffle(module: nn.Module, generator: torch.Generator) -> None:
    """Shuffle every parameter of the module within itself."""
    for parameter in module.parameters(recurse=False):
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _similarity(one: Tensor, other: Tensor) -> Tensor:
    """(N,) rank correlation of absolute values of maps (N, H, W); 0 where a map is constant."""
    pairs = zip(one.abs().flatten(1), other.abs().flatten(1), strict=True)
    return torch.tensor([rank_correlation(a, b) or 0.0 for a, b in pairs])


@torch.no_grad()
def _curves(
    model: Model, own: Attributed, baseline: str | float, batch_size: int, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Deletion and insertion curves (N, levels + 1) of every method and of random orders."""
    generator = torch.Generator().manual_seed(seed)
    cells = min(_CELLS, *own.pictures.shape[-2:])
    found: dict[str, list[Tensor]] = {method: [] for method in (*own.maps, RANDOM)}
    cover = baseline_color(model, baseline)
    with frozen(model):
        for i, target in enumerate(own.targets):
            x = own.pictures[i : i + 1].to(model.device)
            orders = {
                method: F.adaptive_avg_pool2d(maps[i][None, None], cells).flatten()
                for method, maps in own.maps.items()
            }
            for method, values in orders.items():
                found[method].append(_curve(model, x, target, cover, values, batch_size))
            by_chance = [
                _curve(model, x, target, cover, values, batch_size)
                for values in torch.rand(_ORDERS, cells * cells, generator=generator)
            ]
            found[RANDOM].append(torch.stack(by_chance).mean(0))
    return {
        method: (torch.stack(curves)[:, 0], torch.stack(curves)[:, 1])
        for method, curves in found.items()
    }


def _curve(
    model: Model, x: Tensor, target: int, cover: Tensor, values: Tensor, batch_size: int
) -> Tensor:
    """(2, levels + 1) probability of the target: cells covered, and uncovered, highest first."""
    cells = round(len(values) ** 0.5)
    rank = values.argsort(descending=True, stable=True).argsort()
    reached = torch.linspace(0, len(values), _LEVELS + 1).round()
    chosen = (rank < reached[:, None]).float().view(-1, 1, cells, cells)
    mask = F.interpolate(chosen, x.shape[-2:], mode="nearest").to(x.device) > 0
    views = torch.cat([torch.where(mask, cover, x), torch.where(mask, x, cover)])
    logits = torch.cat([model(part) for part in views.split(batch_size)])
    return logits.float().softmax(1)[:, target].view(2, -1).cpu()


def _warnings(similarity: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Methods whose maps hardly depend on the weights."""
    return tuple(
        f"{METHODS[method].title} hardly depends on the weights: after all of them were shuffled "
        f"its maps are still like those before (rank correlation {float(values[-1].mean()):.2f})"
        for method, values in similarity.items()
        if float(values[-1].mean()) > SIMILAR
    )
