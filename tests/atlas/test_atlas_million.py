"""recipes/made_up_rows.py: rows that can be made again in parts, and are like real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up_rows import Structure, describe, fit, made_up, network
from torch import Tensor

import featviz
from featviz.data.datasets import Pictures


@pytest.fixture(scope="module")
def real() -> tuple[Tensor, list[str]]:
    """Rows of 30 classes before their ReLU, most values below zero."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn(20, 64, generator=generator) * torch.linspace(2, 0.1, 20)[:, None]
    owns = torch.arange(900) % 30
    means = torch.randn(30, 20, generator=generator)
    hidden = means[owns] + 0.6 * torch.randn(900, 20, generator=generator)
    rows = hidden @ axes + 0.3 * torch.randn(900, 64, generator=generator) - 3
    return rows, [f"class {own}" for own in owns.tolist()]


def rows_of(data: Pictures, structure: Structure) -> Tensor:
    model = network(structure)
    return featviz.embed(model, data, "relu7", precision="float32").matrix()


def test_any_part_of_the_rows_can_be_made_alone(real: tuple[Tensor, list[str]]) -> None:
    structure = fit(*real)
    data = made_up(1000, structure)
    whole = rows_of(data, structure)
    some = [512, 513, 990, 7]
    part = rows_of(data.select(some), structure)
    torch.testing.assert_close(part, whole[some], rtol=2e-3, atol=1e-3)
    assert torch.equal(rows_of(data, structure), whole)
    assert data.state != made_up(1000, structure, seed=1).state
    later = rows_of(made_up(1000, structure, first=1000), structure)
    assert not bool((later[:, None] == whole[None, :50]).all(2).any())


def test_made_up_rows_are_spread_as_the_real_ones(
    real: tuple[Tensor, list[str]], tmp_path: Path
) -> None:
    structure = fit(*real)
    structure.save(tmp_path / "structure.npz")
    structure = Structure.load(tmp_path / "structure.npz")
    data = made_up(30_000, structure).select(range(900))
    want = describe(real[0].relu(), real[1])
    found = describe(rows_of(data, structure), data.folders)
    assert found["zeros"] == pytest.approx(want["zeros"], abs=0.05)
    assert found["effective axes"] == pytest.approx(want["effective axes"], rel=0.25)
    assert found["variance in 10 axes"] == pytest.approx(want["variance in 10 axes"], abs=0.1)
    assert found["distance to neighbor 10"] == pytest.approx(
        want["distance to neighbor 10"], rel=0.3
    )
