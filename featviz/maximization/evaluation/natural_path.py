"""Natural-path similarity: does a synthetic picture go through the net as photographs do?

A unit can be driven by features that no photograph has, or by ones that photographs have but do
not use for this unit; its picture then explains nothing (Geirhos et al. 2024, "Don't trust your
eyes: on the (un)reliability of feature visualizations", compare layers by rank correlation too).
Here, at each layer, a picture's profile is the mean of each channel after the ReLU, and with rho
Spearman's rank correlation of two profiles, mean over pairs,

    s = (rho(picture, own) - rho(own, others)) / (rho(own, own') - rho(own, others))

where `own` are the photographs that move the unit most, cut out where they do, and `others` those
of other units of its layer. 1: like another photograph of the unit. 0: no nearer than other units'
photographs are; below 0, further away. Noise with the spectra of photographs stands beside it.
The interval is of a bootstrap over the own photographs (Efron 1979): percentiles of `DRAWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.statistics import rank_correlations

DRAWS = 400
_LAYERS = 8
_ACTIVATIONS = frozenset(
    {"ReLU", "ReLU6", "LeakyReLU", "GELU", "SiLU", "Hardswish", "ELU", "Softplus", "Mish"}
)


@dataclass(frozen=True)
class Path:
    """Similarities (U, L) of U pictures at L layers."""

    layers: tuple[str, ...]
    """first layer first; the last is the units' own"""
    own: Tensor
    """of the picture and its unit's photographs"""
    others: Tensor
    """of the picture and other units' photographs"""
    ceiling: Tensor
    """of the unit's photographs among themselves"""
    floor: Tensor
    """of the unit's photographs and other units'"""
    noise: Tensor
    """of noise and the unit's photographs"""
    similarity: Tensor
    """s; NaN where photographs of the unit do not differ from other units' in the interval"""
    low: Tensor
    """2.5th percentile of s"""
    high: Tensor
    """97.5th percentile of s"""
    lead: Tensor
    """share of draws in which the picture is nearer to its own photographs than to others'"""
    shared: Tensor
    """(U,): what of the unit's score is carried, at the last layer but one, by the channels that
    carry it on its photographs; 1 is all"""
    usual: Tensor
    """(U,): the same of one photograph and the others, median"""
    photographs: int
    """own ones of each unit"""
    strangers: int
    """photographs of other units"""


def path_layers(model: Model, layer: Layer) -> tuple[str, ...]:
    """Where pictures are compared: after each ReLU (or its kin) before the layer, and at it.

    At most eight, spread, with the one right before it. Nets that have no such modules are compared
    at their convolutions and fully connected layers, with negative values taken for 0.
    """
    names = list(model.layers)
    before = [model.layers[name] for name in names[: names.index(layer.name)]]
    found = [place.name for place in before if place.kind in _ACTIVATIONS]
    if len(found) < 2:
        found = [place.name for place in before if place.kind in {"Conv2d", "Linear"}] or found
    if len(found) >= _LAYERS:
        last = len(found) - 1
        found = [found[round(i * last / (_LAYERS - 2))] for i in range(_LAYERS - 1)]
    return (*found, layer.name)


def profiles(model: Model, pictures: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
    """The mean of each channel's positive part, (N, C) for each layer."""
    with torch.no_grad():
        return _profiles(activations(model, pictures.to(model.device), layers), layers)


def _profiles(values: Mapping[str, Tensor], layers: tuple[str, ...]) -> list[Tensor]:
    found = []
    for name in layers:
        x = values[name].detach().float().clamp(min=0)
        found.append((x.mean((2, 3)) if x.dim() == 4 else x.mean(1) if x.dim() == 3 else x).cpu())
    return found


def _correlations(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rho of each row of (N, C) with each row of (M, C): (N, M); 0 where one is flat."""
    return rank_correlations(a, b).nan_to_num(0.0)


def noise_like(pictures: Tensor) -> Tensor:
    """Noise with the amplitudes of pictures (N, 3, H, W) at every frequency; the same every time.

    All colours of a picture get the same random phases, so its colours stay as they were.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(pictures), 1, *pictures.shape[-2:])
    phases = torch.fft.rfft2(torch.rand(shape, generator=generator)).angle()
    spectra = torch.fft.rfft2(pictures.float())
    turned = torch.polar(spectra.abs(), phases + spectra.angle() - spectra[:, 1:2].angle())
    turned[..., 0, 0] = spectra[..., 0, 0]  # the mean colour
    noise: Tensor = torch.fft.irfft2(turned, s=pictures.shape[-2:])
    return noise.clamp(0, 1)


def compare(
    pictures: list[Tensor],
    own: list[list[Tensor]],
    strangers: list[list[Tensor]],
    noise: list[Tensor],
    carried: list[tuple[Tensor, Tensor]],
    layers: tuple[str, ...],
) -> Path:
    """Put profiles together: of U pictures, of each one's own photographs and of its strangers.

    pictures, noise: (U, C) and (M, C) for each layer; own, strangers: U lists of (k, C);
    carried: of each picture, and of its photographs, what `carriers` says, (1, C) and (k, C).
    """
    rows = []
    for i in range(len(pictures[0])):
        cells = []
        for at in range(len(layers)):
            cells.append(
                _at_one_layer(pictures[at][i : i + 1], own[i][at], strangers[i][at], noise[at])
            )
        rows.append(torch.stack(cells, 1))
    table = torch.stack(rows, 1).float()  # (numbers, U, L)
    names = ("own", "others", "ceiling", "floor", "noise", "similarity", "low", "high", "lead")
    shared, usual = zip(*(compare_carriers(one[0], many) for one, many in carried), strict=True)
    return Path(
        layers=layers,
        shared=torch.tensor(shared),
        usual=torch.tensor(usual),
        photographs=len(own[0][0]),
        strangers=len(strangers[0][0]),
        **dict(zip(names, table, strict=True)),
    )


def _at_one_layer(picture: Tensor, own: Tensor, strangers: Tensor, noise: Tensor) -> Tensor:
    """The nine numbers of `Path` at one layer, in its order."""
    to_own = _correlations(picture, own)[0]  # (k,)
    to_others = _correlations(picture, strangers).mean()
    among = _correlations(own, own)  # (k, k)
    floors = _correlations(own, strangers).mean(1)  # (k,)
    noises = _correlations(noise, own).mean()
    one = torch.ones(1, len(own), dtype=torch.float64)
    drawn = resamples(len(own), DRAWS)
    s, gap = _similarity(one, to_own, among, floors)
    all_s, gaps = _similarity(drawn, to_own, among, floors)
    distinct = torch.quantile(gaps, 0.025) > 0
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    low, high = torch.quantile(all_s, torch.tensor([0.025, 0.975], dtype=torch.float64))
    lead = (drawn @ to_own / len(own) > to_others).double().mean()
    ceiling = gap[0] + floors.mean()
    return torch.stack(
        [
            to_own.mean(),
            to_others,
            ceiling,
            floors.mean(),
            noises,
            *((s[0], low, high) if distinct else (nan, nan, nan)),
            lead,
        ]
    )


@lru_cache(maxsize=8)
def resamples(count: int, draws: int) -> Tensor:
    """How often each of `count` things is in each bootstrap sample: (draws, count).

    The same every time.
    """
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(count, (draws, count), generator=generator)
    return torch.nn.functional.one_hot(chosen, count).sum(1).double()


def _similarity(
    drawn: Tensor, to_own: Tensor, among: Tensor, floors: Tensor
) -> tuple[Tensor, Tensor]:
    """s and its denominator for samples given as counts (draws, k).

    Pairs of a photograph with itself, which a sample with repeats has, say nothing and are left
    out.
    """
    own = drawn @ to_own / drawn.sum(1)
    floor = drawn @ floors / drawn.sum(1)
    apart = among - torch.diag(among.diag())
    pairs = drawn.sum(1).square() - drawn.square().sum(1)
    ceiling = ((drawn @ apart) * drawn).sum(1) / pairs.clamp(min=1)
    gap = ceiling - floor
    return (own - floor) / torch.where(gap.abs() < 1e-9, 1e-9, gap), gap


def carriers(
    model: Model, pictures: Tensor, layers: tuple[str, ...], score: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Profiles at all layers, and which channels of the last but one carry the score: (N, C).

    score: from the last layer's values (N, ...) to (N,)

    Each row sums to 1. A channel's part is the sum of activation times gradient over its positions,
    which is exact where what lies between is linear in pieces (Shrikumar, Greenside and Kundaje
    2017, "Learning important features through propagating activation differences"); channels that
    speak against the unit carry nothing.
    """
    *_, before, at = layers
    x = pictures.to(model.device).requires_grad_(True)
    with torch.enable_grad():
        values = activations(model, x, layers)
        (gradient,) = torch.autograd.grad(score(values[at]).sum(), values[before])
    parts = (gradient * values[before]).detach().float().cpu()
    if parts.dim() == 4:
        parts = parts.sum((2, 3))
    elif parts.dim() == 3:  # tokens
        parts = parts.sum(1)
    parts = parts.clamp(min=0)
    return _profiles(values, layers), parts / parts.sum(1, keepdim=True).clamp(min=1e-30)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """The share that two divisions (..., C) of a whole have in common: 1 alike, 0 disjoint."""
    return torch.minimum(a, b).sum(-1)


def compare_carriers(picture: Tensor, own: Tensor) -> tuple[float, float]:
    """(shared, usual) from carriers (C,) of a picture and (k, C) of its unit's photographs."""
    count = len(own)
    shared = overlap(picture, own.mean(0))
    others = (own.sum(0) - own) / max(1, count - 1)
    return float(shared), float(torch.quantile(overlap(own, others), 0.5))
