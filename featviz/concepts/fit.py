"""Fitting a dictionary to the rows of a sample: one function a method.

pca and topk read all rows, block by block; nmf, kmeans and ica those that fit into memory
(`sample.HELD` bytes), drawn at random where there are more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featviz.checkpoints import Arrays, Checkpoint
from featviz.concepts.dictionary import SIGNED, Dictionary, Method
from featviz.concepts.moments import Moments, eigenvectors
from featviz.concepts.nmf import Start, factorize
from featviz.concepts.sample import Sample
from featviz.concepts.topk import Training, train_topk
from featviz.errors import UserError
from featviz.types import seed_32

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is fitted."""

    method: Method
    count: int
    active: int
    """of topk"""
    steps: int
    """of topk"""
    device: torch.device
    """of topk"""


def fit(
    sample: Sample,
    plan: Plan,
    seed: int,
    *,
    start: Start = "svd",
    kept: Checkpoint | None = None,
    report: Report | None = None,
) -> Dictionary:
    """A dictionary, its directions in the order of their codes' sum of squares.

    Args:
        sample: The rows.
        plan: What is fitted.
        seed: Of all that is random.
        start: Of nmf, from where.
        kept: Unfinished training is kept there.
        report: Called with (done, total).

    Raises:
        UserError: Rows that the method cannot take, or too few.
    """
    moments = Moments.of(rows for rows, _ in sample.blocks())
    check(sample, moments, plan)
    if plan.method == "nmf":
        rows = sample.limited(seed).all()
        found = _plain(factorize(rows, plan.count, seed, start=start, progress=report), "nmf")
    elif plan.method == "kmeans":
        found = _kmeans(sample, plan.count, seed)
    elif plan.method == "topk":
        how = Training(plan.count, plan.active, plan.steps, seed, plan.device)
        found = train_topk(sample, moments, how, kept or Checkpoint(None), report)
    else:
        values, vectors = eigenvectors(moments.covariance)
        values, vectors = values[: plan.count], vectors[: plan.count]
        if plan.method == "pca":
            found = Dictionary("pca", vectors.float(), moments.mean.float())
        else:
            found = _ica(sample.limited(seed), values, vectors, moments.mean, seed)
    return _ordered(found, sample)


def check(sample: Sample, moments: Moments, plan: Plan) -> None:
    """Raise UserError where the rows do not determine so many directions."""
    layer, method, count = sample.store.layer, plan.method, plan.count
    if not bool(moments.square.any()):
        raise UserError(f"{layer} is 0 on all {len(sample)} rows; give other pictures or a layer")
    if method == "nmf" and moments.lowest < 0:
        raise UserError(
            f"{layer} has negative values (down to {moments.lowest:.3g}), which nmf cannot take; "
            "name the layer behind its ReLU, or another method"
        )
    if len(sample) < 2:
        raise UserError(f"{len(sample)} row is too few to find directions in; give more pictures")
    if method == "topk" and plan.active > count:
        raise UserError(f"{plan.active} active codes of {count}; give at most as many as codes")
    centered = method in SIGNED
    rank = Moments(1, moments.total * 0, moments.covariance, 0.0).rank if centered else moments.rank
    most = len(sample) if method in {"kmeans", "topk"} else rank
    if count > most and method != "topk":
        raise UserError(
            f"{count} concepts of {layer} cannot be told apart: its {len(sample)} rows of "
            f"{sample.channels} units lie in {rank} directions; ask for at most {most}"
        )


def unit(directions: Tensor) -> Tensor:
    """Directions (k, C) scaled to length 1; one of length 0 becomes the uniform one."""
    norms = directions.norm(dim=1, keepdim=True)
    uniform = torch.full_like(directions, directions.shape[1] ** -0.5)
    return torch.where(norms > 0, directions / norms.clamp(min=1e-30), uniform)


def _plain(directions: Tensor, method: Method) -> Dictionary:
    return Dictionary(method, unit(directions), torch.zeros(directions.shape[1]))


def _kmeans(sample: Sample, count: int, seed: int) -> Dictionary:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = sample.limited(seed).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, random_state=seed_32(seed)).fit(rows.numpy())
    distinct = len(set(found.labels_.tolist()))
    if distinct < count:
        raise UserError(
            f"{len(rows)} rows of {sample.store.layer} have {distinct} distinct values only; ask "
            f"for at most {distinct} concepts"
        )
    centers = torch.from_numpy(found.cluster_centers_).float()
    return replace(_plain(centers, "kmeans"), encoder={"norm": centers.norm(dim=1)})


def _ica(sample: Sample, values: Tensor, vectors: Tensor, mean: Tensor, seed: int) -> Dictionary:
    """FastICA within the largest principal components."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    whiten = vectors / values.sqrt()[:, None]
    white = torch.cat([(rows.double() - mean) @ whiten.T for rows, _ in sample.blocks()])
    model = FastICA(whiten=False, random_state=seed_32(seed), max_iter=500, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(white.numpy())
    turn = torch.from_numpy(model.components_)
    mixing = (vectors * values.sqrt()[:, None]).T @ torch.linalg.pinv(turn)  # (C, k)
    lengths = mixing.norm(dim=0)
    weight = (turn @ whiten) * lengths[:, None]
    return Dictionary("ica", (mixing / lengths).T.float(), mean.float(), {"weight": weight.float()})


def _ordered(found: Dictionary, sample: Sample) -> Dictionary:
    """The largest direction first; where codes have signs, that of their third moment is +."""
    energy = torch.zeros(len(found), dtype=torch.float64)
    skew = torch.zeros_like(energy)
    for rows, _ in sample.blocks():
        codes = found.encode(rows).double()
        energy += codes.square().sum(0)
        skew += codes.pow(3).sum(0)
    order = energy.argsort(descending=True, stable=True)
    sign = torch.where((skew < 0) & (found.method in SIGNED), -1.0, 1.0)[order]
    encoder = {name: values[order] for name, values in found.encoder.items()}
    if found.method in SIGNED:
        encoder = {name: values * sign[:, None] for name, values in encoder.items()}
    return replace(found, directions=found.directions[order] * sign[:, None], encoder=encoder)


def to_arrays(found: Dictionary) -> Arrays:
    """A dictionary as a piece of a checkpoint."""
    encoder = {f"encoder.{name}": values.numpy() for name, values in found.encoder.items()}
    return {"directions": found.directions.numpy(), "mean": found.mean.numpy(), **encoder}


def from_arrays(found: Arrays, plan: Plan) -> Dictionary:
    """The inverse of `to_arrays`."""
    tensors = {name: torch.from_numpy(values) for name, values in found.items()}
    return from_tensors(plan.method, tensors, plan.active if plan.method == "topk" else None)


def from_tensors(method: Method, tensors: Mapping[str, Tensor], active: int | None) -> Dictionary:
    """A dictionary of the tensors "directions", "mean", "encoder.weight" ..."""
    # Copies in one layout, so that the same numbers give the same codes to the last bit.
    values = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    encoder = {n.partition(".")[2]: v for n, v in values.items() if n.startswith("encoder.")}
    return Dictionary(method, values["directions"], values["mean"], encoder, active)
