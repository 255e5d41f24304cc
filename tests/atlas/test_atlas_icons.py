"""Icons: how well they match their cells, the chance level, whitening, the objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featviz.atlas import cells
from featviz.atlas.cells import cell_means, mean_row, medoids, whiten
from featviz.atlas.grid import Cell, Grid
from featviz.atlas.icons import (
    IconSettings,
    cell_objective,
    match_cells,
    nearest_means,
    read_vectors,
    synthetic_icons,
    vectors_of,
)
from featviz.errors import UserError
from featviz.maximization.settings import settings_for
from featviz.models.layers import activations
from featviz.models.model import Model
from featviz.neighbors.exact import build_index
from featviz.pictures.preprocessing import Preprocessing
from featviz.types import Progress

SHORT = IconSettings(steps=8, batch_size=2)
LINE = Grid(5, tuple(Cell(0, column, (column,)) for column in range(5)))
"""five cells in a row"""


class Painted(nn.Module):
    """Eight ReLU units that look at colors only; then a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)
        axes = torch.cat([torch.eye(3), -torch.eye(3), torch.tensor([[1.0, 1, -1], [-1, 1, 1]])])
        self.conv.weight.data = axes[:, :, None, None].expand(8, 3, 4, 4) / 16
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.relu(self.conv(x)).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def painted() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Painted()
    aliases = {"conv1": "conv", "relu1": "relu", "logits": "head"}
    return Model(
        net, name="painted", preprocessing=Preprocessing.of(16, mean=(0.5,) * 3), aliases=aliases
    )


def test_perfect_icons_match_and_shuffled_ones_match_by_chance(generator: torch.Generator) -> None:
    means = torch.rand(25, 12, generator=generator) + 3
    grid = Grid(5, tuple(Cell(i // 5, i % 5, (i,)) for i in range(25)))
    center = means.mean(0)
    made = match_cells(2 * (means - center) + center, means, center, grid)
    assert (made.own, made.near) == (1, 1)
    assert made.centered == pytest.approx(1)
    chance = match_cells(means, means, center, grid, shuffled=True)
    assert chance.own == 0  # each is nearest to its own cell, so never to another that it is given
    # of the 24 others, the 8 around an inner cell, 5 at an edge, 3 in a corner
    assert chance.near == pytest.approx((9 * 8 + 12 * 5 + 4 * 3) / 25 / 24)
    assert chance.centered == pytest.approx(-1 / 24, abs=0.03)
    noise = torch.rand(25, 12, generator=generator)
    fractions = [
        match_cells(noise[torch.randperm(25, generator=generator)], means, means.mean(0), grid).own
        for _ in range(400)
    ]
    expected = match_cells(noise, means, center, grid, shuffled=True).own
    # 10,000 draws of about 1 in 25: standard deviation .002
    assert sum(fractions) / 400 == pytest.approx(1 / 25, abs=0.01)
    assert expected == pytest.approx(1 / 25, abs=0.003)


def test_a_match_by_hand() -> None:
    means = torch.eye(5)
    center = torch.zeros(5)
    vectors = torch.stack([means[0], means[0], means[4], means[3], means[4]])
    assert nearest_means(vectors, means, center).tolist() == [0, 0, 4, 3, 4]
    found = match_cells(vectors, means, center, LINE)
    assert (found.cosine, found.own) == (0.6, 0.6)
    assert found.near == 0.8  # the second is in the neighbor, the third two squares away
    mixed = match_cells(vectors, means, center, LINE, shuffled=True)
    # of 20 ways to give an icon to another cell, two match: icon 1 to cell 0, icon 2 to cell 4
    assert mixed.own == pytest.approx(2 / 20)


def test_cells_of_an_index_are_those_of_its_rows(generator: torch.Generator) -> None:
    rows = torch.rand(40, 6, generator=generator).half().float()
    grid = Grid(2, (Cell(0, 0, tuple(range(0, 40, 3))), Cell(1, 1, (5, 7, 8))))
    index = build_index(rows)
    assert torch.equal(cell_means(index, grid), cell_means(rows, grid))
    chosen, within = medoids(index, grid)
    assert chosen == medoids(rows, grid)[0]
    torch.testing.assert_close(mean_row(index), rows.mean(0))
    means = cell_means(rows, grid)
    for cell, mean, found in zip(grid.cells, means, within, strict=True):
        each = nn.functional.cosine_similarity(rows[list(cell.members)], mean[None])
        assert float(found) == pytest.approx(float(each.mean()), abs=1e-6)


def test_cells_add_up_to_the_whole(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.rand(60, 5, generator=generator)
    order = torch.randperm(60, generator=generator).tolist()
    grid = Grid(2, tuple(Cell(i // 2, i % 2, tuple(sorted(order[i::4]))) for i in range(4)))
    sizes = torch.tensor([len(cell.members) for cell in grid.cells])
    total = (cell_means(rows, grid) * sizes[:, None]).sum(0) / 60
    torch.testing.assert_close(total, rows.mean(0))
    whole, cosines = medoids(rows, grid)
    assert (cosines <= 1 + 1e-9).all()
    monkeypatch.setattr(cells, "_PIECE", 7)  # cells that are read again
    again = medoids(rows, grid)
    assert again[0] == whole
    torch.testing.assert_close(again[1], cosines)


@pytest.mark.parametrize("count", [5, 60])
def test_whitening_subtracts_the_center(count: int, generator: torch.Generator) -> None:
    data = torch.rand(count, 12, generator=generator)
    center = data.mean(0)
    wanted = torch.randn(3, 12, generator=generator)
    torch.testing.assert_close(
        whiten(wanted, build_index(data), ridge=0.3, center=center),
        whiten(wanted, data - center, ridge=0.3),
        rtol=1e-3,
        atol=1e-4,
    )
    with pytest.raises(UserError, match="without bound"):
        whiten(wanted, data, ridge=0)


def test_a_large_ridge_leaves_a_direction_unchanged(generator: torch.Generator) -> None:
    data = torch.randn(50, 6, generator=generator)
    wanted = nn.functional.normalize(torch.randn(2, 6, generator=generator), dim=1)
    torch.testing.assert_close(whiten(wanted, data, ridge=1e6), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("power", [0.0, 2.0, 4.0])
def test_the_objective_is_the_formula(
    painted: Model, power: float, generator: torch.Generator
) -> None:
    place = painted.layer("relu1")
    means = torch.rand(3, 8, generator=generator)
    drives = torch.randn(3, 8, generator=generator)
    center = torch.rand(8, generator=generator)
    objective = cell_objective(place, means, drives, center, power=power)
    before = torch.randn(2, 8, 4, 4, generator=generator)
    h = torch.where(before > 0, before, 0.1 * before).mean((2, 3)).double() - center
    for row, target in ((0, 2), (1, 0)):
        w = drives[target].double() / drives[target].double().norm()
        v = (means[target] - center).double()
        cosine = h[row] @ v / h[row].norm() / v.norm()
        expected = (h[row] @ (w if cosine > 0.1 else v / v.norm())) * max(0.1, cosine) ** power
        found = objective({"relu1": before}, [2, 0])[row]
        assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_a_map_is_pooled_or_read_in_its_middle(painted: Model) -> None:
    place = painted.layer("conv1")
    for size, middle in ((5, slice(2, 3)), (4, slice(1, 3)), (1, slice(0, 1))):
        values = torch.arange(8.0 * size * size).view(1, 8, size, size)
        found = vectors_of(values, place, pooled=False)
        torch.testing.assert_close(found, values[:, :, middle, middle].mean((2, 3)))
        torch.testing.assert_close(vectors_of(values, place, pooled=True), values.mean((2, 3)))
    flat = torch.rand(2, 8)
    assert vectors_of(flat, place, pooled=True) is flat


def _cells(model: Model, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    colors = 0.4 + 0.3 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1]])
    flat = colors.repeat_interleave(6, 0)[:, :, None, None].expand(-1, -1, 16, 16)
    pictures = (flat + 0.05 * torch.randn(30, 3, 16, 16, generator=generator)).clamp(0, 1)
    data = read_vectors(model, model.layer("relu1"), pictures)
    return data, data.view(5, 6, -1).mean(1)


def test_icons_match_their_cells(painted: Model, generator: torch.Generator) -> None:
    data, means = _cells(painted, generator)
    settings = settings_for(painted, "relu1", steps=120, size=16, precision="float32")
    settings = replace(settings, contrast_weight=0.0, lr=0.5)
    (made,) = synthetic_icons(
        painted,
        "relu1",
        means,
        data=data,
        grids=[LINE],
        samples=data[::6],
        icon=IconSettings(settings=settings, size=16),
    )
    assert made.match is not None
    assert made.shuffled is not None
    assert made.samples is not None
    assert made.match.own == 1
    assert made.shuffled.own == 0
    assert made.match.centered > made.shuffled.centered + 0.5
    assert made.nearest is not None
    assert made.nearest.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.numeric
def test_icons_of_a_batch_do_not_mix(painted: Model, generator: torch.Generator) -> None:
    data, means = _cells(painted, generator)
    pair = Grid(2, (Cell(0, 0, (0,)), Cell(1, 1, (1,))))
    icon = IconSettings(steps=6)
    both = synthetic_icons(
        painted,
        "relu1",
        torch.cat([means, means[:2]]),
        data=data,
        grids=[LINE, pair],
        icon=icon,
    )
    assert [len(part.images) for part in both] == [5, 2]
    (alone,) = synthetic_icons(painted, "relu1", means, data=data, grids=[LINE], icon=icon)
    # six steps, rounded to 8 bits
    torch.testing.assert_close(both[0].images, alone.images, atol=1.01 / 255, rtol=0)


class Enough(Exception):
    """A kill in the middle of the work."""


def test_icons_go_on_where_they_were_stopped(
    painted: Model, generator: torch.Generator, tmp_path: Path
) -> None:
    data, means = _cells(painted, generator)
    whole = synthetic_icons(painted, "relu1", means, data=data, icon=SHORT)[0]

    def stop(done: int, total: int, text: str) -> None:
        assert text == "making icons"
        if done > 2 * 8:
            raise Enough

    folder = tmp_path / "p"
    with pytest.raises(Enough):
        synthetic_icons(
            painted, "relu1", means, data=data, icon=SHORT, checkpoint=folder, progress=stop
        )
    seen: list[int] = []
    again = synthetic_icons(
        painted,
        "relu1",
        means,
        data=data,
        icon=SHORT,
        checkpoint=folder,
        progress=lambda done, total, text: seen.append(done),
    )[0]
    assert seen[0] == 2 * 8
    assert torch.equal(again.images, whole.images)
    longer = IconSettings(steps=9)
    with pytest.raises(UserError, match=r"another (job|command)"):
        synthetic_icons(painted, "relu1", means, data=data, icon=longer, checkpoint=folder)


def test_ctrl_c_keeps_finished_icons(
    painted: Model, generator: torch.Generator, tmp_path: Path
) -> None:
    data, means = _cells(painted, generator)
    seen: list[int] = []

    def stop(done: int, total: int, text: str) -> None:
        if done > 2 * 8:
            raise KeyboardInterrupt

    def icons(progress: Progress) -> None:
        synthetic_icons(
            painted,
            "relu1",
            means,
            data=data,
            icon=SHORT,
            checkpoint=tmp_path / "p",
            progress=progress,
        )

    with pytest.raises(KeyboardInterrupt):
        icons(stop)
    icons(lambda done, total, text: seen.append(done))
    assert seen[0] == 2 * 8


def test_of_several_restarts_the_best_is_kept(painted: Model, generator: torch.Generator) -> None:
    data, means = _cells(painted, generator)
    found = [
        synthetic_icons(painted, "relu1", means, data=data, icon=IconSettings(4, restarts=n))[0]
        for n in (1, 3)
    ]
    place, center = painted.layer("relu1"), mean_row(data)
    whitened = whiten(means - center, data, center=center)
    objective = cell_objective(place, means, whitened, center, power=4)
    with torch.inference_mode():
        one, best = (
            objective({"relu1": activations(painted, icons.images, ["conv1"])["conv1"]})
            for icons in found
        )
    assert (best >= one - 1e-6).all()
    assert (best > one + 1e-6).any()


def test_a_cell_without_a_direction_is_gray(painted: Model) -> None:
    rows = torch.tensor([[1.0] * 8] * 3)
    (made,) = synthetic_icons(
        painted,
        "relu1",
        rows,
        data=rows,
        grids=[Grid(3, tuple(Cell(0, i, (i,)) for i in range(3)))],
        icon=IconSettings(steps=2),
    )
    assert (made.images == 0.5).all()
    assert made.cosines.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"restarts": 0}, {"power": -1.0}, {"ridge": 0.0}, {"batch_size": -1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="it must be a"):
        IconSettings(**wrong)


def test_means_of_another_layer_are_a_mistake(painted: Model) -> None:
    with pytest.raises(UserError, match="which has 8 units"):
        synthetic_icons(painted, "relu1", torch.ones(2, 5))
