"""Natural-path similarity: does a synthetic picture activate the layers as natural pictures do?

A unit can be driven by features that no natural picture has, or by ones that natural pictures have
but do not use for this unit; its picture then explains nothing (Geirhos et al. 2024, "Don't trust
your eyes: on the (un)reliability of feature visualizations", compare layers by rank correlation
too). Here, at each layer, a picture's profile is the mean of each channel after the ReLU, and with
rho Spearman's rank correlation of two profiles, mean over pairs,

    s = (rho(picture, own) - rho(own, others)) / (rho(own, own') - rho(own, others))

where `own` are the natural pictures that activate the unit most, cut out where they do, and
`others` those of other units of its layer. 1: like another top picture of the unit. 0: no nearer
than top pictures of other units; below 0, further away. Noise with the spectra of natural pictures
is given for comparison. The interval is of a bootstrap over the own pictures (Efron 1979):
percentiles of `DRAWS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from featviz.maximization.reading import channel_means
from featviz.models.layers import activations
from featviz.models.model import Layer, Model
from featviz.statistics import rank_correlations

DRAWS = 400
_LAYERS = 8
_ACTIVATIONS = frozenset(
    {"ReLU", "ReLU6", "LeakyReLU", "GELU", "SiLU", "Hardswish", "ELU", "Softplus", "Mish"}
)


@dataclass(frozen=True)
class NaturalPath:
    """Rank correlations (U, L) of U pictures at L layers."""

    layers: tuple[str, ...]
    """first layer first; the last is the units' own"""
    own: Tensor
    """of the picture and its unit's top pictures"""
    others: Tensor
    """of the picture and other units' top pictures"""
    ceiling: Tensor
    """of the unit's top pictures among themselves"""
    floor: Tensor
    """of the unit's top pictures and other units'"""
    noise: Tensor
    """of noise and the unit's top pictures"""
    similarity: Tensor
    """s; NaN where the interval of its denominator reaches 0"""
    low: Tensor
    """2.5th percentile of s"""
    high: Tensor
    """97.5th percentile of s"""
    confidence: Tensor
    """share of draws in which `own` is higher than `others`"""
    overlap: Tensor
    """(U,): share of the unit's score that comes, at the last layer but one, through the channels
    that contribute to it on its top pictures; 1 is all"""
    usual_overlap: Tensor
    """(U,): the same of one top picture and the others, median"""
    own_count: int
    """top pictures of each unit"""
    other_count: int
    """top pictures of other units"""


def path_layers(model: Model, layer: Layer) -> tuple[str, ...]:
    """Where pictures are compared: after each ReLU (or its kin) before the layer, and at it.

    At most eight, evenly spread, with the one right before it. Networks without such modules are
    compared at their convolutions and fully connected layers, with negative values taken for 0.
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
    active = (values[name].detach().float().clamp(min=0) for name in layers)
    return [channel_means(one).cpu() for one in active]


def _rho(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rho of each row with each row, (N, M); 0 where a profile is constant."""
    return rank_correlations(a, b).nan_to_num(0.0)


def noise_like(pictures: Tensor) -> Tensor:
    """Noise with the amplitudes of pictures (N, 3, H, W) at every frequency; the same every time.

    All channels of a picture get the same random phases, so its colors stay as they were.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(pictures), 1, *pictures.shape[-2:])
    phases = torch.fft.rfft2(torch.rand(shape, generator=generator)).angle()
    spectra = torch.fft.rfft2(pictures.float())
    turned = torch.polar(spectra.abs(), phases + spectra.angle() - spectra[:, 1:2].angle())
    turned[..., 0, 0] = spectra[..., 0, 0]  # the mean color
    noise: Tensor = torch.fft.irfft2(turned, s=pictures.shape[-2:])
    return noise.clamp(0, 1)


def compare(
    pictures: list[Tensor],
    own: list[list[Tensor]],
    others: list[list[Tensor]],
    noise: list[Tensor],
    contributions: list[tuple[Tensor, Tensor]],
    layers: tuple[str, ...],
) -> NaturalPath:
    """Compare the profiles of U pictures with those of their units' top pictures and of others'.

    Args:
        pictures: Profiles (U, C) for each layer.
        own: For each of the U pictures the profiles (k, C) of its unit's top pictures, by layer.
        others: The same for top pictures of other units.
        noise: Profiles (M, C) for each layer.
        contributions: Of each picture (1, C), and of its unit's top pictures (k, C).
        layers: Names of the layers.
    """
    rows = [
        torch.stack(
            [
                _at_one_layer(pictures[at][i : i + 1], own[i][at], others[i][at], noise[at])
                for at in range(len(layers))
            ],
            1,
        )
        for i in range(len(pictures[0]))
    ]
    names = [field.name for field in fields(NaturalPath)][1:10]
    table = dict(zip(names, torch.stack(rows, 1).float(), strict=True))  # (U, L) each
    overlaps = [compare_contributions(one[0], many) for one, many in contributions]
    overlap, usual_overlap = torch.tensor(overlaps).unbind(1)
    return NaturalPath(
        layers=layers,
        **table,
        overlap=overlap,
        usual_overlap=usual_overlap,
        own_count=len(own[0][0]),
        other_count=len(others[0][0]),
    )


def _at_one_layer(picture: Tensor, own: Tensor, others: Tensor, noise: Tensor) -> Tensor:
    """The numbers of `NaturalPath` at one layer, in its order."""
    to_own = _rho(picture, own)[0]  # (k,)
    to_others = _rho(picture, others).mean()
    among = _rho(own, own)  # (k, k)
    floors = _rho(own, others).mean(1)  # (k,)
    noises = _rho(noise, own).mean()
    once = torch.ones(1, len(own), dtype=torch.float64)
    drawn = resamples(len(own), DRAWS)
    s, gap = _similarity(once, to_own, among, floors)
    all_s, gaps = _similarity(drawn, to_own, among, floors)
    estimate = torch.cat([s, torch.quantile(all_s, all_s.new_tensor([0.025, 0.975]))])
    if torch.quantile(gaps, 0.025) <= 0:
        estimate = torch.full_like(estimate, torch.nan)
    confidence = (drawn @ to_own / len(own) > to_others).double().mean()
    floor = floors.mean()
    first = torch.stack([to_own.mean(), to_others, gap[0] + floor, floor, noises])
    return torch.cat([first, estimate, confidence[None]])


@lru_cache(maxsize=8)
def resamples(count: int, draws: int) -> Tensor:
    """How often each of `count` items is in each bootstrap sample, (draws, count); repeatable."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(count, (draws, count), generator=generator)
    return torch.nn.functional.one_hot(chosen, count).sum(1).double()


def _similarity(
    drawn: Tensor, to_own: Tensor, among: Tensor, floors: Tensor
) -> tuple[Tensor, Tensor]:
    """s and its denominator for samples given as counts (draws, k).

    Pairs of a picture with itself, which a sample with repeats has, are left out.
    """
    own = drawn @ to_own / drawn.sum(1)
    floor = drawn @ floors / drawn.sum(1)
    apart = among - torch.diag(among.diag())
    pairs = drawn.sum(1).square() - drawn.square().sum(1)
    ceiling = ((drawn @ apart) * drawn).sum(1) / pairs.clamp(min=1)
    gap = ceiling - floor
    return (own - floor) / torch.where(gap.abs() < 1e-9, 1e-9, gap), gap


def contributions(
    model: Model, pictures: Tensor, layers: tuple[str, ...], score: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Profiles at all layers, and each channel's share of the score at the last but one: (N, C).

    Each row sums to 1. A channel's contribution is the sum of activation times gradient over its
    positions, which is exact where what lies between is piecewise linear (Shrikumar, Greenside and
    Kundaje 2017, "Learning important features through propagating activation differences");
    negative contributions count as 0.

    Args:
        model: The model.
        pictures: (N, 3, H, W) in [0, 1].
        layers: Names of at least two layers.
        score: From the last layer's values (N, ...) to (N,).
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


def compare_contributions(picture: Tensor, own: Tensor) -> tuple[float, float]:
    """(overlap, usual overlap) of contributions (C,) of a picture and (k, C) of top pictures.

    The overlap of two divisions of a whole is the sum of the smaller shares: 1 alike, 0 disjoint.
    """
    others = (own.sum(0) - own) / max(1, len(own) - 1)  # the mean of the others
    overlap = torch.minimum(picture, own.mean(0)).sum()
    return float(overlap), float(torch.quantile(torch.minimum(own, others).sum(-1), 0.5))
