"""Class atlases: what rows and positions say for a class, and the folder that shows it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from featviz.atlas.classes import (
    ClassAtlas,
    build_class_atlas,
    colour_of,
    strongest,
)
from featviz.embedding.extract import embed
from featviz.embedding.store import Store
from featviz.errors import UserError
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.results import read_result

QUICK = {"iterations": (40, 60), "icon_steps": 3}


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Blurred spots of colour."""
    spots = torch.rand(32, 3, 7, 7, generator=torch.Generator().manual_seed(5))
    return nn.functional.interpolate(spots, (64, 64), mode="bilinear")


@pytest.fixture(scope="module")
def target(mini: Model, pictures: torch.Tensor) -> int:
    """The class that most of them argue for."""
    with torch.inference_mode():
        return int(mini(pictures).mean(0).argmax())


@pytest.fixture(scope="module")
def store(mini: Model, pictures: torch.Tensor, target: int) -> Store:
    return embed(mini, pictures, "relu7", labels=[mini.synsets[target]] * 10 + ["other"] * 22)


@pytest.fixture(scope="module")
def favourite(mini: Model, store: Store, target: int) -> ClassAtlas:
    return build_class_atlas(mini, store, target, side=3, **QUICK)


def test_behind_the_last_relu_rows_say_what_the_head_says(
    mini: Model, store: Store, favourite: ClassAtlas, target: int
) -> None:
    head = mini.net.get_submodule(mini.layer("logits").path)
    weight = head.weight.detach()
    number = target
    said = store.matrix() @ (weight[number] - weight.mean(0))
    kept = torch.nonzero(said > 0).flatten()
    paths = [store.pictures.paths[row] for row in kept.tolist()]
    assert list(favourite.atlas.store.pictures.paths) == paths
    torch.testing.assert_close(favourite.arguments, said[kept], atol=1e-4, rtol=1e-4)
    # and what a cell's mean says is the mean of what its members say
    for cell, found in zip(favourite.level.grid.cells, favourite.cells, strict=True):
        torch.testing.assert_close(
            found, favourite.arguments[list(cell.members)].mean(), atol=1e-3, rtol=1e-3
        )


def test_cells_add_up_to_the_whole(favourite: ClassAtlas) -> None:
    sizes = torch.tensor([len(cell.members) for cell in favourite.level.grid.cells])
    whole = float((favourite.cells * sizes).sum() / sizes.sum())
    assert whole == pytest.approx(float(favourite.numbers()["argument"].value), rel=1e-3)
    assert int(sizes.sum()) == len(favourite.arguments)


def test_the_strongest_position_is_found(mini: Model, pictures: torch.Tensor, target: int) -> None:
    number = target
    vectors, places, said = strongest(mini, "relu5", pictures[:3], number)
    maps = activations(mini, pictures[:3], ["relu5"])["relu5"].detach()
    for row in range(3):
        y, x = places[row].tolist()
        torch.testing.assert_close(vectors[row], maps[row, :, y, x])
        # its effect by finite differences: that position a little stronger
        from featviz.atlas.effects import logits_from

        def margin(values: torch.Tensor) -> float:
            logits = logits_from(mini, mini.layer("relu5"), values)[0].double()
            return float(logits[number] - logits.mean())

        changed = maps[row : row + 1].clone()
        changed[0, :, y, x] *= 1.001
        rise = (margin(changed) - margin(maps[row : row + 1])) / 0.001
        assert float(said[row]) == pytest.approx(rise, rel=0.05, abs=0.02)
        changed = maps[row : row + 1].clone()
        far = (y + 2) % maps.shape[2]
        changed[0, :, far, x] *= 1.001
        other = (margin(changed) - margin(maps[row : row + 1])) / 0.001
        assert other <= rise + 0.02


def test_of_a_map_each_picture_gives_one_position(
    mini: Model, pictures: torch.Tensor, target: int
) -> None:
    pooled = embed(mini, pictures, "relu5", labels=[mini.synsets[target]] * 32)
    found = build_class_atlas(mini, pooled, target, among="class", side=3, icons="sample", **QUICK)
    assert len(found.arguments) == 32
    positions = found.atlas.store.positions
    assert positions is not None
    assert positions.shape == (32, 2)
    _, places, said = strongest(mini, "relu5", pictures, found.target)
    assert np.array_equal(positions, places.numpy())
    torch.testing.assert_close(found.arguments, said, atol=1e-5, rtol=1e-5)
    assert found.own.all()
    # a thumbnail shows what the position sees
    seen = found.atlas.store.crop(0)
    assert seen.shape[1:] == tuple(mini.layer("relu5").receptive_field.size)
    assert found.said is None
    assert "icons agree" not in found.numbers()


def test_the_folder_shows_cells_and_rows(
    mini: Model, favourite: ClassAtlas, target: int, tmp_path: Path
) -> None:
    name = mini.class_name(target)
    favourite.save(tmp_path / "c")
    document = read_result(tmp_path / "c")
    assert document["title"].startswith(f"What argues for {name} in relu7")
    files = {figure["file"] for figure in document["figures"]}
    assert files >= {"class.png", "class.pdf", "cells-3.jpg"}
    with (tmp_path / "c" / "class_cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [float(c["argument"]) for c in cells] == pytest.approx(
        favourite.cells.tolist(), abs=1e-4
    )
    assert name in " ".join(c["effects"] for c in cells)
    with (tmp_path / "c" / "class_rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(favourite.arguments)
    assert -1 <= document["numbers"]["icons agree"]["value"] <= 1
    assert document["parameters"]["class"] == name


def test_the_scale_has_a_true_zero() -> None:
    for_it, nothing, against = (colour_of(value) for value in (1.0, 0.0, -1.0))
    assert for_it[1] > max(for_it[0], for_it[2])
    assert max(nothing) - min(nothing) < 0.02
    assert against[1] < min(against[0], against[2])


def test_mistakes_are_said_in_one_line(mini: Model, store: Store) -> None:
    with pytest.raises(UserError, match="no class 'golden retreiver'"):
        build_class_atlas(mini, store, "golden retreiver")
    with pytest.raises(UserError, match="unknown pictures"):
        build_class_atlas(mini, store, 0, among="some")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"0 pictures of .* are too few"):
        build_class_atlas(mini, store, "tarantula", among="class")
