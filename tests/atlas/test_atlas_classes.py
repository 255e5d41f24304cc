"""Class atlases: attributions of rows and positions to a class, and the result folder."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from featviz.atlas.class_result import ClassAtlas
from featviz.atlas.classes import build_class_atlas, strongest_positions
from featviz.atlas.icons import IconSettings
from featviz.atlas.layout import LayoutSettings
from featviz.embedding.extract import embed
from featviz.embedding.store import Store
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.results import read_result

QUICK = LayoutSettings(perplexity=20.0, steps=(40, 60))
ICONS = IconSettings(steps=3)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Blurred spots of color."""
    spots = torch.rand(32, 3, 7, 7, generator=torch.Generator().manual_seed(5))
    return nn.functional.interpolate(spots, (64, 64), mode="bilinear")


@pytest.fixture(scope="module")
def target(mini: Model, pictures: torch.Tensor) -> int:
    """The class with the highest mean logit."""
    with torch.inference_mode():
        return int(mini(pictures).mean(0).argmax())


@pytest.fixture(scope="module")
def store(mini: Model, pictures: torch.Tensor, target: int) -> Store:
    return embed(mini, pictures, "relu7", labels=[mini.synsets[target]] * 10 + ["other"] * 22)


@pytest.fixture(scope="module")
def favorite(mini: Model, store: Store, target: int) -> ClassAtlas:
    return build_class_atlas(mini, store, target, side=3, icon=ICONS, layout=QUICK)


def test_behind_the_last_relu_the_attribution_is_that_of_the_head(
    mini: Model, store: Store, favorite: ClassAtlas, target: int
) -> None:
    head = mini.net.get_submodule(mini.layer("logits").path)
    assert isinstance(head, nn.Linear)
    weight = head.weight.detach()
    number = target
    expected = store.matrix() @ (weight[number] - weight.mean(0))
    kept = torch.nonzero(expected > 0).flatten()
    paths = [store.pictures.paths[row] for row in kept.tolist()]
    assert list(favorite.atlas.store.pictures.paths) == paths
    torch.testing.assert_close(favorite.attributions, expected[kept], atol=1e-4, rtol=1e-4)
    # and the attribution of a cell's mean is the mean of those of its members
    for cell, found in zip(favorite.level.grid.cells, favorite.cell_attributions, strict=True):
        torch.testing.assert_close(
            found, favorite.attributions[list(cell.members)].mean(), atol=1e-3, rtol=1e-3
        )


def test_cells_add_up_to_the_whole(favorite: ClassAtlas) -> None:
    sizes = torch.tensor([len(cell.members) for cell in favorite.level.grid.cells])
    whole = float((favorite.cell_attributions * sizes).sum() / sizes.sum())
    assert favorite.numbers()["attribution"].value == pytest.approx(whole, rel=1e-3)
    assert int(sizes.sum()) == len(favorite.attributions)


def test_the_strongest_position_is_found(mini: Model, pictures: torch.Tensor, target: int) -> None:
    number = target
    vectors, places, found = strongest_positions(mini, "relu5", pictures[:3], number)
    maps = activations(mini, pictures[:3], ["relu5"])["relu5"].detach()
    for row in range(3):
        y, x = places[row].tolist()
        torch.testing.assert_close(vectors[row], maps[row, :, y, x])
        # its effect by finite differences: that position a little stronger
        from featviz.models.rest import logits_from

        def margin(values: torch.Tensor) -> float:
            logits = logits_from(mini, mini.layer("relu5"), values)[0].double()
            return float(logits[number] - logits.mean())

        changed = maps[row : row + 1].clone()
        changed[0, :, y, x] *= 1.001
        rise = (margin(changed) - margin(maps[row : row + 1])) / 0.001
        assert float(found[row]) == pytest.approx(rise, rel=0.05, abs=0.02)
        changed = maps[row : row + 1].clone()
        far = (y + 2) % maps.shape[2]
        changed[0, :, far, x] *= 1.001
        other = (margin(changed) - margin(maps[row : row + 1])) / 0.001
        assert other <= rise + 0.02


def test_of_a_map_each_picture_gives_one_position(
    mini: Model, pictures: torch.Tensor, target: int
) -> None:
    pooled = embed(mini, pictures, "relu5", labels=[mini.synsets[target]] * 32)
    found = build_class_atlas(
        mini, pooled, target, among="class", side=3, icons="sample", layout=QUICK
    )
    assert len(found.attributions) == 32
    positions = found.atlas.store.positions
    assert positions is not None
    assert positions.shape == (32, 2)
    _, places, each = strongest_positions(mini, "relu5", pictures, found.target)
    assert np.array_equal(positions, places.numpy())
    torch.testing.assert_close(found.attributions, each, atol=1e-5, rtol=1e-5)
    assert found.in_class.all()
    # a thumbnail shows what the position sees
    seen = found.atlas.store.crop(0)
    field = mini.layer("relu5").receptive_field
    assert field is not None
    assert seen.shape[1:] == tuple(field.size)
    assert found.icon_logits is None
    assert "icon correlation" not in found.numbers()


def test_the_folder_shows_cells_and_rows(
    mini: Model, favorite: ClassAtlas, target: int, tmp_path: Path
) -> None:
    name = mini.class_name(target)
    favorite.save(tmp_path / "c")
    document = read_result(tmp_path / "c")
    assert document["title"].startswith(f"Class atlas of {name}: relu7")
    files = {figure["file"] for figure in document["figures"]}
    assert files >= {"class.svg", "class.pdf", "cells-3.webp"}
    with (tmp_path / "c" / "class_cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [float(c["attribution"]) for c in cells] == pytest.approx(
        favorite.cell_attributions.tolist(), abs=1e-4
    )
    assert name in " ".join(c["effects"] for c in cells)
    with (tmp_path / "c" / "class_rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(favorite.attributions)
    assert -1 <= document["numbers"]["icon correlation"]["value"] <= 1
    assert document["parameters"]["class"] == name


def test_mistakes_are_errors_of_one_line(mini: Model, store: Store) -> None:
    with pytest.raises(UserError, match="no class 'golden retreiver'"):
        build_class_atlas(mini, store, "golden retreiver")
    with pytest.raises(UserError, match="among is 'some'; it must be one of"):
        build_class_atlas(mini, store, 0, among="some")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="too few for a map: 0 pictures of"):
        build_class_atlas(mini, store, "tarantula", among="class")
