"""Fitting a dictionary to the rows of a sample: one function a method."""

from __future__ import annotations

import torch
from torch import Tensor

from featviz.concepts.dictionary import Dictionary, Method
from featviz.concepts.sample import Sample
from featviz.types import seed_32


def fit(sample: Sample, method: Method, count: int, seed: int) -> Dictionary:
    """The dictionary of `count` directions that the method finds, the largest first."""
    return by_energy(_nmf(sample, count, seed), sample)


def by_energy(found: Dictionary, sample: Sample) -> Dictionary:
    """The same with its directions in the order of their codes' sum of squares."""
    energy = torch.zeros(len(found), dtype=torch.float64)
    for rows, _ in sample.blocks():
        energy += found.encode(rows).double().square().sum(0)
    order = energy.argsort(descending=True, stable=True)
    encoder = {name: values[order] for name, values in found.encoder.items()}
    return Dictionary(found.method, found.directions[order], found.mean, encoder, found.active)


def unit(directions: Tensor) -> Tensor:
    """Directions (k, C) scaled to length 1; one of length 0 becomes the uniform one."""
    norms = directions.norm(dim=1, keepdim=True)
    uniform = torch.full_like(directions, directions.shape[1] ** -0.5)
    return torch.where(norms > 0, directions / norms.clamp(min=1e-30), uniform)


def _nmf(sample: Sample, count: int, seed: int) -> Dictionary:
    from sklearn.decomposition import NMF

    rows = torch.cat([rows for rows, _ in sample.blocks()])
    model = NMF(count, init="nndsvda", random_state=seed_32(seed), max_iter=400, tol=1e-4)
    model.fit(rows.numpy())
    directions = unit(torch.from_numpy(model.components_).float())
    return Dictionary("nmf", directions, torch.zeros(sample.channels))
