"""The importance of concepts for a class: total Sobol indices, as CRAFT has them.

Every concept of a picture is kept by a factor m in [0, 1], and the logit of the class is a function
of the k factors. The total index of a concept is the share of this function's variance, over
uniform and independent factors, in which its factor has a part, alone or together with others:

    S_j = E[(f(A) - f(A with column j of B))^2] / (2 Var f)

    Fel et al., "CRAFT: Concept Recursive Activation FacTorization for Explainability", CVPR 2023
    Jansen, "Analysis of variance designs for model output", 1999 (the estimator)
    Sobol, "On the distribution of points in a cube", 1967 (scrambled points for A and B)

Indices of concepts that act together overlap: they sum to 1 or more. Unlike CRAFT the residual of
the activations stays, so that all factors at 1 are the unchanged picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from featviz.errors import UserError
from featviz.statistics import percentiles

DESIGNS = 32
"""rows of A: a power of two, for which Sobol's points are balanced"""
_DRAWS = 500
_MOST = 21201 // 2  # columns for which scipy has directions


class Sampled(NamedTuple):
    """What a function was found to do at the designs of one picture."""

    squares: Tensor
    """(designs, k): (f(A) - f(A with column j of B))^2 / 2"""
    values: Tensor
    """(designs, k + 1): f at all points"""


def sample_function(
    function: Callable[[Tensor], Tensor], count: int, *, designs: int = DESIGNS, seed: int = 0
) -> Sampled:
    """Evaluate a function of factors (M, count) in [0, 1], giving (M,), at Sobol's points.

    Raises:
        UserError: `designs` is no power of two, or there are more factors than Sobol points have.
    """
    from scipy.stats import qmc

    if designs < 2 or designs & (designs - 1):
        raise UserError(f"{designs} designs: Sobol points are balanced for 16, 32, 64 ...")
    if count > _MOST:
        raise UserError(f"{count} concepts are more than Sobol points have ({_MOST}); use fewer")
    points = qmc.Sobol(2 * count, scramble=True, seed=seed).random(designs)
    a, b = torch.from_numpy(points).float().split(count, dim=1)
    mixed = a[:, None].repeat(1, count + 1, 1)  # (designs, 1 + count, count)
    which = torch.arange(count)
    mixed[:, which + 1, which] = b
    values = function(mixed.flatten(0, 1)).double().cpu().unflatten(0, (designs, count + 1))
    return Sampled((values[:, :1] - values[:, 1:]).square() / 2, values)


class Indices(NamedTuple):
    """Total Sobol indices of k factors, the mean over pictures, with their 95% intervals."""

    total: Tensor
    """(k,) float64"""
    low: Tensor
    high: Tensor
    pictures: int


def total_indices(sampled: Sequence[Sampled], *, seed: int = 0) -> Indices:
    """Indices from the samples of one or more pictures; 0 where a function is constant.

    Intervals are of the bootstrap: pictures, and within each its designs, drawn with return.
    """
    random = torch.Generator().manual_seed(seed)
    found = torch.stack([_index(one, torch.ones(1, len(one.squares)))[0] for one in sampled])
    drawn = torch.stack([_index(one, _weights(len(one.squares), random)) for one in sampled], 1)
    which = torch.randint(len(sampled), (_DRAWS, len(sampled)), generator=random)
    means = drawn.gather(1, which[:, :, None].expand_as(drawn)).mean(1)  # (draws, k)
    low, high = torch.tensor([percentiles(column) for column in means.T]).double().T
    return Indices(found.mean(0), low, high, len(sampled))


def _weights(designs: int, random: torch.Generator) -> Tensor:
    """(draws, designs): how often each design is drawn."""
    drawn = torch.randint(designs, (_DRAWS, designs), generator=random)
    return torch.zeros(_DRAWS, designs).scatter_add(1, drawn, torch.ones(drawn.shape))


def _index(sampled: Sampled, weights: Tensor) -> Tensor:
    """(draws, k) for weights (draws, designs)."""
    share = weights.double() / weights.sum(1, keepdim=True)
    centered = sampled.values - sampled.values.mean()
    mean = share @ centered.mean(1)
    variance = share @ centered.square().mean(1) - mean.square()
    scale = float(sampled.values.abs().max())
    constant = variance <= (1e-6 * scale) ** 2
    index = (share @ sampled.squares) / variance.clamp(min=torch.finfo(torch.double).tiny)[:, None]
    return index.masked_fill(constant[:, None], 0.0)
