"""One picture in a layer: attributions add up, groups are where they are, icons are sized."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import featviz
from featviz.concepts.dictionary import Dictionary
from featviz.concepts.grid import neuron_groups
from featviz.concepts.grid_result import ActivationGrid
from featviz.data.samples import sample_pictures
from featviz.errors import UserError
from featviz.models.model import Model


@pytest.fixture(scope="module")
def picture(mini: Model) -> Tensor:
    return sample_pictures().read(0, mini.preprocessing)


@pytest.fixture(scope="module")
def grid(mini: Model, picture: Tensor) -> ActivationGrid:
    return featviz.activation_grid(mini, picture, "relu5", groups=4, cells=2, steps=1)


def test_concepts_and_rest_and_positions_add_up_to_gradient_times_activation(
    grid: ActivationGrid, mini: Model, picture: Tensor
) -> None:
    by = grid.attribution
    assert by is not None
    scale = float(by.total.abs().max())
    torch.testing.assert_close(by.concepts.sum(1) + by.rest, by.total, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(by.positions.sum((1, 2)), by.total, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(by.logits, mini(picture[None])[0].topk(5).values)


def test_gradient_times_activation_of_the_last_vector_is_the_logit_less_its_bias() -> None:
    """Behind a global mean of a linear head, the positions are the class activation map."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    model = featviz.wrap(net, input_size=10)
    found = featviz.activation_grid(
        model, torch.rand(3, 10, 10), "1", groups=2, cells=1, steps=1, classes=[0, 1, 2, 3]
    )
    by, head = found.attribution, net[4]
    assert by is not None
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(by.total + head.bias.detach(), by.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by.concepts, by.removal, rtol=1e-3, atol=1e-5)


def test_the_icon_of_the_strongest_position_is_largest(grid: ActivationGrid) -> None:
    assert grid.cells.shape == (2, 2)
    assert [divmod(number, 7) for number in grid.cells.flatten().tolist()] == [
        (1, 1),
        (1, 5),
        (5, 1),
        (5, 5),
    ]
    best = grid.spots[0]
    assert grid.strength[best.y, best.x] == grid.strength.max()
    values = [value for _, value in best.units]
    assert values == sorted(values, reverse=True)


def test_groups_of_planted_parts_are_these_parts() -> None:
    """Rows that are one of three directions each, in any strength."""
    random = torch.Generator().manual_seed(0)
    directions = torch.zeros(3, 12)
    for i in range(3):
        directions[i, 4 * i : 4 * i + 4] = torch.rand(4, generator=random) + 0.1
    directions /= directions.norm(dim=1, keepdim=True)
    which = torch.arange(49) % 3
    rows = directions[which] * (1 + torch.rand(49, 1, generator=random))
    found = neuron_groups(rows, 3, 0)
    cosines = found.directions @ directions.T
    assert cosines.amax(1).min() > 0.95
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2]


def test_a_grid_is_saved_with_the_pages_that_it_belongs_to(
    grid: ActivationGrid, tmp_path: Path
) -> None:
    grid.save(tmp_path / "grid")
    table = grid.to_pandas("attribution")
    by = grid.attribution
    assert by is not None
    assert set(table.unit) == {f"logits:{index}" for index in by.targets}
    first = table[table.unit == f"logits:{by.targets[0]}"].set_index("name").gradient
    parts = first.drop("total").sum()
    assert parts == pytest.approx(first["total"], abs=1e-4)


def test_concepts_of_a_store_take_the_place_of_groups(mini: Model, picture: Tensor) -> None:
    store = featviz.embed(mini, picture[None].expand(8, -1, -1, -1), "relu5", positions=8)
    concepts = featviz.find_concepts(store, count=2)
    found = featviz.activation_grid(mini, picture, "relu5", concepts=concepts, cells=1, steps=1)
    assert found.concepts == concepts.names
    other = replace(concepts, layer="relu4")
    with pytest.raises(UserError, match="concepts are of relu4"):
        featviz.activation_grid(mini, picture, "relu5", concepts=other)


def test_layers_without_a_grid_are_refused(mini: Model, picture: Tensor) -> None:
    with pytest.raises(UserError, match="fc7 has no rows and columns"):
        featviz.activation_grid(mini, picture, "fc7")


def test_below_zero_nothing_is_grouped(mini: Model, picture: Tensor) -> None:
    found = featviz.activation_grid(mini, picture, "conv5", groups=2, cells=1, steps=1)
    assert any("below zero" in text for text in found.warnings)
    assert bool((found.maps >= 0).all())
    assert isinstance(neuron_groups(torch.randn(9, 5), 20, 0), Dictionary)
