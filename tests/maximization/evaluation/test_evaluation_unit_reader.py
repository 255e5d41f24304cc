"""What a data set reaches, against one big table of all its scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featviz.maximization import objectives
from featviz.maximization.evaluation.unit_reader import (
    TOP,
    UnitReader,
    crop_around,
    find_reader,
    score_data,
)
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.models.units import Unit
from featviz.pictures.preprocessing import Preprocessing
from featviz.top_scores import ImageCache


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    return Model(
        net,
        name="small",
        preprocessing=Preprocessing.of(32, mean=(0.5,) * 3, std=(0.25,) * 3),
        aliases={"conv1": "0", "conv2": "2"},
    )


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(70, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def kinds(layer: str) -> list[tuple[objectives.Objective, list[Unit], str]]:
    units = [Unit(layer, 1), Unit(layer, 6)]
    placed = [Unit(layer, 1, (2, 3)), Unit(layer, 6, (0, 1))]
    return [
        (objectives.center(layer, [1, 6]), units, "middle"),
        (objectives.neuron(layer, [1, 6], [(2, 3), (0, 1)]), placed, "position"),
        (objectives.channel(layer, [1, 6]), units, "mean"),
        (objectives.channel(layer, [1, 6], over="max"), units, "max"),
    ]


@pytest.mark.parametrize("side", [24, 26])
@pytest.mark.parametrize("which", range(4))
def test_a_reader_is_recognized_by_its_scores(model: Model, which: int, side: int) -> None:
    objective, units, kind = kinds("conv2")[which]
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    values = activations(model, x, ["conv2"])["conv2"]
    scores = objective({"conv2": values})
    reader = find_reader(objective, values.split(1), units, scores)
    assert reader is not None
    assert reader.kind == kind
    for i, unit in enumerate(units):
        own = reader.own(values[i : i + 1], unit)[unit.index]
        assert own.item() == pytest.approx(scores[i].item(), abs=1e-5)
    # A score that is not a number does not matter for the others.
    one_bad = torch.tensor([math.nan, scores[1].item()])
    assert find_reader(objective, values.split(1), units, one_bad) == reader


def test_a_sum_of_units_has_no_reader(model: Model) -> None:
    objective = objectives.channel("conv2", [1]) - 0.5 * objectives.channel("conv2", [2])
    values = activations(model, torch.rand(1, 3, 32, 32), ["conv2"])["conv2"]
    scores = objective({"conv2": values})
    assert find_reader(objective, [values], [Unit("conv2", 1)], scores) is None


def windows(model: Model, pictures: torch.Tensor, width: int) -> torch.Tensor:
    maps = activations(model, pictures, ["conv2"])["conv2"]
    return F.unfold(maps.flatten(0, 1)[:, None], width).mean(1).view(*maps.shape[:2], -1)


def test_reader_in_bfloat16_finds_the_same_best_scores(
    model: Model, pictures: torch.Tensor
) -> None:
    """The three best pictures are read again in float32: the highest score is exact."""
    objective, reader = objectives.channel("conv2", [1, 6]), UnitReader("mean", 2)
    exact, fast = (
        score_data(
            model,
            model.layer("conv2"),
            objective,
            reader,
            ImageCache(model, pictures),
            [1, 6],
            precision=precision,
        )[0]
        for precision in ("float32", "bfloat16")
    )
    assert torch.allclose(fast.values[[1, 6], 0], exact.values[[1, 6], 0], atol=1e-6)
    assert torch.equal(fast.rows[[1, 6], 0], exact.rows[[1, 6], 0])
    assert torch.equal(fast.positions[[1, 6], 0], exact.positions[[1, 6], 0])
    # Values about 1 are rounded at their ninth bit.
    assert torch.allclose(fast.percentile[[1, 6]], exact.percentile[[1, 6]], atol=2**-8)
    assert torch.allclose(fast.mean, exact.mean, atol=0.01)
    assert (fast.values[:, :-1] >= fast.values[:, 1:]).all()


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_scores_are_the_table_of_all_scores(
    model: Model, pictures: torch.Tensor, width: int
) -> None:
    reader = UnitReader("mean", width)
    objective = objectives.channel("conv2", [1, 6])
    found, peak = score_data(
        model, model.layer("conv2"), objective, reader, ImageCache(model, pictures), [1, 6]
    )
    table = windows(model, pictures, width).detach()  # (N, C, P)
    every = table.transpose(0, 1).flatten(1)
    assert torch.allclose(found.values[:, 0], every.amax(1), atol=1e-5)
    assert torch.allclose(found.mean, every.mean(1), atol=1e-5)
    assert torch.allclose(found.sd, every.std(1, correction=0), atol=1e-4)
    expected = np.percentile(every[[1, 6]].double().numpy(), 99.9, axis=1)
    assert found.percentile[[1, 6]].numpy() == pytest.approx(expected, abs=1e-4)
    assert found.percentile[[0, 2]].isnan().all()  # not requested
    peaks = activations(model, pictures, ["conv2"])["conv2"].amax((0, 2, 3))
    assert torch.allclose(peak, peaks, atol=1e-5)
    # The strongest, one place a picture.
    best, rows = table.amax(2).sort(0, descending=True)
    assert torch.equal(found.rows[6], rows[:TOP, 6])
    assert torch.allclose(found.values[6], best[:TOP, 6], atol=1e-5)
    side = math.isqrt(table.shape[2])
    for unit, k in ((1, 0), (6, 3)):
        y, x = found.positions[unit, k].tolist()
        there = table[found.rows[unit, k], unit, y * side + x]
        assert there.item() == pytest.approx(found.values[unit, k].item(), abs=1e-5)


def test_few_scores_have_no_percentile(model: Model, pictures: torch.Tensor) -> None:
    objective = objectives.channel("logits", [0])
    found, _ = score_data(
        model,
        model.layer("logits"),
        objective,
        UnitReader("value"),
        ImageCache(model, pictures),
        [0],
    )
    assert found.percentile.isnan().all()
    assert found.values[0, 0].item() == pytest.approx(model(pictures)[:, 0].max().item(), abs=1e-5)


def test_any_objective_scores_its_own_targets(model: Model, pictures: torch.Tensor) -> None:
    objective = objectives.channel("conv2", [1, 3]) - 0.5 * objectives.channel("conv1", [2, 4])
    found, _ = score_data(
        model, model.layer("conv2"), objective, None, ImageCache(model, pictures), [0, 1]
    )
    acts = activations(model, pictures, ["conv1", "conv2"])
    for target, (plus, minus) in enumerate(((1, 2), (3, 4))):
        scores = acts["conv2"][:, plus].mean((1, 2)) - 0.5 * acts["conv1"][:, minus].mean((1, 2))
        assert found.values[target, 0].item() == pytest.approx(scores.max().item(), abs=1e-5)


def test_a_cut_has_its_box_in_the_middle_or_is_moved_back() -> None:
    picture = torch.arange(3 * 20 * 20.0).view(3, 20, 20)
    assert torch.equal(crop_around(picture, (6, 8, 10, 12), 8), picture[:, 4:12, 6:14])
    assert torch.equal(crop_around(picture, (-3, 15, 3, 21), 8), picture[:, 0:8, 12:20])
    assert torch.equal(crop_around(picture, None, 8), picture)


def test_the_score_depends_on_the_framed_pixels_alone(model: Model) -> None:
    """The box of a window is its receptive field: gray outside changes nothing, inside it does."""
    reader = UnitReader("middle", 2)
    layer = model.layer("conv2")
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    box = reader.field(layer, (3, 4))
    assert box is not None
    top, left, bottom, right = box
    outside = torch.full_like(x, 0.5)
    outside[..., top:bottom, left:right] = x[..., top:bottom, left:right]

    def score(picture: torch.Tensor) -> torch.Tensor:
        return reader.everywhere(activations(model, picture, ["conv2"])["conv2"])[0, :, 3, 4]

    assert torch.allclose(score(outside), score(x), atol=1e-5)
    edge = x.clone()
    edge[..., top, :] = 0
    edge[..., bottom - 1, :] = 0
    assert (score(edge) - score(x)).abs().max() > 1e-3
