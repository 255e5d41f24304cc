"""Aligned maps: what two spaces share, how maps are laid onto one another, what is drawn."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featviz.atlas.aligned import align_maps
from featviz.atlas.aligned_result import AlignedMaps
from featviz.atlas.colors import position_colors
from featviz.atlas.figures import farthest
from featviz.atlas.layout import LayoutSettings
from featviz.embedding.extract import embed
from featviz.embedding.store import Store
from featviz.errors import UserError
from featviz.models.model import Model
from featviz.results import read_result

QUICK = LayoutSettings(perplexity=10, steps=(40, 60))


@pytest.fixture(scope="module")
def first(mini: Model) -> Store:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(60, 3, 64, 64, generator=generator)
    store = embed(mini, pictures, "logits", labels=["a", "b"] * 30)
    groups = torch.randn(6, store.dim, generator=generator).repeat_interleave(10, 0) * 3
    rows = groups + torch.randn(60, store.dim, generator=generator)
    return replace(store, memory=rows.half().numpy())


def other(store: Store, rows: torch.Tensor) -> Store:
    return replace(store, memory=rows.half().numpy())


def shuffled(store: Store) -> Store:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    return other(store, store.matrix()[order])


@pytest.fixture(scope="module")
def same(first: Store) -> AlignedMaps:
    return align_maps(first, first, layout=QUICK)


def test_a_space_beside_itself_shares_all(same: AlignedMaps) -> None:
    assert (same.shared == 1).all()
    assert same.apart == pytest.approx(0, abs=1e-9)
    assert same.shared_map.mean() > 0.6  # the second started from the first
    assert same.distance < 0.1


def test_a_turned_space_is_the_same_space(first: Store) -> None:
    rows = first.matrix()
    turn = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1]).double())[0]
    found = align_maps(first, other(first, (rows.double() @ turn).float()), layout=QUICK)
    assert found.shared.mean() > 0.97  # float16 moves a neighbor or two
    assert found.distance < 0.1


def test_unrelated_spaces_share_what_chance_shares(first: Store) -> None:
    found = align_maps(first, shuffled(first), layout=QUICK)
    # 600 neighbors, each shared with probability 10/59: standard deviation .015
    assert float(found.shared.mean()) == pytest.approx(10 / 59, abs=0.07)
    assert found.apart > 0.5
    assert found.numbers()["shared by chance"].value == pytest.approx(10 / 59)


def test_a_map_that_starts_from_the_first_is_nearer_to_it(first: Store) -> None:
    rows = first.matrix()
    noisy = other(first, rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(4)))
    begun = align_maps(first, noisy, layout=QUICK)
    laid = align_maps(first, noisy, how="procrustes", layout=QUICK)
    assert laid.distance == laid.apart == pytest.approx(begun.apart)
    assert begun.distance < laid.distance
    assert torch.equal(begun.shared, laid.shared)  # of the spaces, not of the maps


def test_pictures_are_matched_by_their_paths(first: Store) -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2)).tolist()[:50]
    assert first.memory is not None
    mixed = replace(
        first,
        memory=first.memory[order],
        pictures=first.pictures.select(order),
        sizes=first.sizes[order],
    )
    found = align_maps(first, mixed, layout=QUICK, most=40)
    assert len(found.first.rows) == 40
    names = [
        [side.store.pictures.paths[row] for row in side.rows]
        for side in (found.first, found.second)
    ]
    assert names[0] == names[1]
    assert (found.shared == 1).all()
    assert "10 pictures that only one" in found.warnings[0]
    assert "an even sample is shown: 40 of 50" in found.warnings[1]


def test_the_folder_lists_what_moved(same: AlignedMaps, tmp_path: Path) -> None:
    same.save(tmp_path / "a")
    document = read_result(tmp_path / "a")
    assert {f["file"] for f in document["figures"]} == {"aligned.svg", "aligned.pdf"}
    with (tmp_path / "a" / "aligned.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 60
    row = lines[17]
    gap = np.hypot(
        float(row["x_first"]) - float(row["x_second"]),
        float(row["y_first"]) - float(row["y_second"]),
    )
    assert float(row["moved"]) == pytest.approx(float(gap), abs=2e-5)
    both = torch.cat([same.first.xy, same.second.xy])
    assert both.min() >= 0
    assert both.max() <= 1 + 1e-9


def test_colors_of_positions_differ() -> None:
    line = torch.linspace(0, 1, 12)
    xy = torch.stack([line.repeat(12), line.repeat_interleave(12)], 1).double()
    colors = position_colors(xy.numpy())
    assert colors.shape == (144, 3)
    assert colors.min() >= 0
    assert colors.max() <= 1
    corners = colors[[0, 11, 132, 143]]
    gaps = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    assert gaps[~np.eye(4, dtype=bool)].min() > 0.3
    assert np.ptp(colors.reshape(12, 12, 3)[5:7, 5:7].mean((0, 1))) < 0.1  # gray in the middle


def test_the_farthest_come_first() -> None:
    moved = np.zeros(100)
    moved[[7, 30, 2]] = [0.5, 0.9, 0.2]
    assert farthest(moved, 3) == [30, 7, 2]
    assert len(farthest(moved, 40)) == 10
    assert farthest(np.zeros(3), 40) == [0]


def test_mistakes_are_errors_of_one_line(first: Store) -> None:
    with pytest.raises(UserError, match="how is 'lines'; it must be one of"):
        align_maps(first, first, how="lines")  # type: ignore[arg-type]
    assert first.memory is not None
    strange = replace(
        first, pictures=replace(first.pictures, paths=tuple(f"x{i}" for i in range(60)))
    )
    with pytest.raises(UserError, match="0 pictures in common"):
        align_maps(first, strange)
