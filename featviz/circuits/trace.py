"""`trace_circuit`: which units of the layer before build a unit, measured on pictures.

For each input unit: its weights, and what it contributes at positions of many pictures (mean,
spread, share of the variance). Then how far a picture of a few inputs goes: the correlation of the
unit with the sum of the k strongest inputs alone, chosen on one half of the pictures and measured
on the other, beside k chosen by the norm of their weights and k at random. The strongest inputs
are traced in their turn, level by level, down to the model's first layer.

    Olah et al., "Zoom In: An Introduction to Circuits", Distill 2020, for the figures of weights
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featviz import results
from featviz.circuits.contributions import Linear, linear_layer
from featviz.circuits.expanded import ExpandedWeights, expanded_weights
from featviz.circuits.icons import IN_WORDS, Icons, first_named, input_colors, unit_pictures
from featviz.circuits.result import WIDEST, Circuit, Followed
from featviz.data.datasets import Pictures, batches
from featviz.data.from_python import as_pictures
from featviz.errors import UserError, public
from featviz.models.frozen import frozen
from featviz.models.layers import StopForward, tap
from featviz.models.receptive_field import hookable
from featviz.models.units import parse_unit
from featviz.statistics import percentiles
from featviz.types import BatchSize, Count, Depth, Progress, Seed

if TYPE_CHECKING:
    from featviz.models.model import Model

KEPT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""numbers of inputs whose sum is compared with the unit"""
_DRAWS = 20  # random choices of inputs
_RESAMPLES = 200


@public
def trace_circuit(
    model: Model,
    unit: str,
    pictures: Pictures | Tensor | str | Path,
    *,
    depth: Depth = 1,
    icons: Icons = "patches",
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
        depth: Layers that are followed: with 2 or more the strongest inputs are traced in their
            turn (three that raise each unit and one that lowers it, at most eight a level), and
            the result has a graph, and what the unit adds to each logit.
        icons: What stands beside each input: the patch of `pictures` that activates it most, its
            maximized picture (seconds a layer), or nothing. Units of the first layer are shown by
            their kernels.
        count: At most so many pictures, evenly spread.
        positions: Of a map at most so many, drawn at random for each picture.
        batch_size: Pictures that the model computes at once.
        seed: Of the positions, the halves, the random inputs and the maximized pictures.
        progress: Called with (pictures done, all pictures, text).

    Raises:
        UserError: The layer is no linear operation, or there are too few pictures.

    Example:
        featviz.trace_circuit(model, "conv4:12", "photographs", depth=3).save("run/circuit")
    """
    started = time.perf_counter()
    place = parse_unit(model, unit)
    data = as_pictures(pictures, model=model).spread(count)
    top = f"{linear_layer(model, place.layer).layer}:{place.index}"
    levels, traced = [[top]], dict[str, Circuit]()
    while len(levels) <= depth and levels[-1]:
        new = _trace(
            model,
            [name for name in levels[-1] if name not in traced],
            data,
            parameters={"count": count, "positions": positions},
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        traced |= new
        levels.append(_strongest_inputs(list(new.values())))
    drawn = [level for level in levels if level] if depth > 1 else []
    raising, lowering = traced[top].strongest
    named = [traced[top].inputs[i] for i in (*raising.tolist(), *lowering.tolist())]
    named += [name for level in drawn for name in level]
    found = unit_pictures(
        model, list(dict.fromkeys(named)), data, icons, seed=seed, progress=progress
    )
    traced = {
        name: replace(
            one, pictures=found, shown_as=IN_WORDS[icons] if found else "", levels=(), before={}
        )
        for name, one in traced.items()
    }
    parameters = {"unit": unit, "depth": depth, "icons": icons}
    return replace(
        traced.pop(top),
        origin=results.origin(
            model,
            parameters=parameters | {"count": count, "positions": positions},
            started=started,
            data=data,
            seed=seed,
        ),
        levels=tuple(map(tuple, drawn)),
        before=traced,
        expanded=_expanded(model, top) if len(drawn) > 2 else None,
        effect=_effect(model, top, data, batch_size) if depth > 1 else (),
    )


def _effect(model: Model, unit: str, data: Pictures, batch_size: int) -> tuple[float, ...]:
    """What the unit adds to each logit: their mean less their mean with the unit's value at 0."""
    place = parse_unit(model, unit)
    if model.headless or place.layer == model.layer("logits").name:
        return ()

    def silence(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, place.index] = 0
        return output

    module = hookable(model.net)[model.layer(place.layer).path]
    differences = []
    with frozen(model), torch.no_grad():
        for batch in batches(data, model.preprocessing, batch_size=batch_size):
            images = batch.images.to(model.device)
            whole = model(images)
            handle = module.register_forward_hook(silence)
            try:
                differences.append((whole - model(images)).double().cpu())
            finally:
                handle.remove()
    return tuple(torch.cat(differences).mean(0).tolist())


def _expanded(model: Model, unit: str) -> ExpandedWeights | None:
    """Weights two layers back; None where nothing but pictures could make the net linear."""
    try:
        return expanded_weights(model, unit)
    except UserError:
        return None


def _strongest_inputs(circuits: Sequence[Circuit]) -> list[str]:
    """The inputs that the graph shows below some units, at most `WIDEST`, without a repetition."""
    found: dict[str, float] = {}
    for circuit in circuits:
        for edge in circuit.edges():
            found[edge.input] = max(found.get(edge.input, 0.0), abs(edge.share))
    kept = sorted(found, key=lambda name: -found[name])[:WIDEST]
    return [name for name in found if name in kept]


def _trace(
    model: Model,
    names: Sequence[str],
    data: Pictures,
    *,
    parameters: dict[str, int],
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Circuit]:
    """The circuits of some units by name, with one pass a layer; input channels have none."""
    by_layer: dict[str, dict[int, str]] = {}
    for name in names:
        layer, _, index = first_named(name).rpartition(":")
        if layer != "input":
            by_layer.setdefault(layer, {})[int(index)] = name
    found = {}
    for layer, named in by_layer.items():
        started = time.perf_counter()
        linear = linear_layer(model, layer)
        values, owner = sample_contributions(
            model,
            linear,
            list(named),
            data,
            parameters["positions"],
            batch_size,
            seed,
            progress,
        )
        if int(owner.max()) < 3:
            raise UserError(
                f"{len(data)} pictures are too few to choose and to measure; give 4 or more"
            )
        for unit, name in named.items():
            origin = results.origin(
                model,
                parameters={"unit": name, **parameters},
                started=started,
                data=data,
                seed=seed,
            )
            found[name] = _circuit(model, linear, unit, values.pop(0), owner, origin)
    return found


def _circuit(
    model: Model, linear: Linear, unit: int, values: Tensor, owner: Tensor, origin: results.Origin
) -> Circuit:
    """From the contributions (S, C) of one unit."""
    weights = linear.weights(unit).cpu()
    whole = values.sum(1)
    centered = whole - whole.mean()
    variance = centered.square().mean().clamp(min=torch.finfo(torch.double).tiny)
    strong = whole >= whole.quantile(0.99)
    assert origin.seed is not None
    return Circuit(
        origin=origin,
        model_name=model.name,
        unit=f"{linear.layer}:{unit}",
        inputs=tuple(linear.name(c) for c in range(linear.channels)),
        weights=weights,
        bias=linear.bias(unit),
        mean=values.mean(0),
        spread=values.std(0),
        share=(values - values.mean(0)).mul(centered[:, None]).mean(0) / variance,
        top_mean=values[strong].mean(0),
        samples=len(values),
        followed=tuple(_follow(values, owner, weights.flatten(1).norm(dim=1), origin.seed)),
        colors=input_colors(model),
        classes=tuple(model.classes),
    )


def sample_contributions(
    model: Model,
    layer: Linear,
    units: Sequence[int],
    data: Pictures,
    positions: int,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> tuple[list[Tensor], Tensor]:
    """Contributions (S, C) of each unit in float64 at random positions, and their pictures (S,)."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in units]
    owners: list[Tensor] = []
    done = 0
    with frozen(model), torch.no_grad():
        for batch in batches(data, model.preprocessing, batch_size=batch_size):
            name = [layer.layer]
            with tap(model, name, entering=name, stop=True) as taken, suppress(StopForward):
                model(batch.images.to(model.device))
            x = taken[layer.layer]
            chosen: list[Tensor] = []
            for unit, kept in zip(units, parts, strict=True):
                found = layer.contributions(x, unit).flatten(2)
                if not chosen:
                    chosen = [
                        torch.randperm(found.shape[2], generator=generator)[:positions]
                        for _ in range(len(found))
                    ]
                kept += [
                    one[:, which.to(one.device)].T.double().cpu()
                    for one, which in zip(found, chosen, strict=True)
                ]
            for which in chosen:
                owners.append(torch.full((len(which),), done))
                done += 1
            if progress:
                progress(done, len(data), f"contributions to {layer.layer}")
    return [torch.cat(kept) for kept in parts], torch.cat(owners)


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
