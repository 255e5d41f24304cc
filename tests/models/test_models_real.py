"""Real weights: the checks that prove them to be what they claim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import featviz
from featviz.data.datasets import batches, open_pictures
from featviz.pictures import images


def lpips(model: featviz.Model, folder: Path, other: str) -> float:
    """LPIPS v0.1 between ex_ref and another picture, by its definition (Zhang et al. 2018)."""
    linear = load_file(folder / "alex_lin.safetensors")
    weights = [linear[name].flatten() for name in sorted(linear)]
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    features = []
    for name in ("ex_ref", other):
        picture = images.read_image(folder / f"{name}.png")[None] * 2 - 1
        normal = (picture - shift) / scale
        # The model normalizes by itself, so it is given what becomes `normal`.
        given = normal * model.std + model.mean
        layers = ["relu1", "relu2", "relu3", "relu4", "relu5"]
        with torch.no_grad():
            found = featviz.activations(model, given, layers)
        features.append([found[la][0] / (found[la][0].norm(dim=0) + 1e-10) for la in layers])
    total = 0.0
    for a, b, weight in zip(*features, weights, strict=True):
        total += float(((a - b).square() * weight[:, None, None]).sum(0).mean())
    return total


def test_the_trunk_gives_the_published_perceptual_distances(shared_data: Path) -> None:
    model = featviz.load("alexnet", weights=shared_data / "alexnet_trunk.safetensors")
    assert model.headless
    # Kernels transposed in space would give .7796 and .0913, colors reversed .7095 and .1547.
    assert lpips(model, shared_data / "lpips_check", "ex_p0") == pytest.approx(0.7219, abs=2e-4)
    assert lpips(model, shared_data / "lpips_check", "ex_p1") == pytest.approx(0.1376, abs=2e-4)


@pytest.mark.slow
def test_squeezenet_is_as_right_as_it_is_said_to_be(shared_data: Path) -> None:
    model = featviz.load(
        "squeezenet1_1",
        weights=shared_data / "squeezenet1_1.safetensors",
        classes=shared_data / "imagenet_classes.txt",
    )
    pictures = open_pictures(shared_data / "imagenet_val").spread(200)
    labels = pictures.labels(model)
    assert None not in labels
    hits = [0, 0]
    for batch in batches(pictures, model.preprocessing):
        with torch.inference_mode():
            best = model(batch.images).topk(5).indices
        for row, guesses in zip(batch.rows, best.tolist(), strict=True):
            hits[0] += labels[row] == guesses[0]
            hits[1] += labels[row] in guesses
    # Its source has 61.0 and 83.3 per cent on 1,000 pictures; 200 have a standard error of 3.5.
    assert hits[0] / 200 == pytest.approx(0.61, abs=0.07)
    assert hits[1] / 200 == pytest.approx(0.833, abs=0.06)
