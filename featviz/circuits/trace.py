"""`trace_circuit`: which units of the layer before build a unit, measured on pictures.

For each input unit: its weights, and what it contributes at positions of many pictures (mean,
spread, share of the variance). Then how far a picture of a few inputs goes: the correlation of the
unit with the sum of the k strongest inputs alone, chosen on one half of the pictures and measured
on the other, beside k chosen by the norm of their weights and k at random.

    Olah et al., "Zoom In: An Introduction to Circuits", Distill 2020, for the figures of weights
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featviz import plotting, results
from featviz.circuits.contributions import Linear, linear_layer
from featviz.datasets import Pictures, batches
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.models.layers import StopForward, tap
from featviz.models.units import parse_unit
from featviz.python_data import as_pictures
from featviz.statistics import percentiles
from featviz.types import BatchSize, Count, Progress, Seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from featviz.models.model import Model

_SHOWN = 8  # inputs of each sign in the figure
KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""numbers of inputs whose sum is compared with the unit"""
_DRAWS = 20  # random choices of inputs
_RESAMPLES = 200


@dataclass(frozen=True)
class Followed:
    """How well the sum of k inputs follows the unit, on pictures that chose none of them."""

    k: int
    correlation: float
    low: float
    high: float
    """95% interval over resampled pictures"""
    explained: float
    """share of the unit's variance, 1 - residual / variance"""
    by_weight: float
    """correlation where the k inputs with the largest weights are kept"""
    random: float
    """mean correlation of k random inputs"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Circuit(results.Result):
    """A unit and the units of the layer before that build it."""

    kind: ClassVar[str] = "circuit"

    model_name: str
    unit: str
    inputs: tuple[str, ...]
    """the input units by name, (C,)"""
    weights: Tensor
    """(C, kh, kw)"""
    bias: float
    mean: Tensor
    """(C,) contribution, over the sampled positions"""
    spread: Tensor
    """(C,) its standard deviation"""
    share: Tensor
    """(C,) covariance with the unit over the unit's variance; they sum to 1"""
    top_mean: Tensor
    """(C,) contribution where the unit is strongest: the top 1% of the positions"""
    samples: int
    followed: tuple[Followed, ...]

    @property
    def title(self) -> str:
        return f"What builds {self.unit} in {self.model_name}"

    @property
    def strongest(self) -> tuple[Tensor, Tensor]:
        """Inputs that raise the unit most where it is strongest, and that lower it most overall."""
        raising = self.top_mean.argsort(descending=True, stable=True)[:_SHOWN]
        lowering = self.mean.argsort(stable=True)[:_SHOWN]
        return raising[self.top_mean[raising] > 0], lowering[self.mean[lowering] < 0]

    def numbers(self) -> dict[str, results.Number]:
        found = {}
        for one in self.followed:
            if one.k in {8, 32, 128}:
                found[f"followed by {one.k} inputs"] = results.Number(
                    one.correlation,
                    "",
                    f"correlation of the unit with its {one.k} strongest inputs alone, of "
                    f"{len(self.inputs)}; by weight norm {one.by_weight:.2f}, at random "
                    f"{one.random:.2f}",
                    one.low,
                    one.high,
                )
        raising, _ = self.strongest
        if len(raising):
            best = int(raising[0])
            found["strongest input"] = results.Number(
                self.inputs[best],
                "",
                f"adds {float(self.top_mean[best]):+.3g} on average where the unit is strongest",
            )
        return found | {
            "connected": results.Number(
                int((self.weights.flatten(1).abs().amax(1) > 0).sum()),
                f"of {len(self.inputs)}",
                "inputs with a weight that is not 0",
            ),
            "positions": results.Number(self.samples, "", "on which contributions were measured"),
        }

    def write(self, folder: results.Folder) -> None:
        folder.figure(
            "circuit.svg",
            self.plot(),
            caption=f"Left: the inputs that add most to {self.unit} where it is strongest (its top "
            "1% of positions), and below those that take most away on average, with their weights "
            "(red raises, blue lowers; one scale). Right: how well the sum of k inputs follows the "
            "unit on other pictures; eight inputs show as much of it as the curve at 8 says.",
            alt=f"Weights of the strongest inputs of {self.unit} and the curve of correlation",
            units=[self.unit],
        )

    def tables(self) -> Iterator[results.Table]:
        yield results.Table(
            "inputs.csv",
            ("input", "weight_norm", "mean", "spread", "share", "where_strongest"),
            [
                (name, *(float(v) for v in row))
                for name, *row in zip(
                    self.inputs,
                    self.weights.flatten(1).norm(dim=1),
                    self.mean,
                    self.spread,
                    self.share,
                    self.top_mean,
                    strict=True,
                )
            ],
            caption="Every input: norm of its weights, mean and standard deviation of its "
            "contribution, its share of the unit's variance, and its mean contribution where the "
            "unit is strongest.",
        )
        yield results.Table(
            "followed.csv",
            ("k", "correlation", "low", "high", "explained", "by_weight", "random"),
            [tuple(vars(one).values()) for one in self.followed],
            caption="Correlation of the unit with the sum of k inputs, on pictures that chose none "
            "of them.",
        )

    def plot(self) -> Figure:
        raising, lowering = self.strongest
        shown = [*raising.tolist(), *lowering.tolist()]
        figure = plotting.new_figure(10.0, 3.4)
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.5, 1))
        left, right = parts
        if shown:
            grid = left.subplots(2, _SHOWN, squeeze=False)
            end = float(self.weights[shown].abs().max()) or 1.0
            signs = ((raising, self.top_mean), (lowering, self.mean))
            for row, (rows, added) in zip(grid, signs, strict=True):
                for column, ax in enumerate(row):
                    if column >= len(rows):
                        ax.set_axis_off()
                        continue
                    index = int(rows[column])
                    plotting.show_map(ax, self.weights[index], -end, end)
                    words = f"{self.inputs[index]}\n{float(added[index]):+.2g}"
                    ax.set_title(words, fontsize=6.5, color=plotting.INK, pad=2)
        ax = right.subplots()
        ks = [one.k for one in self.followed]
        ax.fill_between(
            ks,
            [one.low for one in self.followed],
            [one.high for one in self.followed],
            color=plotting.SKY,
            alpha=0.35,
            linewidth=0,
        )
        for label, color, values in (
            ("by contribution", plotting.BLUE, [one.correlation for one in self.followed]),
            ("by weight norm", plotting.ORANGE, [one.by_weight for one in self.followed]),
            ("at random", plotting.INK, [one.random for one in self.followed]),
        ):
            ax.plot(ks, values, "o-", color=color, markersize=3, linewidth=1.4, label=label)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ks, [str(k) if k in KEPT[::2] else "" for k in ks])
        ax.set_ylim(-0.05, 1.02)
        ax.legend(fontsize=8, frameon=False)
        plotting.lines(ax, xlabel="inputs kept", ylabel="correlation with the unit")
        return figure


@public
def trace_circuit(
    model: Model,
    unit: str,
    pictures: Pictures | Tensor | str | Path,
    *,
    count: Count = 150,
    positions: Count = 64,
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    progress: Progress | None = None,
) -> Circuit:
    """What each unit of the layer before contributes to a unit, on pictures.

    Args:
        model: A model.
        unit: "conv4:12", "logits:tabby", of a convolution or a linear layer, or of the ReLU behind
            one (its value before the ReLU is followed).
        pictures: On which contributions are measured; at least 4.
        count: At most so many pictures, evenly spread.
        positions: Of a map at most so many, drawn at random for each picture.
        batch_size: Pictures that the model computes at once.
        seed: Of the positions, the halves and the random inputs.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: The layer is no linear operation, or there are too few pictures.

    Example:
        featviz.trace_circuit(model, "conv4:12", "photographs").save("run/circuit")
    """
    started = time.perf_counter()
    place = parse_unit(model, unit)
    layer = linear_layer(model, place.layer)
    data = as_pictures(pictures, model=model).spread(count)
    values, owner = _sample(model, layer, place.index, data, positions, batch_size, seed, progress)
    if int(owner.max()) < 3:
        raise UserError(
            f"{len(data)} pictures are too few to choose and to measure; give 4 or more"
        )
    weights = layer.weights(place.index).cpu()
    whole = values.sum(1)
    centered = whole - whole.mean()
    variance = centered.square().mean().clamp(min=torch.finfo(torch.double).tiny)
    strong = whole >= whole.quantile(0.99)
    return Circuit(
        origin=results.origin(
            model,
            parameters={"unit": unit, "count": count, "positions": positions},
            started=started,
            data=data,
            seed=seed,
        ),
        model_name=model.name,
        unit=f"{layer.layer}:{place.index}",
        inputs=tuple(layer.name(c) for c in range(layer.channels)),
        weights=weights,
        bias=layer.bias(place.index),
        mean=values.mean(0),
        spread=values.std(0),
        share=(values - values.mean(0)).mul(centered[:, None]).mean(0) / variance,
        top_mean=values[strong].mean(0),
        samples=len(values),
        followed=tuple(_follow(values, owner, weights.flatten(1).norm(dim=1), seed)),
    )


def _sample(
    model: Model,
    layer: Linear,
    unit: int,
    data: Pictures,
    positions: int,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> tuple[Tensor, Tensor]:
    """Contributions (S, C) in float64 at random positions, and the picture of each (S,)."""
    generator = torch.Generator().manual_seed(seed)
    parts, owners, done = [], [], 0
    with frozen(model), torch.no_grad():
        for batch in batches(data, model.preprocessing, batch_size=batch_size):
            name = [layer.layer]
            with tap(model, name, entering=name, stop=True) as taken, suppress(StopForward):
                model(batch.images.to(model.device))
            found = layer.contributions(taken[layer.layer], unit).flatten(2)
            for one in found:
                chosen = torch.randperm(one.shape[1], generator=generator)[:positions]
                parts.append(one[:, chosen.to(one.device)].T.double().cpu())
                owners.append(torch.full((parts[-1].shape[0],), done))
                done += 1
            if progress:
                progress(done, len(data), "contributions")
    return torch.cat(parts), torch.cat(owners)


def _follow(values: Tensor, owner: Tensor, norms: Tensor, seed: int) -> Iterator[Followed]:
    """Choose inputs on the even pictures, measure on the odd ones."""
    fit, test = values[owner % 2 == 0], values[owner % 2 == 1]
    rows = owner[owner % 2 == 1]
    whole, channels = test.sum(1), values.shape[1]
    orders = {"spread": fit.std(0), "weight": norms.double()}
    ranked = {name: v.argsort(descending=True, stable=True) for name, v in orders.items()}
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(channels, generator=generator) for _ in range(_DRAWS)]
    for k in [k for k in KEPT if k < channels] + [channels]:
        kept = test[:, ranked["spread"][:k]].sum(1)
        residual = (whole - kept) - (whole - kept).mean()
        low, high = _interval(kept, whole, rows, seed)
        yield Followed(
            k,
            _correlation(kept, whole),
            low,
            high,
            float(1 - residual.square().sum() / (whole - whole.mean()).square().sum()),
            _correlation(test[:, ranked["weight"][:k]].sum(1), whole),
            sum(_correlation(test[:, order[:k]].sum(1), whole) for order in drawn) / _DRAWS,
        )


def _correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's; 0 where one does not vary."""
    a, b = one - one.mean(), other - other.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0


def _interval(one: Tensor, other: Tensor, rows: Tensor, seed: int) -> tuple[float, float]:
    """95% interval of the correlation over resampled pictures."""
    pictures = rows.unique()
    sums = torch.stack(
        [
            torch.stack([torch.ones_like(a), a, b, a * a, b * b, a * b]).sum(1)
            for a, b in ((one[rows == p], other[rows == p]) for p in pictures)
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(pictures), (_RESAMPLES, len(pictures)), generator=generator)
    n, a, b, aa, bb, ab = sums[drawn].sum(1).unbind(1)
    scale = ((aa - a * a / n) * (bb - b * b / n)).clamp(min=0).sqrt()
    found = torch.where(scale > 0, (ab - a * b / n) / scale, 0.0)
    return percentiles(found)
